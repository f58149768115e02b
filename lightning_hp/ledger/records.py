"""The ledger file: what was tuned when, on what, and what happened since. Standard library only.

A ledger is a JSON-lines file, UTF-8, one event a line, only ever appended to:

    {"schema": 1, "event": "tuned", "name": "digits", "at": "2026-11-21T09:30:00Z", ...}

What an event holds is in :mod:`lightning_hp.ledger.events`, whose builders are repeated here. An append is one write of
one line under a lock, flushed to the disk. A writer that is killed in the middle leaves a torn line: readers ignore and
report it, and the next append starts on a line of its own.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_hp.ledger.events import SCHEMA as SCHEMA
from lightning_hp.ledger.events import check as check
from lightning_hp.ledger.events import checked as checked
from lightning_hp.ledger.events import drifted as drifted
from lightning_hp.ledger.events import postponed as postponed
from lightning_hp.ledger.events import retested as retested
from lightning_hp.ledger.events import retuned as retuned
from lightning_hp.ledger.events import tuned as tuned
from lightning_hp.ledger.lock import locked

FILE_NAME = "ledger.jsonl"
_START = '{"schema":'


class Record(dict[str, Any]):
    """One event. ``where`` is ``FILE:LINE`` once it was read from a ledger, else empty."""

    where: str = ""


@dataclass(frozen=True)
class Ledger:
    """What a ledger file holds.

    Args:
        path: The file.
        records: Its events in the order of the file, each with its ``where``.
        problems: One line each, with file and line: torn lines that were ignored.
    """

    path: Path
    records: tuple[Record, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Every name, in the order of first appearance."""
        return list(dict.fromkeys(str(record["name"]) for record in self.records))

    def of(self, name: str) -> list[Record]:
        """The events of one name, oldest first."""
        return [record for record in self.records if record["name"] == name]

    def latest(self, name: str) -> Record | None:
        """The last ``tuned`` or ``retuned`` record of ``name``."""
        return next((r for r in reversed(self.of(name)) if r["event"] in ("tuned", "retuned")), None)


def append(path: str | Path, record: Mapping[str, Any]) -> None:
    """Appends one event. Safe with other writers and with a kill at any moment; nothing is ever rewritten.

    Args:
        path: The ledger; it and its folder are created if they are missing.
        record: An event, as made by the functions of :mod:`lightning_hp.ledger.events`.

    Raises:
        ValueError: If the record is not valid, or the file is something else than a ledger.
        OSError: If the file cannot be written (one line, with the path); what was in it stays.
        TimeoutError: If another process keeps the lock.
    """
    path = Path(path)
    check(record, "record")
    line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(", ", ": ")) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        created = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            with locked(descriptor, path):
                _append_line(descriptor, path, line.encode())
        finally:
            os.close(descriptor)
        if created:
            _sync_folder(path.parent)
    except TimeoutError:
        raise
    except OSError as error:
        raise type(error)(error.errno, f"ledger cannot be written: {error.strerror}", str(path)) from error


def _append_line(descriptor: int, path: Path, line: bytes) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: a ledger must be an ordinary file")
    if status.st_size:
        head = os.pread(descriptor, len(_START), 0) if hasattr(os, "pread") else path.read_bytes()[: len(_START)]
        if not _torn(head) and head != _START.encode():
            raise ValueError(f"{path}:1: not a ledger, nothing was appended")
        os.lseek(descriptor, -1, os.SEEK_END)
        if os.read(descriptor, 1) != b"\n":
            line = b"\n" + line
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, "no space left on device")
        os.fsync(descriptor)
    except OSError:
        # nobody else writes while the lock is held: take back the part that was written
        os.ftruncate(descriptor, status.st_size)
        raise


def _sync_folder(folder: Path) -> None:
    """Flush the folder of a new file, so that its name survives a power cut; POSIX only."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: str | Path) -> Ledger:
    """Reads a ledger; a file that does not exist is an empty one.

    Raises:
        ValueError: In one line with file and line: a newer schema, a line that is no event.
        OSError: If the file cannot be read (one line, with the path).
        TimeoutError: If a writer keeps the lock.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream, locked(stream.fileno(), path, shared=True):
            content = stream.read()
    except FileNotFoundError:
        return Ledger(path)
    except TimeoutError:
        raise
    except OSError as error:
        raise type(error)(error.errno, f"ledger cannot be read: {error.strerror}", str(path)) from error
    records: list[Record] = []
    problems: list[str] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        parsed = _parse(line, where)
        if parsed is None:
            problems.append(f"{where}: torn line ignored (a writer was stopped in the middle)")
        else:
            records.append(parsed)
    return Ledger(path, tuple(records), tuple(problems))


def _parse(line: bytes, where: str) -> Record | None:
    """The record of one line; None for a torn one."""
    try:
        parsed = json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        if _torn(line):
            return None
        text = line[:40].decode(errors="replace")
        raise ValueError(f"{where}: not a ledger line: {text!r}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{where}: a ledger line must be a JSON object, got {type(parsed).__name__}")
    schema = parsed.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(f"{where}: schema {schema} is newer than the {SCHEMA} read here; upgrade lightning-hp")
    try:
        check(parsed, "record")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    record = Record(parsed)
    record.where = where
    return record


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _torn(line: bytes) -> bool:
    """Whether ``line`` is the beginning of one of our lines, cut off: an object that is never closed.

    Zero bytes alone are what some file systems leave after a power cut.
    """
    line = line.strip(b"\0")
    start = _START.encode()
    if not line.startswith(start):
        return start.startswith(line)
    depth, inside, escaped = 0, False, False
    for character in line.decode(errors="replace"):
        if inside:
            inside, escaped = escaped or character != '"', not escaped and character == "\\"
        elif character == '"':
            inside = True
        elif character in "{[":
            depth += 1
        elif character in "]}":
            depth -= 1
            if depth == 0:
                return False
    return True
