"""The facts of a run that the rules need and only a Trainer has: ranks, accumulation, decay, data sizes, metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from lightning_hp.batchnorm.snapshot import Facts
from lightning_hp.batchnorm.watch import TrainingWatch
from lightning_hp.callbacks.pruning import TrialPruning

__all__ = ["doubling_epoch", "last_epoch", "late_averaging", "trainer_facts"]


def last_epoch(trainer: pl.Trainer) -> bool:
    """True when the training is known to end with the present epoch (by epochs or by steps)."""
    if trainer.max_epochs not in (None, -1) and trainer.current_epoch >= trainer.max_epochs - 1:
        return True
    if trainer.max_steps in (None, -1) or not math.isfinite(trainer.num_training_batches):
        return False
    steps = trainer.num_training_batches / max(trainer.accumulate_grad_batches, 1)
    return trainer.global_step + steps >= trainer.max_steps


def doubling_epoch(trainer: pl.Trainer) -> bool:
    """True in epochs 1, 2, 4, 8, ... (the first is 1)."""
    epoch = trainer.current_epoch + 1
    return epoch & (epoch - 1) == 0


def late_averaging(trainer: pl.Trainer, auditor: Callback) -> bool:
    """True if a callback after the auditor puts averaged weights or the old momenta into the model at the end."""
    callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
    place = callbacks.index(auditor)
    late = (WeightAveraging, StochasticWeightAveraging)
    return any(isinstance(callback, late) for callback in callbacks[place + 1 :])


def trainer_facts(trainer: pl.Trainer, watch: TrainingWatch, eval_updates: Mapping[str, int]) -> Facts:
    """Facts of the watch, completed by what the trainer knows."""
    facts = watch.facts()
    facts.eval_updates = dict(eval_updates)
    facts.world_size = trainer.world_size
    facts.accumulate = trainer.accumulate_grad_batches
    _decay(trainer, watch, facts)
    loader = _loader(trainer.train_dataloader)
    if loader is not None:
        facts.batch_size, facts.drop_last = loader.batch_size, bool(loader.drop_last)
        try:
            facts.dataset_rows = len(loader.sampler)  # type: ignore[arg-type]
        except TypeError:
            facts.dataset_rows = None
    if not math.isfinite(trainer.num_training_batches) or (
        facts.dataset_rows and facts.batch_size and trainer.num_training_batches * facts.batch_size < facts.dataset_rows
    ):
        facts.drop_last = True  # limit_train_batches ends the epoch before the remainder
    callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
    # a pruned trial is given up, which regularises nothing; TrialPruning is an EarlyStopping for its place in line only
    facts.early_stopping = any(isinstance(c, EarlyStopping) and not isinstance(c, TrialPruning) for c in callbacks)
    facts.train_metric, facts.val_metric = _losses(trainer.callback_metrics)
    return facts


def _decay(trainer: pl.Trainer, watch: TrainingWatch, facts: Facts) -> None:
    owner = {id(p): name for name, layer in watch.layers.items() for p in layer.parameters(recurse=False)}
    facts.any_decay = False
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            if not group.get("weight_decay", 0.0):
                continue
            facts.any_decay = True
            facts.decayed |= {owner[id(p)] for p in group["params"] if id(p) in owner and p.requires_grad}


def _loader(loaders: Any) -> DataLoader[Any] | None:
    """The one DataLoader of simple projects; None for anything else."""
    if isinstance(loaders, CombinedLoader):
        loaders = loaders.flattened[0] if len(loaders.flattened) == 1 else None
    return loaders if isinstance(loaders, DataLoader) and loaders.batch_size is not None else None


def _losses(metrics: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Training and validation loss, when both are logged under names that differ in `train` and `val` only."""
    for name, value in metrics.items():
        if "train" not in name or "loss" not in name:
            continue
        for other in (name.replace("train", "val"), name.replace("train", "valid")):
            for ending in ("", "_epoch"):
                twin = other.removesuffix("_step").removesuffix("_epoch") + ending
                if twin in metrics and not name.endswith("_step"):
                    return float(value), float(metrics[twin])
    return None, None
