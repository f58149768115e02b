"""A trial on several devices of one machine: a process for each rank, started for this trial alone.

Strategies of Lightning that start processes of their own (``ddp``, ``ddp_spawn`` and the like) would run the study's
own process again on every rank. Here the worker starts the ranks, hands each the trial on standard input, and stays
what talks to the study: rank 0 sends it every point of the learning curve through a pipe, and is told when to stop,
which :class:`.TrialPruning` passes on to all ranks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher

from lightning_hp.callbacks.audit.auditor import BatchNormAuditor
from lightning_hp.callbacks.pruning import TrialPruning, UnknownMetricError
from lightning_hp.callbacks.trackers import give_values
from lightning_hp.project.build import Built, CliBuilder, PythonBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.paths import TrialPaths
from lightning_hp.study.storage import one_line
from lightning_hp.tuning.workers.payload import pack, unpack

#: how the file descriptor of rank 0's end of the pipe is handed on
_PIPE = "LIGHTNING_HP_PIPE"
#: seconds between two looks at the ranks while they train
POLL = 0.2
#: seconds that the other ranks have to end after one has failed
GRACE = 10.0
#: what ranks print
LOG = "ranks.log"


@dataclass(frozen=True)
class Job:
    """What a rank trains: see :func:`lightning_hp.tuning.objective.run_trial`.

    Attributes:
        arguments: Natural values.
        folder: The trial's.
        monitor: Name of the metric.
        mode: ``min`` or ``max``.
        seed: Of the trial.
        length: Of a complete training.
        max_steps: In how many units the curve counts it.
        audit: Whether BatchNorm layers are audited.
        of: What tells this training's checkpoints from others.
    """

    arguments: Mapping[str, Any]
    folder: Path
    monitor: str
    mode: str
    seed: int
    length: TrainingLength
    max_steps: int
    audit: bool
    of: str


class RankError(RuntimeError):
    """A rank has failed.

    Args:
        line: What it raised, in one line.
        text: Its traceback.
        errno: Of a system error.
    """

    def __init__(self, line: str, text: str = "", errno: int | None = None) -> None:
        super().__init__(line)
        self.line, self.text, self.errno = line, text or line, errno


def needs_ranks(trainer: pl.Trainer) -> int:
    """How many processes a Trainer's strategy would start; 0 for one that trains in this process.

    Raises:
        ConfigError: If they are on several machines.
    """
    if not isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher | _MultiProcessingLauncher):
        return 0
    if trainer.num_nodes > 1:
        raise ConfigError(f"`trainer.num_nodes` must be 1 in a study, got {trainer.num_nodes}: a trial has one machine")
    return int(trainer.num_devices)


def build_on_one_device(
    builder: CliBuilder | PythonBuilder, arguments: Mapping[str, Any], folder: Path, seed: int, length: TrainingLength
) -> Built:
    """The objects of a trial for an evaluation, which is done in this process whatever the project's strategy."""
    built = builder.build(arguments, folder, seed, [], length)
    if not needs_ranks(built.trainer):
        return built
    built.close()
    one = {"trainer.devices": 1, "trainer.strategy": "auto"}
    return builder.build({**arguments, **one}, folder, seed, [], length)


