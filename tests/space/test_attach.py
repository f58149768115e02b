"""A study that exists already goes on with tiers: its own parameters, ranges and trials."""

import optuna
import pytest
from optuna.samplers import RandomSampler

from lightning_hp.search import CoarseToFineSampler, space_of_study


def objective(trial):
    rate = trial.suggest_float("lr", 1e-5, 1.0, log=True)
    width = trial.suggest_int("width", 8, 256)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    dropout = trial.suggest_float("share", 0.0, 1.0, step=0.25)
    if trial.number % 2:
        trial.suggest_float("sometimes", 0.0, 1.0)
    return (abs(rate - 0.01) > 0.02) + abs(width - 100) / 300 + (kind == "a") + dropout


@pytest.fixture
def old():
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(objective, n_trials=12)
    return study


def test_parameters_keep_their_ranges_and_get_tiers(old):
    space = space_of_study(old, {"kind": "C"})
    assert {p.name: p.tier for p in space.parameters} == {"lr": "A", "width": "B", "kind": "C"}
    kept = old.trials[-1].distributions
    assert space.distributions == {name: kept[name] for name in ("lr", "width", "kind")}
    assert space.defaults() == {name: old.best_params[name] for name in ("lr", "width", "kind")}


def test_the_study_goes_on_where_it_is(old):
    """The same objective; the old trials count: new ones lie nearer to the optimum than those of a random search."""
    old.sampler = CoarseToFineSampler(space_of_study(old), n_trials=30, seed=1)
    old.optimize(objective, n_trials=18)
    new, random = old.trials[12:], old.trials[:12]
    assert len(old.trials) == 30
    assert sum(t.value for t in new) / 18 < sum(t.value for t in random) / 12 - 0.3
    assert len({t.params["lr"] for t in new}) == 18
    assert all({*t.params} >= {"lr", "width", "kind", "share"} for t in new)


def test_a_study_without_shared_parameters_or_with_a_wrong_tier_is_refused(old):
    with pytest.raises(ValueError, match="`study` must have trials that share a parameter, got none"):
        space_of_study(optuna.create_study())
    with pytest.raises(ValueError, match=r"`tiers` must name parameters of the study \(lr, .*\), got 'rate'"):
        space_of_study(old, {"rate": "A"})


def test_a_study_of_several_objectives_has_a_space_without_defaults():
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=2)
    assert space_of_study(study)["x"].high == 1.0


def test_trials_that_are_asked_for_in_one_instant_are_not_given_the_same_end():
    sampler = CoarseToFineSampler({"x": {"low": 0.0, "high": 1.0, "tier": "A"}}, n_trials=12)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=5)
    frozen = [study._storage.get_trial(study.ask()._trial_id) for _ in range(3)]
    # as in threads: nobody's value is stored when the others are proposed
    points = [sampler.sample_relative(study, trial, sampler.space.distributions)["x"] for trial in frozen]
    assert points[0] == 0.0, "the case that is meant: the model places the optimum at the end"
    assert len(set(points)) == 3
    assert all(0.0 < point < 0.02 for point in points[1:])


def test_threads_of_a_study_draw_different_points():
    study = optuna.create_study(sampler=CoarseToFineSampler({"x": {"low": 0.0, "high": 1.0, "tier": "A"}}, n_trials=12))
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=12, n_jobs=3)
    assert len({trial.params["x"] for trial in study.trials}) == 12
