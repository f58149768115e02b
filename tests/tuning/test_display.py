"""What a person sees: plain lines in a file, a live table on a terminal, and never a crash over a bracket."""

import io
import json

import optuna
import pytest
import toy_project as toy
from optuna.trial import TrialState, create_trial
from rich.console import Console

from lightning_hp.commands.space import show_space
from lightning_hp.project.build import PythonBuilder
from lightning_hp.report.text import show_evidence, show_result
from lightning_hp.study.storage import find_study
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.listener import SilentListener
from lightning_hp.tuning.progress import StudyDisplay

BRACKETS = "RuntimeError: mat1 [/3, 4] and [bold]mat2[/] [red]"


def trial(number, value=None, state=TrialState.COMPLETE, **attributes):
    made = create_trial(state=state, value=value, user_attrs=attributes, intermediate_values={1: 2.5})
    made.number = number
    return made


TRIALS = [
    trial(0, 0.5, stage="1 coarse A", seconds=1.25),
    trial(1, None, TrialState.FAIL, stage="1 coarse A", failure=BRACKETS),
    trial(2, 0.25),  # without stage and seconds
    trial(3, 9.0, diverged=True),
    trial(4, None, TrialState.PRUNED, stage="2 fine A", seconds=3.0),
]


def show(display):
    for made in TRIALS:
        running = create_trial(state=TrialState.RUNNING, user_attrs={"stage": "x"})
        running.number = made.number
        display.trial_started(running)
        display.trial_finished(made)
    display.message(f"waiting [/ for {BRACKETS}")


def test_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    console = Console(file=out, width=60)
    with StudyDisplay("toy", 12, "val_loss", "min", console=console) as display:
        show(display)
    lines = out.getvalue().splitlines()
    assert len(lines) == 6, "one line a trial, however narrow"
    assert lines[0].startswith(
        "[ 1/12] trial 0  1 coarse A   val_loss 0.5        complete   1.2 s  best 0.5 (trial 0) *"
    )
    assert lines[1].endswith(f"best 0.5 (trial 0)  {BRACKETS}")
    assert "fail" in lines[1]
    assert "best 0.25 (trial 2) *" in lines[2]
    assert "diverged" in lines[3]
    assert "best 0.25 (trial 2)" in lines[3], "a diverged trial is never the best"
    assert "val_loss 2.5 " in lines[4], "a pruned trial shows where its curve ended"
    assert lines[5] == f"waiting [/ for {BRACKETS}"
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 0)])
def test_the_best_on_a_terminal(mode, best):
    out = io.StringIO()
    console = Console(force_terminal=True, file=out, width=100, color_system=None)
    with StudyDisplay("toy", 12, "val[loss]", mode, workers=2, console=console) as display:
        display.trial_known(trial(7, 0.4))
        show(display)
        console.print(display._render())
    assert display.best.number == best
    assert display.done == 6
    text = out.getvalue()
    assert f"in trial {best}" in text
    assert "val[loss]" in text
    assert "[/3, 4] and [bold]mat2[/] [red]" in text, "brackets are shown, not read as markup"
    assert "6/12" in text


def test_a_running_trial_shows_how_far_it_is_and_its_newest_value():
    out = io.StringIO()
    console = Console(force_terminal=True, file=out, width=100, color_system=None)
    with StudyDisplay("toy", 12, "val_loss", "min", console=console) as display:
        for number in (3, 4, 5):
            running = create_trial(state=TrialState.RUNNING, user_attrs={"stage": "2 fine A"})
            running.number = number
            display.trial_started(running)
        display.trial_progressed(3, 13, 27, 0.5)
        display.trial_progressed(3, 14, 27, 0.25)
        display.trial_progressed(4, 7, None, 0.125)
        console.print(display._render())
    rows = [line.split("2 fine A")[1].split() for line in out.getvalue().splitlines() if "2 fine A" in line][-3:]
    assert rows == [["0.25", "━━━━━╌╌╌╌╌", "14/27"], ["0.125", "running,", "step", "7"], ["running"]]
    display.trial_finished(trial(3, 0.2))
    assert display.points == {4: (7, None, 0.125)}


class Watching(SilentListener):
    def __init__(self):
        self.points = []

    def trial_progressed(self, number, step, steps, value):
        self.points.append((number, step, steps, value))


