"""Lightning's ``EarlyStopping`` for members of a stack: the callback itself decides, shown one member's metrics.

Exactly that class: a subclass may do more with its Trainer than to look at metrics. Every member has a copy of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn


def stoppers_of(module: pl.LightningModule, trainer: pl.Trainer) -> list[EarlyStopping]:
    """Return copies of a Trainer's ``EarlyStopping`` callbacks, set up."""
    callbacks = [one for one in trainer.callbacks if type(one) is EarlyStopping]  # type: ignore[attr-defined]
    stoppers = copy.deepcopy(callbacks)
    for stopper in stoppers:
        stopper.setup(_shown(trainer, {}, 0), module, "fit")
    return stoppers


def ask_to_stop(
    stoppers: Sequence[EarlyStopping],
    hook: Literal["on_validation_end", "on_train_epoch_end"],
    module: pl.LightningModule,
    trainer: pl.Trainer,
    metrics: Mapping[str, float],
    epoch: int,
) -> bool:
    """Whether one of the callbacks stops a member here.

    Args:
        stoppers: The member's.
        hook: Which hook Lightning would call now.
        module: The member.
        trainer: Its Trainer.
        metrics: What its callbacks see.
        epoch: Its epoch, 0 first.
    """
    shown = _shown(trainer, metrics, epoch)
    for stopper in stoppers:
        getattr(stopper, hook)(shown, module)
    return bool(shown.should_stop)


def _shown(trainer: pl.Trainer, metrics: Mapping[str, float], epoch: int) -> Any:
    """What the callback asks of a Trainer."""
    return SimpleNamespace(
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        sanity_checking=False,
        fast_dev_run=False,
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        strategy=trainer.strategy,
        should_stop=False,
        current_epoch=epoch,
        val_check_interval=trainer.val_check_interval,
        check_val_every_n_epoch=trainer.check_val_every_n_epoch,
        world_size=1,
        global_rank=0,
    )
