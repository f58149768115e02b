"""What is read of a study: which trials count, which stage they belong to, which colours stages keep."""

import colorsys
import logging

import optuna
import pytest
from decorated_studies import SPACE, made_trial
from optuna.trial import TrialState

from lightning_hp.report.view import TIER_COLOURS, StudyView, finite_points, tint
from lightning_hp.study.storage import StudyError


def hue(colour):
    return colorsys.rgb_to_hsv(*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)))[0]


def test_every_trial_has_the_stage_it_was_drawn_in(finished):
    view = StudyView.read(finished[0])
    assert len(view.stages) > 2
    for trial in view.trials:
        stage = view.stage_of(trial)
        assert stage.name == trial.user_attrs["stage"]
        assert stage.first <= trial.number <= stage.last


def test_boxes_are_those_of_the_sampler(finished):
    study, _ = finished
    given = study.sampler.stages(study)
    fresh = optuna.load_study(study_name="digits", storage=study._storage)  # default sampler: stages from storage alone
    for ours, theirs in zip(StudyView.read(fresh).stages, given, strict=True):
        assert dict(ours.box) == dict(theirs.box)
        assert (ours.first, ours.last) == (theirs.first, theirs.last - 1)


def test_stages_come_from_trials_where_boxes_cannot_be_had(finished, monkeypatch, caplog):
    study, _ = finished
    given = study.sampler.stages(study)

    def broken(self, study):
        raise RuntimeError("no stages")

    monkeypatch.setattr("lightning_hp.search.sampler.CoarseToFineSampler.stages", broken)
    with caplog.at_level(logging.WARNING):
        view = StudyView.read(study)
    assert "cannot be read" in caplog.text
    assert [(s.name, s.tiers, s.first) for s in view.stages] == [(s.name, s.tiers, s.first) for s in given]
    rates = {s.name: [] for s in given}
    for trial in study.trials:
        rates[trial.user_attrs["stage"]].append(SPACE["learning_rate"].unit([trial.params["learning_rate"]])[0])
    for stage in view.stages:
        assert stage.interval("learning_rate") == (min(rates[stage.name]), max(rates[stage.name]))


def test_trials_of_a_shorter_plan_keep_their_stages(made):
    drawn = [made_trial(0.1 * i, 1.0, user_attrs={"stage": "1 coarse A", "tier": "A"}) for i in range(6)]
    drawn += [made_trial(0.5, 1.0, user_attrs={"stage": "7 fine ABC", "tier": "C"}) for _ in range(34)]
    view = StudyView.read(made(drawn))
    assert [(s.name, s.first, s.last) for s in view.stages] == [("1 coarse A", 0, 5), ("7 fine ABC", 6, 39)]
    assert view.stages[0].interval("dropout") == pytest.approx((0.0, 0.5))


def test_stage_colours_are_distinct_and_keep_the_hue_of_their_tier(finished):
    stages = StudyView.read(finished[0]).stages
    assert len({s.colour for s in stages}) == len(stages)
    for stage in stages:
        assert hue(stage.colour) == pytest.approx(hue(TIER_COLOURS[stage.tier]), abs=0.02)


def test_tint_ends():
    assert tint("#102030", 0) == "#102030"
    assert tint("#102030", 1) == "#ffffff"
    assert tint("#102030", -1) == "#000000"


@pytest.mark.parametrize(("mode", "order"), [("min", [3, 0, 5]), ("max", [5, 0, 3])])
def test_only_finite_values_that_did_not_diverge_are_ranked(made, mode, order):
    study = made(
        [
            made_trial(0.1, 2.0),
            made_trial(0.2, state=TrialState.FAIL),
            made_trial(0.3, float("-inf" if mode == "min" else "inf")),
            made_trial(0.4, 1.0),
            made_trial(0.5, -9.0 if mode == "min" else 9.0, user_attrs={"diverged": True}),
            made_trial(0.6, 3.0),
            made_trial(0.7, 0.5, TrialState.PRUNED),
        ],
        mode,
    )
    view = StudyView.read(study)
    assert [t.number for t in view.ranked] == order
    assert [t.number for t in view.failed] == [1, 2]
    assert [t.number for t in view.diverged] == [4]
    assert [t.number for t in view.pruned] == [6]


def test_curves_are_sorted_and_finite():
    trial = made_trial(0.5, 1.0, intermediate_values={3: 0.5, 1: 2.0, 2: float("nan")})
    assert finite_points(trial) == [(1, 2.0), (3, 0.5)]


def test_a_foreign_study_is_refused():
    with pytest.raises(StudyError, match="was not made by lightning_hp"):
        StudyView.read(optuna.create_study())
