"""The plan of a study, its boxes on synthetic trials, and its quasi-random points."""

import math
from itertools import pairwise

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from lightning_hp.search.boxes import AT_EDGE, LEAST_WIDTH, WIDEN_BY, box, loss, ranked, with_boxes
from lightning_hp.search.sobol import sobol_point, to_stored_values
from lightning_hp.search.stages import MODEL_OPENS_FROM, OPENS_FROM, Stage, plan_stages, stage_at
from lightning_hp.space.presets import PRESETS, preset
from lightning_hp.space.space import SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "a": {"low": 0.0, "high": 1.0, "tier": "A", "default": 0.5},
        "b": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "B", "default": 1e-3},
        "n": {"low": 1, "high": 10, "tier": "B", "default": 2},
        "kind": {"choices": ["x", "y", "z"], "tier": "B", "default": "y"},
        "size": {"choices": [8, 16, 32, 64, 128], "tier": "B", "default": 16},
        "c": {"low": 0.0, "high": 1.0, "tier": "C", "default": 0.25},
    }
)
ONE = SearchSpace.from_dict({"a": {"low": 0.0, "high": 1.0, "tier": "A", "default": 0.5}})
COARSE = Stage(1, "coarse", ("A",), ("A",), 0, 20)
FINE = Stage(2, "fine", ("A",), (), 20, 40)


def trial(
    number: int,
    value: float | None,
    state: TrialState = TrialState.COMPLETE,
    space: SearchSpace = ONE,
    curve: dict[int, float] | None = None,
    **natural: object,
) -> FrozenTrial:
    made = optuna.create_trial(
        params=space.stored(natural),
        distributions=space.distributions,
        value=value,
        state=state,
        intermediate_values=curve,
    )
    made.number = number
    return made


def parabola(positions: list[float], best: float, sign: float = 1.0) -> list[FrozenTrial]:
    return [trial(i, sign * (p - best) ** 2, a=p) for i, p in enumerate(positions)]


# --- the plan ---


@pytest.mark.parametrize("plan", ["opening", "tiers"])
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("n_trials", [1, 2, 3, 7, 9, 10, 24, 25, 60, 99, 100, 101, 500])
def test_a_plan_covers_every_trial_once_and_opens_tiers_in_order(name, n_trials, plan):
    space = SearchSpace.from_dict(preset(name))
    stages = plan_stages(space, n_trials, plan=plan)
    assert [n for s in stages for n in range(s.first, s.last)] == list(range(n_trials))
    assert [s.index for s in stages] == list(range(1, len(stages) + 1))
    assert all(s.last > s.first for s in stages)
    for before, after in pairwise(stages):
        assert after.tiers[: len(before.tiers)] == before.tiers
        assert after.new == after.tiers[len(before.tiers) :]
        assert bool(after.new) == (after.kind == "coarse")
    assert stages[0].kind == "coarse"
    assert stages[0].new == stages[0].tiers == ("A",)
    if n_trials > 1:
        assert stages[-1].kind == "fine"
    opened = stages[-1].tiers
    if n_trials >= len(stages) + 2:
        assert opened == tuple(t for t in space.tiers if n_trials >= OPENS_FROM[t])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("n_trials", [1, 2, 3, 4, 7, 9, 10, 24, 25, 60, 99, 100, 500])
def test_the_default_plan_covers_every_trial_once_with_all_tiers_open(name, n_trials):
    space = SearchSpace.from_dict(preset(name))
    stages = plan_stages(space, n_trials)
    assert [n for s in stages for n in range(s.first, s.last)] == list(range(n_trials))
    assert [s.index for s in stages] == list(range(1, len(stages) + 1))
    assert [s.kind for s in stages] == ["coarse", "fine", "fine"][: len(stages)]
    assert [s.zoom for s in stages] == [False, False, True][: len(stages)]
    expected = tuple(t for t in space.tiers if t == space.tiers[0] or n_trials >= MODEL_OPENS_FROM[t])
    assert [s.tiers for s in stages] == [expected] * len(stages)
    assert [s.new for s in stages] == [expected, (), ()][: len(stages)]


