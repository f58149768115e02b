"""Validation of a stack: by the module's own pure function, traced over all members, or one member after another.

The third way is for a ``validation_step`` that updates metrics with a state (torchmetrics), or a module with hooks of
its own around validation: each member is validated with its own module object in eval mode, as a Trainer does, and that
costs as much as it costs a Trainer without its loops. Shapes: M members, B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_hp.training.stacked.feed import Feed
from lightning_hp.training.stacked.logs import Captured, EpochLog, capturing
from lightning_hp.training.stacked.traced import TracedModule, TrainerFacts, evaluating, takes_index

Context = Callable[[], AbstractContextManager[Any]]
#: hooks around validation that need the member's own module
VALIDATION_HOOKS = (
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_validation_model_eval",
    "on_validation_model_train",
)


def has_validation_hooks(module: pl.LightningModule) -> bool:
    """Whether a module overrides a hook around validation."""
    return any(getattr(type(module), name) is not getattr(pl.LightningModule, name) for name in VALIDATION_HOOKS)


def validate_traced(
    traced: TracedModule, tensors: dict[str, Tensor], feed: Feed, context: Context = nullcontext
) -> dict[str, Tensor]:
    """Validate all members at once.

    Args:
        traced: The module's steps.
        tensors: Parameters, buffers and settings by name, shape (M, ...).
        feed: The validation rows.
        context: In which steps run: that of the precision plugin.

    Returns:
        Logged values by name, shape (M,).
    """
    log = EpochLog(training=False)
    for number, rows in enumerate(feed.sizes):
        batch = feed.batch(number, feed.shared)
        with context():
            values = traced.validate(tensors, batch, number, feed.shared)
        log.add(values, traced.captured.options, rows)
    return log.epoch_values()


@torch.no_grad()
def validate_one(
    module: pl.LightningModule, feed: Feed, row: int, facts: TrainerFacts, context: Context = nullcontext
) -> dict[str, Tensor]:
    """Validate one member with its own module.

    Args:
        module: The member.
        feed: The validation rows of all members.
        row: The member's place in the feed.
        facts: What its steps may know of the Trainer.
        context: In which steps run: that of the precision plugin.

    Returns:
        Logged values by name, shape ().
    """
    captured, log = Captured(), EpochLog(training=False)
    trainer, module.trainer = module._trainer, facts  # type: ignore[assignment]
    metrics: dict[str, Metric] = {}
    step: Any = module.validation_step
    with_index = takes_index(step)
    try:
        with evaluating(module), capturing(module, captured):
            module.on_validation_start()
            module.on_validation_epoch_start()
            for number, rows in enumerate(feed.sizes):
                batch = feed.one_of(number, row)
                captured.values.clear()
                with context():
                    step(batch, number) if with_index else step(batch)
                log.add(captured.values, captured.options, rows)
            captured.values.clear()
            module.on_validation_epoch_end()
            log.add(captured.values, captured.options, 1)
            module.on_validation_end()
            metrics = {name: metric for name, metric in captured.metrics.items() if isinstance(metric, Metric)}
            values = log.epoch_values() | {name: metric.compute().detach() for name, metric in metrics.items()}
    finally:
        module._trainer = trainer
        for metric in metrics.values():
            metric.reset()
    return values


def validate_singly(
    modules: Sequence[pl.LightningModule], feed: Feed, counts: Sequence[tuple[int, int]], context: Context = nullcontext
) -> dict[str, Tensor]:
    """Validate the members one after another.

    Args:
        modules: The members.
        feed: Their validation rows.
        counts: Epoch and optimizer step of each.
        context: In which steps run: that of the precision plugin.

    Returns:
        Logged values by name, shape (M,).
    """
    rows = []
    for row, (module, (epoch, step)) in enumerate(zip(modules, counts, strict=True)):
        rows.append(validate_one(module, feed, row, TrainerFacts(epoch, step), context))
    return {name: torch.stack([values[name].float() for values in rows]) for name in rows[0]}
