"""The seats of a study's workers: they are started, replaced when something kills them, and followed.

What storage shows is told to the display; workers have none of their own. Where a seat is (a process of this machine, a
task on a cluster) is its own affair.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.storage import StudyError
from lightning_hp.tuning.interrupts import interruptible
from lightning_hp.tuning.runner import StudyRunner

#: seconds between looks at the study while workers run it
POLL = 0.3
#: a worker that is killed so often without a trial's end in between is not started again
MOST_KILLED = 3
#: how a worker ended: it saw no more trials, something killed it, somebody told it to stop, it raised an error
DONE, KILLED, STOPPED, FAILED = "done", "killed", "stopped", "failed"


@dataclass(frozen=True)
class Ended:
    """How a worker ended.

    Attributes:
        how: One of the words above.
        text: What it said, or what killed it.
    """

    how: str
    text: str = ""


class Seat(Protocol):
    """A place for one worker after the other."""

    @property
    def log(self) -> str:
        """Where its workers write to."""
        ...

    def start(self) -> None:
        """Start a worker."""
        ...

    def ended(self) -> Ended | None:
        """How the present worker ended; None while it runs."""
        ...

    def stop(self) -> None:
        """Ask the worker to end after its running trial, where nobody else does (a terminal tells its processes)."""
        ...

    def kill(self) -> None:
        """End the worker at once."""
        ...

    def close(self) -> None:
        """See to it that no worker is left."""
        ...


@dataclass
class _Watched:
    """A seat, and what became of its workers so far.

    Attributes:
        seat: The seat.
        number: From 0.
        killed: How many were killed in a row while no trial of the study ended.
        trials: How many trials had ended when the present one was started.
    """

    seat: Seat
    number: int
    killed: int = 0
    trials: int = 0


def refuse_one_process(runner: StudyRunner) -> None:
    """Refuse a storage that takes one process.

    Raises:
        ConfigError: If it is such a one.
    """
    if runner.only is not None:
        raise ConfigError(
            "`storage` must be journal, or a database with a server, for worker processes: SQLite takes one process at "
            f"a time, got {runner.config.storage}"
        )


def work_in_seats(runner: StudyRunner, seats: Sequence[Seat]) -> None:
    """Have workers run trials until the budget is spent or a stop is asked for.

    Raises:
        StudyError: If a worker failed, or all were stopped from outside.
    """
    started: list[_Watched] = []

    def kill() -> None:
        # a terminal has told them too, but two signals in quick succession may reach a busy process as one
        for watched in started:
            watched.seat.kill()

    with interruptible(runner.stopping, runner.listener.message, kill):
        try:
            for number, seat in enumerate(seats):
                seat.start()
                started.append(_Watched(seat, number))
            _follow(runner, started)
        finally:
            for watched in started:
                watched.seat.close()
    _check(seats, runner)


def _follow(runner: StudyRunner, seats: Sequence[_Watched]) -> None:
    """Tell the display what storage shows, and replace workers that are killed, until all have ended."""
    started: set[int] = set()
    finished = runner.catch_up()
    heard = None if runner.gate is None else runner.gate.last_message()
    running, stop_sent = True, False
    while running:
        if runner.stopping.is_set() and not stop_sent:
            stop_sent = True
            for watched in seats:
                watched.seat.stop()
        for watched in seats:
            _replace(watched, runner, len(finished))
        running = any(watched.seat.ended() is None for watched in seats)
        if runner.gate is not None and (text := runner.gate.last_message()) is not None and text != heard:
            heard = text
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


def _replace(watched: _Watched, runner: StudyRunner, trials: int) -> None:
    """Start another worker in place of one that was killed; the first ones killed are said."""
    ended = watched.seat.ended()
    if ended is None or ended.how != KILLED or runner.stopping.is_set():
        return
    watched.killed = watched.killed + 1 if trials == watched.trials else 1
    if watched.killed > MOST_KILLED:
        return
    watched.trials = trials
    runner.listener.message(f"worker {watched.number} was killed ({ended.text}); another one takes its place")
    watched.seat.start()


def _check(seats: Sequence[Seat], runner: StudyRunner) -> None:
    """Raise what the first failed worker said.

    A worker that was killed is no error while another one came to its end: its trial has been, or will be, taken over.
    """
    if runner.stopping.is_set():
        return
    stopped = 0
    for seat in seats:
        ended = seat.ended()
        assert ended is not None
        if ended.how == FAILED:
            raise StudyError(f"{ended.text.removeprefix('error: ')} (worker log: {seat.log})")
        if ended.how != DONE:
            stopped += 1
            runner.listener.message(f"a worker was stopped from outside ({ended.text}); see {seat.log}")
    if stopped == len(seats):
        raise StudyError(
            "all workers were stopped from outside; the same command goes on from here (logs: "
            f"{runner.paths.root / 'workers'})"
        )
