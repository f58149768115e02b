"""Runs a study to its end: in this process, in worker processes (:mod:`.workers.processes`), or on a Ray cluster."""

from __future__ import annotations

import contextlib
from datetime import datetime

from optuna.trial import FrozenTrial

from lightning_hp.project.build import CliBuilder, PythonBuilder
from lightning_hp.report.notes import decorate
from lightning_hp.study.recipe import Recipe, write_recipe
from lightning_hp.tuning.caviar import RAY
from lightning_hp.tuning.choose_engine import settle_engine
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.curve_store import watched
from lightning_hp.tuning.failures import not_counted
from lightning_hp.tuning.finish import Result, finish
from lightning_hp.tuning.listener import SilentListener, StudyListener
from lightning_hp.tuning.runner import StudyRunner
from lightning_hp.tuning.workers.on_ray import connected, work_on_ray
from lightning_hp.tuning.workers.processes import work_in_processes

#: the dashboard is decorated from this trial number on: before there is little to say
FIRST_DECORATED = 5


def run(
    config: TuneConfig,
    builder: CliBuilder | PythonBuilder,
    listener: StudyListener | None = None,
    now: datetime | None = None,
) -> Result:
    """Run a study to its end.

    Args:
        config: What to do.
        builder: Makes the objects of a trial.
        listener: Is told what happens.
        now: The clock at the end of the study, which dates the ledger; None is the current time then.

    Raises:
        ConfigError: If the configuration cannot work.
        StudyError: If the study cannot be opened, or has to stop.
        KeyboardInterrupt: After the running trial, if Ctrl-C was pressed; the study can be continued.
    """
    builder.check(config.space)
    with connected(config.caviar) if config.caviar.engine == RAY else contextlib.nullcontext():
        runner = StudyRunner(config, builder, listener)
        runner.listener = _DecoratingListener(listener or SilentListener(), runner, now)
        write_recipe(runner.study, Recipe.of(config.mapping, config.base))
        try:
            with watched(runner.listener.trial_progressed):
                return _run(runner, now)
        finally:
            runner.close()


def _run(runner: StudyRunner, now: datetime | None) -> Result:
    runner.catch_up()
    while True:
        settle_engine(runner)
        caviar = runner.config.caviar
        if caviar.engine == RAY:
            work_on_ray(runner)
        elif caviar.engine == "local" or caviar.workers > 1:
            work_in_processes(runner)
        else:
            runner.work()
        if runner.stopping.is_set():
            raise KeyboardInterrupt
        if runner.wait_for_others():
            if runner.confirm():
                continue
            return finish(runner, now)
        if runner.stopping.is_set():
            raise KeyboardInterrupt


class _DecoratingListener:
    """Passes everything on; between trials, now and then, brings the dashboard's notes and figures up to date."""

    def __init__(self, listener: StudyListener, runner: StudyRunner, now: datetime | None) -> None:
        self._listener, self._runner, self._now = listener, runner, now
        self.study_planned, self.message = listener.study_planned, listener.message
        self.trial_started, self.trial_resumed = listener.trial_started, listener.trial_resumed
        self.trial_progressed = listener.trial_progressed

    def trial_known(self, trial: FrozenTrial) -> None:
        if trial.number not in not_counted(self._runner.study):  # else it is run again, and counts then
            self._listener.trial_known(trial)

    def trial_finished(self, trial: FrozenTrial) -> None:
        self._listener.trial_finished(trial)
        if trial.number >= FIRST_DECORATED:
            decorate(self._runner.study, self._runner.paths, now=self._now)