def test_a_stage_without_zoom_has_the_full_ranges():
    trials = parabola([i / 20 for i in range(20)], 0.6)
    stage = Stage(2, "fine", ("A",), (), 20, 40, zoom=False)
    assert box(ONE, trials, stage, {"a": (0.0, 1.0)})["a"] == (0.0, 1.0)
    assert box(ONE, trials, FINE, {"a": (0.0, 1.0)})["a"] != (0.0, 1.0)


def test_the_plans_in_words():
    space = SearchSpace.from_dict(preset("batchnorm_mlp"))
    assert [s.name for s in plan_stages(space, 60)] == ["1 coarse ABC", "2 fine ABC", "3 fine ABC"]
    names = [s.name for s in plan_stages(space, 60, plan="opening")]
    assert names == ["1 coarse A", "2 coarse AB", "3 coarse ABC", "4 fine ABC", "5 fine ABC"]
    names = [s.name for s in plan_stages(space, 60, plan="tiers")]
    assert names == ["1 coarse A", "2 fine A", "3 coarse AB", "4 fine AB", "5 coarse ABC", "6 fine ABC", "7 fine ABC"]
    assert [s.tier for s in plan_stages(space, 60, plan="opening")] == ["A", "B", "C", "C", "C"]


def test_half_of_the_opening_plan_explores():
    stages = plan_stages(SearchSpace.from_dict(preset("adam")), 200, plan="opening")
    coarse, first, second = (
        sum(s.last - s.first for s in group)
        for group in ([s for s in stages if s.kind == "coarse"], stages[-2:-1], stages[-1:])
    )
    assert (coarse, first, second) == (100, 60, 40)


def test_tiers_open_by_budget():
    space = SearchSpace.from_dict(preset("playbook"))
    budgets = (9, 10, 24, 25, 99, 100)
    opened = {n: "".join(plan_stages(space, n, plan="opening")[-1].tiers) for n in budgets}
    assert opened == {9: "A", 10: "AB", 24: "AB", 25: "ABC", 99: "ABC", 100: "ABCD"}
    assert [len(plan_stages(space, n)[-1].tiers) for n in budgets] == [3, 3, 3, 3, 3, 4]
    assert plan_stages(space, 30, {"D": 30})[-1].tiers == ("A", "B", "C", "D")
    assert plan_stages(space, 30, {"B": 31})[-1].tiers == ("A", "C")


def test_a_space_without_the_first_tiers_still_opens_its_most_important_one():
    space = SearchSpace.from_dict({"beta1": {"low": 0.8, "high": 0.99}})
    assert [s.name for s in plan_stages(space, 4)] == ["1 coarse D", "2 fine D", "3 fine D"]


def test_bad_plans_are_named():
    with pytest.raises(ValueError, match="`n_trials` must be at least 1, got 0"):
        plan_stages(SPACE, 0, plan="opening")
    with pytest.raises(ValueError, match="`plan` must be one of default, opening, tiers, retune, got 'grid'"):
        plan_stages(SPACE, 5, plan="grid")
    with pytest.raises(ValueError, match="`opens_from` must have the tiers A, B, C, D, got E"):
        plan_stages(SPACE, 5, {"E": 3})


def test_later_trials_belong_to_the_last_stage():
    stages = plan_stages(SPACE, 30, plan="opening")
    assert stage_at(stages, 0) is stages[0]
    for stage in stages:
        assert stage_at(stages, stage.first) is stage
        assert stage_at(stages, stage.last - 1) is stage
    assert stage_at(stages, 1000) is stages[-1]


# --- ranking ---


def test_loss_is_lower_for_better():
    assert loss(trial(0, 2.0)) == 2.0
    assert loss(trial(0, 2.0), "maximize") == -2.0
    assert loss(trial(0, math.inf)) == math.inf
    assert loss(trial(0, None, TrialState.PRUNED, curve={3: 0.5, 1: 0.9})) == 0.5
    assert loss(trial(0, None, TrialState.PRUNED, curve={3: math.nan})) == math.inf
    assert loss(trial(0, None, TrialState.PRUNED)) == math.inf
    assert loss(trial(0, None, TrialState.FAIL)) == math.inf


