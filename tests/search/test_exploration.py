"""Where little is left to gain the search doubts its model and explores; a box widens where more is gained outside."""

import math

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from lightning_hp.search import CoarseToFineSampler, SearchSpace
from lightning_hp.search.boxes import EXPLORED, WIDENED, outside_text, reaching
from lightning_hp.search.curves import Curve
from lightning_hp.search.engine import DOUBT_FROM, Engine, inside
from lightning_hp.search.proposal import far_candidates
from lightning_hp.search.stages import Stage, stage_at

NAMES = ("a", "b", "c", "d")
SPACE = SearchSpace.from_dict({n: {"low": 0.0, "high": 1.0, "tier": "A", "default": 0.5} for n in NAMES})
FULL = np.tile([0.0, 1.0], (4, 1))


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def two_valleys(natural: dict) -> float:
    """A wide valley, worth 0.3, around 0.2 of all; a narrower one, worth 0, around (0.8, 0.75, 0.8, 0.75)."""
    unit = np.array([natural[n] for n in NAMES])
    wide = 0.3 + 2.0 * np.square(unit - 0.2).mean()
    narrow = 8.0 * np.square(unit - np.array([0.8, 0.75, 0.8, 0.75])).mean()
    return float(min(wide, narrow))


def study_of(n: int, seed: int, objective=two_valleys) -> optuna.Study:
    sampler = CoarseToFineSampler(SPACE, n_trials=n, seed=seed)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: objective(SPACE.suggest(trial)), n_trials=n)
    return study


def done(unit: list[float], loss: float, number: int) -> Curve:
    return Curve(number, np.array(unit), np.array([1.0]), np.array([loss]), TrialState.COMPLETE)


def settled(n: int) -> list[Curve]:
    """A bowl that is known: points all over, and many around its bottom at 0.3 of all."""
    rng = np.random.default_rng(0)
    units = [rng.random(4) for _ in range(n // 2)] + [0.3 + 0.02 * rng.standard_normal(4) for _ in range(n - n // 2)]
    return [done(list(u), float(np.square(u - 0.3).sum()), i) for i, u in enumerate(units)]


def test_it_explores_once_nothing_is_left_to_gain_and_not_before():
    engine = Engine(SPACE, None)
    proposal = engine.propose(settled(41), FULL, np.random.default_rng(1))
    assert proposal.explores
    assert proposal.gain < 0.02
    assert np.abs(proposal.unit - 0.3).max() > 0.2, "far from the bottom that is known"
    early = engine.propose(settled(41)[: DOUBT_FROM - 1], FULL, np.random.default_rng(1))
    assert not early.explores


def test_explored_points_are_not_corners():
    engine = Engine(SPACE, None)
    curves = settled(41)
    units = np.array([engine.propose(curves, FULL, np.random.default_rng(s)).unit for s in range(12)])
    at_an_end = (units < 0.02) | (units > 0.98)
    assert at_an_end.all(axis=1).sum() == 0
    assert at_an_end.mean() < 0.25


def test_points_to_explore_are_uniform_or_share_coordinates_with_good_ones():
    best = np.array([[0.11, 0.22, 0.33, 0.44], [0.55, 0.66, 0.77, 0.88]])
    points = far_candidates(SPACE, FULL, best, np.random.default_rng(0))
    shared = np.array([[np.isin(p, b).sum() for b in best] for p in points]).max(axis=1)
    assert np.all((points >= 0) & (points <= 1))
    assert (shared == 0).sum() >= 256
    assert {1, 2, 3} <= set(shared)


def test_the_second_valley_is_found():
    found = [study_of(70, seed).best_value for seed in range(3)]
    assert sum(value < 0.25 for value in found) >= 2, found


def test_a_point_outside_is_taken_where_more_is_gained_there_and_only_there():
    engine = Engine(SPACE, None)
    curves = [done([x, 0.5, 0.5, 0.5], (x - 0.9) ** 2, i) for i, x in enumerate((0.05, 0.15, 0.3, 0.4))]
    small = np.array([[0.0, 0.45], *[[0.0, 1.0]] * 3])
    away = engine.propose(curves, FULL, np.random.default_rng(0), box=small)
    assert not inside(away.unit, small)
    assert not away.explores
    right = np.array([[0.4, 1.0], *[[0.0, 1.0]] * 3])
    assert inside(engine.propose(curves, FULL, np.random.default_rng(0), box=right).unit, right)


def test_a_box_that_reaches_holds_the_point_and_says_what_left_it():
    stage = Stage(3, "fine", ("A",), (), 20, 40, dict.fromkeys(NAMES, (0.2, 0.4)))
    values = {"a": 0.3, "b": 0.7, "c": 0.1, "d": 0.4}
    wider = reaching(SPACE, stage, SPACE.unit([values]))
    assert wider.box == {"a": (0.2, 0.4), "b": (0.2, 0.7), "c": (0.1, 0.4), "d": (0.2, 0.4)}
    assert outside_text(SPACE, stage, values) == "b 0.7, c 0.1"
    assert outside_text(SPACE, wider, values) is None


def test_whole_numbers_widen_a_box_by_whole_cells():
    space = SearchSpace.from_dict({"layers": {"low": 1, "high": 4, "tier": "A"}})
    stage = Stage(2, "fine", ("A",), (), 0, 9, {"layers": (0.25, 0.5)})
    assert reaching(space, stage, space.unit([{"layers": 4}])).box["layers"] == pytest.approx((0.25, 1.0))


def test_trials_that_leave_the_box_say_so_and_widened_boxes_hold_them():
    marked = 0
    for seed in range(3):
        study = study_of(60, seed)
        stages = study.sampler.stages(study)
        for trial in study.trials:
            box = stage_at(stages, trial.number).box
            unit = SPACE.unit([trial.params])[0]
            within = all(box[n][0] - 1e-9 <= u <= box[n][1] + 1e-9 for n, u in zip(NAMES, unit, strict=True))
            assert within or EXPLORED in trial.user_attrs
            if WIDENED in trial.user_attrs:
                assert within
            marked += bool({WIDENED, EXPLORED} & trial.user_attrs.keys())
    assert marked, "the test needs some"


def test_resumed_studies_explore_alike(tmp_path):
    whole = study_of(44, 1)
    url = f"sqlite:///{tmp_path}/study.db"
    for n in (30, 14):
        sampler = CoarseToFineSampler(SPACE, n_trials=44, seed=1)
        study = optuna.create_study(storage=url, study_name="s", load_if_exists=True, sampler=sampler)
        study.optimize(lambda trial: two_valleys(SPACE.suggest(trial)), n_trials=n)
    assert [t.params for t in study.trials] == [t.params for t in whole.trials]
    assert [t.user_attrs for t in study.trials] == [t.user_attrs for t in whole.trials]
    assert math.isfinite(study.best_value)
