"""One trial: natural values in, and out comes how it ended, its value, its curve and what to remember of it.

How a training ended decides the trial's state:

===================  ========  ======================================================================================
what happened        state     remembered
===================  ========  ======================================================================================
finished             COMPLETE  value: the best of the curve, which is what ``best.ckpt`` holds
stopped by pruner    PRUNED    why, where the pruner says so
NaN or infinite      COMPLETE  value: the worst finite one so far, so that the corner is learned; flagged ``diverged``
out of memory        FAIL      reason; the same structure is not trained again in this study
any other exception  FAIL      reason and traceback
===================  ========  ======================================================================================

What says nothing about the trial ends the run instead, and leaves the trial to be run again with the same values: a
configuration that cannot work for any trial, and a full disk.
"""

from __future__ import annotations

import errno
import gc
import json
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import lightning.pytorch as pl
import optuna
import torch

from lightning_hp.callbacks.audit.auditor import BatchNormAuditor
from lightning_hp.callbacks.pruning import TrialPruning, UnknownMetricError
from lightning_hp.callbacks.trackers import give_values
from lightning_hp.callbacks.unfinished import UnfinishedCheckpoint
from lightning_hp.project.build import CliBuilder, PythonBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.causes import causes
from lightning_hp.study.paths import TrialPaths, write_text
from lightning_hp.study.storage import StudyError, one_line
from lightning_hp.tuning.checkpoints import TrialCheckpoint, can_go_on, classes_of
from lightning_hp.tuning.curve_store import POINTS, ThinCurve
from lightning_hp.tuning.workers.keeper import LeaseGuard
from lightning_hp.tuning.workers.ranks import Job, RankError, needs_ranks, train_in_ranks

#: characters of a traceback kept in the study; the whole is in the trial's error.txt
TRACEBACK_CHARACTERS = 2000
OUT_OF_MEMORY = "out of memory"
DIVERGED = "NaN or infinite metric before the first finite one"
#: system errors that say that nothing more can be written: disk full, quota, file-size limit
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass
class Outcome:
    """How a trial ended.

    Attributes:
        state: ``complete``, ``pruned`` or ``fail``.
        value: The best value of the curve; None where there is none.
        diverged: Whether the metric became NaN or infinite.
        attributes: User attributes to store with the trial.
        points: Points of the curve that are not stored yet, since the storage was away.
        stop: What ends the run, since every other trial would meet it too: a configuration error, a full disk.
    """

    state: Literal["complete", "pruned", "fail"]
    value: float | None = None
    diverged: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)
    points: dict[int, float] = field(default_factory=dict)
    stop: ConfigError | StudyError | None = None


class Interrupt(Protocol):
    """Tells a trial to stop in the middle."""

    def is_set(self) -> bool:
        """Whether to stop now."""
        ...


def trial_seed(study_seed: int, number: int) -> int:
    """The seed of a trial: the same for the same study seed and trial number, whoever runs it; within 32 bits."""
    return (study_seed * 1_000_003 + number * 7919 + 1) % 2**31


