"""Where a key of the space is in a resolved LightningCLI configuration, a mapping of plain values.

A key may leave out ``init_args`` (``model.lr``), as LightningCLI lets one do on the command line; it may name an
element of a list (``trainer.callbacks[0].init_args.patience``, ``optimizer.init_args.betas[1]``), and leave the number
out where one element alone has what follows (``trainer.callbacks.init_args.patience``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

Place = tuple[str | int, ...]
#: what holds a class's arguments
_ARGUMENTS = ("init_args", "dict_kwargs")


class AmbiguousKey(ValueError):
    """A key that fits several elements of a list; the text names them."""


def parts_of(key: str) -> list[str | int]:
    """``a.b[0].c`` as ``["a", "b", 0, "c"]``."""
    parts: list[str | int] = []
    for part in key.split("."):
        name, *numbers = re.split(r"\[(\d+)\]", part)
        parts += [name, *(int(n) for n in numbers if n)]
    return parts


def find(config: Any, key: str) -> Place | None:
    """Where a key is, None where it is not.

    Raises:
        AmbiguousKey: If it fits several elements of a list.
    """
    return _find(config, parts_of(key), ())


def _find(value: Any, parts: Sequence[str | int], place: Place) -> Place | None:
    if not parts:
        return place
    first, *rest = parts
    if isinstance(value, list):
        if isinstance(first, int):
            return _find(value[first], rest, (*place, first)) if first < len(value) else None
        fits = [hit for i, one in enumerate(value) if (hit := _find(one, parts, (*place, i))) is not None]
        if len(fits) > 1:
            raise AmbiguousKey(", ".join(text_of(hit) for hit in fits))
        return fits[0] if fits else None
    if not isinstance(value, Mapping):
        return None
    if first in value and (hit := _find(value[first], rest, (*place, first))) is not None:
        return hit
    inside = rest if first in _ARGUMENTS else parts  # what is in one of them may have been written with the other
    for arguments in _ARGUMENTS:
        if arguments in value and inside and arguments not in parts[:1]:
            hit = _find(value[arguments], inside, (*place, arguments))
            if hit is not None:
                return hit
    return None


def text_of(place: Sequence[str | int]) -> str:
    """A place as a key."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def value_at(config: Any, place: Place) -> Any:
    """What is at a place."""
    for part in place:
        config = config[part]
    return config


def set_at(config: Any, place: Place, value: Any) -> None:
    """Put a value at a place; an element of a tuple is replaced by replacing the tuple."""
    *parents, last = place
    holder = value_at(config, tuple(parents))
    if isinstance(holder, tuple):
        at = int(last)
        set_at(config, tuple(parents), (*holder[:at], value, *holder[at + 1 :]))
    else:
        holder[last] = value


def without(config: Mapping[str, Any], places: Sequence[Place]) -> dict[str, Any]:
    """A copy where nothing is at some places; elements of lists and tuples become None: others keep their numbers."""
    copied = deepcopy(dict(config))
    for place in sorted(places, key=len, reverse=True):  # what is inside another one first
        *parents, last = place
        holder = value_at(copied, tuple(parents))
        if isinstance(holder, list | tuple):
            set_at(copied, place, None)
        else:
            holder.pop(last, None)
    return copied


def with_lists_replaced(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by key where keys that name an element of a list become the whole list: what a command line can say."""
    options: dict[str, Any] = {}
    for key, value in values.items():
        place = find(config, key)
        number = next((i for i, part in enumerate(place or ()) if isinstance(part, int)), None)
        if place is None or number is None:
            options[key] = value
            continue
        name = text_of(place[:number])
        if name not in options:
            options[name] = deepcopy(value_at(config, place[:number]))
        *parents, last = place[number:]
        holder = value_at(options[name], tuple(parents))
        holder[last] = value
    return options


def dotted(value: Any, prefix: str) -> list[str]:
    """The dotted keys of all values that are no mappings."""
    if not isinstance(value, Mapping):
        return [prefix]
    return [key for name, inner in value.items() for key in dotted(inner, f"{prefix}.{name}")]


def ending_in(config: Any, name: str) -> list[str]:
    """The keys of all values whose last part is a name."""
    return [text_of(place) for place in _places(config, ()) if place[-1] == name]


def _places(value: Any, place: Place) -> Iterator[Place]:
    items: Sequence[tuple[str | int, Any]] = ()
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for part, inner in items:
        yield (*place, part)
        yield from _places(inner, (*place, part))
