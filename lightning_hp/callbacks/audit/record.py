"""What an audit says, as plain dictionaries (the content of audit.json), as a Markdown table, and as a warning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lightning_hp.batchnorm.findings import Finding, counts
from lightning_hp.batchnorm.snapshot import Snapshot

__all__ = [
    "FEWEST_ROWS",
    "SCHEMA",
    "empty_result",
    "history_row",
    "result_of",
    "shift_result",
    "table_of",
    "warning_text",
]

SCHEMA = 1
FEWEST_ROWS = 16  # below, no layer's input counts as shifted
_MOST_CHANNELS = 256  # vectors in audit.json are thinned evenly beyond this


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _vector(values: torch.Tensor, keep: torch.Tensor) -> list[float | None]:
    return [_number(v) for v in values[keep].tolist()]


def layer_row(snapshot: Snapshot, name: str) -> dict[str, Any]:
    """One layer: settings, errors, and per channel the running and population moments with the expected noise.

    `noise_mean` is in standard deviations, `noise_var` in log variance: one sd of the running average around the truth.
    """
    state = snapshot.layers[name]
    row: dict[str, Any] = {
        "name": name,
        "kind": state.kind,
        "channels": state.channels,
        "momentum": state.momentum,
        "eps": state.eps,
        "updates": state.updates,
        "training": state.training,
        "dtype": state.dtype,
        "updates_per_step": snapshot.facts.updates_per_step.get(name),
    }
    keep = torch.linspace(0, state.channels - 1, min(state.channels, _MOST_CHANNELS)).round().long()
    row["running_mean"] = _vector(state.running_mean, keep)
    row["running_var"] = _vector(state.running_var, keep)
    data, errors = snapshot.data.get(name), snapshot.errors(name)
    if data is None or errors is None:
        return row
    factor = snapshot.noise(name) ** 0.5
    row.update(
        d=_number(errors[0]),
        ratio_d=_number(errors[1]),
        lv=_number(errors[2]),
        ratio_lv=_number(errors[3]),
        rows_per_batch=data.rows,
        values_per_batch=_number(data.values),
        batches=data.steps,
        noise_mean=_number(data.batch_noise * factor),
        noise_var=_number(data.batch_noise_var * factor),
        iid_ratio=_number(data.iid_ratio),
        population_mean=_vector(data.train.mean, keep),
        population_var=_vector(data.train.variance(), keep),
    )
    return row


def history_row(snapshot: Snapshot, findings: Sequence[Finding], epoch: int, step: int) -> dict[str, Any]:
    """One line of the history: worst errors and counts at an epoch end."""
    errors = [e for e in (snapshot.errors(name) for name in snapshot.data) if e is not None]
    return {
        "epoch": epoch,
        "step": step,
        "d": _number(max((e[0] for e in errors), default=0.0)),
        "lv": _number(max((e[2] for e in errors), default=0.0)),
        "layers": {
            name: {"d": _number(e[0]), "lv": _number(e[2])}
            for name, e in ((name, snapshot.errors(name)) for name in snapshot.data)
            if e is not None
        },
        "kl": _number(snapshot.gap.kl) if snapshot.gap else None,
        "output_change": _number(snapshot.gap.relative) if snapshot.gap else None,
        "counts": counts(findings),
    }


def result_of(
    snapshot: Snapshot, findings: Sequence[Finding], history: Sequence[dict[str, Any]], **about: Any
) -> dict[str, Any]:
    """The content of audit.json."""
    order = [*snapshot.structure.order, *(name for name in snapshot.layers if name not in snapshot.structure.order)]
    gap = snapshot.gap
    return {
        "schema": SCHEMA,
        **about,
        "counts": counts(findings),
        "findings": [finding.to_dict() for finding in findings],
        "outputs": None
        if gap is None
        else {"kl": _number(gap.kl), "relative": _number(gap.relative), "disagreement": _number(gap.disagreement)},
        "layers": [layer_row(snapshot, name) for name in order],
        "history": list(history),
    }


def empty_result() -> dict[str, Any]:
    """What there is to say before the first audit, and of a model without such layers."""
    return {"schema": SCHEMA, "counts": counts([]), "findings": [], "layers": [], "history": []}


def shift_result(
    findings: Sequence[Finding], shifts: Sequence[dict[str, Any]], informative: bool, **about: Any
) -> dict[str, Any]:
    """The content of audit_shift.json: new data against the reference.

    Args:
        findings: DR01 and DR02.
        shifts: the shift of each layer.
        informative: whether the comparison says anything, see `shift.informative`.
        about: further entries.
    """
    rows = max((shift["rows"] for shift in shifts), default=0)
    if findings:
        verdict = f"shifted: {findings[0].layer or 'the model'} is the first layer hit"
    elif not shifts:
        verdict = "cannot be said: no layer has both stored moments and new data"
    elif not informative and rows < FEWEST_ROWS:
        verdict = f"cannot be said: {rows:.0f} rows, at least {FEWEST_ROWS} are needed"
    elif not informative:
        verdict = "not shifted, but these are the very rows that the moments were taken from"
    else:
        verdict = "not shifted"
    return {
        **empty_result(),
        "counts": counts(findings),
        "findings": [finding.to_dict() for finding in findings],
        **about,
        "verdict": verdict,
        "shift": list(shifts),
    }


def table_of(result: dict[str, Any]) -> str:
    """Findings and layers as a Markdown text."""
    total, shifts = result["counts"], result.get("shift", [])
    lines = [
        "# BatchNorm audit",
        "",
        f"{total['ERROR']} errors, {total['WARN']} warnings, {total['INFO']} notes; "
        f"{len(result['layers']) or len(shifts)} layers.",
        "",
    ]
    if "verdict" in result:
        lines += [f"Inputs against the validation data that the model was judged on: **{result['verdict']}**.", ""]
    for finding in result["findings"]:
        where = f" `{finding['layer']}`" if finding["layer"] else ""
        lines.append(f"- **{finding['severity']} {finding['id']}**{where}: {finding['sentence']} *{finding['fix']}*")
    if result["layers"]:
        lines += [
            "",
            "| layer | channels | momentum | updates | mean off (sd) | x noise | var off (log) | x noise |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for row in result["layers"]:
        numbers = [row.get(key) for key in ("d", "ratio_d", "lv", "ratio_lv")]
        shown = " | ".join("" if value is None else f"{value:.3g}" for value in numbers)
        lines.append(f"| {row['name']} | {row['channels']} | {row['momentum']} | {row['updates']} | {shown} |")
    if shifts:
        lines += [
            "",
            "| layer | rows | mean off (sd) | x noise | var off (log) | x noise |",
            "|---|---|---|---|---|---|",
        ]
    for row in shifts:
        numbers = [f"{row[key]:.3g}" for key in ("rows", "d", "ratio_d", "lv", "ratio_lv")]
        lines.append(f"| {row['layer']} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def warning_text(findings: Sequence[Finding]) -> str:
    """Findings as the text of a warning; at most five in full."""
    lines = [f"{f.severity} {f.id} {f.layer}: {f.sentence} {f.fix}" for f in findings[:5]]
    more = f"\n... and {len(findings) - 5} more, see audit.json" if len(findings) > 5 else ""
    return f"BatchNorm audit, {len(findings)} findings:\n" + "\n".join(lines) + more
