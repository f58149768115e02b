"""Is a confirmed winner better than the luckiest training? Studies of a noisy task, the winners trained on new seeds.

    OMP_NUM_THREADS=1 python benchmarks/winner.py --seeds 0 1 2 3 4 --out benchmarks/results/winner.csv

Digits with half of the training rows, the space of configs/digits/tune.yaml, 40 trials x 27 epochs by Lightning. Both
studies of a seed begin with the same search trials, those that a confirmed study has; then

* the confirmed one trains its best configurations again on fresh seeds, and its winner is the best of their means;
* the unconfirmed one goes on searching until it has trained at least as many epochs, and its winner is the trial with
  the best value.

Both winners are then trained on ten seeds that no study has used (stacked, which gives what a Trainer gives). The
interval that the confirmed study tells covers if that mean lies in it. The mean of ten is itself uncertain, so an
interval that is right in nine of ten studies covers it a little less often. Rows are written as they come; a run that
was stopped goes on with the seeds that are missing in the file.
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from retune import EPOCHS, TRIALS, builder, epochs_of, losses_again, read, read_space
from scipy.stats import t as student

from lightning_hp.project.length import TrainingLength
from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace
from lightning_hp.tuning.caviar import Caviar
from lightning_hp.tuning.config import Budget, TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.listener import SilentListener
from lightning_hp.tuning.runner import StudyRunner

ROOT = Path(__file__).resolve().parents[1]
MOVE = "half the rows"
#: Seeds that a winner is trained again on; the first one.
AGAIN, FIRST_SEED = 10, 900_000
FIELDS = [
    "seed",
    "confirmed_trial",
    "single_trial",
    "confirmed_epochs",
    "single_epochs",
    "confirmed_again",
    "single_again",
    "confirmed_error",
    "single_error",
    "told",
    "interval",
    "seeds_told",
    "best_single",
]


def search(seed: int, folder: Path) -> TuneConfig:
    """Run the search trials of a study; its configuration."""
    config = TuneConfig(
        "search",
        None,
        SearchPlan(space=SearchSpace.from_dict(read_space()), n_trials=TRIALS, seed=seed),
        budget=Budget(TrainingLength(EPOCHS)),
        folder=folder / "search",
        audit=False,
        caviar=Caviar("in_process"),  # epochs are compared, not seconds
    )
    StudyRunner(config, builder(MOVE)).work()
    return config


def copied(config: TuneConfig, name: str) -> TuneConfig:
    """The same study in a folder of its own."""
    folder = config.folder.parent / name
    shutil.copytree(config.folder, folder)
    return replace(config, folder=folder)


class StopAt(SilentListener):
    """Stops a study that has trained so many epochs."""

    def __init__(self, runner: StudyRunner, epochs: int) -> None:
        self.runner, self.epochs = runner, epochs

    def trial_finished(self, trial: FrozenTrial) -> None:
        if epochs_of(self.runner.study) >= self.epochs:
            self.runner.stopping.set()


def search_on(config: TuneConfig, epochs: int) -> optuna.Study:
    """Go on searching, without a confirmation, until so many epochs are trained."""
    runner = StudyRunner(replace(config, confirm=None), builder(MOVE))
    runner.config = replace(runner.config, search=replace(runner.config.search, n_trials=10 * TRIALS))
    runner.listener = StopAt(runner, epochs)
    if epochs_of(runner.study) < epochs:
        runner.work()
    return runner.study


def best_single(study: optuna.Study) -> FrozenTrial:
    """The trial with the best value."""
    good = [
        t
        for t in study.get_trials(deepcopy=False)
        if t.state is TrialState.COMPLETE and not t.user_attrs.get("diverged")
    ]
    return min(good, key=lambda t: t.value or 0.0)


def one_seed(seed: int, folder: Path) -> dict[str, Any]:
    config = search(seed, folder)
    result = run(copied(config, "confirmed"), builder(MOVE))
    assert result.confirmed is not None
    winner = result.study.get_trials(deepcopy=False)[result.trial]
    spent = epochs_of(result.study)
    unconfirmed = search_on(copied(config, "unconfirmed"), spent)
    single = best_single(unconfirmed)
    seeds = range(FIRST_SEED, FIRST_SEED + AGAIN)
    ours = losses_again(MOVE, winner.params, seeds, folder)
    theirs = ours if single.params == winner.params else losses_again(MOVE, single.params, seeds, folder)
    return {
        "seed": seed,
        "confirmed_trial": winner.user_attrs.get("confirms", winner.number),
        "single_trial": single.number,
        "confirmed_epochs": spent,
        "single_epochs": epochs_of(unconfirmed),
        "confirmed_again": statistics.fmean(ours),
        "single_again": statistics.fmean(theirs),
        "confirmed_error": statistics.stdev(ours) / math.sqrt(AGAIN),
        "single_error": statistics.stdev(theirs) / math.sqrt(AGAIN),
        "told": result.confirmed["mean"],
        "interval": result.confirmed["interval"],
        "seeds_told": len(result.confirmed["values"]),
        "best_single": single.value,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| seed | confirmed | unconfirmed | confirmed / unconfirmed | told | covers | epochs |",
        "|---|--:|--:|--:|--:|---|--:|",
    ]
    ratios, covered = [], 0
    for row in rows:
        ratio = row["confirmed_again"] / row["single_again"]
        covers = abs(row["told"] - row["confirmed_again"]) <= row["interval"]
        ratios.append(math.log(ratio))
        covered += covers
        lines.append(
            f"| {row['seed']} | {row['confirmed_again']:.4f} | {row['single_again']:.4f} | {ratio:.3f} "
            f"| {row['told']:.4f} ± {row['interval']:.4f} on {row['seeds_told']} | {'yes' if covers else 'no'} "
            f"| {row['confirmed_epochs']} / {row['single_epochs']} |"
        )
    n = len(rows)
    ours, theirs = (statistics.fmean(r[key] for r in rows) for key in ("confirmed_again", "single_again"))
    mean = statistics.fmean(ratios)
    error = statistics.stdev(ratios) / math.sqrt(n) if n > 1 else math.nan
    p = float(student.cdf(mean / error, n - 1)) if error > 0 else math.nan
    better, equal = sum(r < 0 for r in ratios), sum(r == 0 for r in ratios)
    lines.append(
        f"\n{n} studies: confirmed {ours:.4f}, unconfirmed {theirs:.4f}; ratio {math.exp(mean):.3f} (geometric mean, "
        f"standard error {error:.3f}; one-sided p = {p:.3f}); better in {better}, the same winner in {equal}, worse in "
        f"{n - better - equal}; the interval covers in {covered} of {n}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(20)))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/winner.csv")
    options = parser.parse_args()
    quiet()
    began = time.time()
    rows = read(options.out)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in (s for s in options.seeds if all(row["seed"] != s for row in rows)):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(one_seed(seed, Path(folder)))
        print(rows[-1], flush=True)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    print(table(rows))
    print(f"{time.time() - began:.0f} s")


def quiet() -> None:
    """One thread, no warnings."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
