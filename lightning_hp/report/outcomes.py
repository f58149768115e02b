"""What became of one trial: why it failed, its value or that it was pruned, how long it took."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState

from lightning_hp.report.axes import number_text
from lightning_hp.report.view import finite


def reason_of(trial: FrozenTrial) -> str:
    """Why a trial failed, in a few words, as it was recorded."""
    reason = trial.user_attrs.get("failure") or trial.system_attrs.get("fail_reason")
    if not reason and trial.state == TrialState.COMPLETE:
        reason = "value is not finite"
    return str(reason or "no reason recorded")


def outcome_text(trial: FrozenTrial) -> str:
    """What came of a trial: its value, or that it was pruned or failed."""
    if trial.state == TrialState.PRUNED:
        return f"pruned at {number_text(trial.value)}" if finite(trial.value) else "pruned"
    return number_text(trial.value) if finite(trial.value) else "failed"


def seconds_of(trial: FrozenTrial) -> float | None:
    """How long a trial took: as recorded, else from its first to its last moment; None where neither is known."""
    recorded = trial.user_attrs.get("seconds")
    if recorded and finite(recorded):
        return float(recorded)
    return trial.duration.total_seconds() if trial.duration else None
