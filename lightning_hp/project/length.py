"""How long a complete training is, in epochs or in optimiser steps, and on which axis learning curves are kept.

A training ends at the first of its limits, as Lightning counts them. A learning curve is a value for each validation,
placed by the part of the training that was done when it was measured. Optuna keeps whole numbers, so the part is
counted in units of the study (:func:`curve_steps`):

=====================================================  ================================
training                                               one unit
=====================================================  ================================
epochs, at most one validation in each                 an epoch
epochs, k validations in each (``val_check_interval``)  1/k of an epoch
a number of optimiser steps                            an optimiser step
epochs, validations every so many batches              1/1000 of the training
=====================================================  ================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

#: units of a training whose validations do not keep time with its epochs
FINE_UNITS = 1000


@dataclass(frozen=True)
class TrainingLength:
    """When a complete training ends: at the first of these limits.

    Attributes:
        max_epochs: Number of epochs, None for no limit.
        max_steps: Number of optimiser steps, None for no limit.
    """

    max_epochs: int | None = None
    max_steps: int | None = None

    @classmethod
    def of_trainer(cls, settings: Mapping[str, Any]) -> TrainingLength:
        """The limits among a Trainer's arguments; -1, None and what is missing are no limits."""
        limits = {name: settings.get(name) for name in ("max_epochs", "max_steps")}
        return cls(**{n: v for n, v in limits.items() if isinstance(v, int) and not isinstance(v, bool) and v > 0})

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.max_epochs is not None or self.max_steps is not None

    def with_limits(self, other: TrainingLength) -> TrainingLength:
        """This length with the limits that another one sets in place of its own."""
        return replace(self, **other.to_json())

    def trainer_arguments(self) -> dict[str, int]:
        """The arguments of a Trainer that trains for this long."""
        return {"max_epochs": self.max_epochs or -1, "max_steps": self.max_steps or -1}

    def to_json(self) -> dict[str, int]:
        """The limits that there are."""
        limits = {"max_epochs": self.max_epochs, "max_steps": self.max_steps}
        return {name: value for name, value in limits.items() if value is not None}

    def __str__(self) -> str:
        """Such as ``27 epochs``."""
        units = {"max_epochs": "epoch", "max_steps": "optimiser step"}
        limits = (f"{value} {units[name]}{'s' if value != 1 else ''}" for name, value in self.to_json().items())
        return " or ".join(limits) or "without end"


def curve_steps(length: TrainingLength, settings: Mapping[str, Any]) -> int:
    """In how many units a study counts a complete training; see the table at the top of this file.

    Args:
        length: Of a complete training; it must be limited.
        settings: The Trainer's arguments, for ``val_check_interval`` and ``check_val_every_n_epoch``.
    """
    if length.max_epochs is None:
        assert length.max_steps is not None
        return length.max_steps
    interval = settings.get("val_check_interval")
    if interval is None or (interval == 1.0 and isinstance(interval, float)):
        return length.max_epochs
    if isinstance(interval, float) and 0 < interval < 1:
        return length.max_epochs * math.floor(1 / interval + 1e-9)
    return max(FINE_UNITS, length.max_epochs)
