"""`lightning-hp audit` and `lightning-hp recalibrate`: a checkpoint of any LightningCLI project, looked at offline.

The project's own `validation_step` feeds the model: it is run over training batches, the model calls inside are
recorded, and the data pass replays them. Nothing of the project is imported but what its configuration names.
Checkpoints are loaded with `weights_only=True`; the repaired one is written beside the original, which is never
changed.

Exit codes: 0 no errors found, 1 something failed, 2 wrong usage, 4 the audit has findings at ERROR.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_hp.batchnorm.findings import Finding, counts
from lightning_hp.batchnorm.measure import measure
from lightning_hp.batchnorm.observe import CallRecorder, Step
from lightning_hp.batchnorm.recalibrate import population_statistics, recalibrate
from lightning_hp.batchnorm.reference import InputMoments, Reference, absorption, compare, shift_findings
from lightning_hp.batchnorm.rules import audit
from lightning_hp.batchnorm.snapshot import Facts
from lightning_hp.batchnorm.statistics import find_layers
from lightning_hp.callbacks.audit_files import REFERENCE_FILE
from lightning_hp.callbacks.audit_record import SCHEMA, history_row, result_of, table_of
from lightning_hp.tuning.build import Built, CliBuilder, quiet
from lightning_hp.tuning.config import ConfigError

__all__ = ["audit_command", "recalibrate_command"]

OK, FAILED, USAGE, HAS_ERRORS = 0, 1, 2, 4
SPLITS = ("train", "val", "test", "predict")


class _UsageError(Exception):
    """A wrong argument; its text goes to the user."""


class _First:
    """The first batches of a loader, as a loader."""

    def __init__(self, loader: Any, batches: int) -> None:
        self.loader, self.batches = loader, batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.batches)


class _Listener(pl.Callback):
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


@dataclass
class _Project:
    """A project built from its configuration, with the checkpoint in the model."""

    model: pl.LightningModule
    data: pl.LightningDataModule | None
    trainer: pl.Trainer
    checkpoint: dict[str, Any]
    missing: list[str]

    def loader(self, split: str) -> Any:
        """The loader of a split; a list of loaders gives its first."""
        source: Any = self.data if self.data is not None else self.model
        if self.data is not None:
            self.data.trainer = self.trainer
            self.data.prepare_data()
            self.data.setup({"train": "fit", "val": "validate"}.get(split, split))
        name = f"{split}_dataloader"
        if not hasattr(source, name):
            raise _UsageError(f"`shift` must be a split that the data has, got {split!r}")
        made = getattr(source, name)()
        return made[0] if isinstance(made, (list, tuple)) else made

    def run(self, loader: Any, rows: int, predict: bool = False) -> tuple[_Listener, dict[str, float]]:
        """Run the project's evaluation over (at most) `rows` rows of a loader; also returns its metrics."""
        listener = _Listener(self.model, rows)
        size = getattr(loader, "batch_size", None) or 32
        first = _First(loader, max(1, -(-rows // size)))
        self.trainer.callbacks.append(listener)  # type: ignore[attr-defined]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if not predict and is_overridden("validation_step", self.model):
                    got: Any = self.trainer.validate(self.model, dataloaders=first, verbose=False)
                elif not predict and is_overridden("test_step", self.model):
                    got = self.trainer.test(self.model, dataloaders=first, verbose=False)
                else:
                    self.trainer.predict(self.model, dataloaders=first, return_predictions=False)
                    got = []
        finally:
            self.trainer.callbacks.remove(listener)  # type: ignore[attr-defined]
        return listener, {k: float(v) for metrics in got or [] for k, v in metrics.items()}

    def reference(self, checkpoint_path: Path) -> Reference | None:
        """The stored validation moments: of the auditor's state in the checkpoint, else the file beside it."""
        for state in (self.checkpoint.get("callbacks") or {}).values():
            if isinstance(state, dict) and state.get("reference"):
                return Reference.from_dict(state["reference"])
        for folder in (checkpoint_path.parent, checkpoint_path.parent.parent):
            if (folder / REFERENCE_FILE).is_file():
                content = json.loads((folder / REFERENCE_FILE).read_text(encoding="utf-8"))
                return Reference.from_dict(content["layers"])
        return None


def audit_command(
    config: str | Path,
    ckpt: str | Path,
    data: Sequence[str] | None = None,
    json: bool = False,
    shift: str | None = None,
    html: str | Path | None = None,
    rows: int = 2048,
    cli: str | None = None,
) -> int:
    """Audit a checkpoint and say what was found on standard output.

    Args:
        config: the project's LightningCLI file.
        ckpt: a checkpoint of it.
        data: replacements in the configuration, "data.init_args.path=new.csv", to audit on other data.
        json: write the content of audit.json instead of a table.
        shift: "val", "test" or "predict": only compare that split with the stored validation moments.
        html: also write a self-contained page there.
        rows: rows of data to look at.
        cli: class path of the project's LightningCLI subclass, if it has one.

    Returns:
        Exit code: 0, 1 on failure, 2 on wrong usage, 4 if there are findings at ERROR.
    """
    return _guarded(lambda folder: _audit(Path(config), Path(ckpt), data or (), json, shift, html, rows, cli, folder))


def recalibrate_command(
    config: str | Path,
    ckpt: str | Path,
    output: str | Path | None = None,
    data: Sequence[str] | None = None,
    monitor: str = "val_loss",
    mode: str = "min",
    rows: int = 8192,
    json: bool = False,
    cli: str | None = None,
) -> int:
    """Write a checkpoint with exact statistics beside the original, if validation does not get worse.

    Args:
        config: the project's LightningCLI file.
        ckpt: a checkpoint of it; it is not changed.
        output: path of the new checkpoint; the default adds "-recalibrated" to the name.
        data: replacements in the configuration.
        monitor: metric that decides; if it is not logged, the first one with "loss" in its name does.
        mode: "min" or "max".
        rows: training rows for the statistics (Wu & Johnson 2021: 1,000 to 10,000).
        json: write the result as JSON.
        cli: class path of the project's LightningCLI subclass, if it has one.

    Returns:
        Exit code: 0 (also when nothing was written because validation got worse), 1 on failure, 2 on wrong usage.
    """
    if mode not in ("min", "max"):
        return _say_error(f"`mode` must be 'min' or 'max', got {mode!r}", USAGE)
    target = Path(output) if output else Path(ckpt).with_name(f"{Path(ckpt).stem}-recalibrated{Path(ckpt).suffix}")
    return _guarded(
        lambda folder: _recalibrate(
            Path(config), Path(ckpt), target, data or (), monitor, mode, rows, json, cli, folder
        )
    )


def _guarded(work: Any) -> int:
    try:
        with tempfile.TemporaryDirectory() as folder, quiet():
            return int(work(Path(folder)))
    except (_UsageError, ConfigError) as error:
        return _say_error(str(error), USAGE)
    except Exception as error:
        return _say_error(f"{type(error).__name__}: {error}", FAILED)


def _say_error(text: str, code: int) -> int:
    sys.stderr.write(f"error: {text}\n")
    return code


def _open(config: Path, ckpt: Path, replacements: Iterable[str], cli: str | None, folder: Path) -> _Project:
    for path, name in ((config, "config"), (ckpt, "ckpt")):
        if not path.is_file():
            raise _UsageError(f"`{name}` must be a file, got {str(path)!r}")
    values: dict[str, Any] = {"trainer.callbacks": None, "trainer.devices": 1}
    for replacement in replacements:
        key, found, value = replacement.partition("=")
        if not found:
            raise _UsageError(f"`data` must hold key=value, got {replacement!r}")
        values[key.removeprefix("--")] = value
    built = CliBuilder(config=config, cli=cli).build(values, folder, seed=0)
    checkpoint = torch.load(ckpt, map_location="cpu", weights_only=True)
    if "state_dict" not in checkpoint:
        raise _UsageError(f"`ckpt` must be a Lightning checkpoint with a 'state_dict', got {str(ckpt)!r}")
    built.model.on_load_checkpoint(checkpoint)
    if not set(checkpoint["state_dict"]) & set(built.model.state_dict()):
        _build_late(built)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    result = built.model.load_state_dict(checkpoint["state_dict"], strict=False)
    # Missing statistics are a finding (BN02), not a failure; anything else means that the file and the model do not
    # fit.
    wrong = [key for key in result.missing_keys if not key.endswith(statistics)] + list(result.unexpected_keys)
    if wrong:
        raise _UsageError(f"`ckpt` must fit the model of {config}, got other keys: {', '.join(wrong[:5])}")
    return _Project(built.model, built.data, built.trainer, checkpoint, list(result.missing_keys))


def _build_late(built: Built) -> None:
    """What a fit does before its first step, for models that make their layers only then."""
    built.model.trainer = built.trainer
    if built.data is not None:
        built.trainer._data_connector.attach_datamodule(built.model, built.data)  # makes `trainer.datamodule` known
        built.data.prepare_data()
        built.data.setup("fit")
    built.model.setup("fit")
    built.model.configure_model()


def _audit(
    config: Path,
    ckpt: Path,
    replacements: Sequence[str],
    as_json: bool,
    shift: str | None,
    html: str | Path | None,
    rows: int,
    cli: str | None,
    folder: Path,
) -> int:
    if shift is not None and shift not in SPLITS:
        raise _UsageError(f"`shift` must be one of {SPLITS}, got {shift!r}")
    project = _open(config, ckpt, replacements, cli, folder)
    about: dict[str, Any] = {"created_at": datetime.now(UTC).isoformat(), "checkpoint": ckpt.name}
    if shift is not None:
        result = _shift(project, ckpt, shift, rows, about)
    else:
        steps = project.run(project.loader("train"), rows)[0].recorder.steps
        facts = Facts()
        with contextlib.suppress(_UsageError):
            facts.validation = project.run(project.loader("val"), rows)[0].moments.result().moments()
        with project.trainer.precision_plugin.forward_context():
            snapshot = measure(project.model, steps, facts, train_mode=True)
        findings = audit(snapshot)
        history = [history_row(snapshot, findings, int(project.checkpoint.get("epoch", 0)), _step(project))]
        result = result_of(snapshot, findings, history, missing=project.missing, step=_step(project), **about)
    if html is not None:
        from lightning_hp.dashboard.audit_page import audit_page  # plotly loads only when a page is wanted

        Path(html).write_text(audit_page(result), encoding="utf-8")
    sys.stdout.write(_as_text(result, as_json))
    return HAS_ERRORS if result["counts"]["ERROR"] else OK


def _step(project: _Project) -> int:
    return int(project.checkpoint.get("global_step", 0))


def _as_text(result: dict[str, Any], as_json: bool) -> str:
    return json.dumps(result, indent=1) + "\n" if as_json else table_of(result)


def _shift(project: _Project, ckpt: Path, split: str, rows: int, about: dict[str, Any]) -> dict[str, Any]:
    reference = project.reference(ckpt)
    if reference is None:
        raise _UsageError(
            f"`shift` needs the validation moments that BatchNormAuditor stores in the checkpoint or in "
            f"{REFERENCE_FILE}, "
            f"got none for {ckpt.name}"
        )
    listener, metrics = project.run(project.loader(split), rows, predict=split == "predict")
    shifts = compare(reference, listener.moments.result())
    with project.trainer.precision_plugin.forward_context():
        disagreement = absorption(project.model, listener.recorder.steps)
    findings: list[Finding] = shift_findings(shifts, disagreement)
    return {
        "schema": SCHEMA,
        **about,
        "counts": counts(findings),
        "findings": [finding.to_dict() for finding in findings],
        "layers": [],
        "history": [],
        "metrics": metrics,
        "shift": [asdict(one) for one in shifts],
    }


def _recalibrate(
    config: Path,
    ckpt: Path,
    target: Path,
    replacements: Sequence[str],
    monitor: str,
    mode: str,
    rows: int,
    as_json: bool,
    cli: str | None,
    folder: Path,
) -> int:
    project = _open(config, ckpt, replacements, cli, folder)
    if not find_layers(project.model):
        raise _UsageError("`ckpt` must hold a model with running statistics, got one without")
    steps: list[Step] = project.run(project.loader("train"), rows)[0].recorder.steps
    everything = 2**31
    before = project.run(project.loader("val"), everything)[1]
    with project.trainer.precision_plugin.forward_context():
        if not population_statistics(project.model, steps[:1]):
            raise _UsageError("`config` must describe a model whose evaluation calls its BatchNorm layers")
        written = recalibrate(project.model, steps)
    after = project.run(project.loader("val"), everything)[1]
    name = monitor if monitor in after else next((key for key in after if "loss" in key), None)
    worse = name is not None and (after[name] > before[name] if mode == "min" else after[name] < before[name])
    record = {
        "layers": list(written),
        "monitor": name,
        "before": before,
        "after": after,
        "written": None if worse else str(target),
        "recalibrated_at": datetime.now(UTC).isoformat(),
    }
    if not worse:
        state = project.model.state_dict()
        project.checkpoint["state_dict"] = {**project.checkpoint["state_dict"], **state}
        project.checkpoint["lightning_hp_recalibrated"] = {
            key: value for key, value in record.items() if key != "written"
        }
        part = target.with_name(f".{target.name}.part")
        torch.save(project.checkpoint, part)
        os.replace(part, target)
    if as_json:
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
    else:
        lines = [f"{key}: {before[key]:.5g} -> {after[key]:.5g}" for key in before if key in after]
        told = f"worse by {name}: nothing was written" if worse else f"written: {target}"
        sys.stdout.write("\n".join([*lines, told]) + "\n")
    return OK