def test_pruned_trials_stand_where_their_last_report_puts_them():
    trials = [
        trial(0, 1.0),
        trial(1, 0.2),
        trial(2, 99.0),  # diverged: complete with a bad value
        trial(3, None, TrialState.PRUNED, curve={0: 0.6}),
        trial(4, None, TrialState.PRUNED, curve={0: 0.1, 1: 0.1}),  # best, but nobody knows how it would have ended
        trial(5, None, TrialState.PRUNED),
        trial(6, None, TrialState.FAIL),
        trial(7, None, TrialState.RUNNING),
        trial(8, math.inf),
    ]
    assert [t.number for t in ranked(trials)] == [1, 4, 3, 0, 2, 8]
    assert [t.number for t in ranked(trials[3:6])] == [4, 3]
    assert ranked([]) == []


def test_ties_keep_the_order_of_the_trials():
    assert [t.number for t in ranked([trial(i, 1.0) for i in (3, 1, 2)])] == [1, 2, 3]


# --- boxes ---


def test_zoom_goes_where_the_good_trials_are():
    rng = np.random.default_rng(0)
    positions = rng.random(20).tolist()
    low, high = box(ONE, parabola(positions, 0.7), FINE, {"a": (0.0, 1.0)})["a"]
    assert low < 0.7 < high
    assert high - low < 0.5


def test_zoom_is_the_hull_of_the_best_quarter_and_an_unbiased_margin():
    positions = [0.02, 0.98, 0.4, 0.5, 0.6, 0.45, 0.9, 0.05, 0.1, 0.95, 0.93, 0.07, 0.03, 0.97, 0.96, 0.04]
    order = sorted(positions, key=lambda p: abs(p - 0.5))[:4]  # a quarter of 16
    hull = max(order) - min(order)
    low, high = box(ONE, parabola(positions, 0.5), FINE, {"a": (0.0, 1.0)})["a"]
    assert low == pytest.approx(min(order) - hull / 3)
    assert high == pytest.approx(max(order) + hull / 3)


def test_the_margin_is_unbiased():
    """The ends of a uniform interval, estimated from m draws."""
    rng = np.random.default_rng(0)
    draws = 0.3 + 0.4 * rng.random((20_000, 5))
    hull = draws.max(axis=1) - draws.min(axis=1)
    assert np.mean(draws.min(axis=1) - hull / 4) == pytest.approx(0.3, abs=2e-3)
    assert np.mean(draws.max(axis=1) + hull / 4) == pytest.approx(0.7, abs=2e-3)


def test_a_parameter_that_does_not_matter_keeps_a_wide_box():
    rng = np.random.default_rng(0)
    space = SearchSpace.from_dict({n: {"low": 0.0, "high": 1.0, "tier": "A"} for n in ("a", "b")})
    trials = []
    for i in range(40):
        a, b = rng.random(2).tolist()
        trials.append(trial(i, (a - 0.5) ** 2, space=space, a=a, b=b))
    found = box(space, trials, Stage(2, "fine", ("A",), (), 40, 60), {"a": (0.0, 1.0), "b": (0.0, 1.0)})
    width = {n: high - low for n, (low, high) in found.items()}
    assert width["a"] < 0.4
    assert width["b"] > 0.7


def test_maximise_mirrors_minimise():
    positions = np.random.default_rng(1).random(20).tolist()
    down = box(ONE, parabola(positions, 0.3), FINE, {"a": (0.0, 1.0)})
    up = box(ONE, parabola(positions, 0.3, sign=-1.0), FINE, {"a": (0.0, 1.0)}, "maximize")
    assert up == down


@pytest.mark.parametrize("kind", ["coarse", "fine"])
@pytest.mark.parametrize("centre", [0.0, 0.5, 1.0])
def test_a_box_is_never_narrower_than_the_least_width(kind, centre):
    positions = [min(max(centre + d, 0.0), 1.0) for d in np.linspace(-1e-3, 1e-3, 20)]
    stage = Stage(2, kind, ("A",), (), 20, 40)
    low, high = box(ONE, parabola(positions, centre), stage, {"a": (0.0, 1.0)})["a"]
    assert high - low == pytest.approx(LEAST_WIDTH[kind])
    assert 0 <= low <= centre <= high <= 1


