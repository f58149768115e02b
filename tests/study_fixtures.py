"""Fixtures of the tests that draw studies; conftest.py of those folders imports them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from decorated_studies import SPACE, describe_as, run
from optuna.trial import FrozenTrial

from lightning_hp.space.space import SearchSpace
from lightning_hp.study.description import open_study
from lightning_hp.study.paths import StudyPaths


@pytest.fixture
def paths(tmp_path: Any) -> StudyPaths:
    return StudyPaths(tmp_path / "digits")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[optuna.Study, StudyPaths]:
    """Forty trials in a journal; tests read it and do not change it."""
    place = StudyPaths(tmp_path_factory.mktemp("runs") / "digits")
    return run(place), place


@pytest.fixture
def made() -> Callable[..., optuna.Study]:
    """A study in memory of given trials."""

    def make(trials: Sequence[FrozenTrial], mode: str = "min", space: SearchSpace = SPACE, name: str = "made") -> Any:
        described = describe_as(mode, max(1, len(trials)), space)
        study = open_study(name, optuna.storages.InMemoryStorage(), described, StudyPaths(Path("nowhere")))
        study.add_trials(trials)
        return study

    return make
