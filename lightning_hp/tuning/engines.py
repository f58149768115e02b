"""Where trials run: in this process, or in worker processes on this machine.

Workers share nothing but the storage and the study folder, so they may come and go: this module only starts them,
follows the study while they work, and says what they say when they fail.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from optuna.trial import FrozenTrial

from lightning_hp.report.notes import decorate
from lightning_hp.study.storage import StudyError
from lightning_hp.tuning.build import CliBuilder, PythonBuilder
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.finish import Result, finish
from lightning_hp.tuning.interrupts import interruptible
from lightning_hp.tuning.listener import SilentListener, StudyListener
from lightning_hp.tuning.runner import StudyRunner
from lightning_hp.tuning.yaml_file import ConfigError

#: exit codes of a worker that was told to stop by SIGINT or SIGTERM
_STOPPED = (130, 143)
#: seconds between looks at the study while workers run it
POLL = 0.3
#: the dashboard is decorated from this trial number on: before there is little to say
FIRST_DECORATED = 5


def run(
    config: TuneConfig,
    builder: CliBuilder | PythonBuilder,
    listener: StudyListener | None = None,
    worker_command: Sequence[str] = (),
    now: datetime | None = None,
) -> Result:
    """Run a study to its end.

    Args:
        config: What to do.
        builder: Makes the objects of a trial.
        listener: Is told what happens.
        worker_command: The command that starts one worker of the ``local`` engine.
        now: The clock at the end of the study, which dates the ledger; None is the current time then.

    Raises:
        ConfigError: If the configuration cannot work.
        StudyError: If the study cannot be opened, or has to stop.
        KeyboardInterrupt: After the running trial, if Ctrl-C was pressed; the study can be continued.
    """
    builder.check(config.space)
    runner = StudyRunner(config, builder)
    runner.listener = _DecoratingListener(listener or SilentListener(), runner, now)
    try:
        runner.catch_up()
        while True:
            if config.caviar.engine == "local":
                _work_in_processes(runner, worker_command)
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
    finally:
        runner.leases.worker.close()


class _DecoratingListener:
    """Passes everything on; between trials, now and then, brings the dashboard's notes and figures up to date."""

    def __init__(self, listener: StudyListener, runner: StudyRunner, now: datetime | None) -> None:
        self._listener, self._runner, self._now = listener, runner, now
        self.study_planned, self.trial_known = listener.study_planned, listener.trial_known
        self.trial_started, self.trial_resumed = listener.trial_started, listener.trial_resumed
        self.message = listener.message

    def trial_finished(self, trial: FrozenTrial) -> None:
        self._listener.trial_finished(trial)
        if trial.number >= FIRST_DECORATED:
            decorate(self._runner.study, self._runner.paths, now=self._now)


def _work_in_processes(runner: StudyRunner, command: Sequence[str]) -> None:
    if not command:
        raise ConfigError("`caviar.engine` must be in_process when a study is started from Python, got 'local'")
    workers = runner.config.caviar.workers
    folder = runner.paths.root / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"{i}.log" for i in range(workers)]
    processes: list[subprocess.Popen[bytes]] = []
    threads, setting = threads_of_worker(workers), os.environ.get("OMP_NUM_THREADS")
    if setting not in (None, str(threads)):
        runner.say(f"OMP_NUM_THREADS={setting} is shared out: {threads} for each of {workers} workers")

    def kill() -> None:
        # a terminal has told them too, but two signals in quick succession may reach a busy process as one
        for process in processes:
            process.kill()

    with interruptible(runner.stopping, runner.listener.message, kill):
        try:
            for i, log in enumerate(logs):
                with log.open("wb") as out:
                    started = subprocess.Popen(
                        command,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                        env=_environment(i, workers),
                    )
                processes.append(started)
            _follow(runner, processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
    _check(processes, logs, runner)


def threads_of_worker(workers: int) -> int:
    """How many threads each of so many workers has: its share of ``OMP_NUM_THREADS``, or of the cores."""
    setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = int(setting) if setting.isdigit() and int(setting) else os.cpu_count() or 1
    return max(1, threads // workers)


def _environment(worker: int, workers: int) -> dict[str, str]:
    """Threads shared out between the workers, and accelerators if there are several."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads_of_worker(workers))}
    import torch

    devices = torch.cuda.device_count()
    if devices > 1 and "CUDA_VISIBLE_DEVICES" not in environment:
        environment["CUDA_VISIBLE_DEVICES"] = str(worker % devices)
    return environment


def _follow(runner: StudyRunner, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell the display what storage shows, until all workers have ended."""
    started: set[int] = set()
    finished = runner.catch_up()
    heard = None if runner.gate is None else runner.gate.last_message()
    running = True
    while running:
        running = any(process.poll() is None for process in processes)
        if runner.gate is not None and (text := runner.gate.last_message()) is not None and text != heard:
            heard = text  # workers have no display of their own
            runner.listener.message(text)
        for trial in runner.study.get_trials(deepcopy=False):
            if trial.number not in started and not trial.state.is_finished() and trial.params:
                started.add(trial.number)
                runner.listener.trial_started(trial)
            if trial.number not in finished and trial.state.is_finished():
                finished.add(trial.number)
                runner.listener.trial_finished(trial)
        if running:
            time.sleep(POLL)


def _check(processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path], runner: StudyRunner) -> None:
    """Raise what the first failed worker said.

    A worker that was killed is no error while another one came to its end: its trial has been, or will be, taken over.
    """
    if runner.stopping.is_set():
        return
    killed = 0
    for process, log in zip(processes, logs, strict=True):
        code = process.returncode
        if code < 0 or code in _STOPPED:
            killed += 1
            runner.listener.message(f"a worker was stopped from outside (exit code {code}); see {log}")
        elif code:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            error = lines[-1] if lines else f"exit code {code}"
            raise StudyError(f"{error.removeprefix('error: ')} (worker log: {log})")
    if killed == len(processes):
        raise StudyError(
            f"all workers were stopped from outside; the same command goes on from here (logs: {logs[0].parent})"
        )