def train_in_ranks(
    job: Job,
    builder: CliBuilder | PythonBuilder,
    ranks: int,
    curve: Any,
    look: Callable[[], None],
) -> dict[str, Any]:
    """Train a trial in processes of its own.

    Args:
        job: What to train.
        builder: Makes the objects of a trial.
        ranks: How many.
        curve: Takes ``report(value, step)`` and answers ``should_prune()``.
        look: Is called now and then, and raises to end the training.

    Returns:
        What rank 0 says at its end: ``pruning`` (its progress), ``epochs``, ``begun_at`` and ``audit``.

    Raises:
        RankError: If a rank failed.
        UnknownMetricError: If nothing logs the metric.
    """
    study = pack(builder, job)
    mine, theirs = socket.socketpair()
    pipe = Connection(mine.detach())
    processes: list[subprocess.Popen[bytes]] = []
    job.folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    try:
        with (job.folder / LOG).open("wb") as log:
            for rank in range(ranks):
                environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
                environment |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), _PIPE: str(theirs.fileno())}
                process = subprocess.Popen(
                    [sys.executable, "-m", "lightning_hp", "rank"],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    pass_fds=(theirs.fileno(),),
                )
                processes.append(process)
                assert process.stdin is not None
                process.stdin.write(study)
                process.stdin.close()
        theirs.close()
        ended = _serve(pipe, processes, curve, look)
    finally:
        pipe.close()
        for process in processes:
            _end(process)
    return ended


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _serve(
    pipe: Connection, processes: Sequence[subprocess.Popen[bytes]], curve: Any, look: Callable[[], None]
) -> dict[str, Any]:
    """Answer rank 0 until it has ended."""
    while True:
        look()
        if not pipe.poll(POLL):
            _check(processes)
            continue
        try:
            kind, content = pipe.recv()
        except EOFError:
            for process in processes:
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    break
            _check(processes)
            raise RankError("rank 0 ended without a word") from None
        if kind == "report":
            curve.report(*content)
        elif kind == "prune?":
            pipe.send(curve.should_prune())
        elif kind == "unknown metric":
            raise UnknownMetricError(content)
        elif kind == "failed":
            raise RankError(*content)
        else:
            for process in processes:
                process.wait()
            return dict(content)


def _check(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank, process in enumerate(processes):
        code = process.poll()
        if code:
            raise RankError(f"rank {rank} ended with exit code {code}")


class _Curve:
    """Rank 0's end: what :class:`.TrialPruning` reports to."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def report(self, value: float, step: int) -> None:
        self._pipe.send(("report", (value, step)))

    def should_prune(self) -> bool:
        self._pipe.send(("prune?", None))
        return bool(self._pipe.recv())


def run_rank() -> int:
    """Train as one rank; the exit code. The job comes on standard input."""
    from lightning_hp.project.quiet import suppress_repeated_warnings

    builder, job = unpack(sys.stdin.buffer)
    pipe = Connection(int(os.environ.pop(_PIPE)))
    first = os.environ["LOCAL_RANK"] == "0"
    try:
        with suppress_repeated_warnings():
            ended = _train(builder, job, _Curve(pipe))
    except UnknownMetricError as error:
        if first:
            pipe.send(("unknown metric", str(error)))
        return 1
    except Exception as error:
        traceback.print_exc()
        if first:
            text = "".join(traceback.format_exception(error))
            is_memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
            pipe.send(
                ("failed", ("out of memory" if is_memory else one_line(error), text, getattr(error, "errno", None)))
            )
        return 1
    # Lightning leaves the group to the end of the process, where a thread of gloo that still runs aborts it
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if first:
        pipe.send(("ended", ended))
    return 0


def _train(builder: CliBuilder | PythonBuilder, job: Job, curve: _Curve) -> dict[str, Any]:
    from lightning_hp.callbacks.unfinished import UnfinishedCheckpoint
    from lightning_hp.tuning.checkpoints import TrialCheckpoint, can_go_on, classes_of

    paths = TrialPaths(job.folder)
    pruning = TrialPruning(curve, job.monitor, job.max_steps)
    unfinished = UnfinishedCheckpoint(paths.unfinished, pruning, job.of)
    auditor = BatchNormAuditor(on_finding="log", history=False, dirpath=job.folder)
    checkpoint = TrialCheckpoint.of(paths, job.monitor, job.mode)
    callbacks = [pruning, checkpoint, *([auditor] if job.audit else []), unfinished]
    built = builder.build(job.arguments, job.folder, job.seed, callbacks, job.length)
    # these processes are the ranks
    built.trainer.strategy._launcher = None
    if built.trainer.is_global_zero:
        give_values(built.trainer.loggers, job.arguments)
    if can_go_on(paths.unfinished, unfinished.fits):
        built.trainer.ckpt_path = paths.unfinished
    with classes_of(paths.unfinished):
        built.fit()
    return {
        "pruning": pruning.progress(),
        "epochs": built.trainer.current_epoch,
        "begun_at": unfinished.begun_at,
        "audit": auditor.counts() if job.audit and auditor.result().get("layers") else None,
    }
