"""Whom a babysitter meets (strategy, optimizers, schedulers): what it refuses, and what it leaves alone."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]
from torch import Tensor
from torch.optim import Optimizer

from lightning_hp.callbacks.panda.values import sets_its_own_rate

SCHEDULERS = ("take_over", "leave")
#: names that a learning-rate scheduler may set
SCHEDULED = ("learning_rate", "momentum", "beta1")


def refuse_what_cannot_be_watched(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Check that there is one optimizer that Lightning steps, and that this process has all weights.

    Raises:
        ValueError: Unless the module has one optimizer and automatic optimization, and every process all weights.
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
    return SCHEDULED
