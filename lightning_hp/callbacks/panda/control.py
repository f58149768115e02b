"""A person's word to a running babysitter: command files beside the run, answered at the next check.

``panda_control/`` holds one file a command, written beside and renamed, so that half a command is never read, and two
people never overwrite each other. The run answers every command with a line in ``panda.jsonl`` and then deletes the
file; a command that cannot be carried out is refused with the reason, and training goes on. No network port.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_hp.callbacks.panda.history import History, Intervention, Values
from lightning_hp.callbacks.panda.journal import CONTROL, write_text
from lightning_hp.callbacks.panda.settings import Bounds

ACTIONS = ("nudge", "pause", "resume", "undo", "stop")


@dataclass(frozen=True)
class Command:
    """What a person asked for. ``problem`` says why the file could not be read, if it could not."""

    id: str
    action: str
    values: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Answer:
    """How a command is answered: accepted or refused with the reason, and what is done."""

    accepted: bool
    reason: str
    intervention: Intervention | None = None
    paused: bool | None = None


def request(folder: Path, action: str, values: Mapping[str, Any] | None = None, why: str = "") -> str:
    """Leave a command beside a run.

    Args:
        folder: Folder of the run's ``panda.jsonl``.
        action: One of ``ACTIONS``.
        values: New values by hyperparameter name, for ``nudge``.
        why: The person's reason; it goes into the log.

    Returns:
        The command's id, which its answer in the log carries.

    Raises:
        ValueError: For another action, or a nudge without values.
    """
    if action not in ACTIONS:
        raise ValueError(f"`action` must be one of {', '.join(ACTIONS)}, got {action!r}")
    if action == "nudge" and not values:
        raise ValueError("`values` must name a hyperparameter, got none")
    number = f"{time.time_ns():020d}-{os.getpid()}"
    content = {"action": action, "values": dict(values or {}), "why": why}
    write_text(folder / CONTROL / f"{number}.json", json.dumps(content))
    return number


def pending(folder: Path) -> list[Command]:
    """Commands that wait for an answer, oldest first."""
    try:
        names = sorted(name for name in os.listdir(folder / CONTROL) if name.endswith(".json"))
    except FileNotFoundError:
        return []
    return [_read(folder / CONTROL / name) for name in names]


def done(folder: Path, command: Command) -> None:
    """Delete an answered command."""
    (folder / CONTROL / f"{command.id}.json").unlink(missing_ok=True)


def _read(path: Path) -> Command:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Command(path.stem, str(content["action"]), dict(content.get("values", {})), str(content.get("why", "")))
    except (ValueError, TypeError, KeyError, OSError) as error:
        return Command(path.stem, "unknown", problem=f"the command cannot be read: {type(error).__name__}: {error}")


def answer(command: Command, history: History, bounds: Mapping[str, Bounds], hands_off: Collection[str] = ()) -> Answer:
    """Decide what becomes of a command. Pure.

    Args:
        command: As it was read.
        history: Of the run.
        bounds: Allowed range by name.
        hands_off: Names that belong to a learning-rate scheduler.
    """
    if command.problem:
        return Answer(False, command.problem)
    if command.action == "nudge":
        return _nudge(command, history, bounds, hands_off)
    if command.action in ("pause", "resume"):
        paused = command.action == "pause"
        if paused == history.paused:
            return Answer(False, f"the babysitter is already {'paused' if paused else 'awake'}")
        return Answer(True, command.why or command.action, paused=paused)
    if command.action == "stop":
        what = Intervention("stop", command.why or "stopped by a person", stop=True, by="person")
        return Answer(True, what.why, what)
    if command.action == "undo":
        return _undo(command, history)
    return Answer(False, f"`action` must be one of {', '.join(ACTIONS)}, got {command.action!r}")


def _nudge(command: Command, history: History, bounds: Mapping[str, Bounds], hands_off: Collection[str]) -> Answer:
    values: Values = {}
    for name, value in command.values.items():
        if name not in history.values or name not in bounds:
            names = ", ".join(sorted(set(history.values) & set(bounds)))
            return Answer(False, f"`hyperparameter` must be one of {names}, got {name!r}")
        if name in hands_off:
            return Answer(False, f"{name} belongs to the learning-rate scheduler of this run")
        allowed = bounds[name]
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not allowed.low <= value <= allowed.high:
            return Answer(False, f"`{name}` must be a number from {allowed.low:g} to {allowed.high:g}, got {value!r}")
        if allowed.integer and value != round(value):
            return Answer(False, f"`{name}` must be a whole number, got {value!r}")
        values[name] = float(value)
    why = command.why or "a person's nudge"
    return Answer(True, why, Intervention("nudge", why, values=values, by="person"))


def _undo(command: Command, history: History) -> Answer:
    skipped = 0
    for entry in reversed(history.done):
        if entry.what.rule == "wind_down":
            continue  # planned from the beginning, and goes on at the next check
        if entry.what.rule == "undo":
            skipped += 1
        elif any(entry.before.get(name) != value for name, value in entry.what.values.items()):
            if skipped:
                skipped -= 1
                continue
            values = {name: entry.before[name] for name in entry.what.values if name in entry.before}
            why = command.why or f"undoes {entry.what.rule} of step {entry.step}"
            return Answer(True, why, Intervention("undo", why, values=values, by="person"))
    return Answer(False, "there is nothing to undo")
