"""Decides which columns of a data set moved, from two data fingerprints. Pure, standard library only.

A column moved when the change is both larger than a fixed effect (it could matter) and larger than chance (it is not
just another sample). The chance limit is set so that all tests of one comparison together raise a false alarm in at
most ``Tolerance.false_alarm`` of the comparisons (Bonferroni); effects and their sources stand at :class:`Tolerance`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

from lightning_hp.ledger.changes import Change

#: Rows that a class must be expected to have in both samples before its absence in one is more than chance: a class of
#: that size is missed with probability exp(-12), about 6e-6.
_EXPECTED_ROWS = 12
#: Values from which the shape of a column of integers says whether they count.
_LEAST_COUNTS = 9
#: Most rows that the upper quarter of the range of a count holds; equally frequent classes have a quarter there.
_RARE = 0.1
#: Bins that a count's range is looked at in, and the limit of von Neumann's ratio (sum of squared steps between them
#: over their sum of squares): 2 where the order means nothing, near 0 where neighbours are alike.
_BINS, _ORDERED = 24, 1.0


@dataclass(frozen=True)
class Tolerance:
    """How far a column may move before it is reported.

    Args:
        mean: Move of the mean in old standard deviations. 0.2: the effect floor of the covariate-shift rule DR01, under
            which networks kept their accuracy.
        log_variance: Absolute log of the variance ratio. 0.3 (a standard deviation x1.16): the same rule.
        distribution: Share of rows that moved by more than ``mean`` standard deviations, as far as the two quantile
            sketches prove it. 0.1: one row in ten; reasoned.
        missing: Change of the share of missing values. 0.05: reasoned.
        classes: Total variation between the class shares. 0.1: one row in ten has another class; reasoned.
        rows: Factor between the row counts. 1.5: reasoned; batch size and epochs were tuned for a size.
        false_alarm: Probability that a comparison of two samples of the same data reports anything.
    """

    mean: float = 0.2
    log_variance: float = 0.3
    distribution: float = 0.1
    missing: float = 0.05
    classes: float = 0.1
    rows: float = 1.5
    false_alarm: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("mean", "log_variance", "distribution", "missing", "classes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)!r}")
        if not self.rows > 1:
            raise ValueError(f"`rows` must be a factor above 1, got {self.rows!r}")
        if not 0 < self.false_alarm < 1:
            raise ValueError(f"`false_alarm` must be between 0 and 1, got {self.false_alarm!r}")


@dataclass(frozen=True)
class ColumnDrift:
    """One column that moved.

    Args:
        column: Name of the column; ``rows`` for the size of the data set.
        statistic: What moved: ``mean``, ``variance``, ``distribution``, ``missing``, ``classes``, ``rows``, ``layout``.
        moved: By how much, in the unit of that tolerance.
        limit: What was allowed.
        structural: The layout itself changed (a column, a dtype, a class), so old and new data do not fit one model.
        text: What moved, in words and without the column.
    """

    column: str
    statistic: str
    moved: float
    limit: float
    structural: bool
    text: str

    @property
    def change(self) -> Change:
        """The same as a change of a ledger; the size of the data set is not about a column."""
        return Change(self.text) if self.statistic == "rows" else Change(self.text, (self.column,))

    @property
    def sentence(self) -> str:
        """The finding in words."""
        return self.change.sentence


def compare_fingerprints(
    old: Mapping[str, Any], new: Mapping[str, Any], tolerance: Tolerance | None = None
) -> list[ColumnDrift]:
    """Compares two data fingerprints, column by column.

    Args:
        old: The fingerprint on record.
        new: Today's.
        tolerance: How far a column may move without being reported.

    Returns:
        At most one finding a column, the one furthest past its limit; layout changes first, then worst first.

    Raises:
        ValueError: If an argument is no data fingerprint of this schema.
    """
    tolerance = tolerance or Tolerance()
    for name, fingerprint in (("old", old), ("new", new)):
        if not isinstance(fingerprint, Mapping) or fingerprint.get("schema") != 1 or "columns" not in fingerprint:
            raise ValueError(f"`{name}` must be a data fingerprint of schema 1, got {str(fingerprint)[:60]!r}")
    columns_old, columns_new = old["columns"], new["columns"]
    shared = [name for name in columns_old if name in columns_new]
    # at most four tests a column
    alpha = tolerance.false_alarm / max(1, 4 * len(shared))
    drifts = [*_layout(columns_old, columns_new), *_rows(old, new, tolerance)]
    for name in shared:
        worst = max(
            _column(name, columns_old[name], columns_new[name], alpha, tolerance),
            key=lambda drift: (drift.structural, drift.moved / drift.limit),
            default=None,
        )
        if worst is not None:
            drifts.append(worst)
    return sorted(drifts, key=lambda drift: (not drift.structural, -drift.moved / drift.limit))


def _layout(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[ColumnDrift]:
    for name in old:
        if name not in new:
            yield ColumnDrift(name, "layout", math.inf, 1.0, True, "gone")
    for name in new:
        if name not in old:
            yield ColumnDrift(name, "layout", math.inf, 1.0, True, "new")


def _rows(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: Tolerance) -> Iterator[ColumnDrift]:
    before, after = old["rows"], new["rows"]
    if not (old["rows_exact"] and new["rows_exact"]) or before == after or min(before, after) < 1:
        return
    factor = max(before, after) / min(before, after)
    if factor >= tolerance.rows:
        text = f"rows: {before:,} became {after:,}"
        yield ColumnDrift("rows", "rows", factor, tolerance.rows, False, text)


def _column(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], alpha: float, tolerance: Tolerance
) -> Iterator[ColumnDrift]:
    if old["dtype"] != new["dtype"]:
        text = f"was {old['dtype']}, is {new['dtype']}"
        yield ColumnDrift(name, "layout", math.inf, 1.0, True, text)
        return
    if "shares" in old and "shares" in new and not is_count(old["shares"]):
        yield from _classes(name, old, new, alpha, tolerance)
        return
    yield from _missing(name, old, new, alpha, tolerance)
    if old["count"] >= 2 and new["count"] >= 2:
        yield from _moments(name, old, new, alpha, tolerance)
        yield from _distribution(name, old, new, alpha, tolerance)


def is_count(shares: Mapping[str, float]) -> bool:
    """Whether the values of an integer column count something, where more is more, and are not names of classes.

    Counts (visits, hours, items sold) thin out towards their largest values, often with gaps, and neighbouring values
    are about equally frequent. Classes are numbered without gaps, and their last is as frequent as any other.

    Args:
        shares: Share of the rows by value.

    Returns:
        True for at least nine values (fewer cannot be told from classes: grades, children) of which the upper ones
        are rare and neighbours are alike; and for nine of which some are negative.
    """
    parts = {int(value): share for value, share in shares.items()}
    if len(parts) < _LEAST_COUNTS:
        return False
    low, high = min(parts), max(parts)
    if low < 0:
        return True
    upper = sum(share for value, share in parts.items() if value >= low + 0.75 * (high - low))
    if upper > _RARE:
        return False
    width = max(1.0, (high - low + 1) / _BINS)  # few rows a value are noise
    bins = [0.0] * math.ceil((high - low + 1) / width)
    for value, share in parts.items():
        bins[int((value - low) / width)] += share
    return _ordered(bins) or _ordered(bins[1:])  # many a count has a lump at zero


def _ordered(bins: Sequence[float]) -> bool:
    mean = sum(bins) / len(bins)
    steps = sum((after - before) ** 2 for before, after in pairwise(bins))
    return steps < _ORDERED * sum((share - mean) ** 2 for share in bins)


def _missing(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], alpha: float, tolerance: Tolerance
) -> Iterator[ColumnDrift]:
    totals = [column["count"] + column["missing"] for column in (old, new)]
    if min(totals) < 1:
        return
    shares = [column["missing"] / total for column, total in zip((old, new), totals, strict=True)]
    pooled = (old["missing"] + new["missing"]) / sum(totals)
    noise = math.sqrt(pooled * (1 - pooled) * sum(1 / total for total in totals))
    moved, limit = abs(shares[1] - shares[0]), max(tolerance.missing, _quantile(alpha) * noise)
    if moved > limit:
        text = f"missing values went from {shares[0]:.0%} to {shares[1]:.0%}"
        yield ColumnDrift(name, "missing", moved, limit, False, text)


def _moments(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], alpha: float, tolerance: Tolerance
) -> Iterator[ColumnDrift]:
    n_old, n_new, sd_old, sd_new = old["count"], new["count"], old["sd"], new["sd"]
    scale = sd_old or sd_new
    if scale > 0:
        pooled = math.sqrt((n_old * sd_old**2 + n_new * sd_new**2) / (n_old + n_new))
        moved = abs(new["mean"] - old["mean"]) / scale
        limit = max(tolerance.mean, _quantile(alpha) * pooled / scale * math.sqrt(1 / n_old + 1 / n_new))
        if moved > limit:
            unit = "sd" if sd_old else "new sd (it was constant)"
            yield ColumnDrift(name, "mean", moved, limit, False, f"mean moved by {moved:.2g} {unit}")
    elif not math.isclose(old["mean"], new["mean"], rel_tol=1e-4, abs_tol=1e-12):
        text = f"was {old['mean']:.4g} in every row, is {new['mean']:.4g}"
        yield ColumnDrift(name, "mean", math.inf, 1.0, False, text)
    if sd_old > 0 and sd_new > 0:
        # var(s^2) = s^4 (kurtosis - 1) / n; on the log scale it would call a rare value that is missing once a change
        kurtosis = max(old["kurtosis"], new["kurtosis"], 1.0)
        noise = math.sqrt((kurtosis - 1) * (sd_old**4 / n_old + sd_new**4 / n_new))
        moved = abs(2 * math.log(sd_new / sd_old))
        if moved > tolerance.log_variance and abs(sd_new**2 - sd_old**2) > _quantile(alpha) * noise:
            text = f"standard deviation is {sd_new / sd_old:.2g} times the old one"
            yield ColumnDrift(name, "variance", moved, tolerance.log_variance, False, text)


def _distribution(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], alpha: float, tolerance: Tolerance
) -> Iterator[ColumnDrift]:
    slack = tolerance.mean * (old["sd"] or new["sd"])
    moved = cdf_distance(old["quantiles"], new["quantiles"], slack)
    # Massart's constant for two samples
    noise = math.sqrt(math.log(2 / alpha) / 2 * (1 / old["count"] + 1 / new["count"]))
    limit = max(tolerance.distribution, noise)
    if moved > limit:
        text = f"at least {moved:.0%} of the rows moved by more than {tolerance.mean:.2g} sd"
        yield ColumnDrift(name, "distribution", moved, limit, False, text)


def cdf_distance(old: Sequence[float], new: Sequence[float], slack: float = 0.0) -> float:
    """The share of rows that must have moved by more than ``slack``, as far as two sets of quantiles prove it.

    Args:
        old: Quantiles at equally spaced levels from 0 to 1, ascending.
        new: Likewise; the number of levels may differ.
        slack: A move that does not count, in the unit of the column. At 0 the result is a lower bound of the
            Kolmogorov-Smirnov distance, else of the largest ``F(x - slack) - G(x)`` in either direction.

    Returns:
        Between 0 and 1. A quantile ``q`` at level ``p`` says that at least ``p`` of the values are at most ``q``, and
        at most ``p`` lie below ``q``; ties need no other treatment.
    """
    best = 0.0
    for left, right in ((new, old), (old, new)):
        for value in (*(q + slack for q in left), *right):
            best = max(best, _bounds(left, value - slack)[0] - _bounds(right, value)[1])
    return best


def _bounds(quantiles: Sequence[float], value: float) -> tuple[float, float]:
    """Least and greatest share of values that can be at most ``value``."""
    steps = len(quantiles) - 1
    at_most = bisect_right(quantiles, value)
    low = (at_most - 1) / steps if at_most else 0.0
    return low, (at_most / steps if at_most <= steps else 1.0)


def _classes(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], alpha: float, tolerance: Tolerance
) -> Iterator[ColumnDrift]:
    shares_old, shares_new = old["shares"], new["shares"]
    n_old, n_new = old["count"], new["count"]
    if min(n_old, n_new) < 1:
        return
    labels = [*shares_old, *(key for key in shares_new if key not in shares_old)]
    for key in labels:
        share = max(shares_old.get(key, 0.0), shares_new.get(key, 0.0))
        if (key not in shares_old or key not in shares_new) and share * min(n_old, n_new) >= _EXPECTED_ROWS:
            what = "gone" if key in shares_old else "new"
            text = f"class {key} is {what} ({share:.0%} of the rows)"
            yield ColumnDrift(name, "classes", math.inf, 1.0, True, text)
    moves = {key: shares_new.get(key, 0.0) - shares_old.get(key, 0.0) for key in labels}
    moved = sum(abs(move) for move in moves.values()) / 2
    statistic = 0.0
    for key, move in moves.items():
        pooled = (n_old * shares_old.get(key, 0.0) + n_new * shares_new.get(key, 0.0)) / (n_old + n_new)
        statistic += move**2 / (pooled * (1 / n_old + 1 / n_new))
    if len(labels) > 1 and moved > tolerance.classes and statistic > _chi_square_quantile(len(labels) - 1, alpha):
        key = max(moves, key=lambda key: abs(moves[key]))
        before, after = shares_old.get(key, 0.0), shares_new.get(key, 0.0)
        text = f"class mix moved by {moved:.0%}, most of all class {key} ({before:.0%} to {after:.0%})"
        yield ColumnDrift(name, "classes", moved, tolerance.classes, False, text)


def _quantile(alpha: float) -> float:
    """Two-sided normal quantile."""
    return NormalDist().inv_cdf(1 - alpha / 2)


def _chi_square_quantile(degrees: int, alpha: float) -> float:
    """Upper quantile by Wilson and Hilferty (1931)."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + NormalDist().inv_cdf(1 - alpha) * math.sqrt(part)) ** 3
