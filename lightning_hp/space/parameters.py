"""What one hyperparameter is: its range, its scale, its tier, and how Optuna stores it.

Three kinds: :class:`Float`, :class:`Int`, :class:`Choice`. Each converts between three forms of a value:

* natural: what the model is given (``momentum=0.93``);
* stored: what the Optuna trial holds. ``one_minus_log`` differs: Optuna knows linear and log, so the distance from 1 is
  stored on a log axis, under a name that says so (``one_minus_momentum=0.07``). So do choices that are lists or
  mappings: Optuna stores plain values only, so a label stands for them (``SGD(lr=0.1)``);
* unit: a position in [0, 1] on the parameter's scale, where all geometry (zoom, surrogate) happens. An integer or a
  choice owns an interval of equal mass, and sits in its middle.

The distribution handed to Optuna is always the full range: narrowing is the sampler's business, since Optuna drops a
parameter whose range changed from its relative search space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from lightning_hp.space.choices import Choice as Choice
from lightning_hp.space.conditions import Condition
from lightning_hp.space.fields import check_default, common_fields, is_number, number_field
from lightning_hp.space.scales import check_bounds, decades, decimals_for, from_unit, one_minus, to_unit

TIERS = ("A", "B", "C", "D")
#: A logarithmic axis longer than this many decades says that nobody knows where to look, not that values a decade apart
#: do the same: what is assumed in parts of an axis (length scales, draws around a default) is then meant of this many.
USUAL_DECADES = 4.0
#: A range has at least this many different stored values at even distances on its axis, so that trials can differ.
DISTINCT = 101
#: Whole numbers are searched within this distance from 0: the unit axis still tells neighbours apart there.
LARGEST_INT = 10**12


@dataclass(frozen=True)
class Float:
    """A real hyperparameter.

    Attributes:
        name: Name of the parameter in the study.
        low: Lower bound, natural.
        high: Upper bound, natural.
        scale: ``linear``, ``log`` or ``one_minus_log``.
        tier: ``A`` (tune first) to ``D`` (rarely).
        default: Natural value used while the tier is closed.
        active_if: All of these must hold for the parameter to have an effect.
    """

    name: str
    low: float
    high: float
    scale: str = "linear"
    tier: str = "A"
    default: float = 0.0
    active_if: tuple[Condition, ...] = ()

    @property
    def stored_name(self) -> str:
        """Name of the parameter in Optuna's trials."""
        return f"one_minus_{self.name}" if self.scale == "one_minus_log" else self.name

    @property
    def is_categorical(self) -> bool:
        """Whether the values have no order."""
        return False

    @property
    def cardinality(self) -> int | None:
        """Number of distinct values, None for a continuum."""
        return None

    @classmethod
    def from_dict(cls, name: str, fields: Mapping[str, Any], where: str) -> Float:
        """Make a parameter from the fields of a mapping, and check it.

        Args:
            name: Name of the parameter in the study.
            fields: ``low`` and ``high``; and optionally ``scale``, ``tier``, ``default`` (else the middle of the range
                on its scale) and ``active_if``, as conditions.
            where: What errors call the mapping.

        Raises:
            ValueError: If a field is not what it must be.
        """
        low, high = float(number_field(fields, "low", where)), float(number_field(fields, "high", where))
        default = float(number_field(fields, "default", where)) if "default" in fields else low
        parameter = cls(name, low, high, fields.get("scale", "linear"), *common_fields(fields, default))
        parameter.check(where)
        if "default" in fields:
            return parameter
        return replace(parameter, default=parameter.natural(parameter.at(0.5)))

    @property
    def distribution(self) -> BaseDistribution:
        """The full range, as Optuna stores it."""
        if self.scale == "one_minus_log":
            return FloatDistribution(self._one_minus(self.high), self._one_minus(self.low), log=True)
        return FloatDistribution(self.low, self.high, log=self.scale == "log")

    @property
    def expected(self) -> str:
        """What a natural value must be, in words."""
        return f"within [{self.low}, {self.high}]"

    def holds(self, natural: Any) -> bool:
        """Whether a natural value is one of this parameter."""
        return is_number(natural) and self.low <= natural <= self.high

    def check(self, where: str) -> None:
        """Check bounds and default; see :func:`lightning_hp.space.scales.check_bounds`.

        Raises:
            ValueError: If they do not fit, or the range is too narrow for trials to differ.
        """
        check_bounds(self.low, self.high, self.scale, where)
        if self.scale == "one_minus_log" and one_minus(self.high, 15) < 1e-12:
            raise ValueError(
                f"`{where}` must have high of at most 1 - 1e-12 on the one_minus_log scale, got high={self.high!r}"
            )
        spread = from_unit(np.linspace(0.0, 1.0, DISTINCT), self.low, self.high, self.scale)
        if len({self.store(value) for value in spread}) < DISTINCT:
            raise ValueError(
                f"`{where}` must have a range that holds at least {DISTINCT} different values, "
                f"got low={self.low!r}, high={self.high!r}"
            )
        check_default(self.holds(self.default), self.default, self.expected, where)

    def store(self, natural: float) -> float:
        """Natural to stored value, clipped into the range."""
        value = min(max(float(natural), self.low), self.high)
        return self._one_minus(value) if self.scale == "one_minus_log" else value

    def natural(self, stored: float) -> float:
        """Stored to natural value."""
        return self._one_minus(stored) if self.scale == "one_minus_log" else float(stored)

    def _one_minus(self, value: float) -> float:
        return one_minus(value, decimals_for(self.high))

    def unit(self, stored: Sequence[Any] | NDArray[Any]) -> NDArray[np.float64]:
        """Stored values, shape (n,), to positions in [0, 1], shape (n,)."""
        values = np.asarray(stored, np.float64)
        return to_unit(1.0 - values if self.scale == "one_minus_log" else values, self.low, self.high, self.scale)

    def at(self, unit: float) -> float:
        """The stored value at a position in [0, 1]."""
        return self.store(float(from_unit(unit, self.low, self.high, self.scale)))


