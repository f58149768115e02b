"""Trains the winner again where the study ends, if its worker has the checkpoint in a folder of its own.

Workers that share no folder keep the files of their trials. Values and seed are in storage, so the training is
repeated: exactly on the same kind of machine, and else nearly so. Values that differ are both told.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from lightning_hp.callbacks.unfinished import drop_unfinished
from lightning_hp.project.quiet import suppress_repeated_warnings
from lightning_hp.study.leases import lease_of
from lightning_hp.study.storage import quiet_optuna
from lightning_hp.tuning.curve_store import watched
from lightning_hp.tuning.objective import run_trial

if TYPE_CHECKING:
    from lightning_hp.tuning.runner import StudyRunner


def train_winner_again(runner: StudyRunner, best: FrozenTrial) -> None:
    """Train the winner in its folder here, unless something of it is there already; nothing of it is stored.

    Args:
        runner: Of the study.
        best: The winner.
    """
    paths = runner.paths.trial(best.number)
    if any(file.is_file() for file in paths.root.rglob("*")):  # trained here, or in a folder that is shared
        return
    lease = lease_of(best)
    worker = "another machine" if lease is None else lease.worker or "another machine"
    runner.say(f"training trial {best.number} again here: its checkpoint is with {worker}, which shares no folder")
    description = runner.description
    with quiet_optuna():
        apart = optuna.create_study()
        apart.add_trial(
            create_trial(state=TrialState.RUNNING, params=best.params, distributions=dict(best.distributions))
        )
    with suppress_repeated_warnings(), watched(lambda number, step, max_steps, value: None):
        outcome = run_trial(
            optuna.Trial(apart, 0),
            description.space.arguments(best.params),
            runner.builder,
            paths,
            description.monitor,
            description.mode,
            runner.seed_of(best),
            runner.length,
            runner.max_steps,
            callbacks=[runner.auditor(best.number)] if runner.config.audit else [],
            prune=False,
            curve_points=runner.config.curve_points,
        )
    drop_unfinished(paths.unfinished)
    if outcome.value is None:
        failure = outcome.attributes.get("failure", outcome.state)
        runner.say(f"trial {best.number} could not be trained again: {failure}")
    elif best.value is not None and not math.isclose(outcome.value, best.value, rel_tol=1e-6):
        runner.say(f"trial {best.number} has {description.monitor} {outcome.value:.6g} here, {best.value:.6g} there")
