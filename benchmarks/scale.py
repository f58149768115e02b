"""What a study of many trials costs its workers: to ask, tell, renew a lease and watch, in milliseconds.

    python benchmarks/scale.py
    python benchmarks/scale.py --trials 200 1000 --storage journal

A study is filled with finished trials that have curves; then one worker asks and tells, as workers do it: under the
study's lock, with the lease, at the sampler's own price. Asks come one after the other, whatever the number of workers.
So the last two columns follow from the third: how many trials a second all workers together can be given at most, and
how many workers that keeps busy whose trials take a minute. ``taken`` is an ask that finds its values waiting in
storage: what an ask would cost if values were proposed for many workers at once. Times are medians, with the 90 %
quantile in brackets.

PostgreSQL is a server of the benchmark's own (``apt-get install postgresql``), in a folder of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import optuna
import torch
from optuna.trial import TrialState
from workers import server, study_of

from lightning_hp.space.space import SearchSpace
from lightning_hp.study.at_work import picture
from lightning_hp.study.journal import in_one_go
from lightning_hp.study.upstream import storage_of
from lightning_hp.tuning.objective import Outcome
from lightning_hp.tuning.runner import StudyRunner

COLUMNS = ("ask", "taken", "tell", "renew", "watch")
HEAD = "| storage | finished trials | ask | taken | tell | renew | watch | MiB | trials/s at most | workers at 60 s |"


def fill(study: optuna.Study, space: SearchSpace, size: int) -> None:
    """Give a study so many finished trials, with curves."""
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = []
    for number in range(size):
        trial = drawn.ask()
        space.suggest(trial)
        value = abs(float(torch.tensor(trial.params["learning_rate"]).log10()) + 2) + 0.01 * (number % 7)
        trials.append(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE,
                value=value,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values={step: value + 1 / step for step in range(1, 7)},
                user_attrs={"seconds": 1.0, "seed": number, "stage": "1 coarse A", "stage_index": 1},
            )
        )
    with in_one_go(storage_of(study)):
        study.add_trials(trials)


def timed(action: Callable[[], object]) -> float:
    """Milliseconds of an action."""
    begun = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - begun)


def measure(folder: Path, url: str, size: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of what a worker does in a study that has so many finished trials, each so many times."""
    folder.mkdir()
    config, builder = study_of(folder, url, size + 100, 6, 60.0)
    runner = StudyRunner(config, builder)
    fill(runner.study, config.space, size)
    costs: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for kind in ["ask", "taken"] * repeats:
        if kind == "taken":
            runner.study.enqueue_trial(runner.study.get_trials(deepcopy=False)[size // 2].params)
        with contextlib.ExitStack() as leases:
            begun = time.perf_counter()
            trial, _arguments = runner.ask(leases)  # type: ignore[misc]
            costs[kind].append(1000 * (time.perf_counter() - begun))
            trial.report(1.0, 1)
            outcome = Outcome("complete", 1.0, attributes={"seconds": 1.0, "seed": 1})
            costs["tell"].append(timed(lambda trial=trial, outcome=outcome: runner.tell(trial, outcome)))
    with contextlib.ExitStack() as leases:
        runner.ask(leases)
        for _ in range(repeats):
            costs["renew"].append(timed(runner.leases.renew))
            costs["watch"].append(timed(lambda: picture(runner.study, datetime.now(UTC))))
    runner.close()
    return costs


def shown(times: list[float]) -> str:
    """Median and 90 % quantile."""
    return f"{statistics.median(times):.1f} ms ({statistics.quantiles(times, n=10)[-1]:.1f})"


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[200, 1000, 10_000])
    parser.add_argument("--storage", nargs="+", choices=["journal", "postgresql"], default=["journal", "postgresql"])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    print(HEAD)
    print("|---|" + "--:|" * (HEAD.count("|") - 2))
    with tempfile.TemporaryDirectory() as root:
        for kind in options.storage:
            with server(kind) as postgres:
                for size in options.trials:
                    url = "journal" if postgres is None else postgres.url
                    cost = measure(Path(root, f"{kind}-{size}"), url, size, options.repeats)
                    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                    rate = 1000 / statistics.median(cost["ask"])
                    row = " | ".join(shown(cost[name]) for name in COLUMNS)
                    print(f"| {kind} | {size:,} | {row} | {memory:.0f} | {rate:.0f} | {60 * rate:,.0f} |", flush=True)
    print(f"load {os.getloadavg()[0]:.1f}; memory is the most of the process so far")


if __name__ == "__main__":
    main()
