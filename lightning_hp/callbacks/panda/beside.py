"""Neighbours of a probe that train beside the training itself: shadows of it, on the same mini-batches.

The training goes on with the present value, so that nothing of it is thrown away if no neighbour is better; if one is,
its state takes the place of the training's own. Where the training cannot be copied, `NotStackable` says why, and the
neighbours train one after the other in the training's own loop.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]
from torch import Tensor
from torch.optim import Optimizer

from lightning_hp.callbacks.panda import snapshot
from lightning_hp.callbacks.panda.history import Intervention, Values, Window, summarise_losses
from lightning_hp.callbacks.panda.values import write_values
from lightning_hp.training.stacked.refusal import NotStackable

if TYPE_CHECKING:
    from lightning_hp.training.stacked.shadows import Shadows

#: hooks by which a callback may change what a step does
_STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
#: Lightning's callbacks that have such hooks and only look
_ONLY_LOOK = ("LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor")
#: those that change the training between its steps, or follow its weights
_FOLLOW = ("WeightAveraging", "BaseFinetuning", "GradientAccumulationScheduler")


class Beside:
    """The neighbours of one probe.

    Attributes:
        values: Hyperparameters by name, one mapping a neighbour.
    """

    def __init__(self, values: Sequence[Values]) -> None:
        """Plan the neighbours; `begin`, or the first mini-batch after a checkpoint, makes them."""
        self.values = [dict(one) for one in values]
        self._losses: list[list[float]] = []  # by step, one a neighbour
        self._pending: list[Tensor] = []  # on the device
        self._states: list[snapshot.Snapshot] | None = None  # from a checkpoint
        self._shadows: Shadows | None = None

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, check: bool) -> None:
        """Make the shadows from the present state of the training.

        Args:
            trainer: Between two steps.
            module: Its module.
            batch: A mini-batch, for the form of the data; None if there is none at hand.
            check: Whether to try a step.

        Raises:
            NotStackable: If the training cannot be copied.
        """
        refuse_callbacks(trainer)
        if batch is None:
            raise NotStackable("there is no mini-batch at hand")
        shadows = self._make(trainer, module, batch)
        if check:
            shadows.check(batch)

    def _make(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> Shadows:
        from lightning_hp.training.stacked.shadows import shadows_of

        def change(row: int, shadow: pl.LightningModule, optimizer: Optimizer) -> None:
            if self._states is not None:
                snapshot.load(shadow, optimizer, self._states[row])
            else:
                write_values(optimizer, self.values[row])

        changes = [functools.partial(change, row) for row in range(len(self.values))]
        self._shadows = shadows_of(trainer, module, changes, batch)
        self._states = None
        return self._shadows

    def train(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Train all neighbours on a mini-batch, before the training itself does, which draws the same numbers.

        Raises:
            NotStackable: If a step does what a shadow cannot do.
        """
        before = snapshot.random_states()
        try:
            shadows = self._shadows or self._make(trainer, module, batch)
            losses = shadows.train_batch(batch, batch_idx, trainer.current_epoch, trainer.global_step)
            self._pending.append(losses)
        finally:
            snapshot.set_random_states(before)

    def windows(self, like: Window) -> list[Window]:
        """Return what the neighbours measured in the window that has just ended, and begin a new one.

        Args:
            like: The window of the training itself.
        """
        losses, windows = self._by_step(), []
        self._losses = []
        for row, values in enumerate(self.values):
            own = [step[row] for step in losses]
            first, level, noise = summarise_losses(own) if own else (math.nan, math.nan, math.nan)
            finite = self._finite(row) and math.isfinite(first) and math.isfinite(level)
            every = {**like.values, **values}
            windows.append(Window(like.step, like.epoch, len(own), first, level, noise, finite=finite, values=every))
        return windows

    def _by_step(self) -> list[list[float]]:
        if self._pending:
            self._losses += torch.stack(self._pending).tolist()
            self._pending = []
        return self._losses

    def _finite(self, row: int) -> bool:
        if self._shadows is None:
            return True
        weights = [parameter.detach() for parameter in self._shadows.pair(row)[0].parameters()]
        return bool(torch.isfinite(snapshot.total_norm(weights)))

    def state_of(self, row: int, step: int) -> snapshot.Snapshot:
        """Return the present state of a neighbour, to restore in the training itself.

        Args:
            row: Which, 0 first.
            step: Kept beside the state.
        """
        from lightning_hp.training.stacked.shadows import tensors_of

        if self._shadows is None:
            assert self._states is not None
            return {**self._states[row], "step": step}
        module, optimizer = self._shadows.pair(row)
        optimizers = [snapshot.optimizer_state(optimizer)]
        return {"step": step, "tensors": tensors_of(module), "optimizers": optimizers, **snapshot.NOTHING_ELSE}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs to go on with the neighbours."""
        losses, states = [list(one) for one in self._by_step()], [self.state_of(r, 0) for r in range(len(self.values))]
        return {"values": self.values, "losses": losses, "states": states}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Beside:
        """Read what `state_dict` wrote; the shadows are made at the next mini-batch."""
        beside = cls(state["values"])
        beside._losses, beside._states = [list(one) for one in state["losses"]], list(state["states"])
        return beside


class Neighbours:
    """What `PandaBabysitter` asks: the neighbours of the probe that runs, if they train beside.

    Attributes:
        beside: They, or None.
    """

    def __init__(self) -> None:
        self.beside: Beside | None = None
        self._checked: object = None  # the layers that have passed the check

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule, what: Intervention, batch: Any) -> str | None:
        """Make the neighbours of a probe that begins; the training is left as it is.

        Args:
            trainer: Between two steps.
            module: Its module.
            what: The beginning of the probe.
            batch: A mini-batch, for the shape of the data; None if there is none at hand.

        Returns:
            None, or why they cannot train beside.
        """
        (name,) = what.values
        beside = Beside([{name: value} for value in what.beside])
        layers = [parameter.shape for parameter in module.parameters() if parameter.requires_grad]
        check = layers != self._checked
        before = snapshot.take(trainer, module, trainer.global_step) if check else None
        try:
            beside.begin(trainer, module, batch, check)
        except NotStackable as refusal:
            return refusal.reason
        finally:
            if before is not None:  # a copy's step may reach the module itself
                snapshot.restore(trainer, module, before)
        self.beside, self._checked = beside, layers
        return None

    def train(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Train the neighbours on a mini-batch; those that turn out to need a Trainer are given up."""
        if self.beside is not None:
            try:
                self.beside.train(trainer, module, batch, batch_idx)
            except NotStackable as refusal:
                rank_zero_warn(f"PandaBabysitter gives up the neighbours of this probe: {refusal.reason}")
                self.beside = None

    def windows(self, like: Window) -> list[Window]:
        """What they measured in the window that has just ended; empty where none train beside."""
        return [] if self.beside is None else self.beside.windows(like)

    def state_of(self, name: str, step: int) -> snapshot.Snapshot | None:
        """The present state of the neighbour whose end state has this name; None for another name."""
        names = [] if self.beside is None else [f"probe {row + 1}" for row in range(len(self.beside.values))]
        return self.beside.state_of(names.index(name), step) if self.beside is not None and name in names else None

    def end(self) -> None:
        """The probe is over."""
        self.beside = None

    def state_dict(self) -> dict[str, Any] | None:
        """All that a resumed training needs; None where none train beside."""
        return None if self.beside is None else self.beside.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Read what `state_dict` wrote."""
        self.beside = None if state is None else Beside.from_dict(state)


def refuse_callbacks(trainer: pl.Trainer) -> None:
    """Raise NotStackable for a callback that may change what a step of the training does, but not of a shadow."""
    from lightning_hp.callbacks.panda.babysitter import PandaBabysitter

    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        names = {one.__name__ for one in type(callback).__mro__}
        if isinstance(callback, PandaBabysitter) or names.intersection(_ONLY_LOOK):
            continue
        if names.intersection(_FOLLOW):
            raise NotStackable(f"the callback {type(callback).__name__} belongs to one training")
        for hook in _STEP_HOOKS:
            if getattr(type(callback), hook) is not getattr(lightning_callbacks.Callback, hook):
                raise NotStackable(f"the callback {type(callback).__name__} has {hook}, which may change a step")
