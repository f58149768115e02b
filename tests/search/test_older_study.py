"""What a study learns from an older one of the same space."""

import json
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from lightning_hp.search.curves import Curve, CurveReader, curves_to_dicts, older_curve
from lightning_hp.search.model import aligned
from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.space.space import SearchSpace

SPACE = SearchSpace.from_dict(
    {f"x{i}": {"low": 0.0, "high": 1.0, "tier": t, "default": 0.5} for i, t in enumerate("ABBC")}
)
WEIGHTS = np.array([3.0, 1.0, 1.0, 0.3])


def bowl(optimum, factor):
    def objective(trial):
        values = SPACE.suggest(trial)
        away = np.array([values[f"x{i}"] for i in range(4)]) - optimum
        return factor * (0.1 + float(WEIGHTS @ away**2))

    return objective


def study_of(objective, n, space=SPACE, direction="minimize", **arguments):
    sampler = CoarseToFineSampler(space, n_trials=n, max_steps=None, **arguments)
    study = optuna.create_study(sampler=sampler, direction=direction)
    study.optimize(objective, n_trials=n)
    return study


def curve(unit, loss, number=0, origin=0.0, state=TrialState.COMPLETE):
    return Curve(number, np.array(unit), np.array([1.0]), np.array([loss]), state, origin)


def test_older_trials_are_worth_something_where_the_optimum_moved_a_little():
    gained = []
    for seed in range(4):
        optimum = np.random.default_rng(seed).uniform(0.2, 0.8, 4)
        old = study_of(bowl(optimum, 1.0), 24, seed=seed)
        curves = curves_to_dicts(CurveReader(SPACE, None, False).read(old.trials))
        opening = replace(
            SPACE, parameters=tuple(replace(p, default=old.best_params[p.name]) for p in SPACE.parameters)
        )
        moved = bowl(np.clip(optimum + 0.08, 0, 1), 3.0)
        knowing = study_of(moved, 10, opening, seed=seed + 9, plan="retune", older=curves)
        ignorant = study_of(moved, 10, opening, seed=seed + 9, plan="retune")
        gained.append(ignorant.best_value - knowing.best_value)
    assert np.mean(gained) > 0
    assert sum(g > 0 for g in gained) >= 3


def test_the_same_study_again_is_the_same():
    old = study_of(bowl(np.full(4, 0.3), 1.0), 12, seed=1)
    curves = curves_to_dicts(CurveReader(SPACE, None, False).read(old.trials))
    twice = [study_of(bowl(np.full(4, 0.4), 1.0), 8, seed=2, plan="retune", older=curves).trials for _ in range(2)]
    assert [t.params for t in twice[0]] == [t.params for t in twice[1]]


def test_curves_survive_json_and_the_best_complete_one_is_first():
    old = study_of(bowl(np.full(4, 0.3), 1.0), 12, seed=1)
    told = json.loads(json.dumps(curves_to_dicts(CurveReader(SPACE, None, False).read(old.trials), most=5)))
    back = [older_curve(fields) for fields in told]
    assert len(back) == 5
    assert back[0].final == old.best_value
    assert np.allclose(SPACE.at(back[0].unit)["x1"], old.best_params["x1"])
    assert all(c.origin == 1.0 for c in back)


@pytest.mark.parametrize(("was", "now", "of_0_4"), [(0.2, 0.6, 1.2), (-0.2, 0.3, 0.9), (0.2, -0.1, 0.1)])
def test_older_losses_are_brought_to_the_level_of_a_repeated_best(was, now, of_0_4):
    older = [curve([0.3, 0.3], was, -1, 1.0), curve([0.5, 0.5], 0.4, -1, 1.0)]
    known = aligned(older, [curve([0.9, 0.9], 7.0, 0), curve([0.3, 0.3], now, 1)])
    assert known[0].losses[0] == pytest.approx(now)
    assert known[1].losses[0] == pytest.approx(of_0_4)  # by hand: 0.4 * 3, 0.4 + 0.5, 0.4 - 0.3


def test_without_a_repeated_best_nothing_is_moved():
    older = [curve([0.3, 0.3], 0.2, -1, 1.0)]
    own = [curve([0.4, 0.3], 0.6, 0), curve([0.3, 0.3], 0.6, 1, state=TrialState.RUNNING)]
    assert aligned(older, own)[0].losses[0] == 0.2
    assert aligned([], own) == []


def test_an_older_study_with_categories_and_stopped_curves_is_read():
    space = SearchSpace.from_dict({"x": {"low": 0.0, "high": 1.0}, "kind": {"choices": ["a", "b", "c"]}})

    def objective(trial):
        values = space.suggest(trial)
        for step in range(1, 10):
            trial.report(values["x"] + (values["kind"] != "b") + 1 / step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return values["x"] + (values["kind"] != "b") + 1 / 9

    sampler = CoarseToFineSampler(space, n_trials=20, max_steps=9)
    old = optuna.create_study(sampler=sampler, pruner=sampler.pruner())
    old.optimize(objective, n_trials=20)
    curves = curves_to_dicts(CurveReader(space, 9, False).read(old.trials))
    new = optuna.create_study(
        sampler=CoarseToFineSampler(space, n_trials=8, max_steps=9, plan="retune", older=curves, seed=5)
    )
    new.optimize(objective, n_trials=8)
    first = new.trials[1].params  # the first that is not the defaults
    assert first["kind"] == "b"
    assert first["x"] < 0.2
