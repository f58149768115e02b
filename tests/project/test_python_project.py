"""What ``tune()`` takes and what it refuses, before the first trial."""

import json
import threading
from datetime import UTC, datetime, timedelta
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import toy_project as toy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp import retune, tune
from lightning_hp.commands.status import status_command
from lightning_hp.project.python_builder import PythonBuilder
from lightning_hp.project.python_project import data_of, signature_of
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.storage import StudyError

RATE = {"learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log"}}
START = datetime(2026, 1, 1, tzinfo=UTC)
TRAINER = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}


class WithLock(toy.ToyData):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class LockedCallback(pl.Callback):
    def __init__(self):
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (toy.Toy(), toy.ToyData, "`module` must be a class or a function .*got an instance of Toy.*pass the class Toy"),
        ("Toy", toy.ToyData, "`module` must be a class or a function .*got 'Toy'"),
        (toy.Toy, [1, 2], "`datamodule` must be a LightningDataModule.*loaders go to `train_dataloaders`"),
        (
            toy.Toy,
            WithLock(),
            "`datamodule` must be something that every trial can have a copy of.*pass the class",
        ),
    ],
)
def test_what_cannot_be_made_again_is_refused(module, data, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        tune(module, data, RATE, folder=tmp_path / "s", max_epochs=1)
    assert not (tmp_path / "s").exists(), "nothing has begun"


def loaders_of(batch_size=4, as_kind=tuple):
    data = toy.ToyData()
    rows = data.train_dataloader().dataset
    train, val = DataLoader(rows, batch_size=batch_size), data.val_dataloader()
    return {tuple: (train, val), dict: {"train": train, "val": val}, DataLoader: train, list: [train, val]}[as_kind]


@pytest.mark.parametrize("kind", [tuple, dict])
def test_a_function_that_makes_loaders_is_data(kind, tmp_path):
    """What a script with a `get_loaders(batch_size)` has; its arguments are searched."""
    made = []

    def get_loaders(batch_size=4):
        loaders = loaders_of(batch_size, kind)
        made.append(loaders)
        return loaders

    space = {"batch_size": {"choices": [2, 4]}}
    result = tune(
        toy.Toy, get_loaders, space, folder=tmp_path / "s", trials=2, max_epochs=1, trainer=TRAINER, engine="in_process"
    )
    assert result.arguments.keys() == {"batch_size"}
    trained = [next(iter(loaders.values() if kind is dict else loaders)).batch_size for loaders in made[:2]]
    assert trained == [trial.params["batch_size"] for trial in result.study.trials]
    assert result.validation["val_loss"] == result.value


def test_a_single_loader_is_for_training():
    module = data_of(loaders_of(8, DataLoader))
    assert module.train_dataloader().batch_size == 8
    assert not is_overridden("val_dataloader", module)


@pytest.mark.parametrize("made", [[1, 2], (), (1, 2, 3, 4), {"val": 1}, {"train": 1, "valid": 2}, None])
def test_a_function_that_makes_something_else_is_refused(made, tmp_path):
    with pytest.raises(
        ConfigError, match=r"`datamodule` must make a LightningDataModule, or loaders as \(train, val\)"
    ):
        tune(toy.Toy, lambda: made, RATE, folder=tmp_path / "s", trials=1, max_epochs=1, trainer=TRAINER)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (3, "`trainer` must be a mapping of the Trainer's arguments, got 3"),
        ({"callbacks": [LockedCallback()]}, r"`trainer\['callbacks'\]` must be something that every trial can have"),
    ],
)
def test_trainer_arguments_that_are_refused(trainer, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        tune(toy.Toy, toy.ToyData, RATE, folder=tmp_path / "s", trainer=trainer, max_epochs=1)


def test_a_trainer_is_refused_with_what_to_write(tmp_path):
    trainer = pl.Trainer(**TRAINER, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(ConfigError, match=r"`trainer` must be a mapping .*got a Trainer; every trial needs one"):
        tune(toy.Toy, toy.ToyData, RATE, folder=tmp_path / "s", trainer=trainer, max_epochs=1)


def test_loaders_of_ones_own(tmp_path):
    rows = DataLoader(TensorDataset(torch.zeros(8, 3)), batch_size=4)
    result = tune(
        toy.Toy, space=RATE, folder=tmp_path / "s", trials=2, max_epochs=1, trainer=TRAINER, progress=False,
        train_dataloaders=rows, val_dataloaders=rows, test_dataloaders=rows,
    )  # fmt: skip
    assert set(result.validation) == {"val_loss"}
    assert set(result.test) == {"test_loss"}
    with pytest.raises(ConfigError, match="`datamodule` must be None where `train_dataloaders` is given"):
        tune(toy.Toy, toy.ToyData, RATE, folder=tmp_path / "t", max_epochs=1, train_dataloaders=rows)


def test_a_module_without_validation_has_no_such_metrics_and_nothing_is_missing(tmp_path, capsys):
    class Training(toy.Toy):
        validation_step = pl.LightningModule.validation_step

        def training_step(self, batch, batch_idx):
            self.log("train_loss", self.loss(), on_epoch=True)
            return super().training_step(batch, batch_idx)

    class Data(toy.ToyData):
        val_dataloader = pl.LightningDataModule.val_dataloader

    options = {"trials": 1, "max_epochs": 1, "trainer": TRAINER, "monitor": "train_loss"}
    result = tune(Training, Data, RATE, folder=tmp_path / "s", **options)
    assert result.validation == {}
    assert set(result.test) == {"test_loss"}
    assert "no validation" not in capsys.readouterr().err


def test_arguments_of_the_trainer_are_searched(tmp_path):
    seen = []

    class Seeing(toy.Toy):
        def on_fit_start(self):
            seen.append(self.trainer.gradient_clip_val)

    space = {**RATE, "trainer.gradient_clip_val": {"low": 0.1, "high": 10.0, "scale": "log", "tier": "A"}}
    options = {"trials": 3, "max_epochs": 1, "prune": False, "progress": False}
    tune(Seeing, toy.ToyData, space, folder=tmp_path / "s", trainer={**TRAINER, "gradient_clip_val": 0.5}, **options)
    assert seen[0] == 0.5, "trial 0 is the project as it is"
    assert len(set(seen)) == 3
    assert all(0.1 <= value <= 10.0 for value in seen)


def test_the_modules_own_defaults_are_trial_0(tmp_path):
    result = tune(
        toy.Toy, toy.ToyData, RATE, folder=tmp_path / "s", trials=1, max_epochs=1, trainer=TRAINER, progress=False
    )
    assert result.arguments == {"learning_rate": 0.1}


def test_another_project_under_the_same_name_is_noticed(tmp_path):
    class Other(toy.Toy):
        pass

    options = {"folder": tmp_path / "s", "trials": 1, "max_epochs": 1, "trainer": TRAINER, "progress": False}
    tune(toy.Toy, toy.ToyData, RATE, **options)
    with pytest.raises(StudyError, match=r"tuned with another project: module\.name was '.*Toy', is '.*Other'"):
        tune(Other, toy.ToyData, RATE, **options)
    with pytest.raises(StudyError, match="the length of a training was max_epochs 1, is max_epochs 2"):
        tune(toy.Toy, toy.ToyData, RATE, **{**options, "max_epochs": 2})
    with pytest.raises(StudyError, match=r"trainer\.precision was not set, is '64-true'"):
        tune(toy.Toy, toy.ToyData, RATE, **{**options, "trainer": {**TRAINER, "precision": "64-true"}})
    assert len(tune(toy.Toy, toy.ToyData, RATE, **{**options, "trials": 2}).study.trials) == 2


def test_an_accepted_change_trains_the_best_again_and_reports_what_was_trained(tmp_path):
    class Worse(toy.Toy):
        def loss(self):
            return super().loss() + 10

    options = {"folder": tmp_path / "s", "max_epochs": 1, "trainer": TRAINER, "progress": False, "prune": False}
    before = tune(toy.Toy, toy.ToyData, RATE, trials=3, **options)
    after = tune(Worse, toy.ToyData, RATE, trials=3, accept_changes=True, **options)
    assert after.trial == 3, "the old winner's value belongs to another project"
    assert after.natural == before.natural
    assert after.value == pytest.approx(before.value + 10, abs=1e-2)
    assert after.value == after.study.trials[after.trial].value
    further = tune(Worse, toy.ToyData, RATE, trials=6, **options)
    assert further.trial >= 3
    assert len(further.study.trials) == 6


def test_signatures_do_not_hold_addresses():
    """Two processes must see one signature: nothing in it may come from an address in memory."""
    first, second = (signature_of(partial(toy.Toy, faults=object()), set()) for _ in range(2))
    assert first == second
    assert first["name"].endswith("toy_project.Toy")
    assert signature_of(partial(toy.Toy, momentum=0.5), set()) != signature_of(toy.Toy, set())
    assert signature_of(partial(toy.Toy, momentum=0.5), {"momentum"}) == signature_of(toy.Toy, {"momentum"})
    assert signature_of(None, set()) is None


def test_defaults_are_those_of_module_data_and_trainer():
    builder = PythonBuilder(toy.Toy, toy.ToyData, {"gradient_clip_val": 3.0})
    keys = ["learning_rate", "batch_size", "trainer.gradient_clip_val", "trainer.max_time"]
    assert builder.defaults(keys) == {"learning_rate": 0.1, "batch_size": 4, "trainer.gradient_clip_val": 3.0}
    assert {"learning_rate", "momentum", "batch_size"} <= set(builder.takes())


def test_a_study_of_python_classes_is_retuned_from_python(tmp_path, capsys):
    """What `status` says to do is something that can be done."""
    folder = tmp_path / "s"
    options = {"trainer": TRAINER, "progress": False}
    tuned = tune(toy.Toy, toy.ToyData, RATE, folder=folder, trials=4, max_epochs=2, prune=False, now=START, **options)
    assert status_command([folder], json=True, now=START + timedelta(days=31)) == 3
    advice = json.loads(capsys.readouterr().out)["tuned"][0]["todo"]
    assert advice == f"in the script that tuned it: lightning_hp.retune({str(folder)!r}, ...)"

    retuned = retune(folder, toy.Toy, toy.ToyData, neighbours=0, now=START + timedelta(days=31), **options)
    assert retuned.test.confirmed
    assert retuned.test.now == pytest.approx(tuned.value, abs=1e-12)
    assert status_command([folder], now=START + timedelta(days=32)) == 0


def test_restart_moves_the_old_study_aside(tmp_path):
    class Other(toy.Toy):
        pass

    options = {"folder": tmp_path / "s", "trials": 2, "max_epochs": 1, "trainer": TRAINER, "progress": False}
    before = tune(toy.Toy, toy.ToyData, RATE, **options)
    with pytest.raises(StudyError, match=r"`--restart` \(`restart=True` in Python\).*`accept_changes=True`"):
        tune(Other, toy.ToyData, RATE, **options)
    assert len(tune(Other, toy.ToyData, RATE, restart=True, **options).study.trials) == 2
    old = before.checkpoint.relative_to(tmp_path / "s")
    assert (tmp_path / "s.old-1" / old).is_file(), "nothing is deleted"
