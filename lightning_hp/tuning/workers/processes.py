"""The engine ``local``: worker processes on this machine, which share nothing but the storage and the study folder."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from lightning_hp.tuning.runner import StudyRunner
from lightning_hp.tuning.workers.payload import pack
from lightning_hp.tuning.workers.seats import DONE, FAILED, KILLED, STOPPED, Ended, refuse_one_process, work_in_seats

#: exit codes of a worker that was told to stop by SIGINT or SIGTERM: as it ends itself, and as the signal ends it
_STOPPED = (130, 143, -2, -15)


def work_in_processes(runner: StudyRunner) -> None:
    """Have worker processes run trials until the budget is spent or a stop is asked for.

    Raises:
        ConfigError: If the project cannot be handed to another process.
        StudyError: If a worker failed, or all were stopped from outside.
    """
    workers = runner.config.caviar.workers
    refuse_one_process(runner)
    study = pack(runner.builder, runner.config)
    folder = runner.paths.root / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    threads, setting = threads_of_worker(workers), os.environ.get("OMP_NUM_THREADS")
    if setting not in (None, str(threads)):
        runner.say(f"OMP_NUM_THREADS={setting} is shared out: {threads} for each of {workers} workers")
    work_in_seats(runner, [_ProcessSeat(i, folder / f"{i}.log", study, workers) for i in range(workers)])


class _ProcessSeat:
    """A worker process, and those that take its place.

    Args:
        number: Of the seat, from 0.
        log: Where its workers write to.
        study: What they are given.
        workers: How many seats there are.
    """

    def __init__(self, number: int, log: Path, study: bytes, workers: int) -> None:
        self.log = str(log)
        self._number, self._study, self._workers = number, study, workers
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: Ended | None = None

    def start(self) -> None:
        self._ended = None
        with open(self.log, "wb" if self._process is None else "ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lightning_hp", "work"],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.PIPE,
                env=_environment(self._number, self._workers),
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died already: seen when it is looked at
            self._process.stdin.write(self._study)
            self._process.stdin.close()

    def ended(self) -> Ended | None:
        assert self._process is not None
        code = self._process.poll()
        if code is not None and self._ended is None:
            self._ended = self._outcome(code)
        return self._ended

    def _outcome(self, code: int) -> Ended:
        text = f"exit code {code}"
        if code in _STOPPED:
            return Ended(STOPPED, text)
        if code < 0:
            return Ended(KILLED, text)
        if not code:
            return Ended(DONE)
        lines = [line for line in Path(self.log).read_text(errors="replace").splitlines() if line.strip()]
        return Ended(FAILED, lines[-1] if lines else text)

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    def close(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


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
