"""What a refresh costs: `retune` against a fresh study when the data have moved, and the re-test when they have not.

    python benchmarks/retune.py --seeds 0 1 2 3 4 --unmoved 0 1 2 3 4 5 6 7 8 9 --out benchmarks/results/retune.csv

Digits, the space of configs/digits/tune.yaml, studies of 40 trials x 27 epochs by Lightning, one process. For each seed
one study on the data as they are; then the data move in one of four ways (all splits, after scaling, so that the model
does see it), and

* a fresh study of full length is run on them: what it reaches, and the epochs it trained;
* `retune` is run on them: the epochs, those of the re-test included, until it has a value as good as the fresh study's
  (or within 5% of it), and the best value that it ends with.

A study's best value is the luckiest of a dozen trainings (one configuration scatters by about a tenth from seed to
seed), so the winners, and all that led `retune` on its way, are trained again on seeds of their own: the mean says
which configuration is the better one, and when `retune` had one as good as the fresh study's.

Without a move: whether the re-test says "still the best", and its epochs as a part of the study's. Rows are written as
they come; a run that was stopped goes on with the seeds and moves that are missing in the file.
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
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.trial import FrozenTrial
from torch.utils.data import TensorDataset

from lightning_hp.callbacks.pruning import TrialPruning
from lightning_hp.search.plan import SearchPlan
from lightning_hp.search.space import SearchSpace
from lightning_hp.training import BatchNormClassifier, DigitsDataModule
from lightning_hp.tuning.build import PythonBuilder
from lightning_hp.tuning.config import Budget, TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.length import TrainingLength
from lightning_hp.tuning.retune import retune_study

ROOT = Path(__file__).resolve().parents[1]
TRIALS, EPOCHS = 40, 27
MOVES = ("scale of features", "new noise", "class mix", "half the rows")
#: Seeds that a winner is trained again on.
AGAIN = 6
FIELDS = [
    "seed",
    "move",
    "confirmed",
    "drift",
    "retest_epochs",
    "study_epochs",
    "epochs",
    "fresh_epochs",
    "epochs_to_reach",
    "epochs_within_5_percent",
    "epochs_to_reach_again",
    "value",
    "fresh_value",
    "recorded_best_now",
    "again",
    "fresh_again",
]


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


def leaders(study: optuna.Study) -> list[tuple[int, FrozenTrial]]:
    """Epochs spent when a trial took the lead, and the trial."""
    path = epochs_of(study)
    before = [float("inf"), *(best for _, best in path)]
    return [(spent, t) for (spent, best), was, t in zip(path, before, study.trials, strict=False) if best < was]


def again(move: str, space: SearchSpace, trial: FrozenTrial, folder: Path) -> float:
    """Mean value of a configuration on seeds that no study has used."""
    values: list[float] = []
    for seed in range(AGAIN):
        pruning = TrialPruning(optuna.trial.FixedTrial({}), "val_loss")
        arguments = space.arguments(trial.params)
        built = builder(move).build(arguments, folder / "again", 900 + seed, [pruning], TrainingLength(EPOCHS))
        built.trainer.fit(built.model, datamodule=built.data)
        values.append(pruning.best() or 0.0)
    return statistics.fmean(values)


def one_seed(seed: int, moves: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    space = SearchSpace.from_dict(read_space())
    first = TuneConfig(
        f"s{seed}",
        None,
        SearchPlan(space=space, n_trials=TRIALS, seed=seed),
        budget=Budget(TrainingLength(EPOCHS)),
        folder=folder / f"s{seed}",
        audit=False,
    )
    spent = epochs_of(run(first, builder("")).study)[-1][0]
    for move in moves:
        copied = folder / f"{move.replace(' ', '_')}_{seed}"
        shutil.copytree(first.folder, copied)
        done = retune_study(str(copied), replace(first, folder=copied), builder(move))
        assert done.test is not None
        row: dict[str, Any] = {"seed": seed, "move": move, "confirmed": done.test.confirmed, "drift": len(done.drift)}
        row |= {"retest_epochs": done.test.epochs, "study_epochs": spent}
        if move != "none":
            config = replace(first, folder=folder / f"fresh_{copied.name}", name="fresh", seed=seed + 1000)
            fresh = run(config, builder(move)).study
            refreshed = done.test.study if done.result is None else done.result.study
            path, goal = epochs_of(refreshed), fresh.best_value
            row |= {"fresh_value": goal, "fresh_epochs": epochs_of(fresh)[-1][0], "value": path[-1][1]}
            row |= {"epochs": path[-1][0], "epochs_to_reach": reached(path, goal)}
            row |= {"epochs_within_5_percent": reached(path, 1.05 * goal), "recorded_best_now": done.test.now}
            means = [(epochs, again(move, space, trial, folder)) for epochs, trial in leaders(refreshed)]
            row |= {"again": means[-1][1], "fresh_again": again(move, space, fresh.best_trial, folder)}
            row |= {"epochs_to_reach_again": reached(means, row["fresh_again"])}
        yield row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| move | re-test: still best | re-test epochs / study | retune epochs / fresh | reaches fresh "
        "| epochs to reach / fresh (not reached: 1) | within 5% "
        "| epochs / fresh (not: 1) | reaches fresh on new seeds | epochs / fresh (not: 1) | value / fresh "
        "| on new seeds / fresh |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for move in ["none", *MOVES, "all four"]:
        some = [r for r in rows if r["move"] == move or (move == "all four" and r["move"] != "none")]
        if not some:
            continue
        part = statistics.fmean(r["retest_epochs"] / r["study_epochs"] for r in some)
        line = f"| {move} | {sum(r['confirmed'] for r in some)} of {len(some)} | {part:.2f} "
        if move == "none":
            lines.append(line + "|" + " |" * 9)
            continue
        cells = [f"{statistics.fmean(r['epochs'] / r['fresh_epochs'] for r in some):.2f}"]
        for key in ("epochs_to_reach", "epochs_within_5_percent", "epochs_to_reach_again"):
            parts = [r[key] / r["fresh_epochs"] for r in some if r[key] is not None]
            mean = (sum(parts) + len(some) - len(parts)) / len(some)
            cells += [f"{len(parts)} of {len(some)}", f"{statistics.fmean(parts):.2f} ({mean:.2f})" if parts else "-"]
        for ours, theirs in (("value", "fresh_value"), ("again", "fresh_again")):
            cells.append(f"{statistics.geometric_mean(r[ours] / r[theirs] for r in some):.3f}")
        lines.append(line + "| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{k: parsed(v) for k, v in row.items()} for row in csv.DictReader(file)]


def parsed(text: str) -> Any:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--unmoved", type=int, nargs="*", default=list(range(10)), help="seeds where nothing moves")
    parser.add_argument("--moves", nargs="*", default=list(MOVES), choices=list(MOVES))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/retune.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = read(given.out)
    began = time.time()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in sorted({*given.seeds, *given.unmoved}):
        moves = [*(["none"] if seed in given.unmoved else []), *(given.moves if seed in given.seeds else [])]
        moves = [m for m in moves if not any((r["seed"], r["move"]) == (seed, m) for r in rows)]
        with tempfile.TemporaryDirectory() as folder:
            for row in one_seed(seed, moves, Path(folder)) if moves else ():
                rows.append(row)
                print(row, flush=True)
                with given.out.open("w", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    writer.writeheader()
                    writer.writerows(rows)
    print(table(rows))
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