def structure(space: SearchSpace, stored: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What decides a trial's memory: its active whole numbers and choices (layers, units, batch size)."""
    active = space.active(stored)
    return tuple(
        (p.name, p.natural(stored[p.stored_name]))
        for p, on in zip(space.parameters, active, strict=True)
        if on and p.cardinality is not None
    )


def run_trial(
    trial: optuna.Trial,
    arguments: Mapping[str, Any],
    builder: CliBuilder | PythonBuilder,
    paths: TrialPaths,
    monitor: str,
    mode: str,
    seed: int,
    length: TrainingLength,
    max_steps: int,
    callbacks: Sequence[pl.Callback] = (),
    prune: bool = True,
    curve_points: int = POINTS,
    grace: float = 0.0,
) -> Outcome:
    """Train one trial. Never raises for what the training did; see the table at the top of this file.

    Args:
        trial: The live trial; its curve is stored as it grows.
        arguments: Natural values, keyed as the builder takes them.
        builder: Makes module, data and Trainer.
        paths: The trial's folder.
        monitor: Name of the metric.
        mode: ``min`` or ``max``.
        seed: See :func:`trial_seed`.
        length: Of a complete training.
        max_steps: In how many units the curve counts it, see :mod:`.length`.
        callbacks: Further callbacks for the Trainer.
        prune: Whether the study's pruner may stop the trial.
        grace: The pruner is not asked before this part of the training.
        curve_points: How many points of the curve are stored, see :mod:`.curve_store`.
    """
    curve = ThinCurve(trial, max_steps, curve_points, prune_from=math.ceil(grace * max_steps) if prune else None)
    pruning = TrialPruning(curve, monitor, max_steps)
    checkpoint = TrialCheckpoint.of(paths, monitor, mode)
    of = json.dumps([seed, dict(trial.params), length.to_json()], sort_keys=True)
    unfinished = UnfinishedCheckpoint(paths.unfinished, pruning, of)
    started = time.monotonic()
    fitted = 0.0
    outcome: Outcome
    trainer: pl.Trainer | None = None
    try:
        built = builder.build(arguments, paths.root, seed, [pruning, checkpoint, *callbacks, unfinished], length)
        trainer = built.trainer
        ranks = needs_ranks(trainer)
        before = time.monotonic()
        try:
            if ranks:
                built.close()
                job = Job(arguments, paths.root, monitor, mode, seed, length, max_steps, _audited(callbacks), of)
                ended = train_in_ranks(job, builder, ranks, curve, _look_of(callbacks))
            else:
                give_values(trainer.loggers, arguments)
                if can_go_on(paths.unfinished, unfinished.fits):
                    trainer.ckpt_path = paths.unfinished
                with classes_of(paths.unfinished):
                    built.fit()
        finally:
            fitted = time.monotonic() - before
        if ranks:
            pruning.restore(ended["pruning"])
            unfinished.begun_at = ended["begun_at"]
        curve.close()
        outcome = _finished(pruning, mode)
        if ranks:
            outcome.attributes |= {"epochs": ended["epochs"], "ranks": ranks}
            if ended["audit"]:
                outcome.attributes["audit"] = ended["audit"]
    except ConfigError as error:
        outcome = Outcome("fail", attributes={"failure": one_line(error)}, stop=error)
    except UnknownMetricError as error:
        outcome = _crashed(error, paths)
        outcome.stop = ConfigError(str(error))
    except Exception as error:
        outcome = _crashed(error, paths)
    outcome.attributes |= {
        "seed": seed,
        "seconds": round(time.monotonic() - started, 3),
        "fit_seconds": round(fitted, 3),
    }
    outcome.points = curve.unsent()
    if trainer is not None:
        outcome.attributes.setdefault("epochs", trainer.current_epoch)
    if unfinished.begun_at:
        outcome.attributes["went_on_from_epoch"] = unfinished.begun_at
    _free_memory()
    return outcome


def _finished(pruning: TrialPruning, mode: str) -> Outcome:
    best = pruning.best(mode)
    if pruning.diverged:
        return Outcome("complete", best, diverged=True, attributes={"diverged": True})
    if pruning.pruned:
        return Outcome("pruned", best)
    if best is None and not pruning.validations:
        raise UnknownMetricError(
            f"`monitor` must be logged before training ends, got {pruning.monitor!r}: training ended before its first "
            "validation; validate sooner (`trainer.check_val_every_n_epoch`, `trainer.val_check_interval`), train "
            "longer, or monitor a training metric"
        )
    if best is None:
        raise UnknownMetricError(
            f"`monitor` must be a metric that the model logs, got {pruning.monitor!r}: nothing was logged"
        )
    return Outcome("complete", best)


def _crashed(error: BaseException, paths: TrialPaths) -> Outcome:
    if is_out_of_memory(error):
        return Outcome("fail", attributes={"failure": OUT_OF_MEMORY})
    if is_disk_full(error):
        said = f"nothing more can be written ({one_line(error)}); make room, and the same command goes on from here"
        return Outcome("fail", stop=StudyError(said))
    line, text = one_line(error), "".join(traceback.format_exception(error))
    if isinstance(error, RankError):  # what was raised in a process of its own
        line, text = error.line, error.text
    write_text(paths.error, text)
    return Outcome("fail", attributes={"failure": line, "traceback": text[-TRACEBACK_CHARACTERS:]})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on an accelerator or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, says that a file could not be written for want of space."""
    # torch writes checkpoints in C++, and has no better word for it
    return any(
        getattr(cause, "errno", None) in _NO_SPACE or "PytorchStreamWriter failed writing" in str(cause)
        for cause in causes(error)
    )


def _audited(callbacks: Sequence[pl.Callback]) -> bool:
    return any(isinstance(callback, BatchNormAuditor) for callback in callbacks)


def _look_of(callbacks: Sequence[pl.Callback]) -> Callable[[], None]:
    """What looks, while others train, whether the trial is still ours."""
    guards = [callback for callback in callbacks if isinstance(callback, LeaseGuard)]

    def look() -> None:
        for guard in guards:
            guard.look()

    return look


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
