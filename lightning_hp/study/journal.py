"""Optuna's journal file, made to survive killed processes and full disks.

A line that was only half written is cut off before the next one is added, and the lock is one that the operating system
drops with its owner.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages.journal import JournalFileBackend

#: bytes that hold any line of a journal: the longest is the description of a study
LONGEST_LINE = 1 << 20


class KernelLock:
    """A lock that the operating system releases when its owner dies, with the methods that Optuna's journal needs."""

    def __init__(self, path: str) -> None:
        self._lock = FileLock(path + ".flock")

    def acquire(self) -> bool:
        """Wait for the lock; always True."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()


class MendingJournal(JournalFileBackend):
    """A journal that survives half-written lines: of a killed process, or of a full disk."""

    def __init__(self, path: Path) -> None:
        self._mending = KernelLock(str(path))
        super().__init__(str(path), lock_obj=self._mending)  # type: ignore[arg-type]
        self._path = path
        self._mending.acquire()
        try:
            self._cut()
            self._check_end()
        finally:
            self._mending.release()

    def _check_end(self) -> None:
        """Refuse a file whose last whole line is not one of Optuna's journal; Optuna itself would ignore it for now."""
        with open(self._path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_LINE))
            last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
        if last and not (last.startswith(b"{") and last.endswith(b"}")):
            raise ValueError(f"its last line is no journal line: {last[:40].decode(errors='replace')!r}")

    def _cut(self) -> int:
        """Cut off what follows the last line end; returns the size of the rest in bytes. The lock must be held."""
        with open(self._path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            end = size
            while end > 0:
                start = max(0, end - 65536)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
            return end

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append log lines; on an error the file is as it was."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._mending.acquire()
        try:
            size = self._cut()
            try:
                with open(self._path, "ab") as file:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                os.truncate(self._path, size)
                raise
        finally:
            self._mending.release()
