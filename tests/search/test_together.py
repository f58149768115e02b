"""Trials that are trained together: points proposed at once, and who goes on, decided at once."""

import math

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from lightning_hp.search import CoarseToFineSampler, SearchSpace
from lightning_hp.search.curves import Curve, looks
from lightning_hp.search.engine import Engine
from lightning_hp.search.pruner import ATTRIBUTE, HELD

STEPS = 16
SPACE = SearchSpace.from_dict(
    {
        "a": {"low": 0.0, "high": 1.0, "tier": "A", "default": 0.5},
        "b": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A", "default": 1e-2},
        "units": {"low": 4, "high": 64, "tier": "A", "default": 16},
    }
)
FULL = np.tile([0.0, 1.0], (3, 1))


def bowl(unit: np.ndarray) -> float:
    return float(np.square(unit - 0.3).sum())


def known(n: int, seed: int = 0) -> list[Curve]:
    rng = np.random.default_rng(seed)
    units = rng.random((n, 3))
    return [Curve(i, u, np.array([1.0]), np.array([bowl(u)]), TrialState.COMPLETE) for i, u in enumerate(units)]


def test_points_proposed_together_are_good_and_apart():
    curves = known(25)
    together = Engine(SPACE, None).propose_many(curves, FULL, np.random.default_rng(1), 12)
    again = Engine(SPACE, None).propose_many(curves, FULL, np.random.default_rng(1), 12)
    np.testing.assert_array_equal(together, again)
    assert together.shape == (12, 3)
    apart = np.abs(together[:, None] - together[None]).max(axis=2) + np.eye(12)
    assert apart.min() > 2e-3
    values = [bowl(u) for u in together]
    assert np.median(values) < np.median([c.final for c in curves]) / 3
    assert min(values) < min(c.final for c in curves)
    assert all(np.abs(together - c.unit).max(axis=1).min() > 1e-3 for c in curves)


def test_points_keep_to_the_values_that_all_of_them_share():
    at = SPACE.unit([{"a": 0.5, "b": 0.01, "units": 40}])[0][2]
    sides = np.array([[0.0, 1.0], [0.0, 1.0], [at, at]])
    together = Engine(SPACE, None).propose_many(known(25), sides, np.random.default_rng(1), 300)
    assert together.shape == (300, 3), "more than there are candidates"
    assert {SPACE.at(u)["units"] for u in together} == {40}


def test_nothing_is_proposed_where_nothing_is_known():
    assert Engine(SPACE, None).propose_many([], FULL, np.random.default_rng(1), 4) is None


def study_of(n: int, seed: int = 0) -> tuple[optuna.Study, CoarseToFineSampler]:
    sampler = CoarseToFineSampler(SPACE, n_trials=40, max_steps=STEPS, seed=seed)
    study = optuna.create_study(sampler=sampler, pruner=sampler.pruner())
    for _ in range(n):
        trial = study.ask()
        value = bowl(SPACE.unit([SPACE.suggest(trial) and trial.params])[0])
        for step in range(1, STEPS + 1):
            trial.report(value + 1 / step, step)
        study.tell(trial, value)
    return study, sampler


def asked_together(n: int, size: int, seed: int = 0) -> list[dict]:
    study, sampler = study_of(n, seed)
    with sampler.together({"units": 23}, size):
        trials = [study.ask() for _ in range(size)]
        for trial in trials:
            SPACE.suggest(trial)
    return [trial.params for trial in trials]


@pytest.mark.parametrize("n", [1, 20])  # while it explores, and once there is a model
def test_a_sampler_asked_for_a_group(n):
    params = asked_together(n, 8)
    assert {p["units"] for p in params} == {23}
    assert len({p["a"] for p in params}) == len({p["b"] for p in params}) == 8
    assert params == asked_together(n, 8)
    assert params != asked_together(n, 8, seed=1)


