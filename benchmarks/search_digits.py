"""Search on real training: lightning_hp against Optuna's own samplers on the handwritten digits.

    python benchmarks/search_digits.py --seeds 0 1 2 3 4 --out benchmarks/results/search_digits.csv

One run = one tuner, one seed, 40 trials' worth of epochs (40 x 27), on the space of configs/digits/tune.yaml. Module,
data and optimizer are those of configs/digits; the loop is bare torch, since only the search is compared here. A
trial's value is its best validation loss, as in a study. Two comparisons in one table:

* equal trials: 40 complete trainings for every tuner, nothing is stopped;
* equal epochs: tuners with a pruner start new trials until the epochs are spent.

Rows give the best validation loss after a quarter, a half and all of the epochs (mean and median over the seeds, and in
how many seeds it is at or below random search), the test accuracy of the winner, and seconds spent in the sampler.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from lightning.pytorch import seed_everything
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.space.space import SearchSpace
from lightning_hp.training import BatchNormClassifier, DigitsDataModule
from lightning_hp.tuning.objective import trial_seed

ROOT = Path(__file__).resolve().parents[1]
TRIALS, EPOCHS = 40, 27
Tuner = Callable[[SearchSpace, int], tuple[BaseSampler, BasePruner]]


def ours(space: SearchSpace, seed: int, plan: str = "default", base: BaseSampler | None = None) -> CoarseToFineSampler:
    return CoarseToFineSampler(space, n_trials=TRIALS, max_steps=EPOCHS, base=base, seed=seed, plan=plan)


def with_pruner(sampler: CoarseToFineSampler) -> tuple[BaseSampler, BasePruner]:
    return sampler, sampler.pruner()


TUNERS: dict[str, Tuner] = {
    "random": lambda space, seed: (RandomSampler(seed=seed), NopPruner()),
    "TPE": lambda space, seed: (TPESampler(seed=seed), NopPruner()),
    "GP": lambda space, seed: (GPSampler(seed=seed), NopPruner()),
    "TPE in our boxes": lambda space, seed: (ours(space, seed, base=TPESampler(seed=seed)), NopPruner()),
    "lightning_hp, no pruner": lambda space, seed: (ours(space, seed), NopPruner()),
    "TPE + Median": lambda space, seed: (TPESampler(seed=seed), MedianPruner()),
    "lightning_hp": lambda space, seed: with_pruner(ours(space, seed)),
}


def train(arguments: dict[str, Any], seed: int, report: Callable[[float, int], bool]) -> tuple[list[float], float]:
    """Train once; the validation losses, and the test accuracy at the best of them."""
    seed_everything(seed, verbose=False)
    given = {key.rsplit(".", 1)[-1]: value for key, value in arguments.items()}
    data = DigitsDataModule(batch_size=given.pop("batch_size"))
    data.setup("fit")
    data.setup("test")
    fixed = yaml.safe_load((ROOT / "configs/digits/train.yaml").read_text())["model"]["init_args"]
    model = BatchNormClassifier(**{**fixed, **given, "num_features": 64, "num_classes": 10})
    model.configure_model()
    optimizer, schedule = optimizer_and_schedule(model)
    (validation,), (test,) = list(data.val_dataloader()), list(data.test_dataloader())
    losses: list[float] = []
    accuracy = 0.0
    loader = data.train_dataloader()
    for epoch in range(EPOCHS):
        model.train()
        loader.sampler.set_epoch(epoch)
        for x, y in loader:
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule()
        model.eval()
        with torch.no_grad():
            value = float(torch.nn.functional.cross_entropy(model(validation[0]), validation[1]))
            value = value if np.isfinite(value) else 1e3
            if not losses or value < min(losses):
                accuracy = float((model(test[0]).argmax(1) == test[1]).float().mean())
        losses.append(value)
        if report(value, epoch + 1):
            break
    return losses, accuracy


def optimizer_and_schedule(model: BatchNormClassifier) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
    """What the module configures, outside a Trainer."""
    from lightning_hp.training.optimizers import build_optimizer, build_schedule

    h = model.hparams
    optimizer = build_optimizer(
        model,
        optimizer=h["optimizer"],
        learning_rate=h["learning_rate"],
        momentum=h["momentum"],
        weight_decay=h["weight_decay"],
    )
    schedule = build_schedule(
        optimizer, schedule=h["schedule"], learning_rate_decay=h["learning_rate_decay"], max_epochs=EPOCHS
    )
    return optimizer, (schedule.step if schedule is not None else lambda: None)


def run(name: str, seed: int, space: SearchSpace) -> list[dict[str, Any]]:
    """One study: a row for every finished trial, with the epochs spent so far."""
    sampler, pruner = TUNERS[name](space, seed)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    rows: list[dict[str, Any]] = []
    spent, asking = 0, 0.0
    while spent < TRIALS * EPOCHS:
        began = time.perf_counter()
        trial = study.ask()
        arguments = space.suggest(trial)
        asking += time.perf_counter() - began

        def report(value: float, step: int, trial: optuna.Trial = trial) -> bool:
            trial.report(value, step)
            return trial.should_prune()

        losses, accuracy = train(arguments, trial_seed(seed, trial.number), report)
        stopped = len(losses) < EPOCHS
        spent += len(losses)
        if stopped:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, min(losses))
        row = {"tuner": name, "seed": seed, "trial": trial.number, "epochs": spent, "complete": not stopped}
        rows.append({**row, "val_loss": min(losses), "test_accuracy": accuracy, "ask_seconds": round(asking, 3)})
    return rows


def best_after(rows: list[dict[str, Any]], epochs: int) -> dict[str, Any]:
    """The best complete trial within a number of epochs."""
    within = [r for r in rows if r["complete"] and r["epochs"] <= epochs]
    return min(within, key=lambda r: r["val_loss"]) if within else {"val_loss": float("nan"), "test_accuracy": 0.0}


def table(rows: list[dict[str, Any]], seeds: list[int]) -> str:
    """The comparison as Markdown."""
    points = (TRIALS * EPOCHS // 4, TRIALS * EPOCHS // 2, TRIALS * EPOCHS)
    lines = [
        "| tuner | mean best val_loss at 1/4 | at 1/2 | at the end | median at the end | seeds at or below random "
        "| test accuracy | trials | s asking |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    by_run = {(n, s): [r for r in rows if r["tuner"] == n and r["seed"] == s] for n in TUNERS for s in seeds}
    for name in TUNERS:
        runs = [by_run[name, s] for s in seeds if by_run[name, s]]
        if not runs:
            continue
        best = [[best_after(r, p)["val_loss"] for p in points] for r in runs]
        means = [statistics.fmean(column) for column in zip(*best, strict=True)]
        beaten = "-"
        if all(by_run["random", s] for s in seeds):
            random = [best_after(by_run["random", s], points[-1])["val_loss"] for s in seeds]
            beaten = f"{sum(b[-1] <= r for b, r in zip(best, random, strict=True))} of {len(seeds)}"
        accuracy = statistics.fmean(best_after(r, points[-1])["test_accuracy"] for r in runs)
        lines.append(
            f"| {name} | {means[0]:.4f} | {means[1]:.4f} | {means[2]:.4f} "
            f"| {statistics.median(b[-1] for b in best):.4f} "
            f"| {beaten} | {accuracy:.4f} | {statistics.fmean(len(r) for r in runs):.0f} "
            f"| {statistics.fmean(r[-1]['ask_seconds'] for r in runs):.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tuners", nargs="+", default=list(TUNERS), choices=list(TUNERS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/search_digits.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    space = SearchSpace.from_dict(yaml.safe_load((ROOT / "configs/digits/tune.yaml").read_text())["space"])
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        for name in given.tuners:
            began = time.perf_counter()
            rows += run(name, seed, space)
            best = best_after([r for r in rows if (r["tuner"], r["seed"]) == (name, seed)], 10**9)
            print(f"seed {seed} {name:<24} {best['val_loss']:.4f}  {time.perf_counter() - began:.0f} s", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows, given.seeds))


if __name__ == "__main__":
    main()
