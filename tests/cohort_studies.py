"""Studies of small networks on the digits, whose trials are trained together; and a trial of one trained alone."""

import optuna
import pytest

from lightning_hp.project.build import PythonBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.search.plan import SearchPlan
from lightning_hp.study.paths import TrialPaths
from lightning_hp.training import BatchNormClassifier, DigitsDataModule
from lightning_hp.tuning.objective import run_trial
from lightning_hp.tuning.tune import tune

TRAINER = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "logger": False}
SPACE = {
    "learning_rate": {"low": 1e-3, "high": 0.5, "scale": "log", "tier": "A", "default": 0.05},
    "momentum": {"low": 0.5, "high": 0.99, "scale": "one_minus_log", "tier": "A", "default": 0.9},
    "hidden_units": {"low": 4, "high": 12, "tier": "A", "default": 8},
}


class Digits(DigitsDataModule):
    def __init__(self, batch_size: int = 256):
        super().__init__(batch_size)


def study(studies, name="digits", module=BatchNormClassifier, data=Digits, **options):
    given = {"trials": 12, "max_epochs": 3, "prune": False, "engine": "stacked", "trainer": TRAINER, **options}
    space = given.pop("space", SPACE)
    return tune(module, data, space, name=name, folder=studies.folder / name, progress=False, **given)


def assert_as_alone(trial, folder, max_epochs=3):
    """A complete trial of `study`, with pruning off or passed, is what a Trainer of its own makes of its values."""
    plan = SearchPlan.of(SPACE, paths=False, n_trials=12, seed=0, plan="default")
    single = optuna.create_study().ask()
    outcome = run_trial(
        single,
        plan.space.arguments(trial.params),
        PythonBuilder(BatchNormClassifier, Digits, TRAINER),
        TrialPaths(folder / f"alone{trial.number}"),
        "val_loss",
        "min",
        trial.user_attrs["seed"],
        TrainingLength(max_epochs=max_epochs),
        max_epochs,
        prune=False,
    )
    assert trial.value == pytest.approx(outcome.value, rel=1e-4)
    stored = single.study._storage.get_trial(single._trial_id)
    assert trial.intermediate_values == pytest.approx(stored.intermediate_values, rel=1e-4)
    assert trial.user_attrs.keys() >= outcome.attributes.keys()
    assert trial.user_attrs["epochs"] == outcome.attributes["epochs"]