def test_the_best_point_at_an_edge_widens_the_box():
    before = (0.2, 0.5)
    positions = np.linspace(0.2, 0.5, 20).tolist()
    low, high = box(ONE, parabola(positions, 0.7), FINE, {"a": before})["a"]
    assert high >= 0.5 + WIDEN_BY * 0.3 - 1e-12
    assert low > 0.3
    low, high = box(ONE, parabola(positions, 0.0), FINE, {"a": before})["a"]
    assert low <= 0.2 - WIDEN_BY * 0.3 + 1e-12
    assert high < 0.4
    # away from the edges nothing is widened
    low, high = box(ONE, parabola(positions, 0.35), FINE, {"a": before})["a"]
    assert 0.2 < low < 0.35 < high < 0.5


def test_widening_ends_at_the_hard_range():
    positions = np.linspace(0.8, 1.0, 20).tolist()
    low, high = box(ONE, parabola(positions, 1.3), FINE, {"a": (0.8, 1.0)})["a"]
    assert high == 1.0
    assert low > 0.5


def test_repeated_widening_reaches_an_optimum_outside_the_first_box():
    found, trials = {"a": (0.0, 0.2)}, []
    for round_ in range(8):
        low, high = found["a"]
        trials += [
            trial(len(trials) + i, (p - 0.8) ** 2, a=p) for i, p in enumerate(np.linspace(low, high, 8).tolist())
        ]
        found = box(ONE, trials, Stage(round_ + 2, "fine", ("A",), (), len(trials), 99), found)
    assert found["a"][0] < 0.8 < found["a"][1]


@pytest.mark.parametrize("seed", range(30))
def test_properties_of_a_box_on_any_trials(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 40))
    trials = [
        trial(i, float(rng.normal()), space=SPACE, **SPACE.natural(SPACE.at(rng.random(len(SPACE))))) for i in range(n)
    ]
    low = rng.random(len(SPACE)) * 0.5
    before = {p.stored_name: (float(x), float(x + 0.4)) for p, x in zip(SPACE.parameters, low, strict=True)}
    stage = Stage(4, "fine", ("A", "B", "C"), (), n, 99)
    found = box(SPACE, trials, stage, before)
    best = ranked(trials)[0]
    at = dict(zip(found, SPACE.unit([best.params])[0], strict=True))
    for parameter in SPACE.parameters:
        name = parameter.stored_name
        low_, high_ = found[name]
        if name == "kind":
            assert found[name] == before[name]  # unordered: never touched
            continue
        assert 0 <= low_ < high_ <= 1
        assert high_ - low_ >= LEAST_WIDTH["fine"] - 1e-9
        assert low_ <= at[name] <= high_
        if parameter.cardinality is None:
            assert low_ == 0 or at[name] - low_ >= AT_EDGE * (high_ - low_) - 1e-9
            assert high_ == 1 or high_ - at[name] >= AT_EDGE * (high_ - low_) - 1e-9
        else:  # whole cells, and a neighbour on either side
            value = parameter.at(at[name])
            inside = {parameter.at(float(u)) for u in np.linspace(low_ + 1e-6, high_ - 1e-6, 200)}
            values = list(range(1, 11)) if name == "n" else [8, 16, 32, 64, 128]
            place_ = values.index(value)
            assert set(values[max(place_ - 1, 0) : place_ + 2]) <= inside


def test_the_best_point_is_never_left_within_a_tenth_of_an_edge():
    good = np.linspace(0.3, 0.7, 16).tolist()  # best first, so at the very end of the hull
    trials = [trial(i, float(i), a=p) for i, p in enumerate(good + [0.5] * 48)]
    low, high = box(ONE, trials, Stage(2, "fine", ("A",), (), 64, 99), {"a": (0.0, 1.0)})["a"]
    assert 0.3 - low >= AT_EDGE * (high - low)
    mirrored = [trial(i, float(i), a=1 - p) for i, p in enumerate(good + [0.5] * 48)]
    low, high = box(ONE, mirrored, Stage(2, "fine", ("A",), (), 64, 99), {"a": (0.0, 1.0)})["a"]
    assert high - 0.7 >= AT_EDGE * (high - low)


def test_neighbours_of_a_good_value_stay_in_reach():
    natural = {"a": 0.5, "b": 0.01, "kind": "x", "c": 0.5}
    trials = [trial(i, float(i), space=SPACE, n=5, size=32, **natural) for i in range(12)]
    whole = dict.fromkeys(SPACE.distributions, (0.0, 1.0))
    found = box(SPACE, trials, Stage(4, "fine", ("A", "B", "C"), (), 12, 99), whole)
    for name, reach in (("n", {4, 5, 6}), ("size", {16, 32, 64})):
        low, high = found[name]
        assert {SPACE[name].at(float(u)) for u in np.linspace(low + 1e-6, high - 1e-6, 99)} == reach


