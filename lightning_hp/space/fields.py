"""The fields of a space's entry as a person wrote them: numbers that may be text, and what all kinds share."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_hp.space.conditions import Condition


def number_or_text(text: Any) -> Any:
    """A number where the text is one (YAML 1.1 reads 1e-4 as text), else the value itself."""
    if not isinstance(text, str):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def is_number(value: Any) -> bool:
    """Whether a value is a number other than NaN; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and value == value


def number_field(fields: Mapping[str, Any], field: str, where: str) -> Any:
    """A field that must be a number, also where YAML read it as text.

    Raises:
        ValueError: If it is none, or is larger than a float can be.
    """
    value = number_or_text(fields[field])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{where}.{field}` must be a number, got {fields[field]!r}")
    try:
        float(value)
    except OverflowError:
        raise ValueError(
            f"`{where}.{field}` must be a number within 1.8e308 of 0, got one of {int(value).bit_length()} bits"
        ) from None
    return value


def common_fields(fields: Mapping[str, Any], default: Any) -> tuple[str, Any, tuple[Condition, ...]]:
    """Tier, default and conditions: the last fields of every kind, in their order."""
    return fields.get("tier", "B"), default, tuple(fields.get("active_if", ()))


def check_default(good: bool, default: Any, expected: str, where: str) -> None:
    """Refuse a default that is not as expected.

    Raises:
        ValueError: If it is not good.
    """
    if not good:
        raise ValueError(f"`{where}.default` must be {expected}, got {default!r}")


def whole_number(name: str, value: Any, least: int) -> int:
    """A whole number of at least ``least``; anything else is an error that calls it ``name``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}")
    return value
