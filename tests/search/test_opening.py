"""A closed tier opens where nothing is left to gain in the open ones; very long axes; exploring without results."""

from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from lightning_hp.search import CoarseToFineSampler, SearchSpace
from lightning_hp.search.boxes import EXPLORED, OPENED
from lightning_hp.search.curves import Curve
from lightning_hp.search.engine import BARREN, DOUBT_FROM, EXHAUSTED, Engine
from lightning_hp.search.model import Encoder
from lightning_hp.search.proposal import starting_point
from lightning_hp.search.surrogate import LENGTH_SCALE

SPACE = SearchSpace.from_dict(
    {
        "a": {"low": 0.0, "high": 1.0, "tier": "A", "default": 0.5},
        "b": {"low": 0.0, "high": 1.0, "tier": "B", "default": 0.5},
        "d": {"low": 0.0, "high": 1.0, "tier": "D", "default": 0.2},
    }
)


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def study_of(n: int, seed: int = 0, plan: str = "default", storage: str | None = None, first: int | None = None):
    sampler = CoarseToFineSampler(SPACE, n_trials=n, seed=seed, plan=plan)
    study = optuna.create_study(sampler=sampler, storage=storage, study_name="s", load_if_exists=True)

    def objective(trial: optuna.Trial) -> float:
        v = SPACE.suggest(trial)
        return (v["a"] - 0.3) ** 2 + 0.5 * (v["b"] - 0.6) ** 2 + (v["d"] - 0.6) ** 2

    study.optimize(objective, n_trials=first or n)
    return study


def test_a_tier_that_the_budget_leaves_closed_opens_once_nothing_is_left_to_gain():
    study = study_of(40)
    opening = [t.number for t in study.trials if OPENED in t.user_attrs]
    assert len(opening) == 1, "each tier opens once"
    assert study.trials[opening[0]].user_attrs[OPENED] == "D"
    assert opening[0] > DOUBT_FROM
    assert {t.params["d"] for t in study.trials[: opening[0]]} == {0.2}
    later = [t.params["d"] for t in study.trials[opening[0] :]]
    assert len(set(later)) > len(later) / 2
    assert study.best_value < 0.02, "with d at its default 0.16 is the best"


def test_a_refresh_opens_nothing():
    assert {t.params["d"] for t in study_of(30, plan="retune").trials} == {0.2}


def test_a_resumed_study_opens_the_same_tier_with_the_same_trial(tmp_path):
    whole = study_of(30)
    url = f"sqlite:///{tmp_path}/study.db"
    half = next(t.number for t in whole.trials if OPENED in t.user_attrs) + 3
    study_of(30, storage=url, first=half)
    resumed = study_of(30, storage=url, first=30 - half)
    assert [t.params for t in resumed.trials] == [t.params for t in whole.trials]
    assert [t.user_attrs for t in resumed.trials] == [t.user_attrs for t in whole.trials]


def bowl(n: int) -> list[Curve]:
    """A bowl that is known: points all over, and many around its bottom at 0.3 of all."""
    rng = np.random.default_rng(0)
    units = [rng.random(3) for _ in range(n // 2)] + [0.3 + 0.02 * rng.standard_normal(3) for _ in range(n - n // 2)]
    losses = [float(np.square(unit - 0.3).sum()) for unit in units]
    ends = [np.array([1.0]), TrialState.COMPLETE]
    return [Curve(i, u, ends[0], np.array([y]), ends[1]) for i, (u, y) in enumerate(zip(units, losses, strict=True))]


def test_exploring_that_came_to_nothing_many_times_is_left_to_every_second_point():
    full = np.tile([0.0, 1.0], (3, 1))
    known = bowl(60 - BARREN)
    explored = [
        replace(c, fractions=np.array([0.9]), state=TrialState.PRUNED, explored=True, number=100 + c.number)
        for c in bowl(2 * BARREN)[:BARREN]
    ]
    engine = Engine(SPACE, None)

    def explores(curves: list[Curve]) -> bool:
        proposal = engine.propose(curves, full, np.random.default_rng(1))
        assert proposal.gain < EXHAUSTED
        return proposal.explores

    assert len(known + explored) % 2 == 0
    assert not explores(known + explored)
    assert explores((known + explored)[1:])
    passed = replace(explored[-1], state=TrialState.COMPLETE, fractions=np.array([1.0]))
    assert explores([*known, *explored[:-1], passed])


def test_what_explored_says_so_whether_it_left_the_box_or_not():
    study = study_of(60, plan="retune")
    marks = [t.user_attrs[EXPLORED] for t in study.trials if EXPLORED in t.user_attrs]
    assert marks
    assert "inside the box" in marks


LONG = SearchSpace.from_dict(
    {
        "long": {"low": 1e-8, "high": 10.0, "scale": "log", "tier": "A", "default": 1e-3},
        "short": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A", "default": 1e-2},
        "betas": {"low": 0.0, "high": 1 - 1e-8, "scale": "one_minus_log", "tier": "D", "default": 0.9},
        "plain": {"low": -1e9, "high": 1e9, "tier": "B", "default": 0.0},
    }
)


def test_of_an_axis_of_very_many_decades_four_count_as_the_whole():
    scales = np.exp(Encoder(LONG).priors.median)[:4]
    a, b, d = (LENGTH_SCALE[tier] for tier in "ABD")
    assert scales == pytest.approx([a * 4 / 9, a, d * 4 / 8, b])


def test_starting_points_of_a_very_long_axis_are_around_its_default():
    sides = np.tile([0.0, 1.0], (4, 1))
    low, high = (starting_point(LONG, sides, np.full(4, at), near_default=False) for at in (0.0, 1.0))
    assert high - low == pytest.approx([4 / 9, 1.0, 4 / 8, 1.0])
    assert (low + high)[0] / 2 == pytest.approx(5 / 9)
    assert low[2] == 0.0, "0.9 is too near to the end to be in the middle"
