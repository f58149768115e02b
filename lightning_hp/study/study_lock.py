"""The lock of a study, wherever it is kept: one process at a time asks for a trial, or takes one over.

A study in its folder has a lock there. A database with a server has locks of its own, which it drops with the
connection of their owner. Optuna's gRPC proxy has none: there a trial of a small study ``NAME turns`` is a ticket, the
running one with the lowest number has the lock, and one that does not move for long is ended by the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from filelock import Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import text

from lightning_hp.study.paths import StudyPaths

#: seconds after which the ticket of one who is silent is ended
PATIENCE = 30.0
#: seconds after which MySQL is asked for its lock again
LOCK_SECONDS = 60
#: seconds between two looks at the tickets
LOOK_EVERY = 0.05


def study_lock(storage: BaseStorage, paths: StudyPaths, study: str) -> contextlib.AbstractContextManager[object]:
    """The lock under which trials are asked for and taken over.

    Args:
        storage: Where the study is.
        paths: Its folder.
        study: Its name.
    """
    engine = _server_engine(storage)
    if engine is not None:
        return _database_lock(engine, study)
    if isinstance(storage, GrpcStorageProxy):
        return ticket(storage, study)
    return paths.ask_lock()


def _server_engine(storage: BaseStorage) -> Any:
    """SQLAlchemy's engine of a database with a server; None for others."""
    engine = getattr(getattr(storage, "_backend", storage), "engine", None)
    return engine if engine is not None and engine.dialect.name in ("postgresql", "mysql", "mariadb") else None


@contextlib.contextmanager
def _database_lock(engine: Any, study: str) -> Iterator[None]:
    digest = hashlib.sha256(f"lightning_hp {study}".encode()).digest()
    if engine.dialect.name == "postgresql":
        lock, unlock = "SELECT pg_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"
        key: dict[str, Any] = {"key": int.from_bytes(digest[:8], "big", signed=True)}
    else:
        lock, unlock = f"SELECT GET_LOCK(:key, {LOCK_SECONDS})", "SELECT RELEASE_LOCK(:key)"
        key = {"key": f"lightning_hp {digest.hex()[:40]}"}
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        while (answer := connection.execute(text(lock), key).scalar()) == 0:
            pass  # MySQL: somebody else has it; MariaDB knows no wait without an end
        if answer is None:
            raise ConnectionError("the database has not granted its lock")
        try:
            yield
        finally:
            try:
                connection.execute(text(unlock), key)
            except Exception:  # the connection is lost, and its locks with it
                connection.invalidate()
    finally:
        connection.close()


@contextlib.contextmanager
def ticket(
    storage: BaseStorage,
    study: str,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    timeout: float = -1,
) -> Iterator[int]:
    """Draw a ticket, wait for its turn, and end it.

    Args:
        storage: Any storage.
        study: Name of the study that the lock is of.
        clock: Seconds; only differences count.
        sleep: Waits for so many seconds.
        timeout: Seconds; below 0 for no limit.

    Raises:
        Timeout: A ``TimeoutError``, if others are before us for so long.
    """
    turns = _turns(storage, f"{study} turns")
    mine = storage.create_new_trial(turns)
    try:
        begun, first, since = clock(), -1, clock()
        while True:
            running = storage.get_all_trials(turns, deepcopy=False, states=(TrialState.RUNNING,))
            lowest = min(running, key=lambda trial: trial.number)
            if lowest._trial_id == mine:
                break
            if lowest._trial_id != first:
                first, since = lowest._trial_id, clock()
            if clock() - since > PATIENCE:
                _end(storage, first)
            elif 0 <= timeout <= clock() - begun:
                raise Timeout(f"{study} turns")
            else:
                sleep(LOOK_EVERY)
        yield mine
    finally:
        _end(storage, mine)


def _turns(storage: BaseStorage, name: str) -> int:
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        with contextlib.suppress(Exception):  # somebody else was faster
            return storage.create_new_study([StudyDirection.MINIMIZE], name)
        return storage.get_study_id_from_name(name)


def _end(storage: BaseStorage, ticket_id: int) -> None:
    with contextlib.suppress(UpdateFinishedTrialError):
        storage.set_trial_state_values(ticket_id, TrialState.FAIL)
