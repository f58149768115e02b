"""One entry of a search space: its name, the fields that a person wrote, what is known, the user's own value.

An entry is checked here, field by field, and completed: its tier and scale, its range where none was written, and the
default. The kinds of parameters are made by :mod:`.parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning_hp.space.conditions import Condition, read_conditions
from lightning_hp.space.fields import is_number, number_or_text
from lightning_hp.space.known import guess, parts_of
from lightning_hp.space.parameters import TIERS, Choice, Float, Int, Parameter
from lightning_hp.space.scales import SCALES

FIELDS = ("low", "high", "scale", "tier", "default", "type", "choices", "active_if", "per_layer")
#: What a person writes for an entry whose range follows from its name.
AUTO = "auto"


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's shortest suffix of dotted parts that no other key shares; ``betas.0`` is one part."""
    names: dict[str, str] = {}
    for key in keys:
        parts = parts_of(key)
        for take in range(1, len(parts) + 1):
            suffix = parts[-take:]
            if sum(parts_of(other)[-take:] == suffix for other in keys) == 1:
                break
        names[key] = ".".join(suffix)
    return names


def read_fields(entry: Any, where: str) -> dict[str, Any]:
    """The fields of an entry, checked for what can be told without the rest of the space.

    Args:
        entry: A mapping, or ``auto`` for none.
        where: What errors call the entry.

    Raises:
        ValueError: If a field is unknown, or two of them contradict each other.
        TypeError: If the entry is neither.
    """
    if isinstance(entry, str) and entry == AUTO:
        return {}
    if not isinstance(entry, Mapping):
        raise TypeError(
            f"`{where}` must be a mapping such as {{low: 1.0e-4, high: 1.0, scale: log}}, or auto, got {entry!r}"
        )
    for field in entry:
        if field not in FIELDS:
            raise ValueError(f"`{where}.{field}` is not a known key; expected one of {', '.join(FIELDS)}")
    tier = entry.get("tier")
    if tier is not None and tier not in TIERS:
        raise ValueError(f"`{where}.tier` must be one of {', '.join(TIERS)}, got {tier!r}")
    scale = entry.get("scale")
    if scale is not None and scale not in SCALES:
        raise ValueError(f"`{where}.scale` must be one of {', '.join(SCALES)}, got {scale!r}")
    if entry.get("type") not in (None, "int", "float"):
        raise ValueError(f"`{where}.type` must be int or float, got {entry['type']!r}")
    if "choices" in entry:
        extra = [field for field in ("low", "high", "scale", "type") if field in entry]
        if extra:
            raise ValueError(f"`{where}` must have either choices or a range, got choices and {', '.join(extra)}")
    elif ("low" in entry) != ("high" in entry):
        missing = "high" if "low" in entry else "low"
        raise ValueError(f"`{where}.{missing}` is missing; expected a number (or `choices`)")
    return dict(entry)


def read_parameter(key: str, name: str, fields: Mapping[str, Any], where: str, own: Any = None) -> Parameter:
    """The parameter of an entry.

    Args:
        key: The key as written; its last part tells tier, scale and range where these were not written.
        name: Name of the parameter in the study.
        fields: As :func:`read_fields` gives them.
        where: What errors call the entry.
        own: The value in the user's own configuration, None where there is none. It is the default where none was
            written, and a range that was not written lies around it.

    Raises:
        ValueError: Naming the entry or its field, what was expected and what was given.
    """
    completed = _completed(key, name, fields, where, own)
    if "default" in fields or own is None:
        return _made(key, name, completed, where)
    parameter = _made(key, name, {k: v for k, v in completed.items() if k != "default"}, where)
    return replace(parameter, default=_start(parameter, own, where))