@pytest.mark.parametrize("engine", ["in_process", "stacked", pytest.param("local", marks=pytest.mark.slow)])
def test_every_value_of_every_trial_is_told_as_it_comes(engine, tmp_path):
    """Against the curves that are stored; with few epochs all points are."""
    listener, builder = Watching(), PythonBuilder(toy.Toy, toy.ToyData, {"accelerator": "cpu", "logger": False})
    settings = {"name": "toy", "folder": str(tmp_path / "toy"), "prune": False, "caviar": {"engine": engine}}
    budget = {"trials": 3, "max_epochs": 2}
    config = TuneConfig.from_arguments(toy.SPACE, budget, settings, builder)
    run(config, builder, listener)
    study, _ = find_study(str(tmp_path / "toy"))
    curves = {t.number: t.intermediate_values for t in study.trials}
    if engine == "local":  # the parent looks a few times a second, and may see the last point only, or none
        assert {(n, step, value) for n, step, _, value in listener.points} <= {
            (n, step, value) for n, curve in curves.items() for step, value in curve.items()
        }
        return
    told = {n: {step: value for m, step, _, value in listener.points if m == n} for n in curves}
    assert told == curves
    assert {steps for *_, steps, _ in listener.points} == {2}


def test_a_display_without_any_event_and_with_an_error_inside():
    console = Console(force_terminal=True, file=io.StringIO())
    with StudyDisplay("toy", 3, "m", "min", console=console):
        pass
    with pytest.raises(KeyError, match="inside"), StudyDisplay("toy", 3, "m", "min", console=console) as display:
        raise KeyError("inside")
    assert not display._live.is_started


def test_trials_that_others_finished_count_without_a_line():
    out = io.StringIO()
    with StudyDisplay("toy", 4, "m", "min", console=Console(file=out)) as display:
        display.trial_known(trial(0, 0.5))
        display.trial_known(trial(1, 0.1))
        display.trial_finished(trial(2, 0.3))
    assert out.getvalue().splitlines() == [
        line for line in out.getvalue().splitlines() if line.startswith("[3/4] trial 2")
    ]
    assert "best 0.1 (trial 1)" in out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_end_of_a_study_of_names_with_brackets(terminal, tmp_path):
    found = {
        "study": "toy",
        "trial": 3,
        "value": 0.125,
        "monitor": "val[loss]",
        "mode": "min",
        "by_tier": {"A": {"lr[0]": 0.1}, "B": {"activation": "[relu]", "width": 7}},
        "validation": {"val[loss]": 0.125},
        "test": {},
        "trials": {"complete": 4, "pruned": 0, "failed": 1},
        "seconds": 12.0,
        "ledger": {"tuned_at": "2026-01-01T00:00:00Z", "retest_at": {"A": "2026-01-31T00:00:00Z"}},
        "checkpoint": "/a/[b]/best.ckpt",
        "best_yaml": "/a/[b]/best.yaml",
        "confirmed": {"text": "0.13 on 3 seeds", "left": 2},
    }
    out = io.StringIO()
    show_result(json.loads(json.dumps(found)), Console(force_terminal=terminal, file=out, width=60, color_system=None))
    text = out.getvalue()
    for word in (
        "4 complete, 1 failed",
        "val[loss] 0.125",
        "lr[0]",
        "[relu]",
        "A 2026-01-31",
        "/a/[b]/best.ckpt",
        "left       2 of",
    ):
        assert word in text
    assert "pruned" not in text


def test_the_evidence_of_a_study_that_is_too_young(reported):
    result = reported.run(trials=3, space={**toy.SPACE, "momentum": {**toy.SPACE["momentum"], "tier": "D"}})
    measured = json.loads(reported.paths().evidence.read_text())
    out = io.StringIO()
    show_evidence(measured, Console(file=out, width=120))
    assert "learning_rate" in out.getvalue()
    assert "closed" in out.getvalue(), "tier D does not open within three trials"
    assert result.report.is_file()


def test_conditions_are_shown_in_the_space(tmp_path):
    (tmp_path / "train.yaml").write_text(toy.TRAIN_YAML)
    (tmp_path / "tune.yaml").write_text(
        "name: x\nconfig: train.yaml\nspace:\n"
        "  model.layers: {low: 1, high: 3}\n"
        "  model.activation: {choices: ['[relu]', tanh], active_if: {layers: '>= 2'}}\n"
    )
    out = io.StringIO()
    show_space(str(tmp_path / "tune.yaml"), 30, Console(file=out, width=120))
    assert "activation (if layers >= 2)" in out.getvalue()
    assert "[relu], tanh" in out.getvalue()


def test_the_optuna_log_level_comes_back(studies):
    before = optuna.logging.get_verbosity()
    studies.run(trials=1)
    assert optuna.logging.get_verbosity() == before


@pytest.mark.parametrize("progress", [True, False])
def test_tune_in_python_tells_its_trials_unless_it_is_told_not_to(studies, capsys, progress):
    studies.run(trials=2, progress=progress)
    out, told = capsys.readouterr()
    assert ("[2/2] trial 1" in told) is progress
    assert "[2/2]" not in out
