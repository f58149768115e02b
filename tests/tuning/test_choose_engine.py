"""The engine ``auto``: what it chooses, why, and that a study is the same one as with that engine by name."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from optuna.trial import TrialState
from torch import nn
from torch.nn import functional

from lightning_hp.project.build import PythonBuilder
from lightning_hp.training import BatchNormClassifier, DigitsDataModule
from lightning_hp.tuning import choose_engine
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.listener import SilentListener
from lightning_hp.tuning.tune import tune
from lightning_hp.tuning.workers.joining import join

TRAINER = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "logger": False, "enable_progress_bar": False}
SPACE = {
    "learning_rate": {"low": 1e-3, "high": 0.5, "scale": "log", "tier": "A", "default": 0.05},
    "hidden_units": {"low": 4, "high": 12, "tier": "A", "default": 8},
}


class Digits(DigitsDataModule):
    def __init__(self, batch_size: int = 256):
        super().__init__(batch_size)


class Plain(pl.LightningModule):
    """Any user's module."""

    def __init__(self, learning_rate=0.1, hidden_units=8):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, hidden_units), nn.ReLU(), nn.Linear(hidden_units, 10))

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate)


class Watching(Plain):
    def on_train_epoch_end(self):
        assert self.trainer.current_epoch >= 0


class Own(pl.Callback):
    """A user's callback."""


@pytest.fixture(autouse=True)
def said(monkeypatch):
    """What the runner says."""
    from lightning_hp.tuning.runner import StudyRunner

    lines = []
    monkeypatch.setattr(StudyRunner, "say", lambda self, text: lines.append(text))
    return lines


def study(studies, name="digits", module=Plain, trainer=None, data=Digits, **options):
    given = {"trials": 6, "max_epochs": 2, "prune": False, "engine": "auto", "progress": False, **options}
    where = {"name": name, "folder": studies.folder / name, "trainer": {**TRAINER, **(trainer or {})}}
    return tune(module, data, SPACE, **where, **given)


@pytest.fixture
def fast(monkeypatch):
    """Steps of a stack that cost a tenth of a Trainer's, whatever this machine is doing."""
    monkeypatch.setattr(choose_engine, "step_seconds", lambda stack, kept: (1e-4, 5e-4))


@pytest.mark.parametrize("module", [Plain, BatchNormClassifier])
def test_a_module_that_can_be_stacked_is(studies, said, fast, module):
    study(studies, module=module)
    assert said[0] == (
        "engine stacked: up to 2 trials of one structure are trained together (0.1 ms a step instead of 1 ms)"
    )
    assert all("cohort" in t.user_attrs for t in studies.trials("digits"))
    study(studies, "named", module=module, engine="stacked")
    auto, named = studies.trials("digits"), studies.trials("named")
    assert [(t.params, t.value, t.user_attrs["seed"]) for t in auto] == [
        (t.params, t.value, t.user_attrs["seed"]) for t in named
    ]


@pytest.mark.parametrize(
    ("module", "trainer", "reason"),
    [
        (Watching, {}, "Watching overrides on_train_epoch_end, which needs a Trainer"),
        (Plain, {"callbacks": [Own()]}, "the callback Own needs a Trainer"),
        (
            Plain,
            {"callbacks": [ModelCheckpoint(save_last=True)]},
            "the project's ModelCheckpoint writes its checkpoints in a Trainer only",
        ),
    ],
)
def test_what_needs_a_trainer_is_trained_by_one_as_without_auto(studies, said, fast, module, trainer, reason):
    study(studies, module=module, trainer=trainer)
    assert said == [f"engine in_process: {reason}"]
    said.clear()
    study(studies, "named", module=module, trainer=trainer, engine="in_process")
    auto, named = studies.trials("digits"), studies.trials("named")
    assert [t.state for t in auto] == [TrialState.COMPLETE] * 6
    assert [(t.params, t.value) for t in auto] == [(t.params, t.value) for t in named]
    assert not any("cohort" in t.user_attrs for t in auto)


def test_a_logger_of_the_projects_own_is_told_every_step(studies, said, fast):
    study(studies, trainer={"logger": CSVLogger(str(studies.folder)), "log_every_n_steps": 1})
    assert said == ["engine in_process: the project's logger (CSVLogger) is told every step by a Trainer only"]


def test_what_does_not_pay_is_not_stacked(studies, said, monkeypatch):
    monkeypatch.setattr(choose_engine, "step_seconds", lambda stack, kept: (0.05, 0.06))
    study(studies)
    assert said == ["engine in_process: a step of one model costs 50 ms in a stack, and 60 ms alone"]


def test_a_large_model_is_not_built_many_times(studies, said, monkeypatch):
    monkeypatch.setattr(choose_engine, "_LARGE", 100)
    study(studies, module=BatchNormClassifier)  # has no weights before it sees its data
    monkeypatch.setattr(choose_engine, "step_seconds", lambda stack, kept: (1e-4, 5e-4))
    said.clear()
    study(studies, "large")
    assert said == ["engine in_process: a model of 0 MB keeps the machine busy by itself"]


