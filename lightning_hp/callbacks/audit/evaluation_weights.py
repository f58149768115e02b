"""Validation with other weights than training: schedule-free optimizers, moving averages, SWA.

Running statistics are averaged while training runs, so they belong to the training weights. Where other weights are put
in for validation they are somebody else's, and validation is bad while training is fine. Whether that happens is seen
by comparing some values of the weights after the last training batch, at the first validation batch, and at the first
call of the model in it; nobody has to say so. An average that is kept as a module of its own is recognised as a copy.
The statistics of the validation weights are then taken from the recorded calls, as inference computes them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_hp.batchnorm.copies import calls_for_copy, find_copies
from lightning_hp.batchnorm.measure import measure
from lightning_hp.batchnorm.recalibrate import recalibrate
from lightning_hp.batchnorm.snapshot import Facts, OtherWeights, Snapshot
from lightning_hp.batchnorm.statistics import find_layers
from lightning_hp.batchnorm.watch import TrainingWatch

__all__ = ["EvaluationWeights"]

log = logging.getLogger("lightning_hp.audit")


class EvaluationWeights:
    """Compares the weights of training and validation of one fit, and measures with the latter.

    Args:
        model: the model.
        watch: of its training; holds the recorded calls.
        repairs: a record of each repair is appended here.

    Attributes:
        swapped: whether some validation ran with other weights.
    """

    def __init__(self, model: nn.Module, watch: TrainingWatch, repairs: list[dict[str, Any]]) -> None:
        self.swapped = False
        self._model, self._watch, self._repairs = model, watch, repairs
        self._after_batch: tuple[float, ...] = ()
        self._at_start: tuple[float, ...] = ()
        self._noted_at = -1
        self._modes: dict[str, bool] = {}
        self._measured: OtherWeights | None = None
        self._measured_weights: tuple[float, ...] = ()
        self._copies: dict[str, str] | None = None
        self._copy: OtherWeights | None = None
        self._called: set[str] = set()  # copies that some validation called
        self._handles: list[Any] = []

    def _fingerprint(self) -> tuple[float, ...]:
        """The sum of every parameter: whatever puts other weights in moves nearly all of them."""
        with torch.no_grad():
            # of a sharded parameter the part on this rank; a sum over ranks would be a collective
            parts = [getattr(p, "_local_tensor", p) for p in self._model.parameters() if not is_lazy(p)]
            sums = [part.sum(dtype=torch.float32) for part in parts]
            together = len({part.device for part in sums}) == 1  # read at once: an accelerator then waits once only
            values = torch.stack(sums).tolist() if together else [float(part) for part in sums]
        return tuple(value if value == value else math.inf for value in values)  # NaN differs from itself

    def after_batch(self, trainer: pl.Trainer, index: int) -> None:
        """Call after each training batch: before a validation the weights (and modes) of training are remembered."""
        every = trainer.val_check_batch
        near = trainer.is_last_batch or (isinstance(every, int) and every > 0 and (index + 1) % every == 0)
        if near and trainer.enable_validation and self._watch.layers and self._watch.steps:
            self._after_batch, self._noted_at = self._fingerprint(), trainer.global_step
            self._modes = {name: module.training for name, module in self._model.named_modules()}

    def at_start(self, trainer: pl.Trainer) -> None:
        """Call at the start of a validation within a fit: some hooks have put their weights in by now, others not."""
        if self._watch.layers and self._watch.steps:
            self._at_start = self._fingerprint()
            if self._noted_at != trainer.global_step:
                self._after_batch = self._at_start

    def before_validation(self, trainer: pl.Trainer, repair: bool, due: bool) -> None:
        """Call at the first batch of a validation within a fit, when the hooks have put their weights in.

        Args:
            trainer: the trainer. Every rank must call this.
            repair: replace the statistics by those of the weights at hand.
            due: measure also if nothing is repaired.
        """
        self.release()
        if not self._watch.layers or not self._watch.steps or not self._at_start:
            return
        weights = self._fingerprint()
        self.swapped |= weights != self._at_start  # every rank has the same weights: nothing to ask the others
        # Weights that changed before may also have been clipped or pruned: `judged` sees whether the others come back.
        changed = weights != self._after_batch
        written = self._look(trainer, weights, repair, (self.swapped or changed) and (repair or due))
        if repair or due:
            written += self._look_at_copies(trainer, repair)
        if repair:
            self._repairs.append({"when": "validation", "epoch": trainer.current_epoch, "layers": written})
        if repair or due:
            self._await_calls(trainer, weights, repair)

    def _look(self, trainer: pl.Trainer, weights: tuple[float, ...], repair: bool, other: bool) -> list[str]:
        """Repair and measure with the weights at hand; names of the layers whose statistics were replaced."""
        written: list[str] = []
        with trainer.precision_plugin.forward_context():
            if repair:
                written += recalibrate(self._model, self._watch.steps, self._watch.trainable_layers())
            if other:
                # Repaired statistics are those of inference; before, they are compared as training left them.
                with _forgiving(trainer), self._training_modes(not repair):
                    snapshot = measure(self._model, self._watch.steps, self._watch.facts(), self._watch.training)
                    self._measured, self._measured_weights = OtherWeights(_cause(trainer), repair, snapshot), weights
        return written

    def _look_at_copies(self, trainer: pl.Trainer, repair: bool) -> list[str]:
        """The same for modules that are averages of others."""
        written: list[str] = []
        with trainer.precision_plugin.forward_context():
            if self._copies is None:
                self._copies = {}
                with _forgiving(trainer):
                    self._copies = find_copies(self._model, self._watch.steps)
            for copy, original in self._copies.items():
                inside = find_layers(self._model.get_submodule(copy))
                layers = [f"{copy}.{name}" if name else copy for name in inside]
                with _forgiving(trainer):
                    steps = calls_for_copy(self._model, self._watch.steps, copy, original)
                    if repair:
                        written += recalibrate(self._model, steps, layers)
                    snapshot = measure(self._model, steps, Facts(), dict.fromkeys(layers, True))
                    self._copy = OtherWeights(f"{copy}, a copy of {original}", repair, snapshot)
        return written

    def _await_calls(self, trainer: pl.Trainer, weights: tuple[float, ...], repair: bool) -> None:
        """At the first call of the model: have its weights been replaced since, as by a context manager in the step?"""

        def root(module: nn.Module, args: Any) -> None:
            if getattr(module.__dict__.get("forward"), "__name__", "") == "wrapped_forward":
                return  # Lightning sends the step itself through the module
            self.release()
            now = self._fingerprint()
            if now != weights:
                self.swapped = True
                self._look(trainer, now, repair, True)

        for name in {call.module for step in self._watch.steps for call in step}:
            module = self._model.get_submodule(name) if name else self._model
            self._handles.append(module.register_forward_pre_hook(root, prepend=True))
        for name in self._copies or ():
            note = self._note_copy(name)
            self._handles.append(self._model.get_submodule(name).register_forward_pre_hook(note))

    def _note_copy(self, name: str) -> Any:
        return lambda module, args: self._called.add(name)

    def release(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

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
        if self._copy is not None and self._called:
            facts.evaluation = self._copy
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


@contextmanager
def _forgiving(trainer: pl.Trainer) -> Iterator[None]:
    """A model that cannot be replayed is not measured here; the audit itself says so. The training goes on."""
    try:
        yield
    except Exception as error:
        if trainer.world_size > 1:  # the other ranks wait in a collective: failing loudly beats hanging
            raise
        log.debug("The weights of validation could not be measured: %s", error)


def _cause(trainer: pl.Trainer) -> str:
    """The callback or optimizer that puts the other weights in, as far as it can be recognised."""
    callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, (WeightAveraging, StochasticWeightAveraging)) or "EMA" in name or "Averag" in name:
            return f"put in by the callback {name}"
    for optimizer in trainer.optimizers:
        if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
            return f"put in by the optimizer {type(optimizer).__name__}"
    return "put in by a hook of the project"
