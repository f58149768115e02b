"""``lightning-hp babysit`` and the commands that speak to a babysat run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lightning_hp.callbacks.panda import control
from lightning_hp.callbacks.panda.history import History
from lightning_hp.callbacks.panda.journal import Journal, read_rows
from lightning_hp.callbacks.panda.settings import bounds_from
from lightning_hp.cli import main
from lightning_hp.commands.dashboard import PandaFiles
from lightning_hp.study.storage import find_study

ROOT = Path(__file__).parents[2]


class Run(threading.Thread):
    """Answers commands as a babysat run does, at once."""

    def __init__(self, folder, state="running"):
        super().__init__(daemon=True)
        self.folder, self.over = folder, threading.Event()
        self.history = History(planned=100, values={"learning_rate": 0.1})
        self.journal = Journal()
        self.journal.begin(folder)
        self.journal.event(0, 0, "training", "new", "running", "begins")
        self.journal.status(state, self.history, 0, always=True)

    def run(self):
        while not self.over.wait(0.01):
            for command in control.pending(self.folder):
                answer = control.answer(command, self.history, bounds_from(None))
                text = {"accepted": answer.accepted, "by": "person", "command": command.id}
                self.journal.event(7, 0, "command", None, command.action, answer.reason, **text)
                control.done(self.folder, command)


@pytest.fixture
def run(tmp_path):
    thread = Run(tmp_path / "run")
    thread.start()
    yield thread
    thread.over.set()
    thread.join()


def test_a_nudge_is_answered(run, capsys):
    assert main(["nudge", str(run.folder), "learning_rate=0.003", "--why", "it is noisy"]) == 0
    assert capsys.readouterr().out == "step 7: it is noisy\n"


def test_a_refusal_is_an_error_with_the_reason(run, capsys):
    assert main(["nudge", str(run.folder), "lr=0.003"]) == 1
    assert capsys.readouterr().out == "step 7: refused: `hyperparameter` must be one of learning_rate, got 'lr'\n"


@pytest.mark.parametrize("verb", ["pause", "stop"])
def test_verbs_without_values(run, capsys, verb):
    assert main([verb, str(run.folder)]) == 0
    assert "step 7" in capsys.readouterr().out


def test_an_undo_of_nothing_is_refused(run, capsys):
    assert main(["undo", str(run.folder)]) == 1
    assert "refused: there is nothing to undo" in capsys.readouterr().out


def test_a_run_that_is_busy_answers_later(tmp_path, capsys):
    Run(tmp_path)
    assert main(["pause", str(tmp_path), "--wait", "0"]) == 0
    assert "left for the next check" in capsys.readouterr().out
    assert [command.action for command in control.pending(tmp_path)] == ["pause"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nudge", "nowhere", "learning_rate=1"], "`run` must be the folder of a babysat run"),
        (["nudge", "ended", "learning_rate=1"], "`run` must be running, got 'ended', which is ended"),
        (["nudge", "alive", "learning_rate"], "`values` must be NAME=NUMBER, got 'learning_rate'"),
        (["nudge", "alive", "learning_rate=fast"], "`values` must be NAME=NUMBER, got 'learning_rate=fast'"),
    ],
)
def test_what_cannot_be_asked_is_said_at_once(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Run(Path("ended"), "ended")
    Run(Path("alive"))
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert control.pending(Path("alive")) == []


def test_status_shows_a_babysat_run(tmp_path, capsys):
    Run(tmp_path)
    assert main(["status", str(tmp_path)]) == 0
    assert "running, step 0 of 100, 0 interventions; learning_rate 0.1" in capsys.readouterr().out


def test_status_knows_a_run_by_the_name_that_a_nudge_knows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["status", "digits"]) != 0, "nothing of that name"
    folder = Path("runs/digits-panda")
    folder.mkdir(parents=True)
    Run(folder)
    capsys.readouterr()
    for name in ("digits", "digits-panda", "runs/digits-panda"):
        assert main(["status", name]) == 0
        assert "running, step 0 of 100" in capsys.readouterr().out


def test_a_run_whose_process_is_gone_is_killed_for_everybody_who_asks(tmp_path, capsys):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    Run(tmp_path)
    status = json.loads((tmp_path / "panda.json").read_text())
    for change, state in (({"pid": gone.pid}, "killed"), ({"pid": gone.pid, "host": "another"}, "running")):
        (tmp_path / "panda.json").write_text(json.dumps({**status, **change}))
        assert main(["status", str(tmp_path)]) == 0
        assert f"{tmp_path}: {state}, step 0 of 100" in capsys.readouterr().out
        assert PandaFiles().status(tmp_path)["state"] == state
    (tmp_path / "panda.json").write_text(json.dumps({**status, "pid": gone.pid}))
    assert main(["stop", str(tmp_path)]) == 1
    assert "`run` must be running" in (err := capsys.readouterr().err)
    assert "which is killed" in err
    assert control.pending(tmp_path) == []


def test_asking_loads_nothing_heavy(tmp_path):
    Run(tmp_path)
    code = f"import sys\nfrom lightning_hp.cli import main\nmain(['pause', {str(tmp_path)!r}, '--wait', '0'])\n"
    code += "print([m for m in ('torch', 'lightning', 'optuna') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


SHORT = ["--trainer.max_epochs", "4", "--scheduler", "take_over", "--model.init_args.hidden_units", "16"]


def test_babysit_trains_the_file_and_writes_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs/digits/train.yaml")
    space = str(ROOT / "configs/digits/tune.yaml")
    low = ["--model.init_args.learning_rate", "0.0002"]
    assert main(["babysit", config, "--folder", "run", "--space", space, *SHORT, *low]) == 0
    shown = capsys.readouterr().out
    assert "learning_rate: 0.0002 to" in shown
    rows = read_rows(tmp_path / "run" / "panda.jsonl")
    assert rows[0]["numbers"]["values"]["learning_rate"] == 0.0002
    assert rows[-1]["to"] == "ended"
    page = (tmp_path / "run" / "panda.html").read_text()
    assert "training loss" in page
    assert "plotly.js" in page
    assert "the loss falls slowly" in page
    study, _ = find_study("run")
    assert study.trials[0].params["learning_rate"] == 0.0002
    assert study.trials[-1].user_attrs["rule"] == "wind_down"
    learned = json.loads((tmp_path / "run" / "panda_values.json").read_text())
    assert learned["learning_rate"] > 50 * rows[-1]["numbers"]["values"]["learning_rate"] / 3


def test_babysit_refuses_the_folder_of_a_living_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Run(Path("run"))
    status = json.loads(Path("run/panda.json").read_text())
    Path("run/panda.json").write_text(json.dumps({**status, "pid": os.getppid()}))
    assert main(["babysit", str(ROOT / "configs/digits/train.yaml"), "--folder", "run", *SHORT]) == 1
    assert "`folder` must hold no run that is alive" in capsys.readouterr().err


def test_babysit_refuses_a_file_that_has_a_babysitter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = [*SHORT, "--trainer.callbacks+=lightning_hp.PandaBabysitter"]
    assert main(["babysit", str(ROOT / "configs/digits/train.yaml"), *own]) == 1
    assert "`config` must have no PandaBabysitter, got one: `lightning-hp fit`" in capsys.readouterr().err


def test_babysit_without_a_scheduler_word_leaves_it_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="leaves the learning rate to LambdaLR"):
        main(["babysit", str(ROOT / "configs/digits/train.yaml"), *SHORT[:2], *SHORT[4:]])
    rates = {window["values"]["learning_rate"] for window in read_rows(Path("runs/digits-panda/panda_windows.jsonl"))}
    assert len(rates) > 3, "the module's own cosine"
