"""TrialPruning against what the module is known to log at each validation."""

import math
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.callbacks.pruning import TrialPruning

BATCHES = 4


class Counting(pl.LightningModule):
    """Logs as ``val`` the number of training batches so far, and as ``train`` the number of the epoch, from 1."""

    def __init__(self, nan_from=None, on_step=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = 0
        self.nan_from = nan_from
        self.on_step = on_step

    def training_step(self, batch, batch_idx):
        self.batches += 1
        if self.on_step:
            self.log("stepwise", float(self.batches), on_step=True, on_epoch=False)
        return self.weight.sum()

    def on_train_epoch_end(self):
        self.log("train", float(self.current_epoch + 1))

    def validation_step(self, batch, batch_idx):
        broken = self.nan_from is not None and self.batches >= self.nan_from
        self.log("val", math.nan if broken else float(self.batches))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Hooks(pl.Callback):
    def __init__(self):
        self.ran = []

    def on_train_end(self, trainer, pl_module):
        self.ran.append("on_train_end")

    def on_fit_end(self, trainer, pl_module):
        self.ran.append("on_fit_end")

    def teardown(self, trainer, pl_module, stage):
        self.ran.append("teardown")

    def on_exception(self, trainer, pl_module, exception):
        self.ran.append("on_exception")


def rows(n=BATCHES):
    return DataLoader(TensorDataset(torch.zeros(n, 1)), batch_size=1)


def fit(tmp_path, pruning, model=None, callbacks=(), **options):
    given = {"max_epochs": 3, "num_sanity_val_steps": 0, **options}
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pruning, *callbacks],
        **given,
    )
    trainer.fit(model or Counting(), rows(), rows(1))
    return trainer


class Curve:
    """Stands for a trial: keeps what is reported, and asks to stop from one step on."""

    def __init__(self, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def report(self, value, step):
        self.seen.append((step, value))

    def should_prune(self):
        return self.stop_at is not None and self.seen[-1][0] >= self.stop_at


def collect(stop_at=None):
    trial = Curve(stop_at)
    return trial.seen, trial


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(1, 4.0), (2, 8.0), (3, 12.0)]),
        ({"val_check_interval": 0.5, "max_epochs": 2}, [(1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0)]),
        ({"check_val_every_n_epoch": 2, "max_epochs": 4}, [(1, 8.0), (2, 16.0)]),
        ({"num_sanity_val_steps": 2, "max_epochs": 1}, [(1, 4.0)]),
        (
            {"val_check_interval": 3, "check_val_every_n_epoch": None, "max_epochs": 3},
            [(1, 3.0), (2, 6.0), (3, 9.0), (4, 12.0)],
        ),
    ],
)
def test_a_step_is_a_validation(tmp_path, options, expected):
    seen, report = collect()
    pruning = TrialPruning(report, "val")
    fit(tmp_path, pruning, **options)
    assert seen == expected
    assert pruning.curve == dict(expected)
    assert not pruning.pruned
    assert not pruning.diverged


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0}, {"check_val_every_n_epoch": 2}])
def test_a_metric_of_training_is_reported_at_the_end_of_its_own_epoch(tmp_path, options):
    seen, report = collect()
    fit(tmp_path, TrialPruning(report, "train"), **options)
    assert seen == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_metric_logged_at_every_step_is_reported_once_an_epoch(tmp_path):
    seen, report = collect()
    fit(tmp_path, TrialPruning(report, "stepwise"), model=Counting(on_step=True))
    assert seen == [(1, 4.0), (2, 8.0), (3, 12.0)]


def test_a_stop_ends_the_fit_in_the_ordinary_way(tmp_path):
    seen, report = collect(stop_at=2)
    pruning, hooks = TrialPruning(report, "val"), Hooks()
    trainer = fit(tmp_path, pruning, callbacks=[hooks], max_epochs=10)
    assert [step for step, _ in seen] == [1, 2]
    assert pruning.pruned
    assert trainer.current_epoch == 2
    assert hooks.ran == ["on_train_end", "on_fit_end", "teardown"]


def test_a_stop_in_the_middle_of_an_epoch_ends_it_there(tmp_path):
    seen, report = collect(stop_at=3)
    model = Counting()
    fit(tmp_path, TrialPruning(report, "val"), model=model, val_check_interval=0.5, max_epochs=10)
    assert model.batches == 6
    assert [step for step, _ in seen] == [1, 2, 3]


def test_min_epochs_delays_a_stop_but_does_not_undo_it(tmp_path):
    seen, report = collect(stop_at=1)
    pruning = TrialPruning(report, "val")
    trainer = fit(tmp_path, pruning, min_epochs=3, max_epochs=10)
    assert trainer.current_epoch == 3
    assert pruning.pruned, "a later validation that may go on must not make a shortened training a complete one"
    assert seen[0] == (1, 4.0)


