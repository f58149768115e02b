"""The files of a babysat run: ``panda.jsonl`` (one line an event), ``panda_windows.jsonl`` (losses), ``panda.json``.

A line of ``panda.jsonl`` has ``step`` and ``epoch`` (of the training loop), ``what`` (a hyperparameter, ``weights`` for
a rollback, ``training`` for its beginning and end, ``command`` for a person's word), ``from``, ``to``, ``why``,
``numbers``, ``rule``, ``by`` (rule, probe, person, replay) and ``accepted``. Lines of one intervention share ``id``;
its first line holds what a replay needs (``intervention``). ``panda.json`` says how the run stands, for ``status``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_hp.callbacks.panda.history import Done, History, Values, Window

LOG, WINDOWS, STATUS, PICTURE, CONTROL = (
    "panda.jsonl",
    "panda_windows.jsonl",
    "panda.json",
    "panda.html",
    "panda_control",
)
Row = dict[str, Any]
#: seconds between two updates of the status file
_STATUS_EVERY = 1.0


class Journal:
    """Writes the files of one run; with no folder it only keeps the lines.

    Attributes:
        rows: All lines of the log, oldest first.
        folder: Where the files are, or None (other ranks, dry runs, `dirpath=""`).
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.folder: Path | None = None
        self._status_at = -_STATUS_EVERY

    def begin(self, folder: Path | None) -> None:
        """Start new files."""
        self.folder, self.rows = folder, []
        if folder is not None:
            for name in (LOG, WINDOWS, PICTURE):
                (folder / name).unlink(missing_ok=True)

    def go_on(self, folder: Path | None, history: History) -> None:
        """Make the files agree with a resumed checkpoint.

        Lines that were written after the checkpoint belong to a piece of training that is lost: they stay, marked
        ``lost`` and no longer ``accepted``, so that nobody's command disappears without a trace.
        """
        self.folder = folder
        if folder is None:
            return
        known = {json.dumps(row, sort_keys=True) for row in self.rows}
        before = read_rows(folder / LOG) if (folder / LOG).is_file() else []
        lost = [row for row in before if json.dumps(row, sort_keys=True) not in known]
        self.rows += [{**row, "lost": True, "accepted": False} for row in lost]
        write_text(folder / LOG, _lines(self.rows))
        write_text(folder / WINDOWS, _lines(_window_row(window) for window in history.windows))

    def write(self, rows: Iterable[Row]) -> None:
        """Append lines to the log."""
        rows = list(rows)
        self.rows += rows
        if self.folder is not None:
            _append(self.folder / LOG, rows)

    def event(self, step: int, epoch: int, what: str, old: Any, new: Any, why: str, **more: Any) -> None:
        """Append a line about the training itself."""
        row: Row = {"id": 0, "step": step, "epoch": epoch, "what": what, "from": old, "to": new, "why": why}
        self.write([{**row, "numbers": {}, "rule": "", "by": "rule", "accepted": True, **more}])

    def window(self, window: Window) -> None:
        """Append the losses of a window."""
        if self.folder is not None:
            _append(self.folder / WINDOWS, [_window_row(window)])

    def status(self, state: str, history: History, epoch: int, always: bool = False) -> None:
        """Write how the run stands, at most once a second unless ``always``."""
        if self.folder is None or not (always or time.monotonic() - self._status_at >= _STATUS_EVERY):
            return
        self._status_at = time.monotonic()
        content = {
            "state": "paused" if state == "running" and history.paused else state,
            "step": history.step,
            "epoch": epoch,
            "planned": history.planned,
            "values": history.values,
            "loss": history.windows[-1].level if history.windows else None,
            "interventions": sum(done.what.rule not in ("wind_down", "probe") for done in history.done),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_text(self.folder / STATUS, json.dumps(content, indent=1) + "\n")


def _window_row(window: Window) -> Row:
    row = dataclasses.asdict(window)
    return {**{key: row[key] for key in ("step", "epoch", "level", "noise", "moved")}, "values": row["values"]}


def rows_of(done: Done, after: Values, number: int, more: Mapping[str, Any] | None = None) -> list[Row]:
    """The lines of one intervention: a rollback first, then every value that changed.

    Args:
        done: The intervention, with the values before it.
        after: Values read back from the optimizer.
        number: Shared ``id``.
        more: Further entries of every line.
    """
    what = done.what
    base = {"id": number, "step": done.step, "epoch": done.epoch}
    end = {"why": what.why, "numbers": what.numbers, "rule": what.rule, "by": what.by, "accepted": True, **(more or {})}
    rows: list[Row] = []
    if what.restore is not None:
        rows.append({**base, "what": "weights", "from": done.step, "to": done.back_to, **end})
    for name in sorted({**done.before, **after}):
        if done.before.get(name) != after.get(name):
            rows.append({**base, "what": name, "from": done.before.get(name), "to": after.get(name), **end})
    if what.stop:
        rows.append({**base, "what": "training", "from": "running", "to": "stopped", **end})
    if not rows:
        rows.append({**base, "what": "nothing", "from": None, "to": None, **end})
    rows[0]["intervention"] = dataclasses.asdict(what)
    return rows


def read_rows(path: Path) -> list[Row]:
    """Read all complete lines; a last line that a kill cut short is left out.

    Raises:
        ValueError: If another line is no JSON object.
    """
    rows: list[Row] = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise ValueError(f"`{path.name}` must have a JSON object on every line, got {line!r}") from None
        if not isinstance(row, dict):
            raise ValueError(f"`{path.name}` must have a JSON object on every line, got {line!r}")
        rows.append(row)
    return rows


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _append(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(_lines(rows))
