"""Which parameters have an effect where: conditions among the parameters of a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from lightning_hp.space.conditions import Condition
from lightning_hp.space.fields import is_number, number_or_text
from lightning_hp.space.parameters import Choice, Parameter


def inactive_names(parameters: Sequence[Parameter], natural: Mapping[str, Any]) -> set[str]:
    """The parameters without effect at a point; what hangs on an inactive one is inactive too.

    Args:
        parameters: All parameters of the space, d of them.
        natural: The natural value of each, by name.
    """
    inactive: set[str] = set()
    for _ in parameters:  # conditions may hang on each other; the longest chain has d links
        before = inactive
        inactive = {p.name for p in parameters if any(c.name in before or not c.holds(natural) for c in p.active_if)}
        if inactive == before:
            break
    return inactive


def check_order(parameters: Sequence[Parameter], where: str) -> None:
    """Check that no parameter hangs on itself, by way of others.

    Args:
        parameters: All parameters of the space.
        where: What errors call it.

    Raises:
        ValueError: If one does.
    """
    waiting = {p.name: {c.name for c in p.active_if} for p in parameters}
    while free := [name for name, deciders in waiting.items() if not deciders & waiting.keys()]:
        for name in free:
            del waiting[name]
    if waiting:
        raise ValueError(f"`{where}` must have no active_if that goes in a circle, got one with {', '.join(waiting)}")


def activated(by_name: Mapping[str, Parameter], natural: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A point with the deciding parameters set so that a parameter has an effect, where that can be.

    Args:
        by_name: The parameters of the space.
        natural: The natural values to start from, by name.
        name: The parameter.
    """
    conditions: dict[str, list[Condition]] = {}  # by decider: the parameter's own, its deciders', and so on
    waiting = [name]
    while waiting:
        for condition in by_name[waiting.pop()].active_if:
            if condition not in conditions.setdefault(condition.name, []):
                conditions[condition.name].append(condition)
                waiting.append(condition.name)
    point = dict(natural)
    for decider, about in conditions.items():
        good = (v for v in values_near(by_name[decider], about) if all(c.holds({decider: v}) for c in about))
        point[decider] = next(good, by_name[decider].default)
    return point


def resolved(condition: Condition, decider: Parameter, where: str) -> Condition:
    """A condition in terms of the values that its deciding parameter can have.

    Args:
        condition: As a person wrote it; a choice may be given by its label, or by the name of its class.
        decider: The parameter that it hangs on.
        where: What errors call it.

    Raises:
        ValueError: If the value is none of the choices, cannot be compared with them, or never holds.
    """
    if condition.operator in ("==", "!="):
        if isinstance(decider, Choice):
            meant = decider.meant_by(condition.value)
            if not meant:
                raise ValueError(f"`{where}` must be {decider.expected}, got {condition.value!r}")
            several = {"==": "in", "!=": "not in"}[condition.operator]
            value, operator = (meant[0], condition.operator) if len(meant) == 1 else (meant, several)
            condition = Condition(decider.name, operator, value)
        else:
            condition = replace(condition, value=number_or_text(condition.value))
    try:
        if not isinstance(decider, Choice) and not is_number(condition.value):
            raise TypeError
        holds = [condition.holds({decider.name: value}) for value in values_near(decider, [condition])]
    except TypeError:
        raise ValueError(
            f"`{where}` must be comparable with the values of {decider.name}, "
            f"got {condition.operator} {condition.value}"
        ) from None
    if not any(holds):
        raise ValueError(
            f"`{where}` must hold for some value of {decider.name}, which is {decider.expected}, "
            f"got {condition.operator} {condition.value}"
        )
    return condition


def values_near(decider: Parameter, conditions: Sequence[Condition]) -> list[Any]:
    """Values of a parameter that conditions on it may tell apart, its default first."""
    if isinstance(decider, Choice):
        return [decider.default, *decider.choices]
    bounds = sorted({c.value for c in conditions if is_number(c.value)})
    beside = [value + step for value in bounds for step in (0, 1, -1)]
    between = [(a + b) / 2 for a, b in pairwise([decider.low, *bounds, decider.high])]
    near = [value for value in (*beside, *between) if decider.holds(value)]
    return [decider.default, decider.low, decider.high, *near]
