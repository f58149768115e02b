"""The audit of a model that no auditor watched: its own validation is run over training and validation data.

The module's `validation_step` (else `test_step`, else `predict_step`) feeds the model; the calls inside are recorded,
and what is asked of the data is worked out from these.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_hp.batchnorm.measure import measure
from lightning_hp.batchnorm.observe import CallRecorder
from lightning_hp.batchnorm.reference import InputMoments, Reference
from lightning_hp.batchnorm.rules import audit
from lightning_hp.batchnorm.snapshot import Facts
from lightning_hp.batchnorm.statistics import find_layers
from lightning_hp.callbacks.audit.record import history_row, result_of

__all__ = ["EvaluationRecorder", "FirstBatches", "audit_trained", "record_evaluation"]


class FirstBatches:
    """The first batches of a loader, as a loader."""

    def __init__(self, loader: Any, batches: int) -> None:
        self.loader, self.batches = loader, batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.batches)


class EvaluationRecorder(pl.Callback):
    """Records calls and collects input moments while the project's evaluation loop runs."""

    def __init__(self, model: pl.LightningModule, rows: int) -> None:
        self.recorder = CallRecorder(model, max_steps=512, max_rows=rows)
        self.moments = InputMoments(find_layers(model), rows)
        self._open = contextlib.ExitStack()

    def _start(self, *args: Any, **kwargs: Any) -> None:
        self._open.enter_context(self.recorder.recording())
        self._open.enter_context(self.moments.collecting())

    def _stop(self, *args: Any, **kwargs: Any) -> None:
        self._open.close()

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _start
    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _stop


def record_evaluation(
    model: pl.LightningModule, trainer: pl.Trainer, loader: Any, rows: int, predict: bool = False
) -> tuple[EvaluationRecorder, dict[str, float]]:
    """Run the project's evaluation over (at most) `rows` rows of a loader; also returns its metrics.

    Args:
        model: with the weights to look at.
        trainer: that can evaluate; its callbacks are as before afterwards.
        loader: of any split.
        rows: how many.
        predict: whether to run `predict_step` in any case.
    """
    listener = EvaluationRecorder(model, rows)
    size = getattr(loader, "batch_size", None) or 32
    first = FirstBatches(loader, max(1, -(-rows // size)))
    trainer.callbacks.append(listener)  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not predict and is_overridden("validation_step", model):
                got: Any = trainer.validate(model, dataloaders=first, verbose=False)
            elif not predict and is_overridden("test_step", model):
                got = trainer.test(model, dataloaders=first, verbose=False)
            else:
                trainer.predict(model, dataloaders=first, return_predictions=False)
                got = []
    finally:
        trainer.callbacks.remove(listener)  # type: ignore[attr-defined]
    return listener, {k: float(v) for metrics in got or [] for k, v in metrics.items()}


def audit_trained(
    model: pl.LightningModule,
    trainer: pl.Trainer,
    train_loader: Any,
    val_loader: Any,
    rows: int = 2048,
    epoch: int = 0,
    step: int = 0,
    about: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Reference | None]:
    """Audit a trained model.

    Args:
        model: with its trained weights.
        trainer: that can evaluate.
        train_loader: of the data that it was trained on.
        val_loader: of the validation data, None without.
        rows: of each to look at.
        epoch: of the weights.
        step: of the weights.
        about: further entries of the result.

    Returns:
        The content of audit.json, and the moments of the validation data.
    """
    facts, reference = Facts(), None
    steps = record_evaluation(model, trainer, train_loader, rows)[0].recorder.steps
    if val_loader is not None:
        reference = record_evaluation(model, trainer, val_loader, rows)[0].moments.result()
        facts.validation = reference.moments()
    with trainer.precision_plugin.forward_context():
        snapshot = measure(model, steps, facts, train_mode=True)
    findings = audit(snapshot)
    history = [history_row(snapshot, findings, epoch, step)]
    return result_of(snapshot, findings, history, step=step, epoch=epoch, **(about or {})), reference
