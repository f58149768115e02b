"""The engine ``local``: worker processes on this machine, which share nothing but the storage and the study folder.

They are started, replaced when something kills them, and followed: what storage shows is told to the display.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_hp.study.storage import StudyError
from lightning_hp.tuning.interrupts import interruptible
from lightning_hp.tuning.runner import StudyRunner
from lightning_hp.tuning.workers.payload import pack
from lightning_hp.tuning.yaml_file import ConfigError

#: exit codes of a worker that was told to stop by SIGINT or SIGTERM
_STOPPED = (130, 143)
#: seconds between looks at the study while workers run it
POLL = 0.3
#: a worker that is killed so often without a trial's end in between is not started again
MOST_KILLED = 3


@dataclass
class _Seat:
    """One of the workers, and those that have taken its place.

    Attributes:
        number: Of the seat, from 0.
        log: Where its workers write to.
        process: The present one.
        killed: How many were killed in a row while no trial of the study ended.
        ended: How many trials had ended when the present one was started.
    """

    number: int
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)
    killed: int = 0
    ended: int = 0


def work_in_processes(runner: StudyRunner) -> None:
    """Have worker processes run trials until the budget is spent or a stop is asked for.

    Raises:
        ConfigError: If the project cannot be handed to another process.
        StudyError: If a worker failed, or all were stopped from outside.
    """
    workers = runner.config.caviar.workers
    if runner.only is not None:
        raise ConfigError(
            "`storage` must be journal, or a database with a server, for worker processes: SQLite takes one process at "
            f"a time, got {runner.config.storage}"
        )
    study = pack(runner.builder, runner.config)
    folder = runner.paths.root / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    seats = [_Seat(i, folder / f"{i}.log") for i in range(workers)]
    started: list[_Seat] = []
    threads, setting = threads_of_worker(workers), os.environ.get("OMP_NUM_THREADS")
    if setting not in (None, str(threads)):
        runner.say(f"OMP_NUM_THREADS={setting} is shared out: {threads} for each of {workers} workers")

    def kill() -> None:
        # a terminal has told them too, but two signals in quick succession may reach a busy process as one
        for seat in started:
            seat.process.kill()

    with interruptible(runner.stopping, runner.listener.message, kill):
        try:
            for seat in seats:
                _start(seat, study, workers)
                started.append(seat)
            _follow(runner, seats, study)
        finally:
            for seat in started:
                if seat.process.poll() is None:
                    seat.process.terminate()
                    seat.process.wait()
    _check(seats, runner)


def _start(seat: _Seat, study: bytes, workers: int, more: str = "wb") -> None:
    with seat.log.open(more) as out:
        seat.process = subprocess.Popen(
            [sys.executable, "-m", "lightning_hp", "work"],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
            env=_environment(seat.number, workers),
        )
    assert seat.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died already: seen when it is looked at
        seat.process.stdin.write(study)
        seat.process.stdin.close()


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


def _follow(runner: StudyRunner, seats: Sequence[_Seat], study: bytes) -> None:
    """Tell the display what storage shows, and replace workers that are killed, until all have ended."""
    started: set[int] = set()
    finished = runner.catch_up()
    heard = None if runner.gate is None else runner.gate.last_message()
    running = True
    while running:
        for seat in seats:
            _replace(seat, runner, study, len(seats), len(finished))
        running = any(seat.process.poll() is None for seat in seats)
        if runner.gate is not None and (text := runner.gate.last_message()) is not None and text != heard:
            heard = text  # workers have no display of their own
            runner.listener.message(text)
        for trial in runner.study.get_trials(deepcopy=False):
            if trial.number not in started and not trial.state.is_finished() and trial.params:
                started.add(trial.number)
                runner.listener.trial_started(trial)
            if not trial.state.is_finished() and (curve := trial.intermediate_values):
                runner.listener.trial_progressed(trial.number, max(curve), runner.max_steps, curve[max(curve)])
            if trial.number not in finished and trial.state.is_finished():
                finished.add(trial.number)
                runner.listener.trial_finished(trial)
        if running:
            time.sleep(POLL)


def _replace(seat: _Seat, runner: StudyRunner, study: bytes, workers: int, ended: int) -> None:
    """Start another worker in place of one that was killed; the first ones killed are said."""
    code = seat.process.poll()
    if code is None or code >= 0 or -code in (2, 15) or runner.stopping.is_set():
        return
    seat.killed = seat.killed + 1 if ended == seat.ended else 1
    if seat.killed > MOST_KILLED:
        return
    seat.ended = ended
    runner.listener.message(f"worker {seat.number} was killed (exit code {code}); another one takes its place")
    _start(seat, study, workers, "ab")


def _check(seats: Sequence[_Seat], runner: StudyRunner) -> None:
    """Raise what the first failed worker said.

    A worker that was killed is no error while another one came to its end: its trial has been, or will be, taken over.
    """
    if runner.stopping.is_set():
        return
    killed = 0
    for seat in seats:
        code = seat.process.returncode
        if code < 0 or code in _STOPPED:
            killed += 1
            runner.listener.message(f"a worker was stopped from outside (exit code {code}); see {seat.log}")
        elif code:
            lines = [line for line in seat.log.read_text(errors="replace").splitlines() if line.strip()]
            error = lines[-1] if lines else f"exit code {code}"
            raise StudyError(f"{error.removeprefix('error: ')} (worker log: {seat.log})")
    if killed == len(seats):
        raise StudyError(
            f"all workers were stopped from outside; the same command goes on from here (logs: {seats[0].log.parent})"
        )
