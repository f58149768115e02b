"""Whom a babysitter meets (strategy, optimizers, schedulers): what it refuses, and what it leaves alone."""

from __future__ import annotations

import math

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelPruning, StochasticWeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]
from torch import Tensor
from torch.optim import Optimizer

from lightning_hp.callbacks.panda.history import RATE
from lightning_hp.callbacks.panda.values import read_values, sets_its_own_rate

SCHEDULERS = ("take_over", "leave")
#: names that a learning-rate scheduler may set
SCHEDULED = (RATE, "momentum", "beta1")
#: callbacks that cannot be beside it, and why
_REFUSED = {
    StochasticWeightAveraging: "it sets the learning rate too (WeightAveraging does not)",
    ModelPruning: "a rollback would bring pruned weights back",
}


def refuse_what_cannot_be_watched(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Check that there is one optimizer that Lightning steps, and that this process has all weights.

    Raises:
        ValueError: Unless the module has one optimizer and automatic optimization, and every process all weights; for
            a callback that cannot be beside this one.
    """
    if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
        kind = type(trainer.strategy).__name__
        raise ValueError(f"`strategy` must keep all weights in every process (one device, DDP), got {kind}")
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        kind = "automatic" if module.automatic_optimization else "manual"
        raise ValueError(
            "`module` must have one optimizer and automatic optimization,"
            f" got {len(trainer.optimizers)} and {kind} optimization"
        )
    if RATE not in read_values(trainer.optimizers[0]):
        kind = type(trainer.optimizers[0]).__name__
        raise ValueError(f"`module` must have an optimizer with a learning rate, got {kind}")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for refused, why in _REFUSED.items():
            if isinstance(callback, refused):
                raise ValueError(f"`callbacks` must have no {refused.__name__} beside PandaBabysitter, got one: {why}")


def watches_only(optimizer: Optimizer) -> bool:
    """Whether an optimizer sets its own rate and is left alone, which is said."""
    alone = sets_its_own_rate(optimizer)
    if alone:
        name = type(optimizer).__name__
        rank_zero_warn(f"{name} sets its own learning rate: PandaBabysitter only watches and changes nothing")
    return alone


def settle_scheduler(trainer: pl.Trainer, scheduler: str | None) -> tuple[str, ...]:
    """Settle who owns the schedule: remove the module's schedulers, or leave them alone.

    Args:
        trainer: Whose schedulers are removed with ``take_over``.
        scheduler: ``take_over``, ``leave``, or None for ``leave``, which is said.

    Returns:
        Names of hyperparameters that belong to a scheduler.
    """
    if not trainer.lr_scheduler_configs:
        return ()
    names = ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs)
    if scheduler == "take_over":
        trainer.lr_scheduler_configs.clear()
        for group in trainer.optimizers[0].param_groups:
            start = group.get("initial_lr")
            if start is not None and isinstance(group["lr"], Tensor):
                group["lr"].fill_(start)
            elif start is not None:
                group["lr"] = float(start)
        return ()
    if scheduler is None:
        rank_zero_warn(
            f"PandaBabysitter leaves the learning rate to {names}; scheduler='take_over' lets it decide instead"
        )
    counted = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
    return (*SCHEDULED, "batch_size") if counted else SCHEDULED  # such a schedule ends at a certain step


# --- the length of a training ---


def planned_steps(trainer: pl.Trainer) -> int | None:
    """Optimiser steps of the whole training; None where its end or the length of an epoch is not known."""
    steps = trainer.estimated_stepping_batches
    if not (math.isfinite(steps) and steps > 0):
        return None
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        counted = planned_from(trainer, 0, 0)
        return int(steps) if counted is None else counted
    return int(steps)


def planned_from(trainer: pl.Trainer, epoch: int, done: int) -> int | None:
    """Optimiser steps of the whole training, the loader and the accumulation of each epoch as they are planned now.

    An epoch of unknown length is taken to be as long as those that are over.

    Args:
        trainer: Whose loader, number of epochs and accumulation count.
        epoch: From whose beginning on epochs are counted, 0 first.
        done: Optimiser steps before it.

    Returns:
        Steps; None where the end of the training, or the length of any epoch, is not known.
    """
    batches, end = trainer.num_training_batches, trainer.max_epochs
    if end is None or end < 0 or (math.isinf(batches) and not epoch):
        return None
    schedule = next((one for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)), None)  # type: ignore[attr-defined]
    steps = done
    for number in range(epoch, end):
        parts = schedule.get_accumulate_grad_batches(number) if schedule else trainer.accumulate_grad_batches
        steps += math.ceil(done / epoch if math.isinf(batches) else batches / parts)
    return steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)
