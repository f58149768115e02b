"""Tells at the start of a fit whether the hyperparameters are still the right ones, and keeps the ledger informed.

The tracker compares the model, the training data and the hyperparameters of the run with the last record of a ledger
and says one line. What it finds is appended to the ledger, so that ``lightning-hp status`` knows it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn  # type: ignore[attr-defined]

from lightning_hp.batchnorm.findings import THRESHOLDS, Finding
from lightning_hp.batchnorm.reference import Reference
from lightning_hp.callbacks.audit.auditor import BatchNormAuditor
from lightning_hp.callbacks.audit.reference import read_reference
from lightning_hp.ledger import dates, records
from lightning_hp.ledger.changes import Change, merge_columns, summarise_changes
from lightning_hp.ledger.fingerprint import Tolerance, compare_fingerprints, data_fingerprint, model_fingerprint

ACTIONS = ("warn", "raise", "log")
#: A check that finds nothing new is written at most this often, so that frequent fits do not fill the ledger.
_QUIET = timedelta(days=1)
#: Findings of one check that are written, worst first.
_KEPT = 10

ShiftTest = Callable[[pl.Trainer, pl.LightningModule], Sequence[str] | None]


class StalenessTracker(pl.Callback):
    """Say at fit start whether the tuning of this model is fresh, due, stale or invalid.

    At fit start: one line, the dates into the loggers (``staleness/...``) and into every checkpoint (ISO 8601 text).
    The training data is read once, at most ``max_rows`` rows, in the main process and without changing the random
    state. Under several processes rank 0 reads and writes, and all act on its verdict.

    With a :class:`.BatchNormAuditor` among the Trainer's callbacks, before or after this one, ``Trainer.validate``,
    ``test`` and ``predict`` are shift checks: of the inputs of BatchNorm layers against the moments that the auditor
    stored in the loaded checkpoint, or else against those that the ledger's record names, if they are of the very same
    weights. Two shifted checks in a row make the record due.

    Leave it out of the trials of a study: their values differ from the recorded ones on purpose.

    Attributes:
        verdict: The verdict of the last check, or None.
        restored: The verdict in the loaded checkpoint, or an empty mapping.

    Args:
        ledger: The ledger file.
        name: Which name of the ledger; None where it holds only one.
        on_stale: What to do unless fresh: ``warn``, ``raise`` (RuntimeError) or ``log``. Without a record the
            line is logged as information in any case.
        max_rows: Most training rows to look at; 0 leaves the data alone.
        tolerance: How far the data may move.
        shift: Your own shift test, used instead of the auditor's. After each evaluation it is called with Trainer and
            module, and returns a list with one sentence for each thing that shifted: empty if nothing did, None if it
            cannot tell. It is called in every process; the answer of rank 0 counts.
        clock: Returns the time, with a time zone.

    Raises:
        ValueError: If an argument is not what it must be.
    """

    def __init__(
        self,
        ledger: str | Path = records.FILE_NAME,
        name: str | None = None,
        on_stale: str = "warn",
        max_rows: int = 2048,
        tolerance: Tolerance | None = None,
        shift: ShiftTest | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        if on_stale not in ACTIONS:
            raise ValueError(f"`on_stale` must be one of {', '.join(ACTIONS)}, got {on_stale!r}")
        if isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 0 or max_rows == 1:
            raise ValueError(f"`max_rows` must be 0 or a whole number from 2, got {max_rows!r}")
        self.ledger = Path(ledger)
        self.name = name
        self.on_stale = on_stale
        self.max_rows = max_rows
        self.tolerance = tolerance or Tolerance()
        self.shift = shift
        self.clock = clock or (lambda: datetime.now(UTC))
        self.verdict: dates.Verdict | None = None
        self.restored: dict[str, Any] = {}
        self._no_moments = ""

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint; it holds the name, so that several trackers do not collide."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Offer the auditor the moments that the ledger names, before any callback's first hook of a run."""
        auditor = _auditor(trainer)
        if stage == "fit" or self.shift is not None or auditor is None:
            return
        moments, why = None, ""
        if trainer.is_global_zero:
            try:
                moments = self._named_moments()
            except Exception as error:  # as in `on_train_start`
                why = str(error)
        moments, self._no_moments = trainer.strategy.broadcast((moments, why))
        if moments is not None:
            auditor.offer(*moments)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the ledger and report one line.

        Raises:
            RuntimeError: With ``on_stale="raise"``, in every process, unless the record is fresh.
        """
        verdict, line, failed = None, "", False
        if trainer.is_global_zero:
            # whatever the data set may raise: an exception here would leave the other processes waiting
            try:
                verdict, line = self._check_fit(trainer, pl_module)
                failed = verdict.status not in ("fresh", "untuned") or bool(line)
                line = self._sentence(verdict, line)
            except Exception as error:
                failed, line = True, _unknown(error)
        self.verdict, line, failed = trainer.strategy.broadcast((verdict, line, failed))
        self._act(line, failed)
        if self.verdict is not None:
            self._log(trainer, self.verdict)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask the shift test after ``Trainer.validate``; not within a fit."""
        if trainer.state.fn == "validate":
            self._check_shift(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask the shift test."""
        self._check_shift(trainer, pl_module)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask the shift test."""
        self._check_shift(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The last verdict in JSON types, which load with ``weights_only=True``."""
        return {} if self.verdict is None else self.verdict.to_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the verdict of the checkpoint in ``restored``; the next check does not use it."""
        self.restored = dict(state_dict)

    def record_shift(self, findings: Sequence[str], write: bool = True) -> dates.Verdict:
        """Enter one check of the reference moments in the ledger, and judge again.

        Args:
            findings: What shifted, a sentence each; empty if nothing did.
            write: False leaves the ledger alone.

        Raises:
            ValueError: If the ledger cannot be read or holds no such name.
        """
        ledger = records.read(self.ledger)
        name = self._name_in(ledger)
        now = self.clock()
        if ledger.latest(name) is not None and write:
            self._enter(ledger, name, "moments", [Change(sentence) for sentence in findings], False, now)
            ledger = records.read(self.ledger)
        self.verdict = dates.verdict(ledger.of(name), now, tolerance=self.tolerance)
        return self.verdict

    def _named_moments(self) -> tuple[Reference, str] | None:
        """The moments that the record names and the fingerprint of their weights; None where it names none."""
        ledger = records.read(self.ledger)
        record = ledger.latest(self._name_in(ledger))
        if record is None or not record.get("reference_moments"):
            return None
        return read_reference(self.ledger.parent / record["reference_moments"])

    def _check_shift(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        auditor = _auditor(trainer)
        if trainer.sanity_checking or (self.shift is None and auditor is None):
            return
        findings: Sequence[str] | None
        if self.shift is not None:
            findings = self.shift(trainer, pl_module)
        else:
            assert auditor is not None
            shifted = auditor.shifted()
            loop = trainer.state.fn.value if trainer.state.fn is not None else ""
            findings = None if shifted is None else [_shift_text(one, loop) for one in shifted]
            if shifted is None and self._no_moments:
                rank_zero_warn(f"no shift check: {self._no_moments}")
        found: dates.Verdict | None = None
        line, failed = "", False
        if trainer.is_global_zero and findings is not None:
            try:
                found = self.record_shift(findings, write=not trainer.fast_dev_run)  # type: ignore[attr-defined]
                failed = bool(findings) or found.status not in ("fresh", "untuned")
                text = summarise_changes([Change(sentence) for sentence in findings])
                line = self._sentence(found, "" if text in found.reason else f"shifted: {text}")
            except Exception as error:
                failed, line = True, _unknown(error)
        verdict, line, failed = trainer.strategy.broadcast((found, line, failed))
        if line:
            self.verdict = verdict or self.verdict
            self._act(line, failed)

    def _check_fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[dates.Verdict, str]:
        """The verdict on this run, and in what its hyperparameters differ from the record."""
        ledger = records.read(self.ledger)
        name, now = self._name_in(ledger), self.clock()
        events = ledger.of(name)
        record = ledger.latest(name)
        if record is None:
            return dates.verdict(events, now), ""
        before = dates.verdict(events, now)  # a clock in the past is found before anything is read or written
        current: dict[str, Any] = {"model": model_fingerprint(pl_module)}
        reference = _reference(events)
        if self.max_rows and "data" in reference and trainer.train_dataloader is not None:
            current["data"] = data_fingerprint(trainer.train_dataloader, max_rows=self.max_rows)
        verdict = dates.verdict(events, now, current, self.tolerance) if current else before
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._enter_checks(ledger, name, reference, current, now)
        return verdict, _differences(record, _hyperparameters(trainer, pl_module))

    def _enter_checks(
        self,
        ledger: records.Ledger,
        name: str,
        reference: Mapping[str, Any],
        current: Mapping[str, Any],
        now: datetime,
    ) -> None:
        if "model" in reference:
            was, now_is = reference["model"], current["model"]
            changed = [] if was == now_is else [Change(f"model changed: was {was}, is {now_is}")]
            self._enter(ledger, name, "model", changed, True, now)
        if "data" in current:
            drifts = compare_fingerprints(reference["data"], current["data"], self.tolerance)
            structural = any(drift.structural for drift in drifts)
            self._enter(ledger, name, "data", [drift.change for drift in drifts], structural, now)

    def _enter(
        self, ledger: records.Ledger, name: str, kind: str, changes: list[Change], structural: bool, now: datetime
    ) -> None:
        if changes:
            merged = changes if len(changes) <= _KEPT else merge_columns(changes)
            kept = merged[:_KEPT]
            if len(merged) > _KEPT:
                kept.append(Change(f"and {len(merged) - _KEPT} more"))
            event = records.drifted(name=name, kind=kind, changes=kept, structural=structural, now=now)
        else:
            last = next((record for record in reversed(ledger.of(name)) if record.get("kind") == kind), None)
            if last is not None and last["event"] == "checked" and now - dates.from_text(last["at"]) < _QUIET:
                return
            event = records.checked(name=name, kind=kind, now=now)
        records.append(self.ledger, event)

    def _name_in(self, ledger: records.Ledger) -> str:
        if self.name is not None:
            return self.name
        if len(ledger.names) > 1:
            raise ValueError(f"`name` must be one of {', '.join(ledger.names)} of {self.ledger}, got None")
        return ledger.names[0] if ledger.names else ""

    def _sentence(self, verdict: dates.Verdict, more: str) -> str:
        reason = "never tuned: " + verdict.reason if verdict.status == "untuned" else verdict.reason
        status = {"due": "re-test due: ", "stale": "stale: ", "invalid": "invalid: "}.get(verdict.status, "")
        status = "" if reason.startswith(("due", "stale")) else status
        text = f"hyperparameters of {verdict.name or self.name or 'this model'} {status}{reason}"
        text += f"; {more}" if more else ""
        return text if verdict.status == "fresh" else f"{text} (do: {verdict.todo})"

    def _act(self, line: str, failed: bool) -> None:
        if failed and self.on_stale == "raise":
            raise RuntimeError(line)
        if failed and self.on_stale == "warn":
            rank_zero_warn(line)
        else:
            rank_zero_info(line)

    def _log(self, trainer: pl.Trainer, verdict: dates.Verdict) -> None:
        if verdict.next_date is None or verdict.age is None:
            return
        days = timedelta(days=1)
        metrics = {
            "staleness/age_days": verdict.age / days,
            "staleness/days_left": (verdict.next_date - self.clock()) / days,
        }
        texts = {f"staleness/{key}": value for key, value in verdict.to_dict().items() if isinstance(value, str)}
        for logger in trainer.loggers:
            logger.log_hyperparams(texts)
            logger.log_metrics(metrics, step=trainer.global_step)


def _auditor(trainer: pl.Trainer) -> BatchNormAuditor | None:
    callbacks: Sequence[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, BatchNormAuditor)), None)


def _shift_text(finding: Finding, loop: str) -> str:
    """A finding of the shift test, short enough for a table: where, how far, and on how many rows of which loop."""
    numbers = finding.numbers
    if finding.id != "DR01":
        return f"{numbers['disagreement']:.0%} of the predictions change with the statistics of the new data"
    moved = {"mean by {:.2f} sd": (numbers["d"], "shift_mean"), "log variance by {:.2f}": (numbers["lv"], "shift_var")}
    large = [text.format(value) for text, (value, limit) in moved.items() if value > THRESHOLDS[limit].value]
    parts = large or [text.format(value) for text, (value, _) in moved.items()]
    return f"input of {finding.layer}: {', '.join(parts)} ({numbers['rows']:,.0f} rows of {loop})"


def _unknown(error: Exception) -> str:
    kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
    return f"staleness unknown: {kind}{error}"


def _reference(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fingerprints to compare with: those of the last tuning, renewed by a re-test that confirmed it."""
    reference: dict[str, Any] = {}
    for record in events:
        if record["event"] in ("tuned", "retuned"):
            reference = dict(record["fingerprints"])
        elif record["event"] == "retested" and record["outcome"] == "confirmed":
            reference |= record["fingerprints"]
    return reference


def _hyperparameters(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """What model and DataModule saved with ``save_hyperparameters``, the model's first."""
    hyperparameters = dict(getattr(trainer.datamodule, "hparams", None) or {})  # type: ignore[attr-defined]
    return {**hyperparameters, **dict(pl_module.hparams)}


def _differences(record: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The hyperparameters that differ from the tuned ones, as one line; the last parts of paths are compared."""
    texts = []
    for values in record["hyperparameters"].values():
        for name, tuned in values.items():
            key = name.rsplit(".", 1)[-1]
            if key in run and not _same(run[key], tuned):
                texts.append(f"{key} is {run[key]!r}, tuned was {tuned!r}")
    return f"other values than tuned: {summarise_changes([Change(text) for text in texts], most=3)}" if texts else ""


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(map(_same, one, two))
    if isinstance(one, (int, float)) and isinstance(two, (int, float)):
        return math.isclose(one, two, rel_tol=1e-6, abs_tol=0.0)
    return bool(one == two)
