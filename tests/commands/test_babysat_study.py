"""A babysat run as a study of one lineage."""

from __future__ import annotations

import math

from optuna.trial import TrialState

from lightning_hp.callbacks.panda.history import Done, History, Intervention, Validation, Window
from lightning_hp.commands.babysat_study import learned_values, stretches_of
from lightning_hp.study.lineage import record_lineage
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import find_study


def babysat():
    """A search step that restarts, a divergence, a wind-down of three steps."""
    run = History(planned=100, values={"learning_rate": 0.01, "momentum": 0.9})
    todo = {
        10: (Intervention("slow_start", "slow", {"learning_rate": 0.1}, restore="start"), 0),
        40: (Intervention("divergence", "exploded", {"learning_rate": 0.03}, restore="good"), 30),
        70: (Intervention("wind_down", "the end", {"learning_rate": 0.02}), None),
        80: (Intervention("wind_down", "the end", {"learning_rate": 0.01}), None),
        90: (Intervention("wind_down", "the end", {"learning_rate": 0.001}), None),
    }
    for step in range(10, 101, 10):
        level = math.nan if step == 40 else 1 / step
        run.windows.append(Window(step, step // 20, 10, 1.0, level, 0.1, values=dict(run.values)))
        if step % 20 == 0 and step != 40:
            run.validations.append(Validation(step, step // 20, 2 / step))
        if step in todo:
            what, back_to = todo[step]
            run.done.append(Done(step, step // 20, what, dict(run.values), back_to))
            run.values.update(what.values)
    return run


def test_every_stretch_between_interventions_is_one_with_its_parent():
    stretches = stretches_of(babysat())
    assert [(one.rule, one.parent, one.kept) for one in stretches] == [
        ("start", None, False),
        ("slow_start", None, False),
        ("divergence", 1, True),
        ("wind_down", 2, True),
    ]
    assert [one.values["learning_rate"] for one in stretches] == [0.01, 0.1, 0.03, 0.02]
    assert [list(one.curve) for one in stretches] == [[10], [20, 30, 40], [50, 60, 70], [80, 90, 100]]
    assert [one.value for one in stretches] == [None, 2 / 20, 2 / 60, 2 / 100]


def test_the_learned_rate_is_that_from_before_the_wind_down():
    assert learned_values(babysat()) == {"learning_rate": 0.03, "momentum": 0.9}


def test_the_study_can_be_found_and_says_why(tmp_path):
    ranges = {"learning_rate": (1e-7, 10.0), "momentum": (0.0, 0.999)}
    for _ in range(2):  # a second record replaces the first
        record_lineage(StudyPaths(tmp_path), "one-panda", stretches_of(babysat()), ranges, "val_loss")
    study, _ = find_study(str(tmp_path))
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.PRUNED, TrialState.PRUNED, TrialState.COMPLETE, TrialState.COMPLETE]
    assert study.best_trial.number == 3
    assert study.best_value == 2 / 100
    assert study.trials[1].user_attrs["why"] == "slow"
    assert study.trials[2].user_attrs["parent"] == 1
    assert study.trials[1].intermediate_values == {20: 1 / 20, 30: 1 / 30}, "what is not finite is left out"
    assert len({str(trial.distributions) for trial in study.trials}) == 1
