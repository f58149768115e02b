"""Studies of the toy project, run in this process or in a forked child that may be killed."""

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

        given = {"trials": 6, "max_epochs": 2, "space": SPACE, "prune": False, "engine": "in_process", **options}
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