@dataclass(frozen=True)
class Int:
    """A whole-number hyperparameter.

    Attributes:
        name: Name of the parameter in the study.
        low: Lower bound.
        high: Upper bound, which may be drawn too.
        scale: ``linear`` or ``log``.
        tier: ``A`` (tune first) to ``D`` (rarely).
        default: Value used while the tier is closed.
        active_if: All of these must hold for the parameter to have an effect.
    """

    name: str
    low: int
    high: int
    scale: str = "linear"
    tier: str = "A"
    default: int = 0
    active_if: tuple[Condition, ...] = ()

    @property
    def stored_name(self) -> str:
        """Name of the parameter in Optuna's trials."""
        return self.name

    @property
    def is_categorical(self) -> bool:
        """Whether the values have no order."""
        return False

    @property
    def cardinality(self) -> int | None:
        """Number of distinct values."""
        return self.high - self.low + 1

    @classmethod
    def from_dict(cls, name: str, fields: Mapping[str, Any], where: str) -> Int:
        """Make a parameter from the fields of a mapping, and check it; see :meth:`Float.from_dict`.

        Raises:
            ValueError: If a field is not what it must be.
        """
        low, high = number_field(fields, "low", where), number_field(fields, "high", where)
        if not (float(low).is_integer() and float(high).is_integer()):
            raise ValueError(f"`{where}` must have whole bounds for type int, got low={low!r}, high={high!r}")
        default = number_field(fields, "default", where) if "default" in fields else low
        whole = int(default) if float(default).is_integer() else default
        parameter = cls(name, int(low), int(high), fields.get("scale", "linear"), *common_fields(fields, whole))
        parameter.check(where)
        return parameter if "default" in fields else replace(parameter, default=parameter.at(0.5))

    @property
    def distribution(self) -> BaseDistribution:
        """The full range, as Optuna stores it."""
        return IntDistribution(self.low, self.high, log=self.scale == "log")

    @property
    def expected(self) -> str:
        """What a natural value must be, in words."""
        return f"a whole number within [{self.low}, {self.high}]"

    def holds(self, natural: Any) -> bool:
        """Whether a natural value is one of this parameter."""
        return is_number(natural) and self.low <= natural <= self.high and float(natural).is_integer()

    def check(self, where: str) -> None:
        """Check bounds, scale and default.

        Raises:
            ValueError: If they do not fit.
        """
        if self.scale == "one_minus_log":
            raise ValueError(f"`{where}.scale` must be linear or log for whole numbers, got 'one_minus_log'")
        if max(abs(self.low), abs(self.high)) > LARGEST_INT:
            raise ValueError(
                f"`{where}` must have whole bounds within 1e12 of 0 (`type: float` goes further), "
                f"got low={self.low!r}, high={self.high!r}"
            )
        check_bounds(self.low, self.high, self.scale, where)
        good = isinstance(self.default, int) and self.holds(self.default)
        check_default(good, self.default, self.expected, where)

    def store(self, natural: float) -> int:
        """Natural to stored value, clipped into the range."""
        return min(max(round(natural), self.low), self.high)

    def natural(self, stored: int) -> int:
        """Stored to natural value."""
        return int(stored)

    def unit(self, stored: Sequence[Any] | NDArray[Any]) -> NDArray[np.float64]:
        """Stored values, shape (n,), to positions in [0, 1], shape (n,)."""
        return to_unit(np.asarray(stored, np.float64), self.low - 0.5, self.high + 0.5, self.scale)

    def at(self, unit: float) -> int:
        """The stored value at a position in [0, 1]."""
        return self.store(float(from_unit(unit, self.low - 0.5, self.high + 0.5, self.scale)))


Parameter = Float | Int | Choice


def usual_part(parameter: Parameter) -> float:
    """The part of a parameter's axis that counts as the whole: USUAL_DECADES of a longer logarithmic one, else 1."""
    if isinstance(parameter, Choice):
        return 1.0
    return min(1.0, USUAL_DECADES / max(decades(parameter.low, parameter.high, parameter.scale), USUAL_DECADES))
