"""Stopping a hopeless training: reports the monitored metric after every validation, and stops when told to.

The callback knows no Optuna: it takes ``report(value, step) -> bool``. It stops by ``trainer.should_stop``, so that
Lightning ends the fit in its ordinary way (an exception raised in a hook would skip ``on_fit_end`` and ``teardown``,
and count as a crash); whoever called ``fit`` looks at :attr:`TrialPruning.pruned` afterwards. ``min_epochs`` of the
Trainer delays it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor


class TrialPruning(EarlyStopping):
    """Report a metric after every validation and stop when ``report`` says so.

    A metric that is only logged by training is reported at the ends of training epochs. Under several processes rank 0
    asks, and its verdict is everybody's.

    An ``EarlyStopping`` to Lightning for one reason: only those, and checkpoints, are called after the module's own
    ``on_train_epoch_end``, where many a module logs its training metrics. Nothing else of it is used.

    Attributes:
        curve: Step (1, 2, ... counts validations) to value, as reported.
        pruned: Whether ``report`` asked to stop.
        diverged: Whether the metric became NaN or infinite; the fit is stopped then.

    Args:
        monitor: Name of the metric.
        report: Called on rank 0 with the value and the step; True means stop. Not called for NaN or infinite values.
    """

    def __init__(self, monitor: str, report: Callable[[float, int], bool]) -> None:
        super().__init__(monitor)
        self.report = report
        self.curve: dict[int, float] = {}
        self.pruned = False
        self.diverged = False
        self._from_validation = False
        self._before: Tensor | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing to settle: what decides is whether a validation logged the metric."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the curve is in the study."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the metric as it stands: what training logged stays there, and is no result of this validation."""
        self._before = trainer.callback_metrics.get(self.monitor)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report what the validation logged."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        found = trainer.callback_metrics.get(self.monitor)
        if found is not None and found is not self._before:
            self._from_validation = True
            self._report(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report what only training logs.

        Raises:
            ValueError: If nothing has logged the metric by the end of an epoch that had a validation.
        """
        if self._from_validation:
            return
        if self.monitor in trainer.callback_metrics:
            self._report(trainer)
        elif _validated(trainer):
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise ValueError(f"`monitor` must be a metric that the model logs ({logged}), got {self.monitor!r}")

    def _report(self, trainer: pl.Trainer) -> None:
        value = float(trainer.callback_metrics[self.monitor])
        step = len(self.curve) + 1
        self.curve[step] = value
        stop = False
        if not math.isfinite(value):
            self.diverged = stop = True
        elif trainer.is_global_zero:
            stop = self.report(value, step)
        stop = trainer.strategy.broadcast(stop)
        if stop:
            # for good: `min_epochs` may let further validations pass before the fit ends
            self.pruned = self.pruned or not self.diverged
            trainer.should_stop = True


def _validated(trainer: pl.Trainer) -> bool:
    """Whether this epoch had a validation, or there is none to wait for."""
    every = trainer.check_val_every_n_epoch
    return not trainer.enable_validation or every is None or (trainer.current_epoch + 1) % every == 0
