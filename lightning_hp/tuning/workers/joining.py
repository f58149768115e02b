"""A worker that joins a study which is run elsewhere: runs trials until there are no more, or it has done its share."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import optuna
from optuna.trial import FrozenTrial

from lightning_hp.project.build import CliBuilder
from lightning_hp.study.description import describe
from lightning_hp.study.recipe import read_recipe
from lightning_hp.tuning.choose_engine import settle_engine
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.listener import StudyListener
from lightning_hp.tuning.runner import StudyRunner

#: what SIGTERM asks a worker to do with the trial that it runs
ON_TERM = ("hand-back", "finish")


def config_of(study: optuna.Study, storage: str, folder: Path) -> TuneConfig:
    """The configuration of a study that is run elsewhere, for a worker here.

    Args:
        study: The study.
        storage: How this worker reaches it.
        folder: Where this worker writes.

    Raises:
        ConfigError: If the project's files do not fit.
        StudyError: If the study cannot be joined.
    """
    recipe = read_recipe(study)
    base = recipe.unpack(folder / "project")
    mapping = {**recipe.mapping, "storage": storage, "folder": str(folder)}
    description = describe(study)
    return replace(
        TuneConfig.from_dict(mapping, base=base), search=description.plan, previous=description.previous, source=None
    )


def join(
    config: TuneConfig,
    builder: CliBuilder,
    listener: StudyListener,
    most_trials: int | None = None,
    seconds: float | None = None,
    on_term: str = "hand-back",
) -> int:
    """Run trials of a study.

    Args:
        config: See :func:`config_of`.
        builder: Makes the objects of a trial.
        listener: Is told what happens.
        most_trials: So many at most, one after the other; None for no limit.
        seconds: No new one after so long; None for no limit.
        on_term: What SIGTERM does: ``hand-back`` the running trial, whoever takes it goes on from its last checkpoint;
            or ``finish`` it first.

    Returns:
        How many trials this worker has brought to their end.

    Raises:
        ConfigError: If a trial showed that the configuration cannot work.
        StudyError: If the study has to stop.
    """
    runner = StudyRunner(config, builder, listener)
    counting = _Counting(listener, most_trials, runner.stopping)
    runner.listener = counting
    timer = None if seconds is None else threading.Timer(seconds, runner.stopping.set)
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        with _told_to_end(runner, finish=on_term == "finish"):
            runner.catch_up()
            if most_trials is None:
                settle_engine(runner)
            else:
                runner.together = None
            while not runner.stopping.is_set():
                runner.work()
                if not runner.stopping.is_set() and runner.wait_for_others() and not runner.confirm():
                    break
    finally:
        if timer is not None:
            timer.cancel()
        runner.close()
    return counting.ended


class _Counting:
    """Passes everything on, and asks to stop after so many trials."""

    def __init__(self, listener: StudyListener, most: int | None, stopping: threading.Event) -> None:
        self._listener, self._most, self._stopping = listener, most, stopping
        self.ended = 0
        self.study_planned, self.trial_known = listener.study_planned, listener.trial_known
        self.trial_started, self.trial_resumed = listener.trial_started, listener.trial_resumed
        self.trial_progressed, self.message = listener.trial_progressed, listener.message

    def trial_finished(self, trial: FrozenTrial) -> None:
        self._listener.trial_finished(trial)
        self.ended += 1
        if self._most is not None and self.ended >= self._most:
            self._stopping.set()


@contextlib.contextmanager
def _told_to_end(runner: StudyRunner, finish: bool) -> Iterator[None]:
    """SIGTERM ends the worker: at once while it waits, and while it trains at the next step or at the trial's end.

    In a fit Lightning has a handler of its own, by which the training ends at its next step and the trial is handed
    back. To finish the trial this one is put in its place.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        runner.stopping.set()

    before = signal.signal(signal.SIGTERM, handle)
    if finish:
        runner.callbacks.append(_OwnHandler(handle))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _OwnHandler(pl.Callback):
    """Puts a handler of SIGTERM in the place of Lightning's, which puts back what was there before the fit."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._handle)
