"""What a refresh costs: `retune` against a fresh study when the data have moved, and the re-test when they have not.

    python benchmarks/retune.py --seeds 0 1 2 3 4 --unmoved 0 1 2 3 4 5 6 7 8 9 --out benchmarks/results/retune.csv

Digits, the space of configs/digits/tune.yaml, studies of 40 trials x 27 epochs by Lightning, one process. For each seed
one study on the data as they are; then the data move in one of four ways (all splits, after scaling, so that the model
does see it), and

* a fresh study of full length is run on them;
* `retune` is run on them: a re-test, then a short study.

Both confirm their winner on fresh seeds, as a study does by default, and both count all epochs that they trained. Both
winners, and the configuration that was the best before the data moved, are trained again on six seeds that no study
has used (stacked, which gives what a Trainer gives): the means say which one is better.

Without a move: whether the re-test says "still the best", and its epochs as a part of the study's. Rows are written as
they come; a run that was stopped goes on with the seeds and moves that are missing in the file.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from torch.utils.data import TensorDataset

from lightning_hp.project.build import PythonBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.trial_outputs import MetricsLog
from lightning_hp.retests.retune import retune_study
from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace
from lightning_hp.training import BatchNormClassifier, DigitsDataModule
from lightning_hp.training.stacked import Member, train_stacked
from lightning_hp.tuning.caviar import Caviar
from lightning_hp.tuning.config import Budget, TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.finish import Result

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
    "again",
    "fresh_again",
    "recorded_again",
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


def epochs_of(study: optuna.Study) -> int:
    """Epochs that a study trained."""
    return sum(t.user_attrs.get("epochs", 0) for t in study.get_trials(deepcopy=False))


def losses_again(move: str, params: Mapping[str, Any], seeds: Sequence[int], folder: Path) -> list[float]:
    """The best validation loss of a configuration (stored values) with each of these seeds, trained as one stack."""
    arguments = SearchSpace.from_dict(read_space()).arguments(params)
    members = []
    for seed in seeds:
        built = builder(move).build(arguments, folder / "again", seed, [], TrainingLength(EPOCHS))
        members.append(Member(built.model, built.trainer, built.data, stood_in_for=(MetricsLog,)))
    losses = []
    for outcome in train_stacked(members):
        assert outcome.refused is None, outcome.refused
        losses.append(min(logged["val_loss"] for logged in outcome.curve.values()))
    return losses


def one_seed(seed: int, moves: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    space = SearchSpace.from_dict(read_space())
    first = TuneConfig(
        f"s{seed}",
        None,
        SearchPlan(space=space, n_trials=TRIALS, seed=seed),
        budget=Budget(TrainingLength(EPOCHS)),
        folder=folder / f"s{seed}",
        audit=False,
        caviar=Caviar("in_process"),  # epochs are compared, not seconds
    )
    tuned = run(first, builder(""))
    spent, recorded = epochs_of(tuned.study), tuned.study.get_trials(deepcopy=False)[tuned.trial].params
    for move in moves:
        copied = folder / f"{move.replace(' ', '_')}_{seed}"
        shutil.copytree(first.folder, copied)
        done = retune_study(str(copied), replace(first, folder=copied), builder(move))
        assert done.test is not None
        row: dict[str, Any] = {"seed": seed, "move": move, "confirmed": done.test.confirmed, "drift": len(done.drift)}
        row |= {"retest_epochs": done.test.epochs, "study_epochs": spent}
        if move != "none":
            fresh_plan = replace(first.search, seed=seed + 1000)
            config = replace(first, folder=folder / f"fresh_{copied.name}", name="fresh", search=fresh_plan)
            fresh = run(config, builder(move))
            row |= {"fresh_epochs": epochs_of(fresh.study), "recorded_again": again(move, recorded, folder)}
            row |= {"fresh_again": again(move, winner_of(fresh), folder)}
            row |= {"epochs": done.test.epochs, "again": row["recorded_again"]}
            if done.result is not None:
                row |= {"epochs": epochs_of(done.result.study), "again": again(move, winner_of(done.result), folder)}
        yield row


def again(move: str, params: Mapping[str, Any], folder: Path) -> float:
    """Mean loss of a configuration on seeds that no study has used."""
    return statistics.fmean(losses_again(move, params, range(900_000, 900_000 + AGAIN), folder))


def winner_of(result: Result) -> Mapping[str, Any]:
    """The stored values that a study found."""
    return result.study.get_trials(deepcopy=False)[result.trial].params


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| data | re-test: still best | re-test epochs / study | refresh epochs / fresh "
        "| loss on new seeds, refresh / fresh | lower in | recorded best / fresh |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for move in ["none", *MOVES, "all moves"]:
        some = [r for r in rows if r["move"] == move or (move == "all moves" and r["move"] != "none")]
        if not some:
            continue
        part = sum(r["retest_epochs"] for r in some) / sum(r["study_epochs"] for r in some)
        line = f"| {move} | {sum(r['confirmed'] for r in some)} of {len(some)} | {part:.3f} "
        if move == "none":
            lines.append(line + "| | | | |")
            continue
        epochs = sum(r["epochs"] for r in some) / sum(r["fresh_epochs"] for r in some)
        lower = sum(r["again"] < r["fresh_again"] for r in some)
        ratios = [ratio(some, key, "fresh_again") for key in ("again", "recorded_again")]
        lines.append(line + f"| {epochs:.2f} | {ratios[0]} | {lower} of {len(some)} | {ratios[1]} |")
    return "\n".join(lines)


def ratio(rows: Sequence[Mapping[str, Any]], ours: str, theirs: str) -> str:
    """Geometric mean with its standard error."""
    logs = [math.log(r[ours] / r[theirs]) for r in rows]
    error = f" ± {statistics.stdev(logs) / math.sqrt(len(logs)):.3f}" if len(logs) > 1 else ""
    return f"{math.exp(statistics.fmean(logs)):.3f}{error}"


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
