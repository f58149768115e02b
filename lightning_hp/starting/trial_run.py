"""A short training of the project as it is: which metrics it logs, and how long an epoch takes.

Nothing is left of it: it writes to a folder that is deleted, and to no store on a network.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import nn

from lightning_hp.project.build import CliBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.quiet import suppress_repeated_warnings

#: one batch of training, and one of validation, whatever the rhythm of the file
ONE_BATCH = {
    "trainer.limit_train_batches": 1,
    "trainer.limit_val_batches": 1,
    "trainer.num_sanity_val_steps": 0,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.val_check_interval": 1,
}
#: training is timed for at most so many seconds; the rest of the epoch is extrapolated
LONGEST_LOOK = 20.0
#: words in the class path of loggers that send runs to a store
_STORES = ("MLFlow", "Comet", "Neptune", "LitLogger")
#: setting of an optimizer's group -> what it is called here
_SETTINGS = {
    "lr": "learning_rate",
    "initial_lr": "learning_rate",
    "max_lr": "learning_rate",
    "momentum": "momentum",
    "eps": "epsilon",
    "weight_decay": "weight_decay",
}


@dataclass(frozen=True)
class ShortRun:
    """What a short training showed.

    Attributes:
        metrics: Everything that was logged.
        validated: What of it validation logged.
        watched: Metric and mode that the project's own callbacks watch, in the order of their weight.
        batches: Batches of an epoch; None where the data have no length.
        batch_seconds: Seconds of training a batch.
        validation_seconds: Seconds of one validation.
        setup_seconds: Seconds of a training beside its batches and validations: what is built, begun and written.
        shapes: Shape of every weight and buffer of the model, by its name.
        settings: What groups of optimizers, and dropout layers, held when training began: what it is called here, and
            the number.
    """

    metrics: tuple[str, ...]
    validated: tuple[str, ...]
    watched: tuple[tuple[str, str], ...]
    batches: int | None
    batch_seconds: float
    validation_seconds: float
    setup_seconds: float
    shapes: Mapping[str, tuple[int, ...]]
    settings: tuple[tuple[str, float], ...]

    def epoch_seconds(self) -> float | None:
        """Seconds of an epoch with one validation; None where an epoch has no length."""
        return None if self.batches is None else self.batches * self.batch_seconds + self.validation_seconds


def run_shortly(builder: CliBuilder, values: Mapping[str, Any], seconds: float = LONGEST_LOOK) -> ShortRun:
    """Train for one epoch, or for so many seconds, and validate.

    Args:
        builder: Of the project.
        values: Replace values of the project's own, as :data:`ONE_BATCH` does.
        seconds: Training ends after this many.
    """
    watch = _Watch(seconds)
    with tempfile.TemporaryDirectory() as folder, suppress_repeated_warnings(), _without_wandb():
        replaced = {**_on_one_device(builder.trainer_settings()), **values}
        began = time.monotonic()
        built = builder.build(replaced, Path(folder), 0, [watch], TrainingLength(max_epochs=1))
        callbacks = list(built.trainer.callbacks)  # type: ignore[attr-defined]
        built.fit()
        whole = time.monotonic() - began
        shapes = {name: tuple(value.shape) for name, value in built.model.state_dict().items()}
        metrics = tuple(dict.fromkeys(map(str, built.trainer.callback_metrics)))
    watched = sorted(
        (type(c).__name__ != "EarlyStopping", c.monitor, getattr(c, "mode", "min"))
        for c in callbacks
        if isinstance(getattr(c, "monitor", None), str)
    )
    return ShortRun(
        metrics,
        tuple(name for name in metrics if name in watch.validated),
        tuple((monitor, mode) for _, monitor, mode in watched),
        watch.batches,
        watch.batch_seconds,
        watch.validation_seconds,
        max(whole - watch.batches_done * watch.batch_seconds - watch.validation_seconds, 0.0),
        shapes,
        tuple(watch.settings),
    )


class _Watch(pl.Callback):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batches: int | None = None
        self.validated: set[str] = set()
        self.batch_seconds = self.validation_seconds = 0.0
        self._began = self._first = self._validation = 0.0
        self._before: set[str] = set()
        self.batches_done = 0
        self.settings: list[tuple[str, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        length = trainer.num_training_batches
        self.batches = int(length) if length != float("inf") else None
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.settings = [*_held_by(groups), *_dropouts(pl_module)]
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self.batches_done += 1
        if self.batches_done == 1:
            self._first = now
            self.batch_seconds = now - self._began
        else:  # the first batch starts workers and warms up
            self.batch_seconds = (now - self._first) / (self.batches_done - 1)
        if now - self._began > self.seconds:
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation = time.monotonic()
        self._before = set(trainer.callback_metrics)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validation_seconds = time.monotonic() - self._validation
            self.validated |= set(map(str, trainer.callback_metrics)) - self._before


def _held_by(groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """What the groups of optimizers hold: what it is called here, and the number."""
    for group in groups:
        for setting, value in group.items():
            if setting in _SETTINGS and isinstance(value, int | float):
                yield _SETTINGS[setting], float(value)
            if setting == "betas" and isinstance(value, list | tuple):
                yield from ((f"beta{i}", float(beta)) for i, beta in enumerate(value[:2], 1))


def _dropouts(model: nn.Module) -> Iterator[tuple[str, float]]:
    for module in model.modules():
        for attribute in ("p", "dropout"):
            value = getattr(module, attribute, None)
            if isinstance(value, float) and (attribute == "dropout" or "Drop" in type(module).__name__):
                yield "dropout", value


def _on_one_device(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """What keeps a short training in this process, on one device, and its logger from sending a run to a store."""
    replaced: dict[str, Any] = {"trainer.devices": 1, "trainer.num_nodes": 1}
    if any(word in str(trainer.get("strategy")).lower() for word in ("ddp", "fsdp", "deepspeed")):
        replaced["trainer.strategy"] = "auto"
    if any(store in str(trainer.get("logger")) for store in _STORES):
        replaced["trainer.logger"] = False
    return replaced


@contextmanager
def _without_wandb() -> Iterator[None]:
    before = os.environ.get("WANDB_MODE")
    os.environ["WANDB_MODE"] = "disabled"
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_MODE"]
        else:
            os.environ["WANDB_MODE"] = before