def read_layers(
    key: str, name: str, fields: Mapping[str, Any], where: str, counter: Parameter, own: Any = None
) -> list[Parameter]:
    """The parameters of an entry that has one for each layer, as many as there can be layers.

    Args:
        key: As for :func:`read_parameter`.
        name: Name of the parameters, without the number of the layer.
        fields: As for :func:`read_parameter`; ``default`` may be a list.
        where: As for :func:`read_parameter`.
        counter: The parameter that counts the layers.
        own: As for :func:`read_parameter`; may be a list.

    Raises:
        ValueError: As :func:`read_parameter`, or if a list has another number of values than there are layers.
    """
    most = counter.choices if isinstance(counter, Choice) else (counter.low, counter.high)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in most):
        raise ValueError(
            f"`{where}.per_layer` must name a whole number of at least 1, got {counter.name!r} {counter.expected}"
        )
    start = fields.get("default", own)
    values = list(start) if isinstance(start, list | tuple) else None
    if values is None:
        single = read_parameter(key, name, fields, where, own)
        starts: list[Any] = [single.default]
    else:
        if len(values) != counter.default:
            raise ValueError(
                f"`{where}` must start with a value for each of {counter.default} layers "
                f"({counter.name} starts at {counter.default}), got {start!r}"
            )
        completed = _completed(key, name, {**fields, "default": values}, where, own)
        single = _made(key, name, {k: v for k, v in completed.items() if k != "default"}, where)
        place = f"{where}.default" if "default" in fields else None
        starts = [_start(single, value, where, place) for value in values]
    return [
        replace(
            single,
            name=f"{name}_{layer}",
            default=starts[min(layer, len(starts)) - 1],
            active_if=(*single.active_if, Condition(counter.name, ">=", layer)),
        )
        for layer in range(1, max(most) + 1)
    ]


def _completed(key: str, name: str, fields: Mapping[str, Any], where: str, own: Any) -> dict[str, Any]:
    """The fields with tier, scale, range and conditions filled in."""
    usual = guess(key)
    start = fields.get("default", own)
    completed = dict(fields)
    if "choices" not in fields and "low" not in fields:
        several = isinstance(start, list | tuple)
        around = usual.range_for([number_or_text(v) for v in start] if several else number_or_text(start))
        if not around:
            raise ValueError(
                f"`{where}` must have a range: low and high, or choices; nothing is known of the name {name!r}"
            )
        completed = {**around, **fields}
    completed["tier"] = fields.get("tier") or usual.tier
    completed["active_if"] = read_conditions(fields.get("active_if"), f"{where}.active_if")
    return completed


def _made(key: str, name: str, completed: Mapping[str, Any], where: str) -> Parameter:
    """The parameter that completed fields describe: of choices, whole numbers or real ones."""
    usual = guess(key)
    if "choices" in completed:
        return Choice.from_dict(name, completed, where, usual.numeric)
    low, high = (number_or_text(completed[bound]) for bound in ("low", "high"))
    whole = all(isinstance(bound, int) and not isinstance(bound, bool) for bound in (low, high))
    kind = completed.get("type") or ("int" if whole else "float")
    numbers = is_number(low) and is_number(high)  # else the kinds say what is wrong
    scale = completed.get("scale") or (usual.scale_for(kind, low, high) if numbers else "linear")
    made_by = Int if kind == "int" else Float
    return made_by.from_dict(name, {**completed, "scale": scale}, where)


def _start(parameter: Parameter, value: Any, where: str, place: str | None = None) -> Any:
    """A value to start from, as the study stores it and gives it back.

    Args:
        parameter: The parameter.
        value: The value.
        where: What errors call the entry.
        place: What errors call the value where it was written in the space; None for one of the user's configuration.

    Raises:
        ValueError: If the parameter does not hold the value.
    """
    number = value if isinstance(parameter, Choice) else number_or_text(value)
    if parameter.holds(number):
        stored: Any = parameter.store(number)
        return parameter.natural(stored)
    if place is not None:
        raise ValueError(f"`{place}` must be {parameter.expected}, got {value!r}")
    raise ValueError(
        f"`{where}` must hold the value of your own configuration, which is where a study starts: it must be "
        f"{parameter.expected}, got {value!r}; widen the range, or write a `default` to start from"
    )
