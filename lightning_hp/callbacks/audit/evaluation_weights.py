"""Validation with other weights than training: schedule-free optimizers, moving averages, SWA.

Running statistics are averaged while training runs, so they belong to the training weights. Where other weights are put
in for validation they are somebody else's, and validation is bad while training is fine. Whether that happens is seen
by comparing some values of the weights after the last training batch and at the first validation batch; nobody has to
say so. The statistics of the validation weights are then taken from the recorded calls, as inference computes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import nn

from lightning_hp.batchnorm.measure import measure
from lightning_hp.batchnorm.recalibrate import recalibrate
from lightning_hp.batchnorm.snapshot import Facts, OtherWeights, Snapshot
from lightning_hp.batchnorm.watch import TrainingWatch
from lightning_hp.callbacks.audit.reference import weights_fingerprint

__all__ = ["EvaluationWeights"]


class EvaluationWeights:
    """Compares the weights of training and validation of one fit, and measures with the latter.

    Args:
        model: the model.
        watch: of its training; holds the recorded calls.

    Attributes:
        swapped: whether some validation ran with other weights.
    """

    def __init__(self, model: nn.Module, watch: TrainingWatch) -> None:
        self.swapped = False
        self._model, self._watch = model, watch
        self._after_batch = self._at_start = ""
        self._noted_at = -1
        self._modes: dict[str, bool] = {}
        self._measured: OtherWeights | None = None
        self._measured_weights = ""

    def _fingerprint(self) -> str:
        return weights_fingerprint(dict(self._model.named_parameters()))

    def after_batch(self, trainer: pl.Trainer, index: int) -> None:
        """Call after each training batch: before a validation the weights (and modes) of training are remembered."""
        every = getattr(trainer, "val_check_batch", None)
        near = trainer.is_last_batch or (isinstance(every, int) and every > 0 and (index + 1) % every == 0)
        if near and self._watch.layers and self._watch.steps:
            self._after_batch, self._noted_at = self._fingerprint(), trainer.global_step
            self._modes = {name: module.training for name, module in self._model.named_modules()}

    def at_start(self, trainer: pl.Trainer) -> None:
        """Call at the start of a validation within a fit: some hooks have put their weights in by now, others not."""
        if self._watch.layers and self._watch.steps:
            self._at_start = self._fingerprint()
            if self._noted_at != trainer.global_step:
                self._after_batch = self._at_start

    def before_validation(self, trainer: pl.Trainer, repair: bool, due: bool) -> list[str] | None:
        """Call at the first batch of a validation within a fit, when every hook has put its weights in.

        Args:
            trainer: the trainer. Every rank must call this.
            repair: replace the statistics by those of the weights at hand.
            due: measure also if nothing is repaired.

        Returns:
            Names of the layers whose statistics were replaced; None if nothing was to be done.
        """
        if not self._watch.layers or not self._watch.steps or not self._at_start:
            return None
        weights = self._fingerprint()
        either = trainer.strategy.reduce_boolean_decision
        self.swapped |= either(weights != self._at_start, all=False)
        # Weights that changed before may also have been clipped or pruned: `judged` sees whether the others come back.
        changed = either(weights != self._after_batch, all=False)
        written = None
        with trainer.precision_plugin.forward_context():
            if repair:
                written = list(recalibrate(self._model, self._watch.steps, self._watch.trainable_layers()))
            if (self.swapped or changed) and (repair or due):
                # Repaired statistics are those of inference; before, they are compared as training left them.
                with self._training_modes(not repair):
                    snapshot = measure(self._model, self._watch.steps, self._watch.facts(), self._watch.training)
                self._measured, self._measured_weights = OtherWeights(_cause(trainer), repair, snapshot), weights
        return written

    @contextmanager
    def _training_modes(self, wanted: bool) -> Iterator[None]:
        modules = dict(self._model.named_modules())
        present = {name: module.training for name, module in modules.items()}
        try:
            for name, mode in (self._modes if wanted else {}).items():
                if name in modules:
                    modules[name].training = mode
            yield
        finally:
            for name, mode in present.items():
                modules[name].training = mode

    def elsewhere(self) -> bool:
        """Whether the weights at hand are not those that validation judges."""
        return self.swapped and self._measured is not None and self._fingerprint() != self._measured_weights

    def judged(self, facts: Facts) -> Snapshot | None:
        """What to judge instead of the weights at hand, if anything; completes the facts about the other weights.

        After a repair the statistics belong to the validation weights, so those are judged, as they were measured.
        """
        if self._measured is None:
            return None
        same = self._fingerprint() == self._measured_weights
        if same and not self.swapped:
            return None  # clipped or pruned, for good
        self.swapped, facts.evaluation = True, self._measured
        if same:
            return None  # the weights of validation are at hand, with the statistics of now
        if self._measured.repaired:
            return replace(self._measured.snapshot, facts=facts)
        facts.validation = {}  # inputs of other weights say nothing about these
        return None


def _cause(trainer: pl.Trainer) -> str:
    """Who puts the other weights in, as far as one can tell."""
    callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, (WeightAveraging, StochasticWeightAveraging)) or "EMA" in name or "Averag" in name:
            return f"the callback {name}"
    for optimizer in trainer.optimizers:
        if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
            return f"the optimizer {type(optimizer).__name__}"
    return "a hook of the project"
