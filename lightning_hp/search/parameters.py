"""What one hyperparameter is: its range, its scale, its tier, and how Optuna stores it.

Three kinds: :class:`Float`, :class:`Int`, :class:`Choice`. Each converts between three forms of a value:

* natural: what the model is given (``momentum=0.93``);
* stored: what the Optuna trial holds. Only ``one_minus_log`` differs: Optuna knows linear and log, so the distance from
  1 is stored on a log axis, under a name that says so (``one_minus_momentum=0.07``);
* unit: a position in [0, 1] on the parameter's scale, where all geometry (zoom, surrogate) happens. An integer or a
  choice owns an interval of equal mass, and sits in its middle.

The distribution handed to Optuna is always the full range: narrowing is the sampler's business, since Optuna drops a
parameter whose range changed from its relative search space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from lightning_hp.search.scales import check_bounds, from_unit, one_minus, to_unit

TIERS = ("A", "B", "C", "D")

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    "!=": lambda a, b: a != b,
    "==": lambda a, b: a == b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


@dataclass(frozen=True)
class Condition:
    """One clause of ``active_if``: the parameter exists only where ``name operator value`` holds.

    Attributes:
        name: Name of the deciding parameter.
        operator: One of >=, <=, >, <, ==, !=.
        value: What the natural value of the deciding parameter is compared with.
    """

    name: str
    operator: str
    value: Any

    def holds(self, natural: Mapping[str, Any]) -> bool:
        """Whether the condition holds for these natural values, keyed by parameter name."""
        return bool(_OPERATORS[self.operator](natural[self.name], self.value))

    @classmethod
    def parse(cls, name: str, text: Any, where: str) -> Condition:
        """Read ``">= 3"`` or a plain value (meaning equality).

        Raises:
            ValueError: If nothing stands behind the operator.
        """
        if not isinstance(text, str):
            return cls(name, "==", text)
        for operator in _OPERATORS:  # two-character operators come first
            if text.strip().startswith(operator):
                rest = text.strip()[len(operator) :].strip()
                if not rest:
                    raise ValueError(f"`{where}` must be an operator and a value such as '>= 3', got {text!r}")
                return cls(name, operator, number_or_text(rest))
        return cls(name, "==", text)


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

    @property
    def distribution(self) -> BaseDistribution:
        """The full range, as Optuna stores it."""
        if self.scale == "one_minus_log":
            return FloatDistribution(one_minus(self.high), one_minus(self.low), log=True)
        return FloatDistribution(self.low, self.high, log=self.scale == "log")

    def check(self, where: str) -> None:
        """Check bounds and default; see :func:`lightning_hp.search.scales.check_bounds`."""
        check_bounds(self.low, self.high, self.scale, where)
        _check_default(self.low <= self.default <= self.high, self.default, f"within [{self.low}, {self.high}]", where)

    def store(self, natural: float) -> float:
        """Natural to stored value, clipped into the range."""
        value = min(max(float(natural), self.low), self.high)
        return one_minus(value) if self.scale == "one_minus_log" else value

    def natural(self, stored: float) -> float:
        """Stored to natural value."""
        return one_minus(stored) if self.scale == "one_minus_log" else float(stored)

    def unit(self, stored: Sequence[Any] | NDArray[Any]) -> NDArray[np.float64]:
        """Stored values, shape (n,), to positions in [0, 1], shape (n,)."""
        values = np.asarray(stored, np.float64)
        return to_unit(1.0 - values if self.scale == "one_minus_log" else values, self.low, self.high, self.scale)

    def at(self, unit: float) -> float:
        """The stored value at a position in [0, 1]."""
        return self.store(float(from_unit(unit, self.low, self.high, self.scale)))


@dataclass(frozen=True)
class Int:
    """A whole-number hyperparameter. Attributes as for :class:`Float`; ``scale`` is ``linear`` or ``log``."""

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

    @property
    def distribution(self) -> BaseDistribution:
        """The full range, as Optuna stores it."""
        return IntDistribution(self.low, self.high, log=self.scale == "log")

    def check(self, where: str) -> None:
        """Check bounds, scale and default."""
        if self.scale == "one_minus_log":
            raise ValueError(f"`{where}.scale` must be linear or log for whole numbers, got 'one_minus_log'")
        check_bounds(self.low, self.high, self.scale, where)
        whole = isinstance(self.default, int) and not isinstance(self.default, bool)
        _check_default(
            whole and self.low <= self.default <= self.high,
            self.default,
            f"a whole number within [{self.low}, {self.high}]",
            where,
        )

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


@dataclass(frozen=True)
class Choice:
    """One of a few values. Strictly increasing numbers (batch sizes) are treated as ordered.

    Attributes:
        name: Name of the parameter in the study.
        choices: The values, at least one.
        tier: ``A`` (tune first) to ``D`` (rarely).
        default: One of the choices.
        active_if: All of these must hold for the parameter to have an effect.
    """

    name: str
    choices: tuple[CategoricalChoiceType, ...]
    tier: str = "A"
    default: Any = None
    active_if: tuple[Condition, ...] = ()

    @property
    def stored_name(self) -> str:
        """Name of the parameter in Optuna's trials."""
        return self.name

    @property
    def scale(self) -> str:
        """Positions are equally spaced."""
        return "linear"

    @property
    def is_categorical(self) -> bool:
        """Whether the values have no order."""
        numbers = [c for c in self.choices if isinstance(c, int | float) and not isinstance(c, bool)]
        if len(numbers) < len(self.choices):
            return True
        return any(a >= b for a, b in pairwise(numbers))

    @property
    def cardinality(self) -> int | None:
        """Number of choices."""
        return len(self.choices)

    @property
    def distribution(self) -> BaseDistribution:
        """All choices, as Optuna stores them."""
        return CategoricalDistribution(self.choices)

    def check(self, where: str) -> None:
        """Check that there are choices, of kinds that can be stored, and that the default is one."""
        if not self.choices:
            raise ValueError(f"`{where}.choices` must have at least one value, got {list(self.choices)!r}")
        for value in self.choices:
            if value is not None and not isinstance(value, bool | int | float | str):
                raise ValueError(f"`{where}.choices` must be numbers, texts, booleans or null, got {value!r}")
        if len(set(self.choices)) < len(self.choices):  # 1, 1.0 and True are one value to Optuna too
            raise ValueError(f"`{where}.choices` must be different from each other, got {list(self.choices)!r}")
        _check_default(self.default in self.choices, self.default, f"one of {list(self.choices)}", where)

    def store(self, natural: Any) -> Any:
        """Natural to stored value (the same); a value that is no choice becomes the default."""
        return natural if natural in self.choices else self.default

    def natural(self, stored: Any) -> Any:
        """Stored to natural value (the same)."""
        return stored

    def unit(self, stored: Sequence[Any] | NDArray[Any]) -> NDArray[np.float64]:
        """Stored values, shape (n,), to positions in [0, 1], shape (n,): the middle of the choice's interval."""
        position = {value: (i + 0.5) / len(self.choices) for i, value in enumerate(self.choices)}
        return np.array([position[value] for value in stored], np.float64)

    def at(self, unit: float) -> Any:
        """The stored value at a position in [0, 1]."""
        return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]


Parameter = Float | Int | Choice


def _check_default(good: bool, default: Any, expected: str, where: str) -> None:
    if not good:
        raise ValueError(f"`{where}.default` must be {expected}, got {default!r}")
