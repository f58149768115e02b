"""Trials that are trained together: points proposed at once, and who goes on, decided at once."""

import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from lightning_hp.search import CoarseToFineSampler, SearchSpace
from lightning_hp.search.boxes import EXPLORED, OPENED, WIDENED
from lightning_hp.search.curves import Curve, looks
from lightning_hp.search.engine import BARREN, EXHAUSTED, Engine
from lightning_hp.search.pruner import ATTRIBUTE

STEPS = 16
SPACE = SearchSpace.from_dict(
    {
        "a": {"low": 0.0, "high": 1.0, "tier": "A", "default": 0.5},
        "b": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A", "default": 1e-2},
        "units": {"low": 4, "high": 64, "tier": "A", "default": 16},
    }
)
FULL = np.tile([0.0, 1.0], (3, 1))
RNG = np.random.default_rng


def bowl(unit: np.ndarray) -> float:
    return float(np.square(unit - 0.3).sum())


def known(n: int, seed: int = 0) -> list[Curve]:
    rng = np.random.default_rng(seed)
    units = rng.random((n, 3))
    return [Curve(i, u, np.array([1.0]), np.array([bowl(u)]), TrialState.COMPLETE) for i, u in enumerate(units)]


def proposed(curves: list[Curve], n: int, full: np.ndarray = FULL, **where: np.ndarray) -> np.ndarray:
    return np.stack([p.unit for p in Engine(SPACE, None).propose_many(curves, full, RNG(1), n, **where)])


def test_points_proposed_together_are_good_and_apart():
    curves = known(25)
    together = proposed(curves, 12)
    again = proposed(curves, 12)
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
    together = proposed(known(25), 300, sides)
    assert together.shape == (300, 3), "more than there are candidates"
    assert {SPACE.at(u)["units"] for u in together} == {40}


def test_nothing_is_proposed_where_nothing_is_known():
    assert Engine(SPACE, None).propose_many([], FULL, np.random.default_rng(1), 4) == []


