"""A pruner, a sampler, a grace and one seed of the user's own."""

import optuna
import pytest
from optuna.trial import TrialState

from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.tuning import optuna_objects
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.optuna_objects import base_pruner, base_sampler


class PruneAll(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number > 0


def settings(**changes):
    space = {"learning_rate": {"low": 0.1, "high": 1.0}}
    return TuneConfig.from_arguments(space, {"trials": 3}, {"name": "s", **changes})


@pytest.mark.parametrize(("grace", "steps"), [(0.0, 1), (0.5, 5), (0.51, 6), (1.0, 10)])
def test_no_trial_is_stopped_before_its_grace(studies, monkeypatch, grace, steps):
    monkeypatch.setattr(optuna_objects, "base_pruner", lambda block: PruneAll())
    read = TuneConfig.from_arguments.__func__

    def with_grace(cls, space, budget, given, project=None):
        return read(cls, space, budget, {**given, "grace": grace}, project)

    monkeypatch.setattr(TuneConfig, "from_arguments", classmethod(with_grace))
    studies.run(trials=2, max_epochs=10, prune=True)
    trials = studies.trials()
    assert len(trials[1].intermediate_values) == steps
    assert trials[1].state is (TrialState.COMPLETE if grace == 1.0 else TrialState.PRUNED)


def test_one_seed_for_all_trials(studies):
    studies.run("fixed", trials=3, seed="fixed")
    assert len({t.user_attrs["seed"] for t in studies.trials("fixed")}) == 1
    studies.run("each", trials=3)
    assert len({t.user_attrs["seed"] for t in studies.trials("each")}) == 3


def test_a_pruner_and_a_sampler_by_class_path():
    block = {"class_path": "optuna.pruners.MedianPruner", "init_args": {"n_startup_trials": 2}}
    assert settings(pruner=block).pruner == block
    assert base_pruner(block)._n_startup_trials == 2
    assert isinstance(base_sampler({"class_path": "optuna.samplers.TPESampler"}), optuna.samplers.TPESampler)
    assert (base_pruner(None), base_sampler(None)) == (None, None)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"class_path": "optuna.pruners.Median"}, r"`pruner\.class_path` must be a class that can be imported"),
        ({"class_path": "optuna.samplers.TPESampler"}, r"`pruner\.class_path` must be an Optuna pruner"),
        (
            {"class_path": "optuna.pruners.MedianPruner", "init_args": {"x": 1}},
            r"`pruner\.init_args` must be arguments of optuna\.pruners\.MedianPruner: .*'x'",
        ),
    ],
)
def test_what_is_no_pruner_is_refused(block, message):
    with pytest.raises(ConfigError, match=message):
        base_pruner(block)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grace": 1.5}, "`grace` must be a number from 0 to 1, got 1.5"),
        ({"pruner": "median"}, "`pruner` must be a mapping with the keys class_path, init_args"),
        ({"pruner": {"init_args": {}}}, "`pruner` must be a block such as"),
        ({"monitor": ["a", "b"]}, "`monitor` must be one metric, since trials are ranked by one value"),
        ({"seed": "any"}, "`seed` must be a whole number of at least 0"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)
