"""Evidence is plain JSON, and may have been written by an earlier version."""

from lightning_hp.report.measured import importances


def test_importance_within_stages_is_read_from_both_forms():
    shares = {"learning_rate": 0.75, "momentum": 0.25}
    now = {"name": "1 coarse A", "within": {"importance": shares, "trials": 9, "between": {}, "at": {}}}
    not_measured = {"name": "2 fine A", "within": None}
    before = {"name": "3 fine A", "importance": shares}
    not_measured_then = {"name": "4 fine A", "importance": None}
    evidence = {"stages": [now, not_measured, before, not_measured_then]}
    assert importances(evidence) == {"1 coarse A": shares, "3 fine A": shares}
    assert importances({}) == {}
