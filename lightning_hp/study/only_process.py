"""SQLite takes one process at a time: several that write to one file wait for each other, and some give up.

Optuna's own advice is against it, and a journal costs nothing. So the first process that works on the studies of a file
has a lock beside it, and others are told why they cannot.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy.engine import make_url

from lightning_hp.study.storage_error import StudyError


class OnlyProcess:
    """The one process that works on the studies of an SQLite file, until it is closed or ends.

    Args:
        database: The file.

    Raises:
        StudyError: If another process does.
    """

    def __init__(self, database: Path) -> None:
        lock = FileLock(f"{database}.process", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError) as error:
            raise StudyError(
                f"`storage` must be journal, or a database with a server, for several processes: {database} is SQLite, "
                "which takes one at a time, and another process works on it"
            ) from error
        self._close = weakref.finalize(self, _release, lock, os.getpid())

    @classmethod
    def of(cls, storage: str) -> OnlyProcess | None:
        """The one of a storage; None where that takes several.

        Raises:
            StudyError: See above.
        """
        database = make_url(storage).database if storage.startswith("sqlite") else None
        place = None if not database or database == ":memory:" else Path(database)
        return cls(place) if place is not None and place.parent.is_dir() else None

    def close(self) -> None:
        """Let others work."""
        self._close()


def _release(lock: FileLock, process: int) -> None:
    if os.getpid() == process and lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
