"""For all tests: one thread, and nothing of a test is left behind for the next one."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# read by torch, numpy and scikit-learn when they are first imported, so it also holds in subprocesses
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Restore environment variables (Lightning sets seeds in them), the import path, and the handler of Ctrl-C."""
    environment, path, handler = dict(os.environ), list(sys.path), signal.getsignal(signal.SIGINT)
    yield
    current = os.environ.pop("PYTEST_CURRENT_TEST", None)
    os.environ.clear()
    os.environ.update(environment)
    if current is not None:
        os.environ["PYTEST_CURRENT_TEST"] = current
    sys.path[:] = path
    assert signal.getsignal(signal.SIGINT) is handler, "the test left a handler of SIGINT behind"


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


@pytest.fixture(scope="session")
def postgres_server() -> Any:
    """A PostgreSQL server; tests that ask for it are skipped with the reason where it is not installed."""
    from postgres import Postgres

    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def postgres(postgres_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server, with its password where workers look for it."""
    from postgres import PASSWORD

    monkeypatch.setenv("LIGHTNING_HP_STORAGE_PASSWORD", PASSWORD)
    return postgres_server


@pytest.fixture
def fork(tmp_path: Path) -> Any:
    """Start a function in a child process, which is already past its imports."""
    from child import Child

    children: list[Child] = []

    def start(work: Callable[[], object]) -> Child:
        children.append(Child(work, tmp_path / f"child{len(children)}.txt"))
        return children[-1]

    yield start
    for child in children:
        if child.code is None:
            os.kill(child.pid, 9)
            child.wait()


@pytest.fixture
def quiet_optuna() -> Iterator[None]:
    """Have Optuna say nothing but errors, for one test."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)