def test_nan_stops_and_is_not_reported(tmp_path):
    seen, report = collect()
    pruning, model = TrialPruning(report, "val"), Counting(nan_from=8)
    fit(tmp_path, pruning, model=model, max_epochs=10)
    assert seen == [(1, 4.0)]
    assert pruning.diverged
    assert not pruning.pruned
    assert model.batches == 8
    assert list(pruning.curve) == [1, 2]
    assert math.isnan(pruning.curve[2])


def test_a_standalone_validation_is_not_reported(tmp_path):
    seen, report = collect()
    pruning = TrialPruning(report, "val")
    trainer = fit(tmp_path, pruning, max_epochs=1)
    trainer.validate(Counting(), rows(1), verbose=False)
    assert len(seen) == 1


@pytest.mark.parametrize(("every", "epochs"), [(1, 1), (2, 2)])
def test_a_metric_that_nobody_logs_is_an_error_after_the_first_validation(tmp_path, every, epochs):
    model = Counting()
    with pytest.raises(ValueError, match=r"`monitor` must be .* logs \(train, val\), got 'val_los'"):
        fit(
            tmp_path,
            TrialPruning(Curve(), "val_los"),
            model=model,
            check_val_every_n_epoch=every,
            max_epochs=6,
        )
    assert model.batches == BATCHES * epochs


def test_rank_zero_asks_and_its_verdict_is_everybodys():
    """Two ranks, one after the other, joined by a broadcast that gives both what rank 0 said."""
    said, asked = [], []

    class Trial(Curve):
        def __init__(self, number):
            super().__init__(stop_at=1)
            self.number = number

        def report(self, value, step):
            super().report(value, step)
            asked.append(self.number)

    def rank(number):
        def broadcast(own):
            said.append(own)
            return said[0]

        return SimpleNamespace(
            sanity_checking=False,
            state=SimpleNamespace(fn="fit"),
            callback_metrics={},
            is_global_zero=number == 0,
            strategy=SimpleNamespace(broadcast=broadcast),
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(is_last_batch=True))),
            max_epochs=-1,
            max_steps=-1,
            should_stop=False,
        )

    trainers, callbacks = [rank(0), rank(1)], []
    for number, trainer in enumerate(trainers):
        pruning = TrialPruning(Trial(number), "val")
        pruning.on_validation_start(trainer, None)
        trainer.callback_metrics["val"] = torch.tensor(1.0)
        pruning.on_validation_end(trainer, None)
        callbacks.append(pruning)
    assert asked == [0]
    assert [t.should_stop for t in trainers] == [True, True]
    assert [c.pruned for c in callbacks] == [True, True]


# --- steps as parts of the training ---


@pytest.mark.parametrize(
    ("options", "unit", "steps"),
    [
        ({"max_epochs": 8}, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"max_epochs": 8, "check_val_every_n_epoch": 4}, 8, [4, 8]),
        ({"max_epochs": 2, "val_check_interval": 0.25}, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"max_epochs": 1, "val_check_interval": 0.25}, 4, [1, 2, 3, 4]),
        ({"max_epochs": 3, "val_check_interval": 3, "check_val_every_n_epoch": None}, 1000, [250, 500, 750, 1000]),
        ({"max_steps": 6, "max_epochs": -1, "val_check_interval": 0.5}, 6, [2, 4, 6]),
        ({"max_steps": 8, "max_epochs": 100}, 100, [50, 100]),  # steps end it before epochs do
        ({"max_epochs": 4, "accumulate_grad_batches": 2}, 4, [1, 2, 3, 4]),
    ],
)
def test_a_step_is_a_part_of_the_training_whatever_the_rhythm_of_validation(tmp_path, options, unit, steps):
    trial = Curve()
    fit(tmp_path, TrialPruning(trial, "val", unit), **options)
    assert [step for step, _ in trial.seen] == steps


def test_a_training_that_has_come_to_its_end_is_not_stopped(tmp_path):
    pruning = TrialPruning(Curve(stop_at=3), "val", 3)
    fit(tmp_path, pruning, max_epochs=3)
    assert len(pruning.curve) == 3
    assert not pruning.pruned
    assert pruning.best() == 4.0
    assert pruning.best("max") == 12.0


def test_steps_grow_even_where_validations_are_closer_than_units(tmp_path):
    trial = Curve()
    fit(tmp_path, TrialPruning(trial, "val", 2), max_epochs=2, val_check_interval=0.25)
    steps = [step for step, _ in trial.seen]
    assert len(steps) == 8
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("unit", [0, 2.5, True, "3"])
def test_the_unit_is_a_whole_number(unit):
    with pytest.raises(ValueError, match="`max_steps` must be a whole number of at least 1 or None"):
        TrialPruning(Curve(), "val", unit)
