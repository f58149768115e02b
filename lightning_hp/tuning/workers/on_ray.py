"""The engine ``ray``: a worker is a task that runs trials until there are no more; Ray decides where it runs.

A task holds its CPUs and its GPUs, or a part of one, as long as it runs. All else is as with ``local``: state is in
storage, whoever runs a trial holds its lease, and a task whose process or node dies is replaced by another one.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import CONNECT_SECONDS, StudyError, one_line
from lightning_hp.tuning.caviar import Caviar
from lightning_hp.tuning.runner import StudyRunner
from lightning_hp.tuning.workers.payload import pack, unpack
from lightning_hp.tuning.workers.seats import DONE, FAILED, KILLED, STOPPED, Ended, refuse_one_process, work_in_seats


@contextlib.contextmanager
def connected(caviar: Caviar) -> Iterator[None]:
    """Within this context this process is connected to Ray; a connection that it has already is used, and kept.

    Raises:
        ConfigError: If Ray is not installed, or there is no cluster at the address.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    # a Ray that is started for a study alone sends nothing home, unless its owner says so
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _knock(caviar.address or "")
        ray.init(address=caviar.address, log_to_driver=False, logging_level="error")
    except Exception as error:
        raise ConfigError(
            f"`caviar.address` must be a Ray cluster that answers, got {caviar.address or 'none'}: {one_line(error)}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"`caviar.engine` ray needs Ray: pip install 'lightning-hp[ray]' ({one_line(error)})"
        ) from error
    return ray


def _knock(address: str) -> None:
    """See that somebody listens at ``HOST:PORT``; Ray itself tries for many minutes, and writes about it.

    Raises:
        OSError: If nobody does.
    """
    parts = re.fullmatch(r"(?:ray://)?(.+):(\d{1,5})", address)
    if parts is not None:
        socket.create_connection((parts[1].strip("[]"), int(parts[2])), CONNECT_SECONDS).close()


def work_on_ray(runner: StudyRunner) -> None:
    """Have workers on a Ray cluster run trials; see :func:`connected`.

    Raises:
        ConfigError: If the project cannot be handed to another process, or no worker will ever have its place.
        StudyError: If a worker failed, or all were stopped from outside.
    """
    ray = _ray()
    refuse_one_process(runner)
    caviar = runner.config.caviar
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = caviar.gpus
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) for node in nodes) else 0.0
    each = f"{caviar.cpus:g} CPUs and {gpus:g} GPUs" if gpus else f"{caviar.cpus:g} CPUs"
    places = room(nodes, caviar.cpus, gpus)
    if places < caviar.workers:
        runner.say(f"Ray has room for {places} of {caviar.workers} workers now, with {each} each; the others wait")
    study = pack(runner.builder, runner.config)
    task = ray.remote(num_cpus=caviar.cpus, num_gpus=gpus, max_retries=0, max_calls=1)(_work)
    arguments = (study, os.getcwd(), max(1, int(caviar.cpus)))
    seats = [_RaySeat(ray, task, (*arguments, number), runner.paths) for number in range(caviar.workers)]
    work_in_seats(runner, seats)


def room(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """How many workers a cluster has room for while nothing else runs there.

    Args:
        nodes: Resources of each, as Ray names them.
        cpus: Of a worker.
        gpus: Of a worker.
    """
    return sum(_room(node, cpus, gpus) for node in nodes)


def _room(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    places = math.floor(node.get("CPU", 0.0) / cpus)
    if not gpus:
        return places
    devices = node.get("GPU", 0.0)
    # a part of a device is a part of one, so two workers of 0.7 need two
    on_devices = int(devices) * math.floor(1 / gpus + 1e-9) if gpus < 1 else math.floor(devices / gpus)
    return min(places, on_devices)


class _RaySeat:
    """A task, and those that take its place.

    Args:
        ray: The module.
        task: What a worker does, with what it needs of a node.
        arguments: Of the task.
        paths: The study folder.
    """

    def __init__(self, ray: Any, task: Any, arguments: tuple[Any, ...], paths: StudyPaths) -> None:
        self.log = str(_log(paths, arguments[-1]))
        self._ray, self._task, self._arguments = ray, task, arguments
        self._running: Any = None
        self._ended: Ended | None = None

    def start(self) -> None:
        self._running, self._ended = self._task.remote(*self._arguments), None

    def ended(self) -> Ended | None:
        if self._ended is None and self._ray.wait([self._running], timeout=0)[0]:
            self._ended = self._outcome()
        return self._ended

    def _outcome(self) -> Ended:
        exceptions = self._ray.exceptions
        try:
            error = self._ray.get(self._running)
        except exceptions.TaskCancelledError as stopped:
            return Ended(STOPPED, one_line(stopped))
        except exceptions.RayTaskError as failed:
            return Ended(FAILED, one_line(failed.cause if isinstance(failed.cause, Exception) else failed))
        except exceptions.RayError as killed:  # its process or its node is gone
            return Ended(KILLED, type(killed).__name__)
        return Ended(DONE) if error is None else Ended(FAILED, error)

    def stop(self) -> None:
        # as Ctrl-C in the worker's process; one that waits for its place is taken out of the queue
        self._ray.cancel(self._running)

    def kill(self) -> None:
        self._ray.cancel(self._running, force=True)

    def close(self) -> None:
        if self.ended() is None:
            self.kill()


def _log(paths: StudyPaths, number: int) -> Path:
    return paths.root / "workers" / f"{number}.log"


def _work(study: bytes, folder: str, threads: int, number: int) -> str | None:
    """Run trials until there are no more, in a process of its own on some node of the cluster.

    Args:
        study: See :func:`.payload.pack`.
        folder: Where the study was started; the place to work in, where the node has it too.
        threads: For PyTorch.
        number: Of the seat.

    Returns:
        What stops the study, in one line; None at its end.
    """
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)  # for processes of the project's own
    torch.set_num_threads(threads)
    if Path(folder).is_dir():
        os.chdir(folder)
    builder, config = unpack(io.BytesIO(study))
    paths = StudyPaths(config.folder)
    if config.storage == "journal" and not paths.journal.is_file():
        return (
            f"`storage` must be a database for workers without a shared folder: node {socket.gethostname()} has no "
            f"{paths.journal.absolute()}"
        )
    log = _log(paths, number)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    try:
        StudyRunner(config, builder).work()
    except (ConfigError, StudyError) as error:
        return str(error)
    return None
