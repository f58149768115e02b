"""Workers that are killed, frozen and cut off from their storage; and how they scale.

    python benchmarks/workers.py chaos --storage journal
    python benchmarks/workers.py chaos --storage postgresql
    python benchmarks/workers.py scaling

``chaos``: four workers run short trials; every second one is killed (SIGKILL) and another takes its place; one is
stopped (SIGSTOP) for longer than its lease and goes on; PostgreSQL is stopped for ten seconds twice. At the end every
trial must have ended once, and none may run. ``scaling``: the same study by one and by two workers, whose trials
either compute (``--trial compute``, on two free cores) or wait (``wait``, as for a GPU: what is left is what workers
cost each other). What a study of many trials costs: ``benchmarks/scale.py``.

PostgreSQL is a server of the benchmark's own (``apt-get install postgresql``), in a folder of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import lightning.pytorch as pl
import optuna
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.project.build import PythonBuilder
from lightning_hp.study.leases import lease_of
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import load_study, open_storage
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.listener import SilentListener
from lightning_hp.tuning.workers.joining import join

SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A", "default": 0.5},
    "momentum": {"low": 0.5, "high": 0.99, "scale": "one_minus_log", "tier": "B", "default": 0.9},
    "width": {"low": 8, "high": 64, "tier": "B", "default": 16},
}


class Data(pl.LightningDataModule):
    """A few rows."""

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.zeros(4, 3)), batch_size=4)

    train_dataloader = val_dataloader = _loader


class Net(pl.LightningModule):
    """A parabola in the logarithm of the learning rate; an epoch takes ``seconds`` of waiting, or ``work`` products.

    Every epoch that is begun is a line of ``epochs.log`` in the study folder: trial, epoch, process.
    """

    def __init__(
        self, learning_rate: float = 0.5, momentum: float = 0.9, width: int = 16, seconds: float = 0.0, work: int = 0
    ) -> None:
        super().__init__()
        self.point = (learning_rate, momentum, width)
        self.seconds, self.work = seconds, work
        self.layer = torch.nn.Linear(3, width)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        folder = Path(self.trainer.default_root_dir)
        with open(folder.parents[1] / "epochs.log", "ab") as file:
            file.write(f"{folder.name} {self.current_epoch} {os.getpid()}\n".encode())
        time.sleep(self.seconds)
        matrix = torch.ones(300, 300)
        for _ in range(self.work):
            matrix = torch.tanh(matrix @ matrix * 1e-3)
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        rate, momentum, width = self.point
        loss = (torch.tensor(rate).log10() + 2) ** 2 + (momentum - 0.8) ** 2 + abs(width - 32) / 100
        self.log("val_loss", loss + 1.0 / (self.current_epoch + 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def study_of(folder: Path, storage: str, trials: int, epochs: int, lease: float, **net: Any) -> tuple[Any, Any]:
    """Configuration and builder of a study."""
    from functools import partial

    trainer = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "logger": False, "log_every_n_steps": 1}
    builder = PythonBuilder(partial(Net, **net), Data, trainer)
    settings = {"name": folder.name, "folder": str(folder), "storage": storage, "audit": False, "prune": False,
                "confirm": False, "caviar": {"engine": "in_process", "lease": lease}}  # fmt: skip
    budget = {"trials": trials, "max_epochs": epochs}
    return TuneConfig.from_arguments(SPACE, budget, settings, builder), builder


class Quiet(SilentListener):
    """Writes what it is told to a file that all workers share."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def message(self, text: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{os.getpid()} {text}\n")