def test_a_group_keeps_to_the_box_of_a_stage_that_has_zoomed_in():
    study, sampler = study_of(36)
    stage = sampler.stages(study)[-1]
    assert stage.zoom
    assert stage.first <= 36
    with sampler.together({"units": 23}, 8):
        trials = [study.ask() for _ in range(8)]
        for trial in trials:
            SPACE.suggest(trial)
    units = SPACE.unit([trial.params for trial in trials])
    low, high = (np.array([stage.box[p.stored_name][end] for p in SPACE.parameters]) for end in (0, 1))
    assert (high[:2] - low[:2]).max() < 1.0
    assert np.all(units[:, :2] >= low[:2] - 1e-6)
    assert np.all(units[:, :2] <= high[:2] + 1e-6)


def test_one_model_serves_a_group(monkeypatch):
    study, sampler = study_of(20)
    calls = []
    propose = Engine.propose_many
    monkeypatch.setattr(Engine, "propose_many", lambda *a, **k: calls.append(a[4]) or propose(*a, **k))
    with sampler.together({"units": 23}, 8):
        for _ in range(8):
            SPACE.suggest(study.ask())
    assert calls == [8]
    trial = study.ask()
    SPACE.suggest(trial)
    assert calls == [8], "a trial on its own is proposed on its own"


def running(study: optuna.Study, values: list[float], upto: int) -> list[optuna.trial.FrozenTrial]:
    """Trials as a cohort shows them: storage knows nothing of their curves yet."""
    shown = []
    for value in values:
        trial = study.ask(dict(SPACE.distributions))
        frozen = study.get_trials(deepcopy=True)[trial.number]
        frozen.intermediate_values = {s: value + 1 / s for s in range(1, upto + 1)}
        shown.append(frozen)
    return shown


def test_who_cannot_become_the_best_stops_and_who_may_goes_on():
    study, sampler = study_of(20)
    best = study.best_value
    look = looks(STEPS)[-1]
    members = running(study, [best + 3.0, best - 0.05, best + 2.0, best + 4.0], look)
    assert sampler.pruner().cull(study, members) == [True, False, True, True]
    reasons = [t.user_attrs.get(ATTRIBUTE) for t in study.get_trials()[20:]]
    assert reasons[1] is None
    for reason, member in zip(reasons, members, strict=True):
        if reason is not None:
            assert reason["rule"] == "chance"
            assert reason["step"] == look
            assert reason["chance"] <= 1 - HELD
            assert reason["mean"] > reason["best"]
            assert not member.intermediate_values.keys() - set(range(1, look + 1))


def test_a_whole_group_may_be_stopped_where_a_complete_trial_is_better():
    study, sampler = study_of(20)
    members = running(study, [study.best_value + 5.0] * 4, looks(STEPS)[-1])
    assert sampler.pruner().cull(study, members) == [True] * 4


def test_before_any_trial_is_complete_the_best_of_the_group_goes_on():
    study, sampler = study_of(0)
    members = running(study, [0.1, 5.0, 5.1, 5.2, 5.3], looks(STEPS)[-1])
    verdicts = sampler.pruner().cull(study, members)
    assert not verdicts[0]
    assert any(verdicts[1:])


def test_nothing_is_decided_between_looks():
    study, sampler = study_of(20)
    step = next(s for s in range(2, STEPS) if s not in looks(STEPS) and s - 1 not in looks(STEPS))
    members = running(study, [study.best_value + 5.0] * 4, step)
    for member in members:  # the look before was passed by an earlier report
        assert math.isfinite(member.intermediate_values[step])
    assert sampler.pruner().cull(study, members) == [False] * 4


def test_a_group_is_of_one_objective():
    study = optuna.create_study(directions=["minimize", "minimize"])
    with pytest.raises(ValueError, match="`study` must have one objective, got 2 directions"):
        CoarseToFineSampler(SPACE).pruner().cull(study, [])
