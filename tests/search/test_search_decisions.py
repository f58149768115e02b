"""What a person decides at a boundary: the next box follows, it is kept with the study, and a resumed one agrees."""

import optuna
import pytest

from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.search.stages import DECIDED, DECISIONS, apply_decisions, stage_at
from lightning_hp.space.space import SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "rate": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A"},
        "part": {"low": 0.0, "high": 1.0, "tier": "A"},
        "layers": {"low": 1, "high": 20, "tier": "A"},
        "kind": {"choices": ["x", "y"], "tier": "A"},
        "closed": {"low": 0.0, "high": 1.0, "tier": "D", "default": 0.25},
    }
)
TRIALS = 30


def objective(trial):
    given = SPACE.suggest(trial)
    return (given["rate"] - 0.01) ** 2 + (given["part"] - 0.4) ** 2 + 0.01 * (given["layers"] - 8) ** 2


def run(decisions, trials=TRIALS, storage=None, plan="default", base=None):
    """A study in which everything is apply_decisions before it begins, as far as the stages are concerned."""
    sampler = CoarseToFineSampler(SPACE, n_trials=TRIALS, max_steps=None, plan=plan, base=base, seed=1)
    study = optuna.create_study(storage=storage, sampler=sampler, study_name="one", load_if_exists=True)
    if decisions is not None:
        study.set_user_attr(DECIDED, {str(sampler.planned[index].first): said for index, said in decisions.items()})
    study.optimize(objective, n_trials=trials)
    return study


def boxes(study):
    return [stage.box for stage in study.sampler.stages(study)]


def test_no_decision_and_stop_leave_the_plan_as_it_is():
    planned = CoarseToFineSampler(SPACE, n_trials=TRIALS).planned
    assert apply_decisions(planned, {}) == planned
    assert apply_decisions(planned, {str(planned[2].first): "stop", "7": "widen"}) == planned
    assert DECISIONS == ("zoom here", "widen", "stop")


def test_a_widened_box_has_every_side_moved_out_within_the_range():
    plain, wide = run({}), run({2: "widen"})
    first = plain.sampler.planned[2].first
    assert [t.params for t in plain.trials[:first]] == [t.params for t in wide.trials[:first]]
    was, now = boxes(plain)[2], boxes(wide)[2]
    for name in ("rate", "part"):
        (low, high), (wide_low, wide_high) = was[name], now[name]
        assert 0 <= wide_low <= low < high <= wide_high <= 1
        # half of the width on either side, unless the range ends before
        assert wide_low == 0 or (low - wide_low) / (high - low) == pytest.approx(0.5)
        assert wide_high == 1 or (wide_high - high) / (high - low) == pytest.approx(0.5)
        assert (wide_low, wide_high) != (low, high)
    low, high = now["layers"]
    assert low <= was["layers"][0]
    assert high >= was["layers"][1]
    assert low * 20 == pytest.approx(round(low * 20)), "whole numbers keep whole cells"
    assert now["kind"] == (0.0, 1.0)
    assert now["closed"] == was["closed"]
    assert boxes(wide)[:2] == boxes(plain)[:2]


def test_trials_use_the_room_that_a_widened_box_gives():
    plain, wide = (run(d, base=optuna.samplers.RandomSampler(seed=3)) for d in ({}, {2: "widen"}))
    names = [p.stored_name for p in SPACE.parameters]
    outside = 0
    for trial in wide.trials[wide.sampler.planned[2].first :]:
        units = dict(zip(names, SPACE.unit([trial.params])[0], strict=True))
        for name in ("rate", "part"):
            low, high = boxes(wide)[2][name]
            assert low - 1e-9 <= units[name] <= high + 1e-9
            low, high = boxes(plain)[2][name]
            outside += not low <= units[name] <= high
    assert outside > 0


def test_zooming_early_draws_a_box_where_the_plan_has_the_full_range():
    plain, early = run({}), run({1: "zoom here"})
    assert boxes(plain)[1]["rate"] == (0.0, 1.0)
    low, high = boxes(early)[1]["rate"]
    assert high - low < 0.9
    stage = stage_at(early.sampler.planned, 10)
    for trial in early.trials[stage.first : stage.last]:
        if {"explored", "widened"} & trial.user_attrs.keys():
            continue
        at = SPACE.unit([trial.params])[0][0]
        assert low - 1e-9 <= at <= high + 1e-9


@pytest.mark.parametrize("decisions", [{2: "widen"}, {1: "zoom here", 2: "widen"}])
def test_a_resumed_study_gives_the_same_stages_and_trials(tmp_path, decisions):
    url = f"sqlite:///{tmp_path}/study.db"
    whole = run(decisions)
    run(decisions, trials=24, storage=url)
    resumed = run(None, trials=TRIALS - 24, storage=url)
    assert [t.params for t in resumed.trials] == [t.params for t in whole.trials]
    assert boxes(resumed) == boxes(whole)


def test_old_tiers_are_widened_and_new_ones_have_their_range_already():
    space = run({}, plan="tiers").sampler.planned
    assert [s.kind for s in space[:2]] == ["coarse", "fine"]
    plain, wide = run({}, plan="tiers"), run({1: "widen"}, plan="tiers")
    low, high = boxes(plain)[1]["part"]
    assert boxes(wide)[1]["part"][0] <= low
    assert boxes(wide)[1]["part"] != (low, high)