def import_all(folder: Path, url: str) -> None:
    """Import what a worker's first trial imports, so that forked workers are past that; a child finds it out."""
    folder.mkdir()
    config, builder = study_of(folder, url, 1, 1, 60.0)
    child = os.fork()
    if not child:
        try:
            join(config, builder, Quiet(folder / "messages.log"))  # type: ignore[arg-type]
            (folder / "modules.json").write_text(json.dumps(list(sys.modules)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    for name in json.loads((folder / "modules.json").read_text()):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that a forked worker's first collection does not copy all of it


def start(config: TuneConfig, builder: PythonBuilder) -> int:
    """Fork a worker, which is past its imports; gives its process number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    messages = config.folder / "messages.log"
    try:
        out = os.open(config.folder / "errors.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 2)
        join(config, builder, Quiet(messages))  # type: ignore[arg-type]
        code = 0
    except BaseException as error:
        with messages.open("a") as file:
            file.write(f"{os.getpid()} ended by {type(error).__name__}: {error}\n")
    finally:
        os._exit(code)
    return 0


def until_done(
    config: TuneConfig, builder: PythonBuilder, workers: int, every: Callable[[float, list[int]], None]
) -> tuple[float, int]:
    """Run workers until all come to their end; who ends otherwise is replaced.

    Returns:
        Wall seconds, and how many were replaced.
    """
    begun, replaced = time.monotonic(), 0
    alive = [start(config, builder) for _ in range(workers)]
    while alive:
        every(time.monotonic() - begun, alive)
        for child in list(alive):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                alive.remove(child)
                if os.waitstatus_to_exitcode(status):
                    replaced += 1
                    alive.append(start(config, builder))
        time.sleep(0.02)
    return time.monotonic() - begun, replaced


def chaos(options: argparse.Namespace, root: Path) -> None:
    """See the top of this file."""
    with server(options.storage) as postgres:
        folder = root / "chaos"
        folder.mkdir()
        url = "journal" if postgres is None else postgres.url
        import_all(root / "imports", url)
        config, builder = study_of(folder, url, options.trials, 6, options.lease, seconds=options.epoch)
        draw, events = random.Random(options.seed), Counter()
        state: dict[str, Any] = {"kill": options.kill_every, "frozen": None, "down": None}
        outages = [20.0, 60.0] if postgres is not None else []

        def every(seconds: float, alive: list[int]) -> None:
            awake = [child for child in alive if child != state["frozen"]]
            begun = len(list(folder.glob("trials/*")))
            log = folder / "epochs.log"
            over = begun >= options.trials and time.time() - log.stat().st_mtime > 3 * options.kill_every
            if seconds >= state["kill"] and awake and not over:
                state["kill"] = seconds + options.kill_every
                os.kill(draw.choice(awake), signal.SIGKILL)
                events["killed"] += 1
            if state["frozen"] is None and not events["frozen"] and seconds > 5 and awake:
                state["frozen"], state["until"] = awake[0], seconds + 2.5 * options.lease
                os.kill(awake[0], signal.SIGSTOP)
                events["frozen"] += 1
            if state["frozen"] is not None and seconds > state["until"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(state["frozen"], signal.SIGCONT)
                state["frozen"], events["continued"] = None, 1
            if postgres is not None and state["down"] is None and outages and seconds > outages[0]:
                outages.pop(0)
                postgres.stop()
                state["down"] = seconds
                events["storage stopped"] += 1
            if postgres is not None and state["down"] is not None and seconds > state["down"] + 10:
                postgres.start()
                state["down"] = None

        seconds, replaced = until_done(config, builder, options.workers, every)
        if state["down"] is not None:
            postgres.start()
        show_chaos(config, seconds, replaced, events, options)


def losses(log: Path) -> tuple[Counter[int], Counter[int]]:
    """Epochs that were begun again whenever another process took a trial over, the one under way among them.

    Args:
        log: Lines of trial, epoch and process, in the order in which epochs were begun.

    Returns:
        Epochs to how often so many were; of trials that went on from a checkpoint, and of those that began anew.
    """
    last: dict[str, tuple[int, str]] = {}
    from_checkpoint: Counter[int] = Counter()
    anew: Counter[int] = Counter()
    for trial, epoch, process in (line.split() for line in log.read_text().splitlines()):
        before = last.get(trial)
        if before is not None and before[1] != process:
            (from_checkpoint if int(epoch) else anew)[before[0] + 1 - int(epoch)] += 1
        last[trial] = (int(epoch), process)
    return from_checkpoint, anew


def show_chaos(config: TuneConfig, seconds: float, replaced: int, events: Counter[str], options: Any) -> None:
    """Print what came of it."""
    trials = load_study(config.name, open_storage(config.storage, StudyPaths(config.folder))).trials
    states = Counter(trial.state.name for trial in trials)
    messages = config.folder / "messages.log"
    lines = messages.read_text().splitlines() if messages.exists() else []
    late = sum("was given to" in line for line in lines)
    ended = Counter(line.split(" ended by ")[1][:60] for line in lines if " ended by " in line)
    numbers = sorted(trial.number for trial in trials)
    print(f"storage {config.storage.split(':')[0]}, {options.workers} workers, lease {options.lease:g} s, a kill every "
          f"{options.kill_every:g} s, epochs of {options.epoch:g} s, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"  {seconds:.0f} s; {dict(events)}; workers replaced {replaced}, ended by an error: {dict(ended) or 'none'}")
    print(f"  trials by state: {dict(states)}; planned {options.trials}")
    for trial in trials:
        if trial.state.name == "FAIL":
            print(f"  trial {trial.number} failed: {trial.user_attrs.get('failure', 'no reason stored')[:200]}; "
                  f"deaths {trial.user_attrs.get('deaths', 0)}")  # fmt: skip
    print(f"  numbers 0 to {len(numbers) - 1}, each once: {numbers == list(range(options.trials))}")
    print(f"  results of late workers refused: {late}; deaths of trials: "
          f"{sum(t.user_attrs.get('deaths', 0) for t in trials)}; gone on from a checkpoint: "
          f"{sum('went_on_from_epoch' in t.user_attrs for t in trials)}")  # fmt: skip
    from_checkpoint, anew = losses(config.folder / "epochs.log")
    lost = sum(epochs * times for one in (from_checkpoint, anew) for epochs, times in one.items())
    print(f"  epochs begun again: {lost / max(1, events['killed']):.2f} a kill; epochs to times, gone on from a "
          f"checkpoint: {dict(sorted(from_checkpoint.items()))}, begun anew: {dict(sorted(anew.items()))}")  # fmt: skip
    print(f"  workers that ended trials: {len({lease_of(t).worker for t in trials if lease_of(t)})}")


def scaling(options: argparse.Namespace, root: Path) -> None:
    """See the top of this file."""
    net = {"seconds": options.epoch} if options.trial == "wait" else {"work": options.work}
    walls = {}
    for workers in (1, 2, 1, 2):
        folder = root / f"scaling{workers}-{len(walls)}-{time.monotonic_ns()}"
        folder.mkdir()
        config, builder = study_of(folder, "journal", options.trials, 5, 60.0, **net)
        seconds, _ = until_done(config, builder, workers, lambda seconds, alive: None)
        trials = load_study(config.name, open_storage("journal", StudyPaths(folder))).trials
        fit = statistics.median(t.user_attrs["fit_seconds"] for t in trials)
        walls.setdefault(workers, []).append(seconds)
        print(f"  {workers} worker(s): {seconds:.1f} s for {len(trials)} trials, a fit {fit:.2f} s, "
              f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"  {options.trial}: 2 workers are {min(walls[1]) / min(walls[2]):.2f} times as fast as 1")


@contextlib.contextmanager
def server(kind: str) -> Any:
    """A PostgreSQL server, or None for a journal."""
    if kind == "journal":
        yield None
        return
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from postgres import PASSWORD, Postgres

    postgres = Postgres()
    os.environ["LIGHTNING_HP_STORAGE_PASSWORD"] = PASSWORD
    try:
        yield postgres
    finally:
        with contextlib.suppress(Exception):
            postgres.close()


def main() -> None:
    """Run one section."""
    import warnings

    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = parser.add_subparsers(dest="section", required=True)
    one = sections.add_parser("chaos")
    one.add_argument("--storage", choices=["journal", "postgresql"], default="journal")
    one.add_argument("--trials", type=int, default=200)
    one.add_argument("--workers", type=int, default=4)
    one.add_argument("--lease", type=float, default=5.0)
    one.add_argument("--epoch", type=float, default=0.1, help="seconds that an epoch waits")
    one.add_argument("--kill-every", type=float, default=1.0, help="seconds between two kills")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=chaos)
    two = sections.add_parser("scaling")
    two.add_argument("--trial", choices=["compute", "wait"], default="compute")
    two.add_argument("--trials", type=int, default=12)
    two.add_argument("--epoch", type=float, default=0.5, help="seconds that an epoch waits; five make a trial")
    two.add_argument("--work", type=int, default=600, help="products of matrices in an epoch")
    two.set_defaults(run=scaling)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        options.run(options, Path(root))


if __name__ == "__main__":
    main()