def test_only_earlier_trials_count_and_few_are_not_enough():
    trials = parabola([0.1, 0.2, 0.3, 0.4, 0.5], 0.1)
    late = [trial(20 + i, -1.0, a=0.9) for i in range(10)]
    assert box(ONE, trials + late, FINE, {"a": (0.0, 1.0)}) == box(ONE, trials, FINE, {"a": (0.0, 1.0)})
    before = {"a": (0.25, 0.75)}
    assert box(ONE, trials[:3], FINE, before) == before
    assert box(ONE, [], FINE, before) == before
    failed = [trial(i, None, TrialState.FAIL, a=0.9) for i in range(5, 15)]
    assert box(ONE, trials + failed, FINE, before) == box(ONE, trials, FINE, before)


def test_values_that_are_not_finite_do_not_draw_a_box():
    before = {"a": (0.25, 0.75)}
    assert box(ONE, [trial(i, math.inf, a=0.1 * i) for i in range(8)], FINE, before) == before
    mixed = parabola([0.3, 0.35, 0.4, 0.45], 0.3) + [trial(i, math.inf, a=0.95) for i in range(4, 16)]
    assert box(ONE, mixed, FINE, {"a": (0.0, 1.0)})["a"][1] < 0.75


def test_equal_values_are_no_error():
    low, high = box(ONE, [trial(i, 1.0, a=0.1 * i) for i in range(10)], FINE, {"a": (0.0, 1.0)})["a"]
    assert 0 <= low < high <= 1


def test_tiers_new_open_and_closed():
    rng = np.random.default_rng(0)
    trials = [
        trial(i, (a - 0.5) ** 2, space=SPACE, a=a, b=0.01, n=3, kind="x", size=32)
        for i, a in enumerate(rng.random(12).tolist())
    ]
    found = box(
        SPACE, trials, Stage(2, "coarse", ("A", "B"), ("B",), 12, 20), dict.fromkeys(SPACE.distributions, (0.0, 1.0))
    )
    assert found["a"] != (0.0, 1.0)
    assert found["a"][1] - found["a"][0] >= LEAST_WIDTH["coarse"] - 1e-12
    for name in ("b", "n", "kind", "size"):
        assert found[name] == (0.0, 1.0)
    assert found["c"] == (0.25, 0.25)


def test_trials_of_another_space_do_not_break_a_box():
    others = optuna.distributions
    strange = [
        optuna.create_trial(params={}, distributions={}, value=0.0),
        optuna.create_trial(params={"q": 1.0}, distributions={"q": others.FloatDistribution(0, 2)}, value=0.0),
        optuna.create_trial(params={"a": 7.0}, distributions={"a": others.FloatDistribution(0, 9)}, value=0.0),
        optuna.create_trial(params={"a": "x"}, distributions={"a": others.CategoricalDistribution(("x",))}, value=0.0),
        optuna.create_trial(
            params={"kind": "w"}, distributions={"kind": others.CategoricalDistribution(("w",))}, value=0.0
        ),
        optuna.create_trial(
            params={"size": 7}, distributions={"size": others.CategoricalDistribution((7,))}, value=0.0
        ),
    ]
    for i, made in enumerate(strange):
        made.number = i
    stage = Stage(2, "fine", ("A", "B", "C"), (), 50, 99)
    whole = dict.fromkeys(SPACE.distributions, (0.0, 1.0))
    assert box(SPACE, strange, stage, whole) == whole
    rng = np.random.default_rng(0)
    own = [
        trial(10 + i, 1.0 + float(rng.random()), space=SPACE, **SPACE.natural(SPACE.at(rng.random(len(SPACE)))))
        for i in range(30)
    ]
    found = box(SPACE, strange + own, stage, whole)
    assert all(0 <= low < high <= 1 for low, high in found.values())


