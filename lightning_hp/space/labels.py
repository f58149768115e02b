"""Choices that are lists or mappings: the short texts that stand for them in Optuna, which stores plain values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Characters of a label; what is longer is cut.
LONGEST = 60


def plain(value: Any) -> Any:
    """Tuples as lists and mappings as dicts, all the way down: a value as it comes back from JSON or YAML."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def is_block(value: Any) -> bool:
    """Whether a choice is a list or a mapping, so that a label stands for it."""
    return isinstance(value, list | dict)


def label(value: Any, full: bool = False) -> str:
    """A short text for a value: ``[0.9, 0.999]``, ``SGD(lr=0.1)``, ``{a: 1}``.

    Args:
        value: Plain values, lists and mappings; a mapping with ``class_path`` reads like a call.
        full: Whether class paths are written in full.
    """
    if isinstance(value, dict) and "class_path" in value:
        path = str(value["class_path"])
        init_args = value.get("init_args") or {}
        rest = {key: part for key, part in value.items() if key not in ("class_path", "init_args")}
        inside = {**init_args, **rest} if isinstance(init_args, dict) else {"init_args": init_args, **rest}
        arguments = ", ".join(f"{key}={label(part, full)}" for key, part in inside.items())
        return f"{path if full else path.rpartition('.')[2]}({arguments})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {label(part, full)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(label(part, full) for part in value) + "]"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def labels(choices: Sequence[Any]) -> tuple[Any, ...]:
    """How Optuna stores each choice: plain values as they are, lists and mappings by a label of their own.

    They depend on the choices alone. Equal short labels are told apart by the full class path, else by their place.

    Args:
        choices: Different from each other.
    """
    stored = [_cut(label(choice)) if is_block(choice) else choice for choice in choices]
    for attempt in ("full", "place"):
        twice = [i for i, text in enumerate(stored) if is_block(choices[i]) and stored.count(text) > 1]
        for i in twice:
            text = _cut(label(choices[i], full=True))
            stored[i] = text if attempt == "full" else f"{text} ({i + 1})"
    return tuple(stored)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def is_part(choice: Any, value: Any) -> bool:
    """Whether a choice says nothing but what the value says too: a block of a file, and the same block resolved."""
    if isinstance(choice, dict) and isinstance(value, dict):
        return all(key in value and is_part(part, value[key]) for key, part in choice.items())
    return bool(choice == value)


def means(text: Any, choice: Any) -> bool:
    """Whether a class name or path stands for a choice: a dotted text, or a mapping with ``class_path``."""
    path = choice.get("class_path") if isinstance(choice, dict) else choice
    if not isinstance(text, str) or not isinstance(path, str):
        return False
    return path == text or path.endswith(f".{text}")
