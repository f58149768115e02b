"""Studies of the toy project, run in this process or in a forked child that may be killed."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import toy_project as toy

from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import load_study, open_storage
from lightning_hp.tuning import finish
from lightning_hp.tuning.tune import tune

TRAINER = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}
SPACE = toy.SPACE


class Studies:
    """A folder of toy studies."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, name: str = "toy", faults: str = "", trainer=None, model=toy.Toy, **options):
        """``tune`` on the toy, with faults on order."""

        def module(learning_rate: float = 0.1, momentum: float = 0.9):
            return model(learning_rate, momentum, faults, **options.get("model_options", {}))

        given = {"trials": 6, "max_epochs": 2, "space": SPACE, "prune": False, **options}
        given.pop("model_options", None)
        space = given.pop("space")
        return tune(
            module,
            toy.ToyData,
            space,
            name=name,
            folder=self.folder / name,
            trainer={**TRAINER, **(trainer or {})},
            **given,
        )

    def open(self, name: str = "toy") -> optuna.Study:
        """The study as storage holds it, read by a second process's means."""
        return load_study(name, open_storage("journal", self.paths(name)))

    def paths(self, name: str = "toy") -> StudyPaths:
        return StudyPaths(self.folder / name)

    def trials(self, name: str = "toy"):
        return self.open(name).get_trials()


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """Studies that end without the report, which takes longer than the rest and has tests of its own."""
    monkeypatch.setattr(finish, "write_reports", lambda study, paths, now: paths.report.touch())
    return Studies(tmp_path)


@pytest.fixture
def reported(tmp_path):
    """Studies that end with their report."""
    return Studies(tmp_path)


class Child:
    """A forked child that runs a function; what it says goes to a file."""

    def __init__(self, work: Callable[[], object], said: Path):
        self.said = said
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                out = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
                os.dup2(out, 1)
                os.dup2(out, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                result = work()
                code = result if isinstance(result, int) else 0
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        self.code: int | None = None

    def wait(self) -> int:
        """The exit code; below 0 the signal that killed it."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds, or the child has ended."""
        while self.code is None and not condition():
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            time.sleep(0.002)

    def kill(self, signum: int) -> None:
        if self.code is None:
            os.kill(self.pid, signum)

    @property
    def output(self) -> str:
        return self.said.read_text()


@pytest.fixture
def fork(tmp_path):
    """Start a function in a child process, which is already past its imports."""
    children: list[Child] = []

    def start(work: Callable[[], object]) -> Child:
        children.append(Child(work, tmp_path / f"child{len(children)}.txt"))
        return children[-1]

    yield start
    for child in children:
        if child.code is None:
            os.kill(child.pid, 9)
            child.wait()
