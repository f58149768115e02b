"""``active_if``: a parameter that has an effect only where other parameters have certain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_hp.space.fields import number_or_text
from lightning_hp.space.labels import label, plain

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    "!=": lambda a, b: a != b,
    "==": lambda a, b: a == b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}
#: operators that no person writes: a class name may stand for several choices
_OF_SEVERAL: dict[str, Callable[[Any, Any], bool]] = {
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
}


@dataclass(frozen=True)
class Condition:
    """One clause of ``active_if``: the parameter exists only where ``name operator value`` holds.

    Attributes:
        name: Name of the deciding parameter.
        operator: One of >=, <=, >, <, ==, !=; or ``in`` and ``not in``, with a list of values.
        value: What the natural value of the deciding parameter is compared with.
    """

    name: str
    operator: str
    value: Any

    def holds(self, natural: Mapping[str, Any]) -> bool:
        """Whether the condition holds for these natural values, keyed by parameter name."""
        compare = _OPERATORS.get(self.operator) or _OF_SEVERAL[self.operator]
        return bool(compare(natural[self.name], self.value))

    @property
    def text(self) -> str:
        """Such as ``num_layers >= 3`` or ``optimizer == SGD(lr=0.1) or SGD(lr=0.01)``."""
        values = self.value if self.operator in _OF_SEVERAL else [self.value]
        operator = {"in": "==", "not in": "!="}.get(self.operator, self.operator)
        between = " and " if operator == "!=" else " or "
        return f"{self.name} {operator} {between.join(label(plain(value)) for value in values)}"

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


def read_conditions(active_if: Any, where: str) -> tuple[Condition, ...]:
    """The clauses of an ``active_if``; () where there is none.

    Args:
        active_if: Name of a parameter to ``">= 3"`` or a plain value; None for no condition.
        where: What errors call it.

    Raises:
        ValueError: If it is no mapping, is empty, or a clause cannot be read.
    """
    if active_if is None:
        return ()
    if not isinstance(active_if, Mapping) or not active_if:
        raise ValueError(f"`{where}` must be a mapping such as {{num_layers: '>= 3'}}, got {active_if!r}")
    return tuple(Condition.parse(str(name), text, f"{where}.{name}") for name, text in active_if.items())
