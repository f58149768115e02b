"""The performance page, from the CSV files that the benchmarks wrote."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
#: full trainings after which regret is shown
AFTER = (5, 10, 20, 40)


def performance_page() -> str:
    """All tables, each with the command that made its numbers."""
    return "\n".join(
        [
            "# Performance",
            "",
            "Made from `benchmarks/results/*.csv`; each table names the command that wrote its file. Two shared cores, no",
            "accelerator. [Benchmarks](benchmarks.md) explains the measurements, and says where other tools are better.",
            "",
            "## Search",
            "",
            "Mean regret after 5, 10, 20 and 40 full trainings; 0 is the best of 100,000 random configurations, 1 their median.",
            "",
            *_regret("search_efficiency_plain.csv", "python benchmarks/search_efficiency.py DATA --seeds 3"),
            "Seeds that were not used for any design decision:",
            "",
            *_regret(
                "search_efficiency_fresh_plain.csv",
                "python benchmarks/search_efficiency.py DATA --tuners lightning_hp --first-seed 3 --seeds 3",
            ),
            "Tasks that were not used for any design decision:",
            "",
            *_regret(
                "search_efficiency_held_out_plain.csv", "python benchmarks/search_efficiency.py DATA --tasks held-out"
            ),
            "## Search on real training",
            "",
            "Digits, equal epochs for every tuner, five seeds; best validation loss.",
            "",
            *_digits(),
            "## The file that init writes",
            "",
            "Studies of 20 trials with it, then the project's own values and the winners' on five fresh seeds each. `better by` is positive",
            "where the winners are better; beyond noise is more than two standard errors.",
            "",
            *_first_file(),
            "## What a suggestion costs",
            "",
            *_rows(
                "suggestion_cost.csv",
                "python benchmarks/suggestion_cost.py",
                ["sampler", "finished", "ask_ms", "cpu_ms"],
            ),
            "## Stacked training",
            "",
            "Milliseconds of one optimiser step for all members together, and how many times faster than a Lightning loop that is.",
            "",
            *_rows(
                "stacked_throughput.csv",
                "python benchmarks/stacked.py",
                ["units", "members", "threads", "way", "ms", "times a Lightning loop"],
            ),
            "## Refreshing a tuning",
            "",
            "Digits that moved in four ways; `retune` against a fresh study of full length. Ratios are means over seeds.",
            "",
            *_retune(),
            "## Babysitting",
            "",
            *_panda(),
        ]
    )


def _table(frame: pd.DataFrame, command: str) -> list[str]:
    head = "| " + " | ".join(map(str, frame.columns)) + " |"
    rows = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in frame.itertuples(index=False)]
    return [f"`{command}`", "", head, "|" + "---|" * len(frame.columns), *rows, ""]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _rows(name: str, command: str, columns: list[str]) -> list[str]:
    return _table(pd.read_csv(RESULTS / name)[columns], command)


def _first_file() -> list[str]:
    frame = pd.read_csv(RESULTS / "first_file.csv")
    frame["better by"] = [
        f"{gain:.3g}\u00a0±\u00a0{error:.2g}" for gain, error in zip(frame.better_by, frame.standard_error, strict=True)
    ]
    frame["beyond noise"] = frame.beyond_noise.map({True: "yes", False: "no"})
    columns = ["project", "searched", "listed", "studies", "own", "winner", "better by", "beyond noise"]
    return _table(frame[columns], f"python benchmarks/first_file.py --studies {frame.studies.max()}")


def _regret(name: str, command: str) -> list[str]:
    frame = pd.read_csv(RESULTS / name)
    columns = {f"after_{n}": str(n) for n in AFTER}
    means = frame.groupby("tuner")[[*columns]].mean().rename(columns=columns)
    means.insert(0, "runs", frame.groupby("tuner").size())
    return _table(means.sort_values("40").reset_index(), command)


def _digits() -> list[str]:
    frame = pd.read_csv(RESULTS / "search_digits.csv")
    done = frame[frame.complete]
    best = done.groupby(["tuner", "seed"]).val_loss.min().groupby("tuner").agg(["mean", "median", "max"])
    best["trials"] = frame.groupby("tuner").size() / frame.groupby("tuner").seed.nunique()
    return _table(best.sort_values("mean").reset_index(), "python benchmarks/search_digits.py")


def _retune() -> list[str]:
    frame = pd.read_csv(RESULTS / "retune.csv")
    frame["loss on new seeds / fresh"] = frame.again / frame.fresh_again
    frame["epochs / fresh"] = frame.epochs / frame.fresh_epochs
    frame["still the best"] = frame.confirmed.astype(float)
    means = frame.groupby("move")[["still the best", "loss on new seeds / fresh", "epochs / fresh"]].mean()
    return _table(means.reset_index(), "python benchmarks/retune.py")


def _panda() -> list[str]:
    frame = pd.read_csv(RESULTS / "panda.csv")
    tuned = frame[frame.kind == "tuned"].groupby(["seed", "task"]).loss.min().rename("tuned_loss")
    runs = frame[frame.kind != "tuned"].join(tuned, on=["seed", "task"])
    runs["ratio"] = runs.loss / runs.tuned_loss
    table = (
        runs.groupby(["kind", "method"]).ratio.agg(["median", "size"]).rename(columns={"median": "median loss / tuned"})
    )
    return _table(table.reset_index().rename(columns={"size": "runs"}), "python benchmarks/panda.py")
