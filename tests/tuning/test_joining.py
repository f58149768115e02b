"""``lightning-hp worker``: joins a study with its folder or its storage alone, and leaves when told to."""

import threading
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
import toy_project as toy
import yaml
from optuna.trial import TrialState
from rich.console import Console

from lightning_hp import cli
from lightning_hp.commands.watch import watch
from lightning_hp.study.at_work import picture
from lightning_hp.study.leases import Leases, Worker, lease_of
from lightning_hp.study.storage import find_study
from lightning_hp.tuning import finish

COMPLETE, RUNNING = TrialState.COMPLETE, TrialState.RUNNING


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A study of six trials, stopped by Ctrl-C in its third, and the folder that it was begun in."""
    monkeypatch.setattr(finish, "write_reports", lambda study, paths, now: paths.report.touch())
    folder = tmp_path / "first"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def begin(faults="", **changes):
        train, tune = yaml.safe_load(toy.TRAIN_YAML), yaml.safe_load(toy.TUNE_YAML)
        train["model"]["init_args"]["faults"] = f"2:sigint {faults}".strip()
        tune.update({"budget": {"trials": 6, "max_epochs": 2}, **changes})
        Path("train.yaml").write_text(yaml.safe_dump(train))
        Path("tune.yaml").write_text(yaml.safe_dump(tune))
        assert cli.main(["tune", "tune.yaml"]) == 130
        return folder

    return begin


def states(study="toy", runs=Path("runs")):
    return [t.state for t in find_study(study, runs)[0].trials]


def test_a_worker_of_the_same_folder_does_its_share_and_another_the_rest(begun, capsys):
    begun()
    assert cli.main(["worker", "toy", "--max-trials", "2"]) == 0
    assert "this worker ended 2 trials of study toy" in capsys.readouterr().out
    assert states() == [COMPLETE] * 5
    assert cli.main(["worker", "runs/toy"]) == 0
    assert "this worker ended 1 trial of study toy" in capsys.readouterr().out
    assert cli.main(["worker", "toy"]) == 0
    assert states() == [COMPLETE] * 6
    assert not Path("runs/toy/result.json").exists(), "a worker runs trials and no more"
    assert cli.main(["tune", "tune.yaml"]) == 0
    assert len({lease_of(t).worker for t in find_study("toy")[0].trials}) == 3


def test_a_worker_from_elsewhere_needs_the_url_and_an_importable_project(begun, tmp_path, monkeypatch, capsys):
    url = f"sqlite:///{tmp_path}/s.db"
    begun(storage=url)
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "second")
    monkeypatch.setenv("LIGHTNING_HP_STORAGE", url)
    assert cli.main(["worker", "toy", "--max-trials", "1"]) == 0
    assert Path("runs/toy/project/train.yaml").read_text() == (tmp_path / "first" / "train.yaml").read_text()
    assert (Path("runs/toy") / "trials" / "0003" / "metrics.csv").exists(), "it writes into a folder of its own"
    monkeypatch.delenv("LIGHTNING_HP_STORAGE")
    assert cli.main(["worker", "toy", "--storage", url]) == 0
    monkeypatch.chdir(tmp_path / "first")
    assert states() == [COMPLETE] * 6
    assert cli.main(["tune", "tune.yaml"]) == 0
    capsys.readouterr()


def test_sigterm_hands_the_trial_back_or_finishes_it(begun, fork):
    begun(faults="3:sigterm 4:sigterm")
    assert fork(lambda: cli.main(["worker", "toy", "--on-term", "finish"])).wait() == 0
    assert states() == [COMPLETE] * 4, "trial 3 was trained to its end, and no other begun"
    child = fork(lambda: cli.main(["worker", "toy"]))
    assert child.wait() == 143
    assert "terminated" in child.output
    assert states() == [COMPLETE] * 4 + [RUNNING]
    assert lease_of(find_study("toy")[0].trials[4]).worker == ""


def test_no_trial_is_begun_after_the_time_of_a_worker(begun, monkeypatch, capsys):
    begun()

    class AtOnce(threading.Timer):
        def start(self):
            assert self.interval == 7200
            self.function()

    monkeypatch.setattr(threading, "Timer", AtOnce)
    assert cli.main(["worker", "toy", "--max-time", "2h"]) == 0
    assert "this worker ended 0 trials" in capsys.readouterr().out
    assert states() == [COMPLETE] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "`study` must be a study folder or the name of one in runs"),
        (["toy", "--on-term", "sulk"], "`--on-term` must be hand-back or finish, got 'sulk'"),
        (["toy", "--max-trials", "0"], "`--max-trials` must be a whole number of at least 1, got 0"),
        (["toy", "--max-time", "soon"], "`--max-time` must be such as 30m or 2h, HH:MM:SS"),
        (["toy", "--storage", "sqlite:///none.db"], "there is no file none.db"),
        (["toy", "--storage", "journal", "--folder", "elsewhere"], "`--folder` must be the study's folder"),
        (["other", "--storage", "journal", "--folder", "runs/toy"], "there is no study named 'other'"),
    ],
)
def test_what_cannot_be_joined_is_said_in_one_line(begun, capsys, arguments, said):
    begun()
    capsys.readouterr()
    assert cli.main(["worker", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_study_of_a_script_says_what_to_do(studies, capsys):
    studies.run(trials=1)
    assert cli.main(["worker", str(studies.paths().root)]) == 1
    assert "is tuned by a Python script, whose classes only that script knows: run the same script" in (
        capsys.readouterr().err
    )


# --- watching ---


def test_a_picture_of_a_study_at_work(studies):
    studies.run(trials=4)
    study = studies.open()
    now = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)  # leases keep whole seconds
    finished = max(t.datetime_complete for t in study.trials)
    leases = Leases(study, Worker(studies.paths().root, "busy"), 60.0, now=lambda: now)
    trial = study.ask()
    trial.report(0.5, 3)
    with leases.hold(trial):
        seen = picture(study, now + timedelta(seconds=61))
        (idle, busy) = sorted(seen.workers, key=lambda row: row.worker == "busy")
        assert (busy.trial, round(busy.age), busy.expired, busy.step, busy.value) == (4, 61, True, 3, 0.5)
        assert (idle.trial, idle.ended) == (None, 4)
        assert seen.states == {"running": 1, "complete": 4}
        best = min(study.trials[:4], key=lambda t: t.value)
        assert seen.best == (best.number, best.value)
        first = min(t.datetime_complete for t in study.trials[:4])
        passed = (now + timedelta(seconds=61)).astimezone().replace(tzinfo=None) - first
        assert seen.per_hour == pytest.approx(3 * 3600 / passed.total_seconds())
        assert finished >= first
        later = picture(study, now + timedelta(hours=1))
        assert [row.worker for row in later.workers] == ["busy"], "who has ended nothing lately is not shown"
        assert later.per_hour == 0.0
    assert [row.worker for row in picture(study, now).workers][-1].startswith(("handed back", idle.worker))


def test_what_watching_prints(studies):
    studies.run(trials=4)
    study = studies.open()
    now = datetime.now(UTC)
    leases = Leases(study, Worker(studies.paths().root, "busy[1]"), 60.0, now=lambda: now)
    text = StringIO()
    with leases.hold(study.ask()):
        watch(study, Console(file=text, width=160), 0, now=lambda: now + timedelta(minutes=3))
    printed = text.getvalue()
    assert "toy: 1 running, 4 complete of 4; stage" in printed
    assert "best val_loss" in printed
    row = next(line for line in printed.splitlines() if line.startswith("busy[1]"))
    assert "3 min ago, expired" in row


def test_watching_goes_on_until_ctrl_c(studies):
    studies.run(trials=1)
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt("seen enough")

    with pytest.raises(KeyboardInterrupt, match="seen enough"):
        watch(studies.open(), Console(file=StringIO(), force_terminal=True), 2.0, sleep=sleep)
    assert looks == [2.0] * 3


def test_the_command_watches_a_study(studies, capsys):
    studies.run(trials=1)
    assert cli.main(["watch", str(studies.paths().root)]) == 0
    assert "toy: 1 complete of 1" in capsys.readouterr().out
