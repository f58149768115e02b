"""``tune(engine="local")`` from Python: worker processes are given a copy of what only this process knows."""

import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import toy_project as toy
from optuna.trial import TrialState

from lightning_hp.project.build import PythonBuilder
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.only_process import OnlyProcess
from lightning_hp.study.storage import find_study
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.workers.payload import pack, unpack
from lightning_hp.tuning.workers.seats import POLL

TRAINER = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}

#: a script without a guard of its main part, whose module and data are its own
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import toy_project as toy
from lightning_hp import tune

class Mine(toy.Toy):
    def loss(self):
        return super().loss() + SHIFT

class MyData(toy.ToyData):
    pass

SHIFT = 100.0
result = tune(Mine, MyData, toy.SPACE, trials=4, max_epochs=2, engine="local", workers=2, prune=False, name="mine",
              trainer={trainer!r}, progress=False)
assert result.value > 100, result.value
print("ended", result.trial)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "-c", "stdin"])
def test_workers_know_the_classes_of_a_script_a_command_and_a_session(tmp_path, how):
    text = SCRIPT.format(tests=str(Path(toy.__file__).parent), trainer=TRAINER)
    script = tmp_path / "script.py"
    script.write_text(text)
    arguments = {"script": [str(script)], "-c": ["-c", text], "stdin": ["-"]}[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=text if how == "stdin" else None, cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ended" in done.stdout
    trials = find_study("mine", tmp_path / "runs")[0].trials
    assert [(t.number, t.state) for t in trials] == [(n, TrialState.COMPLETE) for n in range(4)]


@pytest.mark.slow
def test_workers_know_what_a_test_has_made(studies):
    shift = 100.0

    class Local(toy.Toy):
        def loss(self):
            return super().loss() + shift

    result = studies.run(model=Local, trials=4, engine="local", workers=2)
    assert result.value > 100
    assert [t.state for t in studies.trials()] == [TrialState.COMPLETE] * 4
    assert POLL < 1


def config(builder):
    return TuneConfig.from_arguments(toy.SPACE, {"trials": 2, "max_epochs": 2}, {"name": "toy"}, builder)


def test_a_study_is_the_same_in_the_other_process(tmp_path):
    builder = PythonBuilder(partial(toy.Toy, momentum=0.7), toy.ToyData, TRAINER)
    builder.check(config(builder).space)  # fills what the builder keeps for itself
    file = tmp_path / "study"
    file.write_bytes(pack(builder, config(builder)))
    with file.open("rb") as stream:
        built, again = unpack(stream)
    assert again.space.parameters == config(builder).space.parameters
    assert (again.name, again.budget) == ("toy", config(builder).budget)
    assert built.module.keywords == {"momentum": 0.7}
    assert built.data is toy.ToyData, "what has an import path goes by it"
    assert built.trainer == TRAINER


def test_the_other_process_imports_from_where_this_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", "/some/where", *sys.path])
    builder = PythonBuilder(toy.Toy, toy.ToyData, TRAINER)
    places, _ = pickle.loads(pack(builder, config(builder)))
    assert places[:2] == [".", "/some/where"]


def test_what_cannot_be_copied_is_refused_by_its_name():
    lock = threading.Lock()

    def data(batch_size=4):
        with lock:
            return toy.ToyData(batch_size)

    builder = PythonBuilder(toy.Toy, data, TRAINER)
    with pytest.raises(ConfigError, match=r"`datamodule` must be something that worker processes can be given"):
        pack(builder, config(builder))


def test_sqlite_takes_one_process_at_a_time(studies, fork, tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    refused = f"for several processes: {tmp_path}/s.db is SQLite, which takes one at a time, and another process"
    held = OnlyProcess(tmp_path / "s.db")
    child = fork(lambda: studies.run(trials=1, storage=url))
    assert child.wait() == 1
    assert refused in child.output
    held.close()
    with pytest.raises(ConfigError, match="SQLite takes one process at a time, got sqlite:///"):
        studies.run(trials=1, storage=url, engine="local", workers=2)
    assert len(studies.run(trials=1, storage=url).study.trials) == 1
    assert not (tmp_path / "s.db.process").exists()
