"""`lightning-hp audit`: the BatchNorm layers of a checkpoint of any LightningCLI project, looked at offline.

Exit codes: 0 no errors found, 1 something failed, 2 wrong usage, 4 the audit has findings at ERROR.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_hp.batchnorm.findings import Finding
from lightning_hp.batchnorm.measure import measure
from lightning_hp.batchnorm.reference import absorption, layer_shifts, shift_findings
from lightning_hp.batchnorm.rules import audit
from lightning_hp.batchnorm.snapshot import Facts
from lightning_hp.callbacks.audit.files import REFERENCE_FILE
from lightning_hp.callbacks.audit.record import history_row, result_of, shift_result, table_of
from lightning_hp.callbacks.audit.shift import informative
from lightning_hp.commands.checkpointed_project import CheckpointedProject, UsageError, exit_code_of, open_project

OK, HAS_ERRORS = 0, 4
SPLITS = ("train", "val", "test", "predict")


def audit_verb(options: Namespace) -> int:
    """Audit a checkpoint; the exit code says whether there are errors."""
    return audit_command(
        options.config,
        options.ckpt,
        data=options.data or (),
        json=options.json,
        shift=options.shift,
        html=options.html,
        cli=options.cli_class,
        model=options.model_class,
        data_class=options.data_class,
    )


def audit_command(
    config: str | Path,
    ckpt: str | Path,
    data: Sequence[str] | None = None,
    json: bool = False,
    shift: str | None = None,
    html: str | Path | None = None,
    rows: int = 2048,
    cli: str | None = None,
    model: str | None = None,
    data_class: str | None = None,
) -> int:
    """Audit a checkpoint and print the findings to standard output.

    Args:
        config: the project's LightningCLI file.
        ckpt: a checkpoint of it.
        data: replacements in the configuration, "data.init_args.path=new.csv", to audit on other data.
        json: write the content of audit.json instead of a table.
        shift: "val", "test" or "predict": only compare that split with the stored validation moments.
        html: also write a self-contained page there.
        rows: rows of data to look at.
        cli: the project's own LightningCLI: class path, path of a function, or script.
        model: class path, for files that name no model class.
        data_class: class path, for files that name no data class.

    Returns:
        Exit code: 0, 1 on failure, 2 on wrong usage, 4 if there are findings at ERROR.
    """
    classes = {"model": model, "data": data_class, "cli": cli}
    return exit_code_of(
        lambda folder: _audit(Path(config), Path(ckpt), data or (), json, shift, html, rows, classes, folder)
    )


def _audit(
    config: Path,
    ckpt: Path,
    replacements: Sequence[str],
    as_json: bool,
    shift: str | None,
    html: str | Path | None,
    rows: int,
    classes: Mapping[str, str | None],
    folder: Path,
) -> int:
    if shift is not None and shift not in SPLITS:
        raise UsageError(f"`shift` must be one of {SPLITS}, got {shift!r}")
    project = open_project(config, ckpt, replacements, classes, folder)
    about: dict[str, Any] = {"created_at": datetime.now(UTC).isoformat(), "checkpoint": ckpt.name}
    if shift is not None:
        result = _shift(project, ckpt, shift, rows, about)
    else:
        steps = project.run(project.loader("train"), rows)[0].recorder.steps
        facts = Facts()
        with contextlib.suppress(UsageError):
            facts.validation = project.run(project.loader("val"), rows)[0].moments.result().moments()
        with project.trainer.precision_plugin.forward_context():
            snapshot = measure(project.model, steps, facts, train_mode=True)
        findings = audit(snapshot)
        history = [history_row(snapshot, findings, int(project.checkpoint.get("epoch", 0)), _step(project))]
        result = result_of(snapshot, findings, history, missing=project.missing, step=_step(project), **about)
    if html is not None:
        from lightning_hp.report.audit_page import audit_page  # plotly loads only when a page is wanted

        Path(html).write_text(audit_page(result), encoding="utf-8")
    sys.stdout.write(_as_text(result, as_json))
    return HAS_ERRORS if result["counts"]["ERROR"] else OK


def _step(project: CheckpointedProject) -> int:
    return int(project.checkpoint.get("global_step", 0))


def _as_text(result: dict[str, Any], as_json: bool) -> str:
    return json.dumps(result, indent=1) + "\n" if as_json else table_of(result)


def _shift(project: CheckpointedProject, ckpt: Path, split: str, rows: int, about: dict[str, Any]) -> dict[str, Any]:
    reference = project.reference(ckpt)
    if reference is None:
        raise UsageError(
            f"`shift` needs the validation moments that BatchNormAuditor stores in the checkpoint or in "
            f"{REFERENCE_FILE}, "
            f"got none for {ckpt.name}"
        )
    listener, metrics = project.run(project.loader(split), rows, predict=split == "predict")
    shifts = layer_shifts(reference, listener.moments.result())
    with project.trainer.precision_plugin.forward_context():
        disagreement = absorption(project.model, listener.recorder.steps)
    findings: list[Finding] = shift_findings(shifts, disagreement)
    rows_of = [asdict(one) for one in shifts]
    return shift_result(findings, rows_of, informative(rows_of, reference), metrics=metrics, **about)
