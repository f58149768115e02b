"""What one window measured: the losses of its steps, and the norm of one gradient; on the device until the check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_hp.callbacks.panda import snapshot
from lightning_hp.callbacks.panda.history import Values, Window, summarise_losses


class WindowMeter:
    """Collects losses step by step. A step's loss is the mean over its accumulated mini-batches."""

    def __init__(self) -> None:
        self.losses: list[Tensor | float] = []
        self.grad_norm: Tensor | float | None = None
        self._parts: list[Tensor] = []
        self._begun = 0

    def restart(self, step: int) -> None:
        """Forget everything; the next window begins after ``step`` optimiser steps."""
        self.losses, self._parts, self.grad_norm, self._begun = [], [], None, step

    def add_part(self, trainer: pl.Trainer, loss: Tensor) -> None:
        """Enter the loss of one of several mini-batches that make a step."""
        self._parts.append(loss * trainer.accumulate_grad_batches)  # Lightning divided it
        if trainer.global_step != self._begun + len(self.losses):
            self.losses.append(torch.stack(self._parts).mean())
            self._parts = []

    def add_gradient(self, optimizer: Optimizer) -> None:
        """Take the norm of the present gradient of what an optimizer trains."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients and not any(gradient.is_sparse for gradient in gradients):
            self.grad_norm = snapshot.total_norm(gradients)

    def broke(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Whether the last loss is not finite, in any process; then neither are the weights nor any later loss."""
        last = float(self.losses[-1])
        if trainer.world_size == 1:
            return not math.isfinite(last)
        bad = torch.tensor(float(not math.isfinite(last)), device=module.device)
        return bool(trainer.strategy.reduce(bad, reduce_op="sum") > 0)

    def window(
        self, trainer: pl.Trainer, module: pl.LightningModule, good: snapshot.Snapshot | None, values: Values
    ) -> Window:
        """Summarise what was collected, over all processes.

        Args:
            trainer: Gives step and epoch.
            module: Whose weights' way from ``good`` is measured.
            good: The last good snapshot; None leaves the distance unmeasured, 0.
            values: Hyperparameters of the window.
        """
        losses = floats(self.losses)
        first, level, noise = summarise_losses(losses)
        norm = float(self.grad_norm) if self.grad_norm is not None else 0.0
        moved = snapshot.distance(module, good) if good is not None else 0.0
        if trainer.world_size > 1:
            local = torch.tensor([first, level, noise, norm, moved], dtype=torch.float64, device=module.device)
            first, level, noise, norm, moved = trainer.strategy.reduce(local, reduce_op="mean").tolist()
            noise /= math.sqrt(trainer.world_size)
        return Window(
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            steps=len(losses),
            first=first,
            level=level,
            noise=noise,
            moved=moved,
            grad_norm=norm if self.grad_norm is not None else None,
            finite=math.isfinite(level) and math.isfinite(moved) and math.isfinite(first),
            values=dict(values),
        )

    def state_dict(self) -> dict[str, Any]:
        """A window that is cut by a checkpoint goes on after it."""
        return {
            "losses": floats(self.losses),
            "parts": floats(self._parts),
            "grad_norm": None if self.grad_norm is None else float(self.grad_norm),
            "begun": self._begun,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what `state_dict` wrote."""
        self.losses, self.grad_norm = list(state["losses"]), state["grad_norm"]
        self._parts, self._begun = [torch.tensor(part) for part in state["parts"]], int(state["begun"])


def floats(losses: Sequence[Tensor | float]) -> list[float]:
    """Losses as numbers, with one transfer from the device where all are tensors."""
    tensors = [loss for loss in losses if isinstance(loss, Tensor)]
    if tensors and len(tensors) == len(losses):
        values: list[float] = torch.stack(tensors).tolist()
        return values
    return [float(loss) for loss in losses]
