"""``lightning-hp nudge``, ``pause``, ``resume``, ``undo``, ``stop``: a person steers a babysat run.

Only files are written and read: neither torch, lightning nor optuna is loaded, and the run may be another process.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_hp.callbacks.panda import control
from lightning_hp.callbacks.panda.journal import LOG, STATUS, read_rows
from lightning_hp.commands.output import write_line

#: states of a run that trains
LIVING = ("running", "paused")
_POLL = 0.1


def nudge_verb(options: Namespace) -> int:
    """Ask for new values."""
    return _ask(options, "nudge", _values(options["values"]))


def pause_verb(options: Namespace) -> int:
    """Ask for no interventions until resumed."""
    return _ask(options, "pause")


def resume_verb(options: Namespace) -> int:
    """Ask for interventions again."""
    return _ask(options, "resume")


def undo_verb(options: Namespace) -> int:
    """Ask to take back the last change of values."""
    return _ask(options, "undo")


def stop_verb(options: Namespace) -> int:
    """Ask to end the training in the ordinary way."""
    return _ask(options, "stop")


def find_run(name: str) -> Path:
    """The folder of a babysat run: itself, or one of that name (or NAME-panda) in ``runs/``.

    Raises:
        ValueError: If there is none.
    """
    for folder in (Path(name), Path("runs") / name, Path("runs") / f"{name}-panda"):
        if (folder / STATUS).is_file():
            return folder
    raise ValueError(f"`run` must be the folder of a babysat run (with a {STATUS}), got {name!r}")


def read_status(folder: Path) -> dict[str, Any]:
    """The last status that a run has written; its ``state`` is ``killed`` if its process is gone without a word."""
    content: dict[str, Any] = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    if content["state"] in LIVING and not _may_be_alive(content):
        content["state"] = "killed"
    return content


def _may_be_alive(status: dict[str, Any]) -> bool:
    """Whether the process of a run exists; True where it is another machine's."""
    if status.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(status["pid"]), 0)
    except PermissionError:
        return True  # somebody else's process
    except (OSError, ValueError, KeyError):
        return False
    return True


def status_line(folder: Path) -> str:
    """One line about a run."""
    status = read_status(folder)
    values = ", ".join(f"{name} {value:.4g}" for name, value in status["values"].items())
    of = f" of {status['planned']}" if status["planned"] else ""
    loss = "" if status["loss"] is None else f", loss {status['loss']:.4g}"
    return (
        f"{folder}: {status['state']}, step {status['step']}{of}{loss}, {status['interventions']} interventions;"
        f" {values} ({status['updated']})"
    )


def _values(texts: list[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ValueError(f"`values` must be NAME=NUMBER, got {text!r}")
    return values


def _ask(options: Namespace, action: str, values: dict[str, float] | None = None) -> int:
    folder = find_run(options.run)
    state = read_status(folder)["state"]
    if state not in LIVING:
        raise ValueError(f"`run` must be running, got {str(folder)!r}, which is {state}")
    number = control.request(folder, action, values, options.why or "")
    end = time.monotonic() + options.wait
    while True:
        answers = [row for row in read_rows(folder / LOG) if row.get("command") == number]
        if answers:
            break
        if time.monotonic() >= end:
            write_line(f"{folder}: left for the next check; the answer will be in {LOG}")
            return 0
        time.sleep(_POLL)
    for row in answers:
        change = "" if row["what"] == "command" else f"{row['what']} {row['from']} to {row['to']}: "
        write_line(f"step {row['step']}: {'' if row['accepted'] else 'refused: '}{change}{row['why']}")
    return 0 if all(row["accepted"] for row in answers) else 1
