"""What the Panda has seen and done: the only input of its decisions.

A *window* is a short run of optimiser steps whose training losses were collected; a *check* is the moment after a
window at which something may be decided. Steps count optimiser steps from the beginning of the training and are never
turned back: after a rollback the loop goes on with new batches. Plain types only, so that a history can be saved with a
checkpoint that is loaded with ``weights_only=True``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, float]

RATE = "learning_rate"
#: names of the snapshots: the beginning, the last good state, the best validated state
START, GOOD, BEST = "start", "good", "best"


@dataclass(frozen=True)
class Window:
    """The training losses of a few consecutive optimiser steps.

    Attributes:
        step: Optimiser steps done at its end.
        epoch: Epoch (0 first) of its end.
        steps: Length in optimiser steps.
        first: Loss of the first step, measured before that step's update.
        level: Mean loss of the second half.
        noise: Standard deviation of one step's loss, the trend removed (see `summarise_losses`).
        moved: Distance of the weights from the last good snapshot, relative to the norm of that snapshot; 0 where it
            was not measured.
        grad_norm: Norm of one step's gradient, or None where it was not measured.
        finite: Whether all losses and all weights were finite.
        values: Hyperparameters during the window.
    """

    step: int
    epoch: int
    steps: int
    first: float
    level: float
    noise: float
    moved: float = 0.0
    grad_norm: float | None = None
    finite: bool = True
    values: Values = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Standard error of ``level``."""
        return self.noise / math.sqrt(max(1, self.steps - self.steps // 2))


@dataclass(frozen=True)
class Validation:
    """One value of the monitored metric; ``step`` counts optimiser steps."""

    step: int
    epoch: int
    value: float


@dataclass(frozen=True)
class Intervention:
    """One decision. Snapshots are saved first, then one is restored, then values are set.

    Attributes:
        rule: Name of the rule, probe step or command that decided.
        why: One sentence for a person.
        values: New values by hyperparameter name.
        save: Names under which the present state is kept.
        restore: Name of the snapshot that is restored, or None.
        drop: Names of snapshots that are given up.
        stop: Whether training ends here.
        numbers: What the decision was based on.
        by: ``rule``, ``probe``, ``person`` or ``replay``.
        beside: Further values of the hyperparameter in ``values`` that train beside, on the same mini-batches.
    """

    rule: str
    why: str
    values: Values = field(default_factory=dict)
    save: tuple[str, ...] = ()
    restore: str | None = None
    drop: tuple[str, ...] = ()
    stop: bool = False
    numbers: dict[str, float] = field(default_factory=dict)
    by: str = "rule"
    beside: tuple[float, ...] = ()


@dataclass(frozen=True)
class Done:
    """An intervention that was carried out: when, from which values, and to which step if a snapshot was restored."""

    step: int
    epoch: int
    what: Intervention
    before: Values
    back_to: int | None = None


@dataclass
class History:
    """Everything a policy may look at.

    Attributes:
        planned: Optimiser steps of the whole training, or None where nobody knows.
        windows: Since the start, oldest first.
        validations: Of the monitored metric, oldest first.
        done: Interventions, oldest first.
        values: Hyperparameters as they stand in the optimizer.
        direction: 1 if a smaller metric is better, else -1.
        paused: Whether a person asked for no interventions.
        loader_pending: Whether a changed batch size waits for the next epoch.
        loader_since: Step at which the loader was last changed; -1 for never.
        hands_off: Names that belong to a learning-rate scheduler of the module.
        beside: What was measured in the last window by the neighbours that train beside, in their order.
        not_stacked: Why neighbours cannot train beside; empty while nobody has found a reason.
    """

    planned: int | None = None
    windows: list[Window] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    values: Values = field(default_factory=dict)
    direction: int = 1
    paused: bool = False
    loader_pending: bool = False
    loader_since: int = -1
    hands_off: tuple[str, ...] = ()
    beside: list[Window] = field(default_factory=list)
    not_stacked: str = ""

    @property
    def step(self) -> int:
        """Optimiser steps at the end of the last window."""
        return self.windows[-1].step if self.windows else 0

    @property
    def progress(self) -> float:
        """Share of the planned steps that are done; 0 where no length is planned."""
        return self.step / self.planned if self.planned else 0.0

    @property
    def begun(self) -> int:
        """Optimiser steps before the mini-batches in use came; training may have begun again with them."""
        return max(0, self.loader_since)

    @property
    def start_progress(self) -> float:
        """Share that is done of the steps that were planned since then; 0 where no length is planned."""
        return (self.step - self.begun) / max(1, self.planned - self.begun) if self.planned else 0.0

    def last(self, *rules: str) -> Done | None:
        """The latest intervention by one of these rules, or by any if none is named."""
        return next((done for done in reversed(self.done) if not rules or done.what.rule in rules), None)

    def count(self, *rules: str) -> int:
        """Number of interventions by these rules."""
        return sum(done.what.rule in rules for done in self.done)

    def spent(self) -> int:
        """Interventions that count against the budget: by rules, divergences left out, a wind-down once."""
        rules = [done.what.rule for done in self.done if done.what.by == "rule"]
        return sum(rule not in ("divergence", "wind_down") for rule in rules) + ("wind_down" in rules)

    def kept(self) -> list[Window]:
        """Windows of the present line: those that a rollback threw away are left out."""
        kept = list(self.windows)
        for done in self.done:
            if done.back_to is not None:
                kept = [window for window in kept if not done.back_to < window.step <= done.step]
        return kept

    def since(self, step: int) -> list[Window]:
        """Windows that ended after a step."""
        return [window for window in self.windows if window.step > step]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> History:
        """Read what `to_dict` wrote."""
        content = dict(mapping)
        content["windows"] = [Window(**window) for window in content["windows"]]
        content["validations"] = [Validation(**validation) for validation in content["validations"]]
        content["done"] = [_done(done) for done in content["done"]]
        content["beside"] = [Window(**window) for window in content.get("beside", ())]
        content["hands_off"] = tuple(content.get("hands_off", ()))
        return cls(**content)


def intervention_from_dict(mapping: Mapping[str, Any]) -> Intervention:
    """Read what `dataclasses.asdict` made of an intervention."""
    content = dict(mapping)
    for name in ("save", "drop", "beside"):
        content[name] = tuple(content.get(name, ()))
    return Intervention(**content)


def _done(mapping: Mapping[str, Any]) -> Done:
    return Done(**{**mapping, "what": intervention_from_dict(mapping["what"])})


def summarise_losses(losses: Sequence[float]) -> tuple[float, float, float]:
    """Return first, level and noise of the losses of one window.

    The noise is the root of half the mean squared difference of successive losses (von Neumann, 1941): a slow trend
    cancels in it, where it would inflate an ordinary standard deviation.

    Args:
        losses: In the order of the steps, at least one.

    Returns:
        Loss of the first step; mean of the second half; noise, 0 for a single loss. NaN and infinity pass through.
    """
    second_half = losses[len(losses) // 2 :]
    differences = [(after - before) ** 2 for before, after in itertools.pairwise(losses)]
    noise = math.sqrt(statistics.fmean(differences) / 2) if differences else 0.0
    return losses[0], statistics.fmean(second_half), noise
