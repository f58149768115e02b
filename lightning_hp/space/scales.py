"""The axes that hyperparameters are searched on, to the unit interval and back.

A scale decides which values are equally likely. With ``r`` uniform,

* ``linear``         value = low + r (high - low): layers, units, dropout;
* ``log``            value = 10^r: learning rate, epsilon, weight decay; every decade is as likely as any other;
* ``one_minus_log``  value = 1 - 10^r: momentum, beta1, beta2, where what counts is how far the value is from 1.

Why ``one_minus_log`` is not ``log``: an exponentially weighted average with weight b looks back over about 1 / (1 - b)
values, so 0.9 to 0.9005 changes almost nothing (10 values) while 0.999 to 0.9995 doubles the memory (1,000 to 2,000).
On [0.9, 0.999] a plain log is almost uniform: 91% of its draws are below 0.99, where ``one_minus_log`` puts half.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scale = Literal["linear", "log", "one_minus_log"]
SCALES: tuple[Scale, ...] = ("linear", "log", "one_minus_log")
#: Distance from 1 is kept to this many decimals, since 1 - 0.999 is 0.0010000000000000009 in binary.
ONE_MINUS_DECIMALS = 12
#: Ranges that come very near to 1 keep more, up to this many: 1 - value is exact to 1.1e-16.
MOST_DECIMALS = 15


def one_minus(value: float, decimals: int = ONE_MINUS_DECIMALS) -> float:
    """``1 - value`` without the binary noise, so that converting twice gives the value back.

    Args:
        value: A natural value, or a distance from 1.
        decimals: How many decimals are kept at most, see :func:`decimals_for`; 15 digits in all.
    """
    distance = 1.0 - value
    before_the_point = math.floor(math.log10(abs(distance))) + 1 if abs(distance) >= 1 else 0
    return round(distance, min(decimals, MOST_DECIMALS - before_the_point))


def decimals_for(high: float) -> int:
    """How many decimals of the distance from 1 are kept on a range: six digits of its least distance, if there are.

    Args:
        high: Upper bound of the range, a natural value below 1.
    """
    if high >= 1:
        return ONE_MINUS_DECIMALS
    return min(max(ONE_MINUS_DECIMALS, 6 + math.ceil(-math.log10(1.0 - high))), MOST_DECIMALS)


def check_bounds(low: float, high: float, scale: str, name: str = "low, high") -> None:
    """Check that a scale can be used on a range.

    Args:
        low: Lower bound, a natural value.
        high: Upper bound, a natural value.
        scale: One of ``SCALES``.
        name: How the error calls this range, for example a YAML path.

    Raises:
        ValueError: If the scale is unknown, the bounds are not finite, low >= high, low <= 0 on ``log``, or high >= 1
            on ``one_minus_log``.
    """
    if scale not in SCALES:
        raise ValueError(f"`{name}.scale` must be one of {', '.join(SCALES)}, got {scale!r}")
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"`{name}` must have finite bounds, got low={low!r}, high={high!r}")
    if low >= high:
        raise ValueError(f"`{name}` must have low < high, got low={low!r}, high={high!r}")
    if not np.isfinite(float(high) - float(low)):
        raise ValueError(f"`{name}` must have bounds less than 1.8e308 apart, got low={low!r}, high={high!r}")
    if scale == "log" and low <= 0:
        raise ValueError(f"`{name}` must have low > 0 on the log scale, got low={low!r}")
    if scale == "one_minus_log" and high >= 1:
        raise ValueError(f"`{name}` must have high < 1 on the one_minus_log scale, got high={high!r}")


def _axis(value: NDArray[np.float64] | float, scale: str) -> NDArray[np.float64]:
    """The coordinate on which draws are uniform; increasing in the natural value on every scale."""
    value = np.asarray(value, np.float64)
    if scale == "log":
        return np.log(value)
    if scale == "one_minus_log":
        return -np.log1p(-value)
    return value


def decades(low: float, high: float, scale: str) -> float:
    """How many decades a logarithmic axis spans, in distances from 1 on ``one_minus_log``; 0 on a linear one."""
    return 0.0 if scale == "linear" else float(_axis(high, scale) - _axis(low, scale)) / math.log(10.0)


def to_unit(value: ArrayLike, low: float, high: float, scale: str) -> NDArray[np.float64]:
    """Natural values to the unit interval; 0 is ``low``, 1 is ``high``, values outside are clipped.

    Args:
        value: Natural values, any shape.
        low: Lower bound, a natural value.
        high: Upper bound, a natural value.
        scale: One of ``SCALES``.

    Returns:
        Array of the shape of ``value``, within [0, 1].
    """
    start, stop = _axis(low, scale), _axis(high, scale)
    inside = np.clip(np.asarray(value, np.float64), low, high)
    return np.clip((_axis(inside, scale) - start) / (stop - start), 0.0, 1.0)


def from_unit(unit: ArrayLike, low: float, high: float, scale: str) -> NDArray[np.float64]:
    """The unit interval to natural values, the inverse of :func:`to_unit`; never outside [low, high].

    Args:
        unit: Positions within [0, 1], any shape.
        low: Lower bound, a natural value.
        high: Upper bound, a natural value.
        scale: One of ``SCALES``.

    Returns:
        Array of the shape of ``unit``.
    """
    start, stop = _axis(low, scale), _axis(high, scale)
    axis = start + np.asarray(unit, np.float64) * (stop - start)
    if scale == "log":
        axis = np.exp(axis)
    elif scale == "one_minus_log":
        axis = -np.expm1(-axis)
    return np.clip(axis, low, high)


def sample(
    low: float, high: float, n: int, scale: str = "log", rng: np.random.Generator | int | None = None
) -> NDArray[np.float64]:
    """Draw values at random on a scale.

    Args:
        low: Lower bound, a natural value.
        high: Upper bound, a natural value.
        n: How many values, at least 0.
        scale: One of ``SCALES``.
        rng: A generator, a seed, or None for a fresh one.

    Returns:
        Natural values, shape (n,), each within [low, high].

    Raises:
        ValueError: If the bounds do not fit the scale, or n is negative.
    """
    check_bounds(low, high, scale)
    if n < 0:
        raise ValueError(f"`n` must be at least 0, got {n!r}")
    return from_unit(np.random.default_rng(rng).uniform(size=n), low, high, scale)


def histogram(draws: NDArray[np.float64], low: float, high: float, scale: str, width: int = 50) -> str:
    """How draws spread, as text: the exponent range, the first ten draws, and a bar for each decade.

    The decades are those of the value on ``log``, of the distance from 1 on ``one_minus_log``; on ``linear`` the bars
    are tenths of the range.

    Args:
        draws: Natural values, shape (n,).
        low: Lower bound, a natural value.
        high: Upper bound, a natural value.
        scale: One of ``SCALES``.
        width: Characters of the longest bar.

    Returns:
        Lines of text.
    """
    if scale == "linear":
        lines = [f"value uniform within [{low:g}, {high:g}]"]
        edges = np.linspace(low, high, 11)
        axis, names = draws, [f"{a:g} to {b:g}" for a, b in pairwise(edges)]
    else:
        near, far = (low, high) if scale == "log" else (one_minus(high), one_minus(low))
        start, stop = float(np.log10(near)), float(np.log10(far))
        formula = "10^r" if scale == "log" else "1 - 10^r"
        lines = [f"value = {formula}, r uniform within [{start:.4g}, {stop:.4g}]"]
        inner = np.arange(np.floor(start) + 1, np.ceil(stop))
        edges = np.array([start, *inner[(inner > start + 1e-9) & (inner < stop - 1e-9)], stop])
        axis = np.log10(draws if scale == "log" else 1.0 - draws)
        ends = 10.0**edges if scale == "log" else 1.0 - 10.0**edges
        names = [f"{min(a, b):.6g} to {max(a, b):.6g}" for a, b in pairwise(ends)]
    lines.append("first draws: " + ", ".join(f"{value:.6g}" for value in draws[:10]))
    counts, _ = np.histogram(np.clip(axis, edges[0], edges[-1]), edges)
    rows = list(zip(names, counts, strict=True))
    if scale == "one_minus_log":
        rows.reverse()  # in the order of the values, like the other scales
    longest = max(int(counts.max(initial=0)), 1)
    room = max(len(name) for name in names)
    for name, count in rows:
        share = count / max(len(draws), 1)
        lines.append(f"{name:>{room}}  {count:>7}  {share:6.1%}  {'#' * round(width * count / longest)}")
    return "\n".join(lines)
