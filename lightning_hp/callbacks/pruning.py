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
import os
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from typing_extensions import override

#: most points of a curve that come back from a process of its own; of more, the last one takes the place of its earlier
_MOST_POINTS = 10_000


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

    A metric that is only logged by training is reported at the ends of training epochs. A training that has come to its
    end is not stopped any more. A training that is resumed from a checkpoint counts on from the epoch of that.

    Under several processes rank 0 asks, and its verdict is everybody's. With ``ddp_spawn`` the objective learns the
    curve and the verdict as if the training had been in its own process, on any storage. ``ddp`` runs the whole script
    again in each rank: all of them must be given the same trial, which is checked before anything is trained.

    It is a subclass of ``EarlyStopping`` for one reason: Lightning calls only those, and checkpoints, after the
    module's own ``on_train_epoch_end``, where many modules log their training metrics. It uses nothing else of it.

    Attributes:
        validations: How many validations there were in this process, with or without the metric.

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
        self.validations = 0
        self._curve: dict[int, float] = {}
        self._pruned = False
        self._diverged = False
        self._from_validation = False
        self._before: Tensor | None = None
        self._resumed_at = 0
        self._made_in = os.getpid()
        self._shared: Tensor | None = None

    @property
    def curve(self) -> dict[int, float]:
        """Step to value, as reported."""
        self._take_over()
        return self._curve

    @property
    def pruned(self) -> bool:
        """Whether the pruner asked to stop."""
        self._take_over()
        return self._pruned

    @property
    def diverged(self) -> bool:
        """Whether the metric became NaN or infinite; the fit is stopped then."""
        self._take_over()
        return self._diverged

    def best(self, mode: str = "min") -> float | None:
        """The best finite value of the curve, None where there is none.

        Args:
            mode: ``min`` or ``max``.
        """
        finite = [value for value in self.curve.values() if math.isfinite(value)]
        return (min(finite) if mode == "min" else max(finite)) if finite else None

    def progress(self) -> dict[str, Any]:
        """What a training that goes on later needs of this object, as plain types."""
        return {
            "curve": dict(self._curve),
            "validations": self.validations,
            "from_validation": self._from_validation,
            "pruned": self._pruned,
            "diverged": self._diverged,
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """The inverse of :meth:`progress`."""
        self._curve = {int(step): float(value) for step, value in progress["curve"].items()}
        self.validations, self._from_validation = int(progress["validations"]), bool(progress["from_validation"])
        self._pruned, self._diverged = bool(progress.get("pruned")), bool(progress.get("diverged"))

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
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.max_steps is None:
            self._resumed_at = trainer.current_epoch

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the objective will learn of the verdict, and that all ranks train one trial.

        Raises:
            ValueError: If the process was forked, or ranks have different trials.
        """
        if self._shared is None and os.getpid() != self._made_in:
            raise ValueError("`strategy` must be one that spawns its processes (ddp_spawn), got one that forks them")
        if trainer.world_size == 1:
            return
        trial = (getattr(self.trial, "number", None), getattr(self.trial, "params", None))
        same = trainer.strategy.broadcast(trial) == trial
        if not trainer.strategy.reduce_boolean_decision(same, all=True):
            raise ValueError(
                f"`trial` must be the same in all ranks, got trial {trial[0]} with {trial[1]} in rank "
                f"{trainer.global_rank}: `ddp` runs the script again in each rank; take ddp_spawn, or lightning_hp.tune"
            )

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
        step = max(self._curve, default=self._resumed_at) + 1
        if self.max_steps is not None and progress is not None:
            step = max(step, round(progress * self.max_steps))
        self._curve[step] = value
        stop = False
        if not math.isfinite(value):
            self._diverged = stop = True
        elif trainer.is_global_zero:
            self.trial.report(value, step)
            at_its_end = progress is not None and progress >= 1.0
            stop = not at_its_end and self.trial.should_prune()
        stop = trainer.strategy.broadcast(stop)
        if stop:
            # for good: `min_epochs` may let further validations pass before the fit ends
            self._pruned = self._pruned or not self._diverged
            trainer.should_stop = True
        if self._shared is not None and trainer.is_global_zero:
            self._shared[min(len(self._curve), _MOST_POINTS)] = torch.tensor([step, value], dtype=torch.float64)
            self._shared[0] = torch.tensor([self._pruned, self._diverged])

    # --- from a spawned process back to the objective's ---

    def __getstate__(self) -> dict[str, Any]:
        """What a spawned process is given: with it memory that both have, in which rank 0 leaves curve and verdict."""
        if self._shared is None:
            self._shared = torch.full((_MOST_POINTS + 1, 2), math.nan, dtype=torch.float64).share_memory_()
        return self.__dict__.copy()

    def _take_over(self) -> None:
        """In the objective's process: learn what a spawned one left, and report it to this process's trial."""
        if self._shared is None or os.getpid() != self._made_in or self._curve or self._shared[0].isnan().any():
            return
        self._pruned, self._diverged = (bool(flag) for flag in self._shared[0])
        for step, value in self._shared[1:].tolist():
            if not math.isnan(step):
                self._curve[int(step)] = value
                if math.isfinite(value):
                    self.trial.report(value, int(step))


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