def settled(n: int) -> list[Curve]:
    """A bowl that is known: points all over, and many around its bottom at 0.3 of all."""
    rng = RNG(0)
    units = [*rng.random((n // 2, 3)), *(0.3 + 0.02 * rng.standard_normal((n - n // 2, 3)))]
    return [Curve(i, u, np.array([1.0]), np.array([bowl(u)]), TrialState.COMPLETE) for i, u in enumerate(units)]


def test_the_first_of_a_group_is_the_point_that_is_proposed_alone():
    for curves in (known(25), settled(41)):
        alone = Engine(SPACE, None).propose(curves, FULL, RNG(1))
        first = Engine(SPACE, None).propose_many(curves, FULL, RNG(1), 6)[0]
        np.testing.assert_array_equal(alone.unit, first.unit)
        assert (alone.gain, alone.explores) == (first.gain, first.explores)


def test_a_group_explores_where_nothing_is_left_to_gain():
    assert not any(p.explores for p in Engine(SPACE, None).propose_many(known(25), FULL, RNG(1), 12))
    group = Engine(SPACE, None).propose_many(settled(41), FULL, RNG(1), 12)
    assert all(p.gain < EXHAUSTED for p in group)
    assert [p.explores for p in group] == [True, False] * 6, "nothing has come of the first one yet"
    away = np.stack([p.unit for p in group if p.explores])
    assert np.median(np.abs(away - 0.3).max(axis=1)) > 0.2, "far from the bottom that is known"
    assert (np.abs(away[:, None] - away[None]).max(axis=2) + np.eye(6)).min() > 2e-3


def test_a_group_goes_on_with_a_good_point_where_exploring_came_to_nothing():
    ends = {"fractions": np.array([0.9]), "state": TrialState.PRUNED, "explored": True}
    barren = [replace(c, **ends, number=100 + c.number) for c in known(BARREN, 7)]
    group = Engine(SPACE, None).propose_many([*settled(40), *barren], FULL, RNG(1), 6)
    assert [p.explores for p in group] == [False, True] * 3
    group = Engine(SPACE, None).propose_many([*settled(41), *barren[1:]], FULL, RNG(1), 6)
    assert [p.explores for p in group] == [True, True, False, True, False, True], "there are fewer than BARREN"


def test_a_group_opens_a_tier_once_and_all_of_it_searches_there():
    closed = np.array([[0.0, 1.0], [0.0, 1.0], [0.3, 0.3]])
    curves = [replace(c, unit=np.array([*c.unit[:2], 0.3])) for c in settled(41)]
    group = Engine(SPACE, None).propose_many(curves, closed, RNG(1), 8, beyond=FULL)
    assert [p.opens for p in group] == [True] + [False] * 7
    assert len({float(p.unit[2]) for p in group}) > 4
    assert not any(p.explores for p in group)


@pytest.mark.parametrize("suggested", ["at once", "one by one"])
def test_the_tier_that_a_group_opened_is_open_for_all_of_it(suggested):
    tiers = {"a": "A", "b": "A", "units": "D"}
    space = SearchSpace(tuple(replace(p, tier=tiers[p.name]) for p in SPACE.parameters), SPACE.entries)
    sampler = CoarseToFineSampler(space, n_trials=60)
    study = optuna.create_study(sampler=sampler)
    for curve in settled(41):  # nothing is left to gain in a and b
        params = {**space.at(curve.unit), "units": 16}
        study.add_trial(optuna.create_trial(params=params, distributions=space.distributions, value=curve.final))
    with sampler.together({}, 8):
        trials = [study.ask() for _ in range(8)] if suggested == "at once" else []
        for i in range(8):
            space.suggest(trials[i] if trials else study.ask())
    opened = [t.number for t in study.trials if OPENED in t.user_attrs]
    assert opened == [41]
    assert len({t.params["units"] for t in study.trials[41:]}) > 4


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


def test_a_group_keeps_to_the_box_of_a_stage_that_has_zoomed_in_or_says_why_not():
    study, sampler = study_of(36)
    stage = sampler.stages(study)[-1]
    assert stage.zoom
    assert stage.first <= 36
    with sampler.together({"units": 23}, 8):
        trials = [study.ask() for _ in range(8)]
        for trial in trials:
            SPACE.suggest(trial)
    low, high = (np.array([stage.box[p.stored_name][end] for p in SPACE.parameters]) for end in (0, 1))
    assert (high[:2] - low[:2]).max() < 1.0
    units = SPACE.unit([trial.params for trial in trials])
    within = np.all((units >= low - 1e-6) & (units <= high + 1e-6), axis=1)
    marked = [bool({WIDENED, EXPLORED} & t.user_attrs.keys()) for t in study.trials[36:]]
    assert np.all(within | marked), "a point outside says so"
    assert not np.all(marked)


def test_one_model_serves_a_group(monkeypatch):
    study, sampler = study_of(20)
    calls = []
    propose = Engine.propose_many
    monkeypatch.setattr(Engine, "propose_many", lambda *a, **k: calls.append(a[4]) or propose(*a, **k))
    with sampler.together({"units": 23}, 8):
        for _ in range(8):
            SPACE.suggest(study.ask())
    assert calls == [8]
    SPACE.suggest(study.ask())
    assert calls == [8, 1], "a trial on its own is proposed on its own"


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
    members = running(study, [best + 3.0, best - 1.0, best + 2.0, best + 4.0], look)
    assert sampler.pruner().cull(study, members) == [True, False, True, True]
    reasons = [t.user_attrs.get(ATTRIBUTE) for t in study.get_trials()[20:]]
    assert reasons[1] is None
    for reason, member in zip(reasons, members, strict=True):
        if reason is not None:
            assert reason["rule"] == "predicted"
            assert reason["step"] == look
            assert reason["mean"] > reason["best"]
            assert not member.intermediate_values.keys() - set(range(1, look + 1))


def test_a_whole_group_may_be_stopped_where_a_complete_trial_is_better():
    study, sampler = study_of(20)
    members = running(study, [study.best_value + 5.0] * 4, looks(STEPS)[-1])
    assert sampler.pruner().cull(study, members) == [True] * 4


@pytest.mark.parametrize("complete", [0, 2, 8, 20])
def test_a_group_is_judged_as_each_would_be_alone(complete):
    study, sampler = study_of(complete)
    look, best = looks(STEPS)[-2], study.best_value if complete else 0.0
    values = [best + gap for gap in (-0.1, 0.0, 0.02, 0.1, 0.3, 1.0, 4.0)]
    members = running(study, values, look)
    for member in members:
        for step, value in member.intermediate_values.items():
            study._storage.set_trial_intermediate_value(member._trial_id, step, value)
    alone = [sampler.pruner().verdict(study, member) for member in members]
    assert sampler.pruner().cull(study, members) == [verdict["stop"] for verdict in alone]
    stopped = {verdict["stop"] for verdict in alone}
    assert stopped == ({False, True} if complete else {False}), "before any is complete there is nothing to beat"
    for verdict, stored in zip(alone, study.get_trials()[complete:], strict=True):
        if verdict.pop("stop"):
            assert stored.user_attrs[ATTRIBUTE] == pytest.approx(verdict)


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
