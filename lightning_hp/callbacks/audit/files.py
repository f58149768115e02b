"""Where an audit is left: files beside the logs, scalars and those files in the loggers.

Rank zero writes; files are renamed into place.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_hp.batchnorm.reference import Reference
from lightning_hp.callbacks.audit.record import SCHEMA, table_of
from lightning_hp.callbacks.trackers import give_files

__all__ = ["AUDIT_FILE", "REFERENCE_FILE", "SHIFT_FILE", "log_scalars", "write_audit", "write_json"]

AUDIT_FILE = "audit.json"
REFERENCE_FILE = "audit_reference.json"
SHIFT_FILE = "audit_shift.json"


def log_scalars(trainer: pl.Trainer, history: Sequence[dict[str, Any]]) -> None:
    """Send the last line of the history to every logger: worst errors, KL, and findings by severity."""
    if not trainer.is_global_zero or not history or _dry(trainer):
        return
    row = history[-1]
    values = {"bn/mean_error": row["d"], "bn/var_error": row["lv"], "bn/kl": row["kl"]}
    values |= {f"bn/{name.lower()}": float(number) for name, number in row["counts"].items()}
    finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    for logger in trainer.loggers:
        logger.log_metrics(finite, step=trainer.global_step)


def write_audit(
    trainer: pl.Trainer,
    dirpath: str | Path | None,
    result: dict[str, Any],
    reference: Reference | None,
    name: str = AUDIT_FILE,
) -> None:
    """Write the result, its table and the reference, and give the first two to the loggers. Every rank must call this.

    Args:
        trainer: gives the folder when `dirpath` is None: the logger's, else the root.
        dirpath: folder; "" writes nothing.
        result: content of audit.json.
        reference: written to audit_reference.json, if there is one.
        name: file name of the result.
    """
    folder = trainer.log_dir if dirpath is None else dirpath  # log_dir is a collective: every rank asks
    if not trainer.is_global_zero or _dry(trainer) or folder in (None, ""):
        return
    target = Path(str(folder)) / name
    write_json(target, result)
    table = target.with_suffix(".md")
    table.write_text(table_of(result), encoding="utf-8")
    give_files(trainer.loggers, "audit", [target, table])
    if reference is not None and reference.layers:
        write_json(target.parent / REFERENCE_FILE, {"schema": SCHEMA, "layers": reference.to_dict()})


def _dry(trainer: pl.Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write beside and rename, so that a reader never sees half a file; the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