def test_a_broken_project_says_so_in_its_first_trial(studies, said, fast):
    class Broken(Plain):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("the step broke")

    with pytest.raises(Exception, match="the step broke"):
        study(studies, module=Broken)
    assert said[0].startswith("engine in_process: ")
    assert all(t.user_attrs["failure"] == "RuntimeError: the step broke" for t in studies.trials("digits"))


def test_a_finished_study_is_not_tried_again(studies, said, fast, monkeypatch):
    first = study(studies)
    said.clear()
    monkeypatch.setattr(choose_engine, "_measured", None)
    assert study(studies).trial == first.trial
    assert said == []


def test_the_processes_generators_are_as_before(studies, fast):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    from lightning_hp.project.build import PythonBuilder
    from lightning_hp.tuning.config import TuneConfig
    from lightning_hp.tuning.runner import StudyRunner

    settings = {"name": "x", "folder": str(studies.folder / "x"), "caviar": {"engine": "auto"}}
    runner = StudyRunner(
        TuneConfig.from_arguments(SPACE, {"trials": 6, "max_epochs": 2}, settings),
        PythonBuilder(Plain, Digits, TRAINER),
    )
    torch.manual_seed(5)
    choose_engine.settle_engine(runner)
    assert runner.config.caviar.engine == "stacked"
    assert torch.equal(torch.rand(3), expected)
    runner.close()


@pytest.mark.parametrize("most", [None, 3])
def test_a_worker_that_joins_chooses_for_itself_and_with_a_limit_of_trials_trains_them_one_by_one(
    studies, said, fast, most
):
    settings = {
        "name": "digits",
        "folder": str(studies.folder / "digits"),
        "prune": False,
        "caviar": {"engine": "auto"},
    }
    config = TuneConfig.from_arguments(SPACE, {"trials": 6, "max_epochs": 2}, settings)
    ended = join(config, PythonBuilder(Plain, Digits, TRAINER), SilentListener(), most)
    trials = studies.trials("digits")
    assert ended == len(trials) == (most or 6)
    assert all(("cohort" in t.user_attrs) == (most is None) for t in trials)
    assert any(line.startswith("engine stacked: ") for line in said) == (most is None)


@pytest.mark.parametrize("audit", [True, False])
def test_an_auditor_of_the_environment_leaves_the_winner_to_the_study_where_that_audits(
    studies, said, fast, monkeypatch, audit
):
    monkeypatch.setenv("LIGHTNING_HP_AUDIT", "1")
    settings = {"name": "digits", "folder": str(studies.folder / "digits"), "prune": False, "audit": audit}
    config = TuneConfig.from_arguments(SPACE, {"trials": 6, "max_epochs": 2}, settings | {"caviar": {"engine": "auto"}})
    result = run(config, PythonBuilder(BatchNormClassifier if audit else Plain, Digits, TRAINER))
    assert all(("cohort" in t.user_attrs) == audit for t in studies.trials("digits"))
    if audit:
        assert (studies.paths("digits").trial(result.trial).root / "audit.json").exists()
    else:
        assert said[0] == "engine in_process: the callback EnvironmentAuditor needs a Trainer"


@pytest.mark.slow
def test_two_worker_processes_train_cohorts_of_their_own(studies):
    study(studies, module=BatchNormClassifier, data=DigitsDataModule, engine="stacked", workers=2, trials=12)
    trials = studies.trials("digits")
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 12
    cohort_of = [t.user_attrs["cohort"] for t in trials]
    assert max(cohort_of.count(cohort) for cohort in cohort_of) == 2


SLOW, FAST = (0.05, 0.06), (1e-4, 5e-4)


@pytest.mark.parametrize(("begun", "later"), [(FAST, SLOW), (SLOW, FAST)])
def test_a_study_goes_on_as_it_began_whatever_the_machine_does_now(studies, said, monkeypatch, begun, later):
    monkeypatch.setattr(choose_engine, "step_seconds", lambda stack, kept: begun)
    study(studies, trials=6)
    first = said.copy()
    said.clear()
    monkeypatch.setattr(choose_engine, "step_seconds", lambda stack, kept: later)
    study(studies, trials=8)
    assert said[0] == first[0]
    assert {"cohort" in t.user_attrs for t in studies.trials("digits")} == {begun is FAST}


def test_another_cohort_that_is_asked_for_is_tried_anew(studies, said, monkeypatch):
    monkeypatch.setattr(choose_engine, "step_seconds", lambda stack, kept: FAST)
    study(studies, trials=6)
    monkeypatch.setattr(choose_engine, "step_seconds", lambda stack, kept: SLOW)
    study(studies, trials=8, engine={"engine": "auto", "cohort": 3})
    assert said[-1].startswith("engine in_process: a step of one model costs")


def test_auto_is_the_default_of_tune(studies, said, fast):
    where = {"name": "plain", "folder": studies.folder / "plain", "trainer": TRAINER}
    tune(Plain, Digits, SPACE, trials=4, max_epochs=1, prune=False, progress=False, **where)
    assert said[0].startswith("engine stacked: ")
