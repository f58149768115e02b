"""Single values of ``tune.yaml``, checked; every error names the key, what was expected and what was given."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from typing import Any

from lightning_hp.project.yaml_file import ConfigError

#: seconds that a person has for an answer unless told otherwise
GATE_TIMEOUT = 1800.0
#: file systems take 255 bytes, and files and tables are named after a study, with more behind
LONGEST_NAME = 120


def check_keys(mapping: Any, keys: tuple[str, ...], where: str) -> None:
    """Check that a mapping has these keys only.

    Raises:
        ConfigError: Naming the key and, where one is close, what was meant.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"`{where or 'tune.yaml'}` must be a mapping with the keys {', '.join(keys)}, got {mapping!r}"
        )
    for key in mapping:
        if key not in keys:
            path = f"{where}.{key}" if where else str(key)
            close = difflib.get_close_matches(str(key), keys, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"`{path}` is not a known key{hint}; expected one of {', '.join(keys)}")


def text_of(mapping: Mapping[str, Any], key: str, default: str | None) -> str:
    """A text; None as default means that it must be there."""
    value = mapping.get(key, default)
    if value is None:
        raise ConfigError(f"`{key}` is missing; expected a text")
    if not isinstance(value, str):
        raise ConfigError(f"`{key}` must be a text, got {value!r}")
    if key in mapping and not (value.strip() and value.isprintable()):
        raise ConfigError(f"`{key}` must be a text of printable characters, got {value!r}")
    return value


def study_name(mapping: Mapping[str, Any]) -> str:
    """The key ``name``: what can be part of a file's name, a URL's and a command's."""
    name = text_of(mapping, "name", None)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"`name` must be letters, digits, '.', '_' or '-', got {name!r}")
    if len(name) > LONGEST_NAME:
        raise ConfigError(f"`name` must have at most {LONGEST_NAME} characters, got {len(name)}: {name!r}")
    return name


def one_of(mapping: Mapping[str, Any], key: str, allowed: tuple[str, ...], default: str, path: str = "") -> str:
    """One of several words; ``path`` is what errors call it."""
    value = mapping.get(key, default)
    if value not in allowed:
        raise ConfigError(f"`{path or key}` must be one of {', '.join(allowed)}, got {value!r}")
    return str(value)


def switch(mapping: Mapping[str, Any], key: str, default: bool) -> bool:
    """True or false."""
    value = mapping.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"`{key}` must be true or false, got {value!r}")
    return value


def part(mapping: Mapping[str, Any], key: str) -> float:
    """A number from 0 to 1, 0 where it is not given."""
    value = mapping.get(key, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"`{key}` must be a number from 0 to 1, got {value!r}")
    return float(value)


def class_block(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """``class_path`` and ``init_args``, None where there is no such block."""
    block = mapping.get(key)
    if block is None:
        return None
    check_keys(block, ("class_path", "init_args"), key)
    if not isinstance(block.get("class_path"), str) or not isinstance(block.get("init_args", {}), Mapping):
        raise ConfigError(
            f"`{key}` must be a block such as {{class_path: optuna.pruners.MedianPruner, init_args: {{}}}}, "
            f"got {block!r}"
        )
    return dict(block)


def whole(mapping: Mapping[str, Any], key: str, default: int, least: int, path: str) -> int:
    """A whole number of at least ``least``; ``path`` is what errors call it."""
    value = mapping.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"`{path}` must be a whole number of at least {least}, got {value!r}")
    if value > sys.maxsize:
        raise ConfigError(f"`{path}` must be a whole number of at most {sys.maxsize}, got {value!r}")
    return value


def seconds(value: Any, path: str = "budget.time", more: str = "") -> float:
    """A length of time in seconds, given as ``HH:MM:SS``, ``DD:HH:MM:SS`` or a number above 0."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    parts = re.fullmatch(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}):(\d{1,2})", str(value))
    days, hours, minutes, rest = (int(p or 0) for p in parts.groups()) if parts else (0, 0, 0, 0)
    total = float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
    if total == 0:
        raise ConfigError(f"`{path}` must be {more}HH:MM:SS, DD:HH:MM:SS or seconds above 0, got {value!r}")
    return total


def gate_seconds(value: Any) -> float | None:
    """Seconds that a person has for an answer; None for no questions."""
    if isinstance(value, bool):
        return GATE_TIMEOUT if value else None
    if not isinstance(value, Mapping):
        raise ConfigError(f"`gate` must be true, false or a mapping such as {{timeout: 30m}}, got {value!r}")
    check_keys(value, ("timeout",), "gate")
    return duration(value.get("timeout", GATE_TIMEOUT), "gate.timeout")


def duration(value: Any, path: str) -> float:
    """Seconds of a text such as ``30m``, or of what :func:`seconds` takes."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value) if isinstance(value, str) else None
    if parts and float(parts[1]) > 0:
        return float(parts[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[parts[2]]
    return seconds(value, path, "such as 30m or 2h, ")
