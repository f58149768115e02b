"""How soon a stacked study reaches what TPE with a Trainer a trial reaches in 60 trials.

    python benchmarks/time_to_target.py --seeds 5

For each data set and seed, Optuna's TPESampler and MedianPruner with one Lightning Trainer a trial run 60 trials; their
best validation loss is the target. Then studies of ours run until their best trial is as good: ``stacked`` and, for
comparison, ``in_process``. Clocks: wall seconds, and CPU seconds of the process, which others on the machine do not
blur; both include sampling and storage. Data: scikit-learn's digits, breast cancer and diabetes (no download).
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import lightning.pytorch as pl
import optuna
import torch
from optuna.trial import FrozenTrial
from torch.utils.data import TensorDataset

from lightning_hp.callbacks.pruning import TrialPruning
from lightning_hp.project.build import PythonBuilder
from lightning_hp.search import SearchSpace
from lightning_hp.training import BatchNormClassifier, BatchNormRegressor, DigitsDataModule
from lightning_hp.training.data import InMemoryDataModule, standardise
from lightning_hp.training.sampling import split_rows
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.listener import SilentListener
from lightning_hp.tuning.runner import StudyRunner

SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A", "default": 0.01},
    "momentum": {"low": 0.5, "high": 0.999, "scale": "one_minus_log", "tier": "B", "default": 0.9},
    "hidden_units": {"low": 16, "high": 128, "tier": "B", "default": 64},
    "batch_size": {"choices": [32, 64, 128], "tier": "B", "default": 64},
    "num_layers": {"low": 1, "high": 3, "tier": "C", "default": 2},
    "weight_decay": {"low": 1e-6, "high": 1e-1, "scale": "log", "tier": "C", "default": 1e-4},
    "dropout": {"low": 0.0, "high": 0.6, "tier": "C", "default": 0.0},
}
TRAINER = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "logger": False}


class _Sklearn(InMemoryDataModule):
    """A data set that scikit-learn brings along."""

    loader = ""
    labelled = True

    def load(self) -> None:
        from sklearn import datasets

        x, y = getattr(datasets, self.loader)(return_X_y=True)
        parts = split_rows(len(y), self.val_fraction, self.test_fraction, self.split_seed, y if self.labelled else None)
        features = standardise(*(x[part] for part in parts))
        targets = [torch.from_numpy(y[part]) for part in parts]
        if not self.labelled:
            targets = [target.float() for target in targets]
        pairs = [TensorDataset(torch.from_numpy(a), b) for a, b in zip(features, targets, strict=True)]
        self.train_set, self.val_set, self.test_set = pairs


class BreastCancer(_Sklearn):
    loader, num_features, num_classes = "load_breast_cancer", 30, 2


class Diabetes(_Sklearn):
    loader, labelled, num_features, num_targets = "load_diabetes", False, 10, 1
    target_mean, target_scale = 152.0, 77.0


PROBLEMS = {
    "digits": (BatchNormClassifier, DigitsDataModule),
    "breast cancer": (BatchNormClassifier, BreastCancer),
    "diabetes": (BatchNormRegressor, Diabetes),
}


class Clock(SilentListener):
    """When the best trial was how good: (wall, CPU, best) after every trial; stops a study at its target."""

    def __init__(self) -> None:
        self.began, self.busy = time.perf_counter(), time.process_time()
        self.points: list[tuple[float, float, float]] = []
        self.best = float("inf")
        self.target = -float("inf")
        self.runner: StudyRunner | None = None

    def add(self, value: float | None) -> None:
        self.best = min(self.best, float("inf") if value is None else value)
        self.points.append((time.perf_counter() - self.began, time.process_time() - self.busy, self.best))

    def trial_finished(self, trial: FrozenTrial) -> None:
        self.add(trial.value if trial.state.name == "COMPLETE" else None)
        if self.best <= self.target and self.runner is not None:
            self.runner.stopping.set()


def reference(problem: str, seed: int, epochs: int, trials: int) -> Clock:
    """TPE, MedianPruner, one Trainer a trial."""
    module, data = PROBLEMS[problem]
    space = SearchSpace.from_dict(SPACE)
    clock = Clock()

    def objective(trial: optuna.Trial) -> float:
        values: dict[str, Any] = space.suggest(trial)
        pl.seed_everything(seed * 1000 + trial.number, verbose=False)
        batch_size = values.pop("batch_size")
        pruning = TrialPruning(trial, "val_loss", epochs)
        trainer = pl.Trainer(
            max_epochs=epochs,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[pruning],
            **TRAINER,
        )
        trainer.fit(module(**values), datamodule=data(batch_size=batch_size))
        if pruning.pruned:
            raise optuna.TrialPruned
        value = pruning.best("min")
        return 1e6 if value is None else value

    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.MedianPruner(n_startup_trials=5)
    )
    told = [lambda study, trial: clock.add(trial.value if trial.state.name == "COMPLETE" else None)]
    study.optimize(objective, n_trials=trials, callbacks=told)
    return clock


def ours(problem: str, seed: int, epochs: int, trials: int, engine: str, target: float, cohort: int) -> Clock:
    module, data = PROBLEMS[problem]
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"name": "study", "folder": f"{folder}/study", "seed": seed, "audit": False}
        settings["caviar"] = {"engine": engine} | ({"cohort": cohort} if engine == "stacked" else {})
        config = TuneConfig.from_arguments(SPACE, {"trials": trials, "max_epochs": epochs}, settings)
        clock = Clock()
        runner = StudyRunner(config, PythonBuilder(module, data, TRAINER), clock)
        clock.runner, clock.target = runner, target
        runner.work()
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--most", type=int, default=240, help="trials of ours at most")
    parser.add_argument("--cohort", type=int, default=16)
    parser.add_argument("--engines", nargs="+", default=["stacked", "in_process"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/time_to_target.csv"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    rows = []
    for problem in arguments.problems:
        for seed in range(arguments.seeds):
            base = reference(problem, seed, arguments.epochs, arguments.trials)
            for engine in arguments.engines:
                clock = ours(problem, seed, arguments.epochs, arguments.most, engine, base.best, arguments.cohort)
                wall, cpu, best = clock.points[-1]
                row = {"problem": problem, "seed": seed, "engine": engine, "target": round(base.best, 5)}
                row |= {"reached": best <= base.best, "best": round(best, 5), "trials": len(clock.points)}
                row |= {"s": round(wall, 1), "cpu s": round(cpu, 1)}
                row |= {"tpe s": round(base.points[-1][0], 1), "tpe cpu s": round(base.points[-1][1], 1)}
                row |= {"faster": round(base.points[-1][0] / wall, 2), "by cpu": round(base.points[-1][1] / cpu, 2)}
                print(*row.values(), sep=" | ", flush=True)
                rows.append(row)
                with arguments.out.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                    writer.writerows(rows)


if __name__ == "__main__":
    main()
