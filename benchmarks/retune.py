"""What a refresh costs: `retune` against a fresh study when the data have moved, and the re-test when they have not.

    python benchmarks/retune.py --seeds 0 1 2 3 4 --out benchmarks/results/retune.csv

Digits, the space of configs/digits/tune.yaml, studies of 40 trials x 27 epochs by Lightning, one process. For each seed
one study on the data as they are; then the data move in one of four ways (all splits, after scaling, so that the model
does see it), and

* a fresh study of full length is run on them: what it reaches, and the epochs it trained;
* `retune` is run on them: the epochs, those of the re-test included, until it has a value as good as the fresh study's
  (or within 5% of it), and the best value that it ends with.

Without a move: whether the re-test says "still the best", and its epochs as a part of the study's.
"""

from __future__ import annotations

import argparse
import csv
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from torch.utils.data import TensorDataset

from lightning_hp.search.space import SearchSpace
from lightning_hp.training import BatchNormClassifier, DigitsDataModule
from lightning_hp.tuning.build import PythonBuilder
from lightning_hp.tuning.config import Budget, TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.retune import retune

ROOT = Path(__file__).resolve().parents[1]
TRIALS, EPOCHS = 40, 27
MOVES = ("scale of features", "new noise", "class mix", "half the rows")


class MovedDigits(DigitsDataModule):
    """The digits, moved in one way."""

    def __init__(self, batch_size: int = 64, move: str = "") -> None:
        super().__init__(batch_size=batch_size)
        self.move = move

    def load(self) -> None:
        super().load()
        for name in ("train_set", "val_set", "test_set"):
            x, y = getattr(self, name).tensors
            generator = torch.Generator().manual_seed(len(x))
            if self.move == "scale of features":
                x = 0.5 * x
            elif self.move == "new noise":
                x = x + 0.7 * torch.randn(x.shape, generator=generator)
            elif self.move == "class mix":
                keep = (y >= 5) | (torch.rand(len(y), generator=generator) < 0.2)
                x, y = x[keep], y[keep]
            elif self.move == "half the rows" and name == "train_set":
                keep = torch.rand(len(y), generator=generator) < 0.5
                x, y = x[keep], y[keep]
            setattr(self, name, TensorDataset(x, y))


def builder(move: str) -> PythonBuilder:
    fixed = yaml.safe_load((ROOT / "configs/digits/train.yaml").read_text())["model"]["init_args"]
    searched = {key.rsplit(".", 1)[-1] for key in read_space()}
    model = partial(BatchNormClassifier, **{k: v for k, v in fixed.items() if k not in searched})
    trainer = {"accelerator": "cpu", "devices": 1, "logger": False, "max_epochs": EPOCHS, "num_sanity_val_steps": 0}
    return PythonBuilder(model, partial(MovedDigits, move=move), trainer)


def read_space() -> dict[str, Any]:
    space = yaml.safe_load((ROOT / "configs/digits/tune.yaml").read_text())["space"]
    return {key.rsplit(".", 1)[-1]: fields for key, fields in space.items()}


def epochs_of(study: optuna.Study) -> list[tuple[int, float]]:
    """Epochs spent after each trial, and the best value so far."""
    spent, best, path = 0, float("inf"), []
    for trial in study.trials:
        spent += trial.user_attrs.get("epochs", 0)
        if trial.state is optuna.trial.TrialState.COMPLETE and trial.value is not None:
            best = min(best, trial.value)
        path.append((spent, best))
    return path


def reached(path: list[tuple[int, float]], value: float) -> int | None:
    return next((epochs for epochs, best in path if best <= value), None)


def one_seed(seed: int, moves: list[str], folder: Path) -> list[dict[str, Any]]:
    space = SearchSpace.from_dict(read_space())
    first = TuneConfig(f"s{seed}", None, space, budget=Budget(TRIALS, EPOCHS), folder=folder / f"s{seed}", seed=seed)
    old = run(replace(first, audit=False), builder(""))
    rows = []
    spent = epochs_of(old.study)[-1][0]
    for move in ["", *moves]:
        again = folder / f"{move.replace(' ', '_') or 'none'}_{seed}"
        shutil.copytree(first.folder, again)
        config = replace(first, folder=again, audit=False)
        done = retune(str(again), config, builder(move))
        assert done.test is not None
        row: dict[str, Any] = {"seed": seed, "move": move or "none", "confirmed": done.test.confirmed}
        row |= {"drift": len(done.drift), "retest_epochs": done.test.epochs, "study_epochs": spent}
        if move:
            fresh_config = replace(
                first, folder=folder / f"fresh_{again.name}", name="fresh", seed=seed + 1000, audit=False
            )
            fresh = epochs_of(run(fresh_config, builder(move)).study)
            path = epochs_of(done.test.study)
            offset = done.test.epochs
            if done.result is not None:
                path = path + [(offset + e, min(b, path[-1][1])) for e, b in epochs_of(done.result.study)]
            goal = fresh[-1][1]
            row |= {"fresh_value": goal, "fresh_epochs": fresh[-1][0], "value": min(b for _, b in path)}
            row |= {"epochs": path[-1][0], "epochs_to_reach": reached(path, goal)}
            row |= {"epochs_within_5_percent": reached(path, 1.05 * goal), "recorded_best_now": done.test.now}
        rows.append(row)
        print(row, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| move | re-test: still best | re-test epochs / study | retune epochs / fresh | reaches fresh "
        "| mean epochs to reach / fresh | within 5% | epochs to within 5% / fresh | best value: fresh | retune |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for move in ["none", *MOVES]:
        some = [r for r in rows if r["move"] == move]
        if not some:
            continue
        part = statistics.fmean(r["retest_epochs"] / r["study_epochs"] for r in some)
        nominal = statistics.fmean(r["retest_epochs"] / (TRIALS * EPOCHS) for r in some)
        line = f"| {move} | {sum(r['confirmed'] for r in some)} of {len(some)} | {part:.2f} ({nominal:.3f} of 40 x 27) "
        if move == "none":
            lines.append(line + "| | | | | | | |")
            continue
        cells = [f"{statistics.fmean(r['epochs'] / r['fresh_epochs'] for r in some):.2f}"]
        for key in ("epochs_to_reach", "epochs_within_5_percent"):
            hits = [r[key] / r["fresh_epochs"] for r in some if r[key] is not None]
            cells += [f"{len(hits)} of {len(some)}", f"{statistics.fmean(hits):.2f}" if hits else "-"]
        cells += [f"{statistics.fmean(r[k] for r in some):.4f}" for k in ("fresh_value", "value")]
        lines.append(line + "| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--moves", nargs="*", default=list(MOVES), choices=list(MOVES))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/retune.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    began = time.time()
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows += one_seed(seed, given.moves, Path(folder))
    fields = sorted({key for row in rows for key in row})
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
