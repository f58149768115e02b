"""Stopping a hopeless training: reports the monitored metric after every validation, and stops when told to.

The callback knows no Optuna: it takes anything with Optuna's ``report(value, step)`` and ``should_prune()``. It stops
by ``trainer.should_stop``, so that Lightning ends the fit in its ordinary way (an exception raised in a hook would skip
``on_fit_end`` and ``teardown``, and count as a crash); whoever called ``fit`` looks at :attr:`TrialPruning.pruned`
afterwards. ``min_epochs`` of the Trainer delays it.

A step is the part of the training that is done, in whole units (``max_steps`` of them are a complete training),
whatever the rhythm of validation: a training that is validated every fourth epoch is judged at the same parts of
its length as one that is validated four times an epoch.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from typing_extensions import override


class ReportsValues(Protocol):
    """What a curve is reported to; an ``optuna.Trial`` is one."""

    def report(self, value: float, step: int) -> None:
        """Take in a point of the learning curve."""
        ...

    def should_prune(self) -> bool:
        """Whether to stop now."""
        ...


class TrialPruning(EarlyStopping):
    """Report a metric after every validation, and stop when the trial's pruner says so.

    In an objective of your own::

        pruning = TrialPruning(trial, monitor="val_loss", max_steps=30)
        trainer = Trainer(max_epochs=30, callbacks=[pruning])
        trainer.fit(module)
        if pruning.pruned:
            raise optuna.TrialPruned
        return pruning.best("min")

    A metric that is only logged by training is reported at the ends of training epochs. Under several processes rank 0
    asks, and its verdict is everybody's. A training that has come to its end is not stopped any more.

    An ``EarlyStopping`` to Lightning for one reason: only those, and checkpoints, are called after the module's own
    ``on_train_epoch_end``, where many a module logs its training metrics. Nothing else of it is used.

    Attributes:
        curve: Step to value, as reported.
        pruned: Whether the pruner asked to stop.
        diverged: Whether the metric became NaN or infinite; the fit is stopped then.
        validations: How many validations there were, with or without the metric.

    Args:
        trial: What is reported to, on rank 0; not asked about NaN or infinite values.
        monitor: Name of the metric.
        max_steps: The step of a complete training; None counts validations: 1, 2, 3, ...

    Raises:
        ValueError: If ``max_steps`` is no whole number of at least 1.
    """

    def __init__(self, trial: ReportsValues, monitor: str = "val_loss", max_steps: int | None = None) -> None:
        if max_steps is not None and (isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1):
            raise ValueError(f"`max_steps` must be a whole number of at least 1 or None, got {max_steps!r}")
        super().__init__(monitor)
        self.trial = trial
        self.max_steps = max_steps
        self.curve: dict[int, float] = {}
        self.pruned = False
        self.diverged = False
        self.validations = 0
        self._from_validation = False
        self._before: Tensor | None = None

    def best(self, mode: str = "min") -> float | None:
        """The best finite value of the curve, None where there is none.

        Args:
            mode: ``min`` or ``max``.
        """
        finite = [value for value in self.curve.values() if math.isfinite(value)]
        return (min(finite) if mode == "min" else max(finite)) if finite else None

    def progress(self) -> dict[str, Any]:
        """What a training that goes on later needs of this object, as plain types."""
        return {"curve": dict(self.curve), "validations": self.validations, "from_validation": self._from_validation}

    def restore(self, progress: dict[str, Any]) -> None:
        """The inverse of :meth:`progress`."""
        self.curve = {int(step): float(value) for step, value in progress["curve"].items()}
        self.validations, self._from_validation = int(progress["validations"]), bool(progress["from_validation"])

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pass  # EarlyStopping decides here when it checks; here a validation that logged the metric decides

    @override
    def state_dict(self) -> dict[str, Any]:
        return {}  # the curve is in the study

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # what training logged stays there, and is no result of this validation
        self._before = trainer.callback_metrics.get(self.monitor)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.validations += 1
        metric = trainer.callback_metrics.get(self.monitor)
        if metric is not None and metric is not self._before:
            self._from_validation = True
            self._report(trainer, epoch_ended=trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report what only training logs.

        Raises:
            UnknownMetricError: If nothing has logged the metric by the end of an epoch that had a validation.
        """
        if self._from_validation:
            return
        if self.monitor in trainer.callback_metrics:
            self._report(trainer, epoch_ended=True)
        elif self.validations or not trainer.enable_validation:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise UnknownMetricError(f"`monitor` must be a metric that the model logs ({logged}), got {self.monitor!r}")

    def _report(self, trainer: pl.Trainer, epoch_ended: bool) -> None:
        value = float(trainer.callback_metrics[self.monitor])
        progress = training_progress(trainer, epoch_ended)
        last = max(self.curve, default=0)
        step = last + 1
        if self.max_steps is not None and progress is not None:
            step = max(step, round(progress * self.max_steps))
        self.curve[step] = value
        stop = False
        if not math.isfinite(value):
            self.diverged = stop = True
        elif trainer.is_global_zero:
            self.trial.report(value, step)
            at_its_end = progress is not None and progress >= 1.0
            stop = not at_its_end and self.trial.should_prune()
        stop = trainer.strategy.broadcast(stop)
        if stop:
            # for good: `min_epochs` may let further validations pass before the fit ends
            self.pruned = self.pruned or not self.diverged
            trainer.should_stop = True


class UnknownMetricError(ValueError):
    """Nothing logs the monitored metric: no trial of this study can have a value."""


def training_progress(trainer: pl.Trainer, epoch_ended: bool) -> float | None:
    """The part of the training that is done, from 0 to 1; None where the Trainer limits neither epochs nor steps.

    The limit that comes first decides. Within an epoch batches are counted, so that it does not matter how many
    optimisers step in each; of an epoch whose number of batches is not known, only its end counts.

    Args:
        trainer: In a fit.
        epoch_ended: Whether all batches of the current epoch are done.
    """
    parts: list[float] = []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        batches = float(trainer.num_training_batches)
        inside = 1.0 if epoch_ended else 0.0
        if not epoch_ended and math.isfinite(batches) and batches > 0:
            inside = trainer.fit_loop.epoch_loop.batch_progress.current.ready / batches
        parts.append((trainer.current_epoch + inside) / trainer.max_epochs)
    if trainer.max_steps is not None and trainer.max_steps > 0:
        parts.append(trainer.global_step / trainer.max_steps)
    return min(max(parts), 1.0) if parts else None
