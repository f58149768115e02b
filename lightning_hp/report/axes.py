"""How positions on a parameter's scale are labelled: ticks at round natural values, and values as short text.

All pictures of a parameter are drawn on the unit axis of its scale, [0, 1]: one axis serves ``linear``, ``log``,
``one_minus_log`` and choices alike, and a stage's box can be drawn where the sampler put it.
"""

from __future__ import annotations

import math
from typing import Any

from lightning_hp.space.labels import label
from lightning_hp.space.parameters import Choice, Int, Parameter

#: most ticks on one axis
MOST_TICKS = 6


def ticks(parameter: Parameter, most: int = MOST_TICKS) -> tuple[list[float], list[str]]:
    """Positions in [0, 1] and their labels, in increasing order, ``most`` of them or fewer.

    Args:
        parameter: The parameter whose axis it is.
        most: Most ticks, at least 2.
    """
    if isinstance(parameter, Choice):
        every = math.ceil(len(parameter.labels) / most)
        shown = parameter.labels[::every]
        return [float(u) for u in parameter.unit(shown)], [choice_text(v) for v in shown]
    if parameter.scale == "one_minus_log":
        naturals = [1 - v for v in reversed(log_ticks(1 - parameter.high, 1 - parameter.low, most))]
    elif parameter.scale == "log":
        naturals = log_ticks(parameter.low, parameter.high, most)
    else:
        naturals = _linear_ticks(parameter.low, parameter.high, most, isinstance(parameter, Int))
    stored = [parameter.store(v) for v in naturals]
    if isinstance(parameter, Int):
        stored = sorted(set(stored))
    return [float(u) for u in parameter.unit(stored)], [value_text(parameter, parameter.natural(v)) for v in stored]  # type: ignore[arg-type]


def value_text(parameter: Parameter, natural: Any) -> str:
    """A natural value, as short as it can be told from its neighbours."""
    if isinstance(parameter, Choice):
        position = parameter.index(natural)
        return choice_text(natural if position is None else parameter.labels[position])
    if parameter.scale == "one_minus_log":  # what counts is the distance from 1
        distance = max(1 - float(natural), 1e-12)
        decimals = max(0, math.ceil(-math.log10(distance))) + 2
        return _strip(f"{float(natural):.{decimals}f}")
    return number_text(natural)


def range_text(parameter: Parameter) -> str:
    """The range of a parameter and its scale, as text."""
    if isinstance(parameter, Choice):
        shown = ", ".join(value_text(parameter, choice) for choice in parameter.choices[:6])
        return shown + (", …" if len(parameter.choices) > 6 else "")
    scale = {"log": "log", "one_minus_log": "log of 1 − value", "linear": "linear"}[parameter.scale]
    return f"{value_text(parameter, parameter.low)} to {value_text(parameter, parameter.high)}, {scale}"


def ends_text(parameter: Parameter, low: float, high: float) -> str:
    """The natural values at the ends of an interval of the unit axis: ``0.01 to 0.1``, or one value where both agree.

    Args:
        parameter: The parameter whose axis it is.
        low: From 0 to 1.
        high: From 0 to 1.
    """
    inset = 1e-9 if parameter.cardinality is not None else 0.0  # a whole number or a choice owns an interval
    naturals = (parameter.natural(parameter.at(unit)) for unit in (low + inset, high - inset))  # type: ignore[arg-type]
    return " to ".join(dict.fromkeys(value_text(parameter, natural) for natural in naturals))


def choice_text(value: Any) -> str:
    """A choice as text: numbers short, lists and mappings by their label, the rest as written."""
    if isinstance(value, list | dict):
        return label(value)
    return number_text(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def number_text(value: Any, digits: int = 4) -> str:
    """A number with ``digits`` significant digits, whole numbers in full; an en dash where there is none."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return str(int(value))
    if not math.isfinite(value):
        return str(value)
    if 1e-4 <= abs(value) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return _strip(f"{value:.{decimals}f}")
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{_strip(mantissa)}e{int(exponent)}"


def duration_text(seconds: float | None) -> str:
    """Seconds in the largest units that fit: ``8.3 s``, ``4 min 10 s``, ``2 h 05 min``, ``3 d 4 h``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def _strip(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round values of a log axis: decades, thinned; 1, 2, 5 or finer where there are fewer than two decades."""
    first, last = math.floor(math.log10(low)), min(math.ceil(math.log10(high)), 308)  # 1e309 is infinite
    decades = [10.0**e for e in range(first, last + 1) if low * 0.999 <= 10.0**e <= high * 1.001]
    if len(decades) >= 3:
        return decades[:: math.ceil(len(decades) / most)]
    for mantissas in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(m / 10 for m in range(10, 100, 2))):
        marks = [
            m * 10.0**e for e in range(first, last + 1) for m in mantissas if low * 0.999 <= m * 10.0**e <= high * 1.001
        ]
        if len(marks) >= 3:
            return marks[:: math.ceil(len(marks) / most)]
    return [low, high]


def _linear_ticks(low: float, high: float, most: int, whole: bool) -> list[float]:
    """Round values of a linear axis (steps 1, 2, 5 times a power of ten)."""
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
    start = math.ceil(low / step - 1e-9)
    marks = [round(i * step, 12) for i in range(start, start + most + 1) if i * step <= high + 1e-9 * (high - low)]
    return marks if len(marks) >= 2 else [low, high]
