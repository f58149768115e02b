"""Fixtures of the dashboard's tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from dashboard_studies import SPACE, describe_as, run
from optuna.trial import FrozenTrial

from lightning_hp.search.space import SearchSpace
from lightning_hp.tuning.paths import StudyPaths
from lightning_hp.tuning.storage import open_study


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


@pytest.fixture(scope="session")
def chromium() -> Any:
    """Headless Chromium; tests that ask for it are skipped with the reason where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium on this machine (set CHROMIUM to its path)")
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
