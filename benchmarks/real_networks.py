"""Search on real trainings of four small data sets: lightning_hp against Optuna's own samplers.

    OMP_NUM_THREADS=1 python benchmarks/real_networks.py --seeds 0 1 2 3 4

Digits, breast cancer, wine and diabetes as scikit-learn brings them (no download): a BatchNorm MLP with SGD and a
cosine schedule, eight hyperparameters, one space for all four. 40 x 20 epochs for every tuner: tuners that stop trials
start new ones with the epochs they saved. The loop is bare torch, since only the search is compared here. A trial's
value is its best validation loss (cross entropy; for diabetes the mean square error, in parts of the variance).

A best value is the luckiest training of many, so the winner of each run is trained again on ten seeds of its own.
Losses of different data sets are compared as ratios: to the mean of all tuners of the same data set and seed, at the
same point. Rows are written as they come; a run that was stopped goes on with what is missing in the file.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from retune import read
from sklearn import datasets
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.space.space import SearchSpace
from lightning_hp.training import BatchNormMLP
from lightning_hp.training.optimizers import build_optimizer, build_schedule
from lightning_hp.tuning.objective import trial_seed

ROOT = Path(__file__).resolve().parents[1]
TRIALS, EPOCHS, AGAIN = 40, 20, 10
#: Loaders, and whether the target is a class.
TASKS = {
    "digits": (datasets.load_digits, True),
    "breast cancer": (datasets.load_breast_cancer, True),
    "wine": (datasets.load_wine, True),
    "diabetes": (datasets.load_diabetes, False),
}
SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A", "default": 0.01},
    "momentum": {"low": 0.5, "high": 0.99, "scale": "one_minus_log", "tier": "B", "default": 0.9},
    "hidden_units": {"low": 8, "high": 128, "tier": "B", "default": 64},
    "batch_size": {"choices": [32, 64, 128], "tier": "B", "default": 32},
    "num_layers": {"low": 1, "high": 3, "tier": "C", "default": 2},
    "learning_rate_decay": {"low": 0.0, "high": 1.0, "scale": "linear", "tier": "C", "default": 1.0},
    "weight_decay": {"low": 1e-6, "high": 1e-1, "scale": "log", "tier": "C", "default": 1e-4},
    "dropout": {"low": 0.0, "high": 0.5, "tier": "C", "default": 0.1},
}
FIELDS = ["task", "tuner", "seed", "trials", "quarter", "half", "end", "again", "again_error", "seconds", "asking"]
POINTS = ("quarter", "half", "end")


def ours(space: SearchSpace, seed: int) -> tuple[BaseSampler, BasePruner]:
    sampler = CoarseToFineSampler(space, n_trials=TRIALS, max_steps=EPOCHS, seed=seed)
    return sampler, sampler.pruner()


TUNERS: dict[str, Callable[[SearchSpace, int], tuple[BaseSampler, BasePruner]]] = {
    "TPE": lambda space, seed: (TPESampler(seed=seed), NopPruner()),
    "TPE + Median": lambda space, seed: (TPESampler(seed=seed), MedianPruner()),
    "GP": lambda space, seed: (GPSampler(seed=seed), NopPruner()),
    "lightning_hp": ours,
}


@cache
def load(task: str) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Training rows and targets, validation rows and targets (a quarter), and the outputs of the network."""
    loader, classifies = TASKS[task]
    x, y = loader(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    cut = 3 * len(x) // 4
    train = order[:cut]
    x = (x - x[train].mean(0)) / (x[train].std(0) + 1e-6)
    y = y if classifies else (y - y[train].mean()) / y[train].std()
    rows = torch.tensor(x, dtype=torch.float32)
    targets = torch.tensor(y, dtype=torch.long) if classifies else torch.tensor(y, dtype=torch.float32)[:, None]
    outputs = int(targets.max()) + 1 if classifies else 1
    return rows[order[:cut]], targets[order[:cut]], rows[order[cut:]], targets[order[cut:]], outputs


def train(task: str, values: Mapping[str, Any], seed: int, stop: Callable[[float, int], bool]) -> list[float]:
    """Train once; the validation loss after each epoch."""
    x, y, x_val, y_val, outputs = load(task)
    lossfunction = cross_entropy if TASKS[task][1] else mse_loss
    torch.manual_seed(seed)
    model = BatchNormMLP(
        x.shape[1],
        outputs,
        hidden_units=values["hidden_units"],
        num_layers=values["num_layers"],
        dropout=values["dropout"],
    )
    optimizer = build_optimizer(
        model,
        optimizer="sgd",
        learning_rate=values["learning_rate"],
        momentum=values["momentum"],
        weight_decay=values["weight_decay"],
    )
    schedule = build_schedule(
        optimizer, schedule="cosine", learning_rate_decay=values["learning_rate_decay"], max_epochs=EPOCHS
    )
    losses: list[float] = []
    for epoch in range(EPOCHS):
        model.train()
        for rows in torch.randperm(len(x)).split(values["batch_size"]):
            if len(rows) < 2:  # BatchNorm needs two
                continue
            optimizer.zero_grad()
            lossfunction(model(x[rows]), y[rows]).backward()
            optimizer.step()
        if schedule is not None:
            schedule.step()
        model.eval()
        with torch.no_grad():
            loss = float(lossfunction(model(x_val), y_val))
        losses.append(loss if math.isfinite(loss) else 1e3)
        if stop(losses[-1], epoch + 1):
            break
    return losses


def run(task: str, tuner: str, seed: int) -> dict[str, Any]:
    """One study."""
    space = SearchSpace.from_dict(SPACE)
    sampler, pruner = TUNERS[tuner](space, seed)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    spent, asking, began = 0, 0.0, time.perf_counter()
    complete: list[tuple[int, float, dict[str, Any]]] = []
    while spent < TRIALS * EPOCHS:
        before = time.perf_counter()
        trial = study.ask()
        values = space.suggest(trial)
        asking += time.perf_counter() - before

        def stop(loss: float, step: int, trial: optuna.Trial = trial) -> bool:
            trial.report(loss, step)
            return step < EPOCHS and trial.should_prune()

        losses = train(task, values, trial_seed(seed, trial.number), stop)
        spent += len(losses)
        if len(losses) < EPOCHS:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, min(losses))
            complete.append((spent, min(losses), values))
    best = {
        point: min((loss for at, loss, _ in complete if at <= part * TRIALS * EPOCHS), default=math.nan)
        for point, part in zip(POINTS, (0.25, 0.5, 1.0), strict=True)
    }
    within = [one for one in complete if one[0] <= TRIALS * EPOCHS]
    _, _, winner = min(within, key=lambda one: one[1])
    seconds = time.perf_counter() - began
    again = [min(train(task, winner, 900_000 + k, lambda *_: False)) for k in range(AGAIN)]
    return {
        "task": task,
        "tuner": tuner,
        "seed": seed,
        "trials": len(study.trials),
        **best,
        "again": statistics.fmean(again),
        "again_error": statistics.stdev(again) / math.sqrt(AGAIN),
        "seconds": round(seconds, 1),
        "asking": round(asking, 2),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Geometric means of the ratios with their standard errors, over all tasks; then the losses by task."""
    keys = (*POINTS, "again")
    of: dict[tuple[Any, ...], Mapping[str, Any]] = {(r["task"], r["seed"], r["tuner"]): r for r in rows}
    pairs = sorted({(r["task"], r["seed"]) for r in rows})
    pairs = [pair for pair in pairs if all((*pair, tuner) in of for tuner in TUNERS)]
    lines = [
        "| tuner | runs | best val_loss at 1/4 | at 1/2 | at the end | winner on ten new seeds | trials | s asking |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]

    def logs(tuner: str, key: str, task: str = "") -> list[float]:
        return [
            math.log(of[*pair, tuner][key]) - statistics.fmean(math.log(of[*pair, other][key]) for other in TUNERS)
            for pair in pairs
            if task in ("", pair[0])
        ]

    for tuner in TUNERS if len(pairs) > 1 else ():
        cells = []
        for key in keys:
            ratios = logs(tuner, key)
            error = statistics.stdev(ratios) / math.sqrt(len(ratios))
            cells.append(f"{math.exp(statistics.fmean(ratios)):.3f} ± {error:.3f}")
        own = [of[*pair, tuner] for pair in pairs]
        trials, asking = (statistics.fmean(r[key] for r in own) for key in ("trials", "asking"))
        lines.append(f"| {tuner} | {len(own)} | {' | '.join(cells)} | {trials:.0f} | {asking:.1f} |")
    lines += [
        "",
        "| task | tuner | 1/4 | 1/2 | end | end, median | new seeds |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for task in TASKS:
        for tuner in TUNERS:
            own = [r for r in rows if r["task"] == task and r["tuner"] == tuner]
            if own:
                means = {key: statistics.fmean(r[key] for r in own) for key in keys}
                median = statistics.median(r["end"] for r in own)
                cells = [f"{means[key]:.4f}" for key in POINTS] + [f"{median:.4f}", f"{means['again']:.4f}"]
                lines.append(f"| {task} | {tuner} | {' | '.join(cells)} |")
    lines += ["", "Paired, ours / theirs (ratio, standard error, runs in which ours is lower):", ""]
    for other in (t for t in TUNERS if t != "lightning_hp"):
        cells = []
        for key in keys:
            gaps = [math.log(of[*pair, "lightning_hp"][key] / of[*pair, other][key]) for pair in pairs]
            if len(gaps) > 1:
                error = statistics.stdev(gaps) / math.sqrt(len(gaps))
                lower = sum(gap < 0 for gap in gaps)
                cells.append(f"{key} {math.exp(statistics.fmean(gaps)):.3f} ± {error:.3f} ({lower} of {len(gaps)})")
        lines.append(f"* {other}: {'; '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--tuners", nargs="+", default=list(TUNERS), choices=list(TUNERS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/real_networks.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    rows = read(options.out)
    finished = {(r["task"], r["tuner"], r["seed"]) for r in rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for task in options.tasks:
            for tuner in options.tuners:
                if (task, tuner, seed) in finished:
                    continue
                rows.append(run(task, tuner, seed))
                print(rows[-1], flush=True)
                with options.out.open("w", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    writer.writeheader()
                    writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
