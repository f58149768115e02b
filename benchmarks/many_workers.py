"""How many workers a study can keep busy: 1, 10, 100 and 1,000 of them, simulated on real learning curves.

    OMP_NUM_THREADS=1 python benchmarks/many_workers.py DATA [--workers 1 10 100 1000] [--seeds 2]

DATA is the folder that ``search_efficiency.py`` takes. Configurations, their curves and the seconds of every epoch
come from the surrogate of LCBench; nothing is trained. The clock is simulated, but for the tuner: what an ask costs is
measured as it happens, on this machine. Asks come one after the other, as under the lock of a study, and each holds the
lock for the time that it took and ``--storage-ms`` more (what the storage takes: benchmarks/scale.py). So with many
workers they queue up; "idle" is the part of the workers' time that they wait for a trial.

One run ends where the best configuration that was trained to the end is within ``TARGET`` of the best of 100,000 random
ones (regret, as in ``search_efficiency.py``), after ``--most`` trials, or after ``--cpu`` seconds of this machine.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from search_efficiency import load_bench, make_space

from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.space.space import SearchSpace

TARGET = 0.05
TASKS = ("126026", "167149", "189862")
COLUMNS = ("tuner", "workers", "task", "seed", "reached", "hours", "regret", "trials", "idle", "ask_ms", "operations_s")
#: position of the cumulated seconds of training in what the surrogate answers
_SECONDS = 0


@dataclass
class Clock:
    """What the simulation counts; seconds."""

    now: float = 0.0
    lock_free: float = 0.0
    busy: float = 0.0
    waited: float = 0.0
    operations: int = 0
    asks: list[float] = field(default_factory=list)


def tuner_of(name: str, space: SearchSpace, seed: int, steps: int, most: int) -> optuna.Study:
    """A study in memory of one of the two tuners."""
    if name == "lightning_hp":
        ours = CoarseToFineSampler(space, n_trials=most, max_steps=steps, seed=seed)
        return optuna.create_study(sampler=ours, pruner=ours.pruner())
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=3, reduction_factor=3)
    return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True), pruner=pruner)


def seconds_of_epochs(problem: Any, natural: dict[str, Any], order: tuple[str, ...], steps: int) -> np.ndarray:
    """Seconds of every epoch of a configuration, shape (steps,)."""
    fixed = [float(natural[name]) for name in order]
    rows = np.array([[epoch, *fixed] for epoch in range(1, steps + 1)], np.float32)
    task = np.full((steps, 1), problem._code, np.int32)
    total = type(problem)._shared.run(None, {"x_cat": task, "x_cont": rows})[0][:, _SECONDS]
    return np.maximum(np.diff(total, prepend=0.0), 1e-2)


def run(
    bench: ModuleType, name: str, workers: int, task: str, seed: int, most: int, storage: float, cpu: float
) -> dict:
    """One study of so many workers; its row of the CSV."""
    space, problem, steps = make_space(bench, "plain"), bench.LCBench(task), bench.MAX_EPOCHS
    study = tuner_of(name, space, seed, steps, most)
    study.enqueue_trial(space.defaults())
    clock, best, trials, begun = Clock(), 1.0, 0, time.process_time()
    # (when, worker, its trial, its curve, the seconds of its epochs, epochs done); a worker without a trial asks
    events: list[tuple[float, int, Any, Any, Any, int]] = [
        (0.0, worker, None, None, None, 0) for worker in range(workers)
    ]
    heapq.heapify(events)
    reached = False
    while events and time.process_time() - begun < cpu:
        clock.now, worker, trial, curve, epochs, done = heapq.heappop(events)
        if trial is None:
            if trials == most:
                continue
            start = time.perf_counter()
            trial = study.ask()
            natural = space.suggest(trial)
            spent = time.perf_counter() - start + storage
            trials += 1
            clock.asks.append(spent)
            clock.lock_free = max(clock.now, clock.lock_free) + spent
            clock.waited += clock.lock_free - clock.now
            clock.operations += 2
            curve = problem.curve({key: natural[key] for key in bench.RANGES})
            epochs = seconds_of_epochs(problem, natural, bench._ORDER, steps)
            heapq.heappush(events, (clock.lock_free + epochs[0], worker, trial, curve, epochs, 1))
            continue
        clock.busy += epochs[done - 1]
        clock.operations += 1
        trial.report(float(curve[done - 1]), done)
        if done == steps:
            study.tell(trial, float(curve[-1]))
            best = min(best, problem.regret(float(curve[-1])))
        elif trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
        else:
            heapq.heappush(events, (clock.now + epochs[done], worker, trial, curve, epochs, done + 1))
            continue
        clock.operations += 1
        if best <= TARGET:
            reached = True
            break
        heapq.heappush(events, (clock.now, worker, None, None, None, 0))
    return {
        "tuner": name,
        "workers": workers,
        "task": task,
        "seed": seed,
        "reached": reached,
        "hours": f"{clock.now / 3600:.3f}",
        "regret": f"{best:.4f}",
        "trials": trials,
        "idle": f"{clock.waited / (clock.waited + clock.busy):.3f}",
        "ask_ms": f"{1000 * statistics.median(clock.asks):.1f}",
        "operations_s": f"{clock.operations / max(clock.now, 1e-9):.2f}",
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Medians over tasks and seeds, one line for each tuner and number of workers."""
    print("| workers | tuner | runs | reached | hours to the end | regret | trials | idle | ms an ask | operations/s |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for workers, name in dict.fromkeys((row["workers"], row["tuner"]) for row in rows):
        chosen = [row for row in rows if (row["workers"], row["tuner"]) == (workers, name)]
        middle = {c: statistics.median(float(row[c]) for row in chosen) for c in COLUMNS[5:]}
        reached = sum(row["reached"] for row in chosen)
        print(
            f"| {workers} | {name} | {len(chosen)} | {reached} | {middle['hours']:.2f} | "
            f"{middle['regret']:.3f} | {middle['trials']:.0f} | {100 * middle['idle']:.0f} % | "
            f"{middle['ask_ms']:.0f} | {middle['operations_s']:.1f} |"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with lcbench.py and lcbench/")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--most", type=int, help="most trials of a run; else 200, or four times the workers")
    parser.add_argument("--storage-ms", type=float, default=20.0, help="what the storage adds to an ask, milliseconds")
    parser.add_argument("--cpu", type=float, default=240.0, help="a run ends after so many seconds of this machine")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "many_workers.csv")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    bench = load_bench(options.data)
    rows = []
    for workers in options.workers:
        most = options.most or max(200, 4 * workers)
        for name in ("lightning_hp", "TPE, constant liar"):
            for task in options.tasks:
                for seed in range(options.seeds):
                    rows.append(run(bench, name, workers, task, seed, most, options.storage_ms / 1000, options.cpu))
                    print(rows[-1], file=sys.stderr, flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
