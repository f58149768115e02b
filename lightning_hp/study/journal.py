"""Optuna's journal file, made to survive killed processes and full disks.

A line that was only half written is cut off before the next one is added. The lock is one that the operating system
drops with its owner, and that holds between the machines which share a folder (:mod:`.locks`).
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend

from lightning_hp.study.locks import FolderLock

#: bytes that hold any line of a journal: the longest is the description of a study
LONGEST_LINE = 1 << 20


class MendingJournal(JournalFileBackend):
    """A journal that survives half-written lines: of a killed process, or of a full disk."""

    def __init__(self, path: Path) -> None:
        self._mending = FolderLock(f"{path}.flock")
        # a thread that renews leases writes too: into what another thread has opened, or before or after it
        self._appending = threading.Lock()
        super().__init__(str(path), lock_obj=self._mending)  # type: ignore[arg-type]
        self._path = path
        self._open: FileIO | None = None
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
        with self._appending:
            if self._open is not None:
                self._append(self._open, lines)
                return
            file, size = self._begin()
            try:
                self._append(file, lines)
            finally:
                self._end(file, size)

    def _begin(self) -> tuple[FileIO, int]:
        """Take the lock and open the file behind its last whole line; gives it and its size in bytes."""
        self._mending.acquire()
        try:
            size = self._cut()
            return open(self._path, "ab", buffering=0), size
        except BaseException:
            self._mending.release()
            raise

    def _end(self, file: FileIO, size: int) -> None:
        """Wait for the disk if something was written, and release the lock."""
        try:
            with file:
                if file.tell() > size:
                    os.fsync(file.fileno())
        finally:
            self._mending.release()

    def _append(self, file: FileIO, lines: bytes) -> None:
        size, rest = file.tell(), memoryview(lines)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            os.truncate(self._path, size)
            raise

    @contextlib.contextmanager
    def in_one_go(self) -> Iterator[None]:
        """Hold the lock for a few writes, and wait for the disk once, at their end.

        A killed process loses nothing of them, a machine that loses its power may lose the last.
        """
        if self._open is not None:
            yield
            return
        with self._appending:
            file, size = self._begin()
            self._open = file
        try:
            yield
        finally:
            with self._appending:
                self._open = None
                self._end(file, size)


def in_one_go(storage: BaseStorage) -> contextlib.AbstractContextManager[None]:
    """Write to a storage in few large operations for a while; where it is no journal file of ours, as always."""
    backend = getattr(storage, "_backend", None)
    return backend.in_one_go() if isinstance(backend, MendingJournal) else contextlib.nullcontext()
