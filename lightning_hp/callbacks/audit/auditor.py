"""`BatchNormAuditor`: the Trainer callback that says whether the BatchNorm layers of a model can be trusted.

It decides *when* to look and whom to tell; what is seen and what it means is decided in `lightning_hp.batchnorm`.

* every `every_n_steps` batches: counters and finiteness; some batches' model calls are recorded for later
(`TrainingWatch`);
* after epochs 1, 2, 4, 8, ... and at the end of training: the data pass over the recorded calls (`measure`), and the
rules;
* around validation and test: update counters, and moments of layer inputs (reference, shift).

Training is never changed with repair off: no random number is drawn, no loader is touched, modes and buffers come back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_hp.batchnorm.buffer_moments import recovered_snapshot
from lightning_hp.batchnorm.findings import Finding, counts
from lightning_hp.batchnorm.measure import measure
from lightning_hp.batchnorm.reference import Reference
from lightning_hp.batchnorm.rules import audit
from lightning_hp.batchnorm.snapshot import Snapshot
from lightning_hp.batchnorm.watch import TrainingWatch
from lightning_hp.callbacks.audit.evaluation_weights import EvaluationWeights
from lightning_hp.callbacks.audit.files import SHIFT_FILE, log_scalars, write_audit
from lightning_hp.callbacks.audit.notifier import REACTIONS, Notifier
from lightning_hp.callbacks.audit.notifier import BatchNormAuditError as BatchNormAuditError
from lightning_hp.callbacks.audit.notifier import BatchNormWarning as BatchNormWarning
from lightning_hp.callbacks.audit.record import empty_result, history_row, result_of, shift_result
from lightning_hp.callbacks.audit.reference import weights_fingerprint
from lightning_hp.callbacks.audit.repair import NOT_VALIDATED, repair_at_end
from lightning_hp.callbacks.audit.shift import EvaluationWatch, informative
from lightning_hp.callbacks.audit.trainer_facts import doubling_epoch, last_epoch, late_averaging, trainer_facts

__all__ = ["BatchNormAuditError", "BatchNormAuditor", "BatchNormWarning"]

log = logging.getLogger("lightning_hp.audit")

_REPAIRS = (None, "end", "validation")


class BatchNormAuditor(Callback):
    """Finds, explains and (on request) repairs faults of layers with running statistics.

    Args:
        every_n_steps: training batches between cheap checks.
        on_finding: "warn" issues one `BatchNormWarning` for findings at WARN or above, "raise" raises
            `BatchNormAuditError` for an ERROR (and warns otherwise), "log" writes to the logger "lightning_hp.audit"
            only.
        recalibrate: None repairs nothing. "end" replaces running statistics after training when they are suspect, and
            keeps that only if validation does not get worse. "validation" replaces them before every validation, so
            that metrics and checkpoints see them.
        rules: ids of the rules to run, None for all.
        thresholds: overrides of `lightning_hp.batchnorm.findings.THRESHOLDS` by name.
        reference: store moments of layer inputs on validation data with the checkpoint, and compare new data with them
            in standalone validate, test and predict runs.
        data_pass: False records nothing and replays nothing: state and counter rules only.
        history: False makes the data pass at the end of training only, not after epochs 1, 2, 4, 8, ...
        max_rows: rows of training data kept for the data pass (memory: their inputs, at most 256 MB).
        dirpath: folder of audit.json; the default is the logger's folder, else the trainer's root. "" writes no files.
        clock: gives the time that a report is dated with, with a time zone; None for the current time.

    Raises:
        ValueError: if an argument is not one of the above.
    """

    def __init__(
        self,
        every_n_steps: int = 10,
        on_finding: str = "warn",
        recalibrate: str | None = None,
        rules: Collection[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
        reference: bool = True,
        data_pass: bool = True,
        history: bool = True,
        max_rows: int = 2048,
        dirpath: str | Path | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"`every_n_steps` must be a positive integer, got {every_n_steps!r}")
        if on_finding not in REACTIONS:
            raise ValueError(f"`on_finding` must be one of {REACTIONS}, got {on_finding!r}")
        if recalibrate not in _REPAIRS:
            raise ValueError(f"`recalibrate` must be one of {_REPAIRS}, got {recalibrate!r}")
        if recalibrate is not None and not data_pass:
            raise ValueError("`data_pass` must be True when `recalibrate` is set, got False")
        if max_rows < 1:
            raise ValueError(f"`max_rows` must be at least 1, got {max_rows!r}")
        audit(Snapshot({}), rules, thresholds)  # rejects unknown ids and names now, not after hours of training
        self.every_n_steps = every_n_steps
        self.on_finding = on_finding
        self.recalibrate = recalibrate
        self.rules = rules
        self.thresholds = dict(thresholds or {})
        self.reference = reference
        self.data_pass = data_pass
        self.history = history
        self.max_rows = max_rows
        self.dirpath = dirpath
        self._clock = clock or (lambda: datetime.now(UTC))
        self._watch: TrainingWatch | None = None
        self._evaluation: EvaluationWatch | None = None
        self._weights: EvaluationWeights | None = None
        self._reference: Reference | None = None
        self._history: list[dict[str, Any]] = []
        self._result: dict[str, Any] = empty_result()
        self._notifier = Notifier(on_finding)
        self._offered: tuple[Reference, str] | None = None
        self._shifted: list[Finding] | None = None
        self._eval_updates: dict[str, int] = {}
        self._pass_error: str | None = None
        self._repairs: list[dict[str, Any]] = []
        self._finished = False
        self._batches: float = 0
        self._last_epoch = False

    def result(self) -> dict[str, Any]:
        """The last audit as plain JSON types, the content of audit.json; no findings and no layers before the first."""
        return self._result

    def counts(self) -> dict[str, int]:
        """Findings of the last audit by severity: INFO, WARN, ERROR."""
        return dict(self._result.get("counts", counts([])))

    def shifted(self) -> list[Finding] | None:
        """What shifted in the validate, test or predict run that is about to end; set in its `on_..._epoch_end`.

        Empty if nothing did, None if that is unknown: no stored moments, fewer than 16 rows, or the very rows that
        the moments were taken from.
        """
        return self._shifted

    def offer(self, reference: Reference, weights: str) -> None:
        """Take stored moments for runs whose checkpoint has none; they are used only if the model has the same weights.

        Args:
            reference: the moments.
            weights: of the model they were taken from, see `audit_reference.weights_fingerprint`.
        """
        self._offered = (reference, weights)

    def state_dict(self) -> dict[str, Any]:
        """Plain types only, so that checkpoints load with `weights_only=True`."""
        return {
            "reference": self._reference.to_dict() if self._reference is not None else {},
            "history": self._history,
            "findings": self._result.get("findings", []),
            "eval_updates": dict(self._eval_updates),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the checkpoint left off; unknown fields of later versions are ignored."""
        self._reference = Reference.from_dict(state_dict["reference"]) if state_dict.get("reference") else None
        self._history = list(state_dict.get("history", []))
        self._eval_updates = {str(k): int(v) for k, v in state_dict.get("eval_updates", {}).items()}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers: here and not in setup, because strategies convert them (SyncBatchNorm) in between."""
        self._finished = False
        self._begin(trainer, pl_module)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A compiled LightningModule traces its whole training step: hooks must stay away from it.
        compiled = getattr(pl_module, "_compiler_ctx", None) is not None
        self._watch = TrainingWatch(pl_module, self.every_n_steps, self.data_pass, self.max_rows, hooks=not compiled)
        self._weights = EvaluationWeights(pl_module, self._watch, self._repairs)
        self._evaluation = EvaluationWatch(pl_module, self.reference, self.max_rows)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the length of the epoch, and whether it is the last."""
        self._batches, self._last_epoch = trainer.num_training_batches, last_epoch(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Decide whether this batch is recorded."""
        if self._watch is not None and self._watch.wants(batch_idx, self._last_epoch):
            self._watch.before_batch(batch_idx, self._batches, self._last_epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and check every `every_n_steps` batches."""
        watch = self._watch
        if watch is None:
            return
        if not watch.layers:
            if batch_idx == 0 and trainer.current_epoch == 0:  # lazy layers have their shapes only now
                self._begin(trainer, pl_module)
            return
        if self._weights is not None:
            self._weights.after_batch(trainer, batch_idx)
        if watch.after_batch(trainer.global_step):
            self._tell(trainer, self._audit(trainer, Snapshot(watch.states(), facts=watch.facts())), early=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After epochs 1, 2, 4, 8, ...: the data pass, for the history."""
        if self._idle() or not self.history or not doubling_epoch(trainer):
            return
        snapshot = self._measure(trainer, pl_module)
        findings = self._audit(trainer, snapshot)
        self._history.append(history_row(snapshot, findings, trainer.current_epoch, trainer.global_step))
        log_scalars(trainer, self._history)
        self._result = self._describe(trainer, snapshot, findings)
        self._tell(trainer, findings, early=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The verdict on the final weights, and the repair."""
        if not late_averaging(trainer, self):
            self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same verdict and repair, where a weight averaging callback comes after this one."""
        self._finish(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take every hook off; explain the one exception that BatchNorm raises itself."""
        if self._watch is not None:
            self._watch.abandon()
        if self._evaluation is not None:
            self._evaluation.abandon()
        if self._weights is not None:
            self._weights.release()
        if "more than 1 value per channel" in str(exception):
            log.error("BN13: a training batch had a single row. Use DataLoader(drop_last=True) or another batch size.")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Drop the reference to the model."""
        self._watch = self._evaluation = self._weights = None

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._idle() or self._finished:
            return
        self._finished = True
        assert self._watch is not None
        snapshot = self._measure(trainer, pl_module)
        findings = self._audit(trainer, snapshot)
        self._history.append(history_row(snapshot, findings, trainer.current_epoch, trainer.global_step))
        if self.recalibrate == "end" and self._watch.steps:
            elsewhere = self._weights is not None and self._weights.elsewhere()
            with trainer.precision_plugin.forward_context():
                done = NOT_VALIDATED if elsewhere else repair_at_end(pl_module, self._watch, self._evaluation, findings)
            if done is not None:
                self._repairs.append(done)
        log_scalars(trainer, self._history)
        self._result = self._describe(trainer, snapshot, findings)
        write_audit(trainer, self.dirpath, self._result, self._reference)
        self._tell(trainer, findings, early=False)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note counters, prepare the reference."""
        self._evaluation_start(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Repair (if asked for) before the first batch; collect input moments."""
        first = batch_idx == 0 and dataloader_idx == 0 and not trainer.sanity_checking
        if first and self._weights is not None:
            # Here, not at on_validation_start: other weights have been swapped in by now.
            due = self._last_epoch or (self.history and doubling_epoch(trainer))
            self._weights.before_validation(trainer, self.recalibrate == "validation", due)
        self._evaluation_batch(trainer, batch)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Collect input moments."""
        self._evaluation_batch(trainer, batch)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Take the hooks of the batch off."""
        if self._evaluation is not None:
            self._evaluation.after_batch()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare input moments with the stored ones in a standalone run: before the `on_..._end` of any callback."""
        self._compare(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare counters; keep the reference of a fit."""
        self._evaluation_end(trainer)

    on_test_start = on_predict_start = on_validation_start
    on_predict_batch_start = on_test_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end
    on_test_end = on_predict_end = on_validation_end

    def _evaluation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._evaluation is None or self._evaluation.model is not pl_module:
            self._evaluation = EvaluationWatch(pl_module, self.reference, self.max_rows)
        if self._watch is not None and self._weights is not None:
            self._watch.count(modes=False)
            if trainer.state.fn == "fit" and not trainer.sanity_checking:
                self._weights.at_start(trainer)
        self._shifted = None
        standalone = trainer.state.fn != "fit"
        if standalone and self._reference is None and self._offered is not None:
            reference, weights = self._offered
            if weights_fingerprint(pl_module.state_dict()) == weights:
                self._reference = reference
        self._evaluation.start(record=standalone and self._reference is not None, raw=self.recalibrate == "end")

    def _evaluation_batch(self, trainer: pl.Trainer, batch: Any) -> None:
        if self._evaluation is not None and not trainer.sanity_checking:
            self._evaluation.before_batch(batch)

    def _compare(self, trainer: pl.Trainer) -> None:
        evaluation = self._evaluation
        if trainer.state.fn == "fit" or not self.reference or evaluation is None or not evaluation.layers:
            return
        evaluation.after_batch()
        with trainer.precision_plugin.forward_context():
            findings, shifts = evaluation.shift(self._reference, self.thresholds)
        if self.rules is not None:
            findings = [finding for finding in findings if finding.id in self.rules]
        findings, reliable = trainer.strategy.broadcast((findings, informative(shifts, self._reference)), src=0)
        self._shifted = findings if reliable else None
        about = {"created_at": self._clock().isoformat(), "history": self._history}
        self._result = shift_result(findings, shifts, reliable, **about)
        if shifts:
            write_audit(trainer, self.dirpath, self._result, None, SHIFT_FILE)
        self._tell(trainer, findings, early=False)

    def _evaluation_end(self, trainer: pl.Trainer) -> None:
        evaluation = self._evaluation
        if evaluation is None or not evaluation.layers:
            return
        for name, grown in evaluation.updates().items():
            if grown:
                self._eval_updates[name] = self._eval_updates.get(name, 0) + grown
        if self._watch is not None:
            self._watch.resync()
        if trainer.state.fn == "fit" and self.reference and not trainer.sanity_checking:
            self._reference = evaluation.moments()

    def _idle(self) -> bool:
        return self._watch is None or not self._watch.layers

    def _measure(self, trainer: pl.Trainer, model: nn.Module) -> Snapshot:
        """The data pass; a model that cannot be replayed is judged on recovered moments, never an exception."""
        watch = self._watch
        assert watch is not None
        facts = trainer_facts(trainer, watch, self._eval_updates)
        if self._reference is not None:
            facts.validation = self._reference.moments()
        if not self.data_pass:
            return Snapshot(watch.states(), facts=facts)
        other = self._weights.judged(facts) if self._weights is not None else None
        if other is not None:
            return other
        if watch.recorder is not None:
            try:
                with trainer.precision_plugin.forward_context():
                    return measure(model, watch.steps, facts, watch.training)
            except Exception as error:
                if trainer.world_size > 1:  # the other ranks wait in a collective: failing loudly beats hanging
                    raise
                self._pass_error = f"{type(error).__name__}: {error}"
                log.warning(
                    "The recorded calls could not be replayed (%s); outputs were not compared.", self._pass_error
                )
        return recovered_snapshot(model, watch.recovered, facts, watch.training)

    def _audit(self, trainer: pl.Trainer, snapshot: Snapshot) -> list[Finding]:
        # Rank zero's buffers are the ones that DDP broadcasts and that are saved, so its verdict is the verdict.
        return trainer.strategy.broadcast(audit(snapshot, self.rules, self.thresholds), src=0)

    def _describe(self, trainer: pl.Trainer, snapshot: Snapshot, findings: list[Finding]) -> dict[str, Any]:
        return result_of(
            snapshot,
            findings,
            self._history,
            created_at=self._clock().isoformat(),
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            rows=self._watch.recorder.rows if self._watch is not None and self._watch.recorder is not None else 0,
            repairs=self._repairs,
            pass_error=self._pass_error,
        )

    def _tell(self, trainer: pl.Trainer, findings: list[Finding], early: bool) -> None:
        self._notifier.tell(findings, early, trainer.is_global_zero)
