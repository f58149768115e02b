"""Repair at the end of training: recalibrate what is suspect, and keep it only if validation does not get worse.

Validation is judged on kept validation batches by the user's own `validation_step`, on a copy of the module whose
`log` is a
collector: nothing is logged twice, and metric states of the real module do not move.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_hp.batchnorm.findings import Finding
from lightning_hp.batchnorm.recalibrate import recalibrate, recalibrate_if_better
from lightning_hp.batchnorm.statistics import find_layers, sum_over_ranks
from lightning_hp.batchnorm.watch import TrainingWatch
from lightning_hp.callbacks.audit.shift import EvaluationWatch

__all__ = ["NOT_VALIDATED", "repair_at_end"]

NOT_VALIDATED = {
    "when": "end",
    "kept": False,
    "before": None,
    "after": None,
    "layers": [],
    "reason": 'validation judges other weights than those at hand after training: use recalibrate="validation"',
}
"""The record of a repair that was not made."""

_REPAIRABLE = ("BN02", "BN06", "BN07", "BN08", "BN09", "BN10", "BN11")


def repair_at_end(
    pl_module: pl.LightningModule, watch: TrainingWatch, evaluation: EvaluationWatch | None, findings: Sequence[Finding]
) -> dict[str, Any] | None:
    """Recalibrate in place if a finding asks for it.

    Args:
        pl_module: the trained module; its running statistics may be changed.
        watch: the training watch with its recorded steps.
        evaluation: holds validation batches, if there was a validation.
        findings: of the final audit.

    Returns:
        A plain record of what was done, or None if no finding calls for it.
    """
    if not any(finding.id in _REPAIRABLE for finding in findings):
        return None
    layers = watch.trainable_layers()
    batches = evaluation.batches if evaluation is not None else []
    loss = _validation_loss(pl_module, batches)
    if loss is None:
        written = recalibrate(pl_module, watch.steps, layers)
        reason = "no loss could be read from validation_step, kept unchecked"
        return {"when": "end", "kept": True, "before": None, "after": None, "layers": list(written), "reason": reason}

    def evaluate() -> float:
        value = _validation_loss(pl_module, batches)
        return math.nan if value is None else value

    done = recalibrate_if_better(pl_module, watch.steps, evaluate, layers)
    return {
        "when": "end",
        "kept": done.kept,
        "before": done.before,
        "after": done.after,
        "layers": list(done.layers),
        "reason": done.reason,
    }


def _validation_loss(pl_module: pl.LightningModule, batches: Sequence[Any]) -> float | None:
    """Mean loss of `validation_step` over batches and ranks; None when the step gives none that can be read."""
    values: list[float] = []
    if batches:
        twin = copy.deepcopy(pl_module)
        for name, layer in find_layers(twin).items():  # a deep copy may share nothing; statistics must be today's
            layer.load_state_dict(pl_module.get_submodule(name).state_dict())
        logged: dict[str, Any] = {}
        object.__setattr__(twin, "log", lambda name, value, *a, **k: logged.__setitem__(name, value))
        object.__setattr__(twin, "log_dict", lambda values, *a, **k: logged.update(values))
        twin.eval()
        with torch.inference_mode(False), torch.no_grad():
            for index, batch in enumerate(batches):
                logged.clear()
                try:
                    output = twin.validation_step(batch, index)
                except Exception:
                    break
                value = _loss_of(output, logged)
                if value is None:
                    break
                values.append(value)
    sums = sum_over_ranks(torch.tensor([sum(values), float(len(values))], dtype=torch.float64))
    return float(sums[0] / sums[1]) if float(sums[1]) > 0 else None


def _loss_of(output: Any, logged: dict[str, Any]) -> float | None:
    if isinstance(output, dict):
        output = output.get("loss", output.get("val_loss"))
    if output is None:
        output = next((value for name, value in logged.items() if "loss" in name), None)
    if isinstance(output, Tensor) and output.numel() == 1:
        return float(output)
    return float(output) if isinstance(output, (int, float)) else None
