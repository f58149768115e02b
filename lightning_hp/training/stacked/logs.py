"""What a step logs: captured instead of being sent to a Trainer, and put together over an epoch as Lightning does.

A value logged in training is, by default, that of the newest step; in validation the mean over mini-batches, weighted
by their rows. A torchmetrics object is computed at the end and reset. Shapes: M members, or () for a single one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_hp.training.stacked.refusal import NotStackable

_REDUCTIONS: dict[Any, str] = {"mean": "mean", torch.mean: "mean", "sum": "sum", torch.sum: "sum", "min": "min"}
_REDUCTIONS |= {torch.min: "min", "max": "max", torch.max: "max", min: "min", max: "max", sum: "sum"}


@dataclass
class Captured:
    """The calls of ``self.log`` in one step.

    Attributes:
        values: Tensors by name, as logged.
        metrics: torchmetrics objects by name; in a traced step, what stands in for them.
        options: ``on_step``, ``on_epoch``, ``reduce_fx`` and ``batch_size`` by name.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, nn.Module] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def log(self, name: str, value: Any, *_: Any, **options: Any) -> None:
        """Stand in for ``LightningModule.log``."""
        self.options[name] = options
        if isinstance(value, nn.Module):
            self.metrics[name] = value
        else:
            tensor = value if isinstance(value, Tensor) else torch.tensor(float(value))
            self.values[name] = tensor.detach().float().mean() if tensor.dim() else tensor.detach()


@contextmanager
def capturing(module: pl.LightningModule, captured: Captured) -> Iterator[None]:
    """Send ``self.log`` of a module, and of LightningModules inside it, to ``captured`` for a while."""
    owners: list[nn.Module] = [child for child in module.modules() if isinstance(child, pl.LightningModule)]
    for owner in owners:
        vars(owner)["log"] = captured.log
    try:
        yield
    finally:
        for owner in owners:
            del vars(owner)["log"]


class EpochLog:
    """Values over the mini-batches of one training epoch or one validation.

    Attributes:
        newest: Value of the newest step by name.
    """

    def __init__(self, training: bool) -> None:
        """Start at nothing.

        Args:
            training: Whether values are, unless said otherwise, those of the step (else those of the epoch).
        """
        self._training = training
        self.newest: dict[str, Tensor] = {}
        self._options: dict[str, dict[str, Any]] = {}
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, float] = {}

    def add(self, values: dict[str, Tensor], options: dict[str, dict[str, Any]], rows: int) -> None:
        """Add what a mini-batch logged.

        Args:
            values: By name, shape (M,) or ().
            options: As captured.
            rows: Rows of the mini-batch.

        Raises:
            NotStackable: If a value is to be reduced in a way that is not known.
        """
        self._options.update(options)
        for name, value in values.items():
            self.newest[name] = value
            reduction = _reduction(options[name].get("reduce_fx", "mean"))
            weight = float(options[name].get("batch_size") or rows)
            if name not in self._sums:
                self._sums[name] = value * weight if reduction == "mean" else value.clone()
                self._rows[name] = weight
            elif reduction == "mean":
                self._sums[name] = self._sums[name] + value * weight
                self._rows[name] += weight
            else:
                self._sums[name] = _COMBINE[reduction](self._sums[name], value)

    def _whether(self, name: str) -> tuple[bool, bool]:
        options = self._options.get(name, {})
        on_step, on_epoch = options.get("on_step"), options.get("on_epoch")
        return (
            self._training if on_step is None else bool(on_step),
            not self._training if on_epoch is None else bool(on_epoch),
        )

    def step_values(self) -> dict[str, Tensor]:
        """Return what callbacks see of the newest step: ``name``, and ``name_step`` where there is an epoch's value."""
        out: dict[str, Tensor] = {}
        for name, value in self.newest.items():
            on_step, on_epoch = self._whether(name)
            if on_step:
                out |= {f"{name}_step": value} if on_epoch else {name: value}
        return out

    def epoch_values(self) -> dict[str, Tensor]:
        """Return what callbacks see at the end: ``name``, and ``name_epoch`` where there is a step's value."""
        out: dict[str, Tensor] = {}
        for name, total in self._sums.items():
            on_step, on_epoch = self._whether(name)
            if on_epoch:
                mean = _reduction(self._options[name].get("reduce_fx", "mean")) == "mean"
                value = total / self._rows[name] if mean else total
                out |= {name: value, f"{name}_epoch": value} if on_step else {name: value}
        return out


_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "min": torch.minimum,
    "max": torch.maximum,
}


def _reduction(reduce_fx: Any) -> str:
    try:
        return _REDUCTIONS[reduce_fx]
    except (KeyError, TypeError):
        raise NotStackable(f"a value is logged with reduce_fx={reduce_fx!r}, which is not stacked") from None
