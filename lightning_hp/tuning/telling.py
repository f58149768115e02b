"""Stores how a trial ended, once: not for a trial that was given away, and later if the storage is away now.

An outcome that cannot be stored is kept in the trial's folder (``outcome.json``) and stored by the next process that
works on the study, if the trial has not been given to another worker by then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.callbacks.unfinished import drop_unfinished
from lightning_hp.study.leases import Leases, lease_of
from lightning_hp.study.paths import StudyPaths, TrialPaths, write_text
from lightning_hp.study.patience import StorageAwayError
from lightning_hp.study.upstream import trial_number
from lightning_hp.tuning.objective import DIVERGED, Outcome

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}


def store(
    study: optuna.Study, trial: optuna.Trial, outcome: Outcome, leases: Leases, paths: TrialPaths, mode: str
) -> str | None:
    """Store how a trial ended.

    Args:
        study: The study.
        trial: The trial, whose lease this worker has, or had.
        outcome: How it ended.
        leases: Of this worker.
        paths: The trial's folder.
        mode: ``min`` or ``max``.

    Returns:
        Who has the trial now, where it was given away; None where the outcome is stored.

    Raises:
        StorageAwayError: If the storage stays away; says where the outcome is kept.
    """
    try:
        owner = leases.present_owner(trial)
        if owner is not None:
            return owner
        _tell(study, trial, outcome, mode)
        drop_unfinished(paths.unfinished)
    except UpdateFinishedTrialError:
        return leases.present_owner(trial) or "another worker"
    except StorageAwayError as error:
        lease = leases.lease(trial)
        kept = asdict(outcome) | {"stop": None, "turn": None if lease is None else lease.turn}
        write_text(paths.outcome, json.dumps(kept))
        raise StorageAwayError(f"{error}; the result of trial {trial.number} is kept in {paths.outcome}") from error
    return None


def _tell(study: optuna.Study, trial: optuna.Trial, outcome: Outcome, mode: str) -> None:
    if outcome.diverged:
        outcome.value = _worst_finite(study, mode, outcome.value)
        if outcome.value is None:
            outcome.state = "fail"
            outcome.attributes["failure"] = DIVERGED
    for step, value in outcome.points.items():
        trial.report(value, step)
    for name, value in outcome.attributes.items():
        trial.set_user_attr(name, value)
    if outcome.state == "complete":
        study.tell(trial, outcome.value)
    else:
        study.tell(trial, state=_STATES[outcome.state])


def _worst_finite(study: optuna.Study, mode: str, own: float | None) -> float | None:
    """The worst finite value that any trial has reported so far, None where there is none."""
    finite = [] if own is None else [own]
    for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        finite += [v for v in (other.value, *other.intermediate_values.values()) if v is not None and math.isfinite(v)]
    if not finite:
        return None
    return max(finite) if mode == "min" else min(finite)


def store_kept(study: optuna.Study, paths: StudyPaths, mode: str, say: Callable[[str], None]) -> None:
    """Store the outcomes that were kept while the storage was away; the study's lock must be held.

    Args:
        study: The study.
        paths: The study folder.
        mode: ``min`` or ``max``.
        say: Is told of each in a sentence.
    """
    for file in sorted(paths.root.glob(f"trials/*/{TrialPaths(paths.root).outcome.name}")):
        number = int(file.parent.name)
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        trials = study.get_trials(deepcopy=False)
        trial = trials[number] if number < len(trials) else None
        if trial is not None and _is_of(trial, kept.pop("turn"), kept["state"]):
            if trial.state is TrialState.RUNNING:
                # without a lease of our own, which the lock makes needless: should storage go away again in the
                # middle, the trial is still of the turn that the result was kept for
                points = {int(step): value for step, value in kept.pop("points").items()}
                points = {step: value for step, value in points.items() if step not in trial.intermediate_values}
                _tell(study, optuna.Trial(study, trial_number(trial)), Outcome(**kept, points=points), mode)
            drop_unfinished(paths.trial(number).unfinished)
            say(f"the result of trial {number} that was kept in {file} is stored now")
        else:
            say(f"the result of trial {number} that was kept in {file} is not counted: another worker has the trial")
        file.unlink()


def _is_of(trial: FrozenTrial, turn: int | None, state: str) -> bool:
    """Whether a trial has had no other owner since a result of it was kept; it runs, or has ended by that result."""
    lease = lease_of(trial)
    return (None if lease is None else lease.turn) == turn and trial.state in (TrialState.RUNNING, _STATES[state])
