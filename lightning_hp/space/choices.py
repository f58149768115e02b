"""A hyperparameter that takes one of a few values; see :mod:`.parameters` for the three forms of a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

from lightning_hp.space.conditions import Condition
from lightning_hp.space.fields import check_default, common_fields, is_number, number_or_text
from lightning_hp.space.labels import is_part, labels, means, plain


@dataclass(frozen=True)
class Choice:
    """One of a few values. Strictly increasing numbers (batch sizes) are treated as ordered.

    Attributes:
        name: Name of the parameter in the study.
        choices: The natural values, at least one: numbers, texts, booleans, None, lists and dicts.
        tier: ``A`` (tune first) to ``D`` (rarely).
        default: One of the choices.
        active_if: All of these must hold for the parameter to have an effect.
        labels: How Optuna stores each choice: plain values as they are, lists and dicts by a label. They are made where
            none are given, and kept with the study.
    """

    name: str
    choices: tuple[Any, ...]
    tier: str = "A"
    default: Any = None
    active_if: tuple[Condition, ...] = ()
    labels: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        """Make the labels."""
        if not self.labels:
            object.__setattr__(self, "labels", labels(self.choices))

    @classmethod
    def from_dict(cls, name: str, fields: Mapping[str, Any], where: str, numeric: bool = False) -> Choice:
        """Make a parameter from the fields of a mapping, and check it.

        Args:
            name: Name of the parameter in the study.
            fields: ``choices``, a list; and optionally ``tier``, ``default`` (a choice or its label, else the one in
                the middle) and ``active_if``, as conditions.
            where: What errors call the mapping.
            numeric: Whether choices given as text are numbers.

        Raises:
            ValueError: If a field is not what it must be.
        """
        listed = fields["choices"]
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise ValueError(f"`{where}.choices` must be a list, got {listed!r}")
        choices = tuple(number_or_text(c) if numeric else plain(c) for c in listed)
        middle = choices[(len(choices) - 1) // 2] if choices else None
        parameter = cls(name, choices, *common_fields(fields, plain(fields.get("default", middle))))
        position = parameter.index(parameter.default)
        if position is not None:  # given by its label, say
            parameter = replace(parameter, default=choices[position])
        parameter.check(where)
        return parameter

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
        numbers = [c for c in self.choices if is_number(c)]
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
        return CategoricalDistribution(self.labels)

    @property
    def expected(self) -> str:
        """What a natural value must be, in words."""
        return f"one of {list(self.labels)}"

    def index(self, value: Any) -> int | None:
        """The place of a value among the choices, None where it is none of them.

        Args:
            value: A natural value, a label, or a block that says all that one choice says, and more.
        """
        value = plain(value)
        for listed in (self.choices, self.labels):
            if value in listed:
                return listed.index(value)
        parts = [i for i, choice in enumerate(self.choices) if isinstance(choice, dict) and is_part(choice, value)]
        return max(parts, key=lambda i: len(str(self.choices[i]))) if parts else None

    def meant_by(self, text: Any) -> list[Any]:
        """The choices that a condition's value stands for: an equal one, or all of a class of that name."""
        position = self.index(text)
        return [c for c in self.choices if means(text, c)] if position is None else [self.choices[position]]

    def holds(self, natural: Any) -> bool:
        """Whether a value is one of the choices, see :meth:`index`."""
        return self.index(natural) is not None

    def check(self, where: str) -> None:
        """Check that there are choices, of kinds that can be stored, and that the default is one.

        Raises:
            ValueError: If not.
        """
        if not self.choices:
            raise ValueError(f"`{where}.choices` must have at least one value, got {list(self.choices)!r}")
        for value in self.choices:
            if not _is_plain(value):
                raise ValueError(
                    f"`{where}.choices` must be numbers, texts, booleans or null, or lists and mappings of these, "
                    f"got {value!r}"
                )
        # 1, 1.0 and True are one value to Optuna too
        if any(a == b for a, b in combinations(self.choices, 2)) or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"`{where}.choices` must be different from each other, got {list(self.choices)!r}")
        check_default(self.default in self.choices, self.default, self.expected, where)

    def store(self, natural: Any) -> Any:
        """Natural to stored value; a value that is no choice becomes the default."""
        position = self.index(natural)
        return self.labels[self.choices.index(self.default) if position is None else position]

    def natural(self, stored: Any) -> Any:
        """Stored to natural value; lists and mappings are copies, so that whoever is given them may change them."""
        return deepcopy(self.choices[self.labels.index(stored)]) if stored in self.labels else stored

    def unit(self, stored: Sequence[Any] | NDArray[Any]) -> NDArray[np.float64]:
        """Stored values, shape (n,), to positions in [0, 1], shape (n,): the middle of the choice's interval."""
        position = {value: (i + 0.5) / len(self.labels) for i, value in enumerate(self.labels)}
        return np.array([position[value] for value in stored], np.float64)

    def at(self, unit: float) -> Any:
        """The stored value at a position in [0, 1]."""
        return self.labels[min(int(unit * len(self.labels)), len(self.labels) - 1)]


def _is_plain(value: Any) -> bool:
    """Whether JSON gives a value back as it was."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | str | int) or (isinstance(value, float) and is_number(value))
