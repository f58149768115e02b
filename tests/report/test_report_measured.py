"""Evidence is plain JSON, and may have been written by an earlier version."""

from decorated_studies import SPACE

from lightning_hp.report.axes import ends_text
from lightning_hp.report.measured import Measured
from lightning_hp.report.view import StudyView


def test_importance_within_stages_is_read_from_both_forms(finished):
    view = StudyView.read(finished[0])
    shares = {"learning_rate": 0.75, "momentum": 0.25}
    conditions = {"between": {"learning_rate": [0.01, 0.1], "momentum": [0.9, 0.9]}, "at": {"dropout": 0.0}}
    now = {"name": view.stages[0].name, "within": {"importance": shares, "trials": 9, **conditions}}
    not_measured = {"name": "2 fine A", "within": None}
    before = {"name": view.stages[-1].name, "importance": shares, "trials": 7}
    not_measured_then = {"name": "4 fine A", "importance": None}
    evidence = {"stages": [now, not_measured, before, not_measured_then, "no mapping"]}
    first, last = Measured.read(view, evidence).within_stages
    assert (first.name, first.trials, first.shares) == (now["name"], 9, shares)
    assert first.ranges == {"learning_rate": "0.01 to 0.1", "momentum": "0.9"}
    assert first.held == {"dropout": "0"}
    assert (last.name, last.trials, last.shares) == (before["name"], 7, shares)
    low, high = view.stages[-1].interval("learning_rate")
    assert last.ranges["learning_rate"] == ends_text(SPACE["learning_rate"], low, high)
    assert Measured.read(view, {}) == Measured()


def test_what_it_was_measured_by_is_kept(finished):
    view = StudyView.read(finished[0])
    measured = Measured.read(view, {"measured_by": {"method": "model", "trials": 31}})
    assert (measured.method, measured.trials) == ("model", 31)
    assert measured.no_effect == "no clear effect"
    assert Measured.read(view, {"measured_by": {"method": "coarse trials"}}).no_effect == "no more than chance"
    assert Measured.read(view, {"measured_by": None}).method == ""


def test_the_landscape_is_drawn_over_the_two_that_mattered_in_the_study(finished):
    view = StudyView.read(finished[0])
    parameters = {
        "dropout": {"importance": 0.5, "effect": True},
        "momentum": {"importance": 0.3, "effect": True},
        "learning_rate": {"importance": 0.2, "effect": False},
    }
    stages = [{"name": "1", "importance": {"batch_size": 1.0}}]
    pair = Measured.read(view, {"parameters": parameters, "stages": stages}).main_pair(view)
    assert [parameter.name for parameter in pair] == ["dropout", "momentum"]
    assert [parameter.tier for parameter in Measured().main_pair(view)] == ["A", "B"]