def test_values_of_inactive_parameters_do_not_count():
    space = SearchSpace.from_dict(
        {
            "layers": {"low": 1, "high": 2, "tier": "A"},
            "units": {"low": 0.0, "high": 1.0, "tier": "A", "per_layer": "layers"},
        }
    )
    trials = []
    for i in range(24):  # the second layer matters, and exists, only from the good trials' point of view at 0.2
        natural = {"layers": 1 + i % 2, "units_1": 0.5, "units_2": 0.2 + 0.001 * i if i % 2 else 0.95}
        trials.append(trial(i, float(i), space=space, **natural))
    found = box(space, trials, Stage(2, "fine", ("A",), (), 24, 50), dict.fromkeys(space.distributions, (0.0, 1.0)))
    assert found["units_2"][1] < 0.4


def test_boxes_of_a_study_follow_each_other():
    rng = np.random.default_rng(0)
    planned = plan_stages(SPACE, 60, plan="opening")
    trials = [
        trial(i, float(rng.random()), space=SPACE, **SPACE.natural(SPACE.at(rng.random(len(SPACE))))) for i in range(60)
    ]
    stages = with_boxes(SPACE, trials, planned)
    before = None
    for stage, plain in zip(stages, planned, strict=True):
        assert stage.box == box(SPACE, trials, plain, before)
        before = stage.box
    assert with_boxes(SPACE, trials, planned[:2]) == stages[:2]  # later stages do not reach back


# --- points ---


def boxed(stage: Stage, space: SearchSpace = SPACE) -> Stage:
    return with_boxes(space, [], [stage])[0]


def test_coarse_points_are_scrambled_sobol_in_the_box():
    stage = Stage(3, "coarse", ("A", "B", "C"), ("A", "B", "C"), 7, 300, dict.fromkeys(SPACE.distributions, (0.2, 0.6)))
    engine = qmc.Sobol(6, scramble=True, bits=53, seed=np.random.default_rng([5, 3]))
    expected = 0.2 + 0.4 * engine.random(256)
    for number in (7, 8, 70, 71, 134, 262):  # past the end of blocks too
        np.testing.assert_allclose(sobol_point(SPACE, stage, number, seed=5), expected[number - 7], rtol=1e-14)


def test_coarse_points_are_evenly_spread_and_all_different():
    stage = boxed(Stage(1, "coarse", ("A", "B", "C"), ("A", "B", "C"), 0, 64))
    points = np.stack([sobol_point(SPACE, stage, i, seed=0) for i in range(64)])
    for j in range(points.shape[1]):  # one point in each of 64 equal intervals
        assert sorted((points[:, j] * 64).astype(int)) == list(range(64))
    assert qmc.discrepancy(points) < np.mean(
        [qmc.discrepancy(np.random.default_rng(s).random(points.shape)) for s in range(5)]
    )


def test_coarse_points_depend_on_seed_and_stage():
    stage = boxed(Stage(1, "coarse", ("A", "B", "C"), ("A", "B", "C"), 0, 64))
    other = boxed(Stage(2, "coarse", ("A", "B", "C"), ("A", "B", "C"), 0, 64))
    one = sobol_point(SPACE, stage, 3, 0)
    np.testing.assert_array_equal(one, sobol_point(SPACE, stage, 3, 0))
    assert not np.any(np.isclose(one, sobol_point(SPACE, stage, 3, 1)))
    assert not np.any(np.isclose(one, sobol_point(SPACE, other, 3, 0)))


def test_place_keeps_inside_the_box_and_closed_parameters_at_their_default():
    found = {
        "a": (0.2, 0.4),
        "b": (0.5, 1.0),
        "n": (0.2, 0.4),
        "kind": (0.0, 1.0),
        "size": (0.2, 0.6),
        "c": (0.25, 0.25),
    }
    stage = Stage(2, "fine", ("A", "B"), (), 0, 9, found)
    low, high = to_stored_values(SPACE, stage, np.zeros(6)), to_stored_values(SPACE, stage, np.ones(6))
    assert low == {"a": 0.2, "b": pytest.approx(0.01), "n": 3, "kind": "x", "size": 16, "c": 0.25}
    assert high == {"a": 0.4, "b": pytest.approx(1.0), "n": 4, "kind": "z", "size": 32, "c": 0.25}
    assert to_stored_values(SPACE, stage, np.full(6, 0.3))["a"] == pytest.approx(0.3)
