"""Every value of a project's configuration that might be a hyperparameter, by its key.

The configuration is the one that the project's own parser resolves: values of the files, and defaults of signatures,
dataclasses and nested classes where the files say nothing. What a link computes is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: parts of a configuration in which nothing is a hyperparameter of the model, the data or the optimizer
_NOT_SEARCHED = ("trainer", "seed_everything", "ckpt_path", "weights_only", "verbose", "return_predictions")
#: arguments that decide how a computation is done, or what it prints
_NO_HYPERPARAMETERS = frozenset(
    [
        "capturable",
        "differentiable",
        "foreach",
        "fused",
        "last_epoch",
        "maximize",
        "num_workers",
        "persistent_workers",
        "pin_memory",
        "verbose",
        "device",
        "dtype",
        "seed",
        "compile",
    ]
)
#: a longer list is data
_LONGEST_LIST = 8


@dataclass(frozen=True)
class Candidate:
    """A value of the configuration.

    Attributes:
        key: Its key, as a space of ``tune.yaml`` names it.
        value: The project's own value.
    """

    key: str
    value: Any

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    @property
    def block(self) -> str:
        """What it stands in: the key without its last part."""
        return self.key.rpartition(".")[0]

    @property
    def is_number(self) -> bool:
        """Whether the value is a number; true and false are none."""
        return isinstance(self.value, int | float) and not isinstance(self.value, bool)


def candidates(config: Mapping[str, Any]) -> list[Candidate]:
    """The candidates of a resolved configuration, in its order.

    Args:
        config: Nested plain values.
    """
    return [
        candidate
        for section, value in config.items()
        if section not in _NOT_SEARCHED and not (isinstance(value, Mapping) and "monitor" in value)  # a callback
        for candidate in _inside(value, section)
    ]


def _inside(value: Any, key: str) -> Iterator[Candidate]:
    name = key.rpartition(".")[2]
    if name in _NO_HYPERPARAMETERS or name in ("class_path", "_class_path"):
        return
    if isinstance(value, Mapping):
        for inner, held in value.items():
            yield from _inside(held, f"{key}.{inner}")
    elif isinstance(value, list):
        numbers = [one for one in value if isinstance(one, int | float) and not isinstance(one, bool)]
        if value and len(numbers) == len(value) <= _LONGEST_LIST:
            for place, number in enumerate(value):
                yield Candidate(f"{key}[{place}]", number)
    elif "." in key and isinstance(value, bool | int | float | str | None):
        yield Candidate(key, value)
