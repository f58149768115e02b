"""How good a configuration each tuner has found after the same number of epochs, on 34 tasks with real learning curves.

    OMP_NUM_THREADS=1 python benchmarks/search_efficiency.py DATA --seeds 3 [--space dummies] [--tasks held-out]

DATA is a folder with ``lcbench.py`` and ``lcbench/``: the surrogate of LCBench (Zimmer, Lindauer, Hutter 2021,
"Auto-PyTorch Tabular") that YAHPO Gym publishes (Pfisterer et al. 2022, github.com/slds-lmu/yahpo_data, folder
``lcbench``, Apache-2.0), and a reader with ``LCBench(task).curve(params)`` and ``.regret(value)``.

One run is one task, one seed and one tuner. Every tuner is given the same defaults as its first configuration, the same
space with momentum on the one-minus-log scale, and a budget of 40 full trainings of 52 epochs; a reported epoch costs
one. The result after b full trainings is the best final value of the configurations trained to the last epoch within b
times 52 epochs, as regret: 0 is the best of 100,000 random configurations, 1 their median (1 where none is finished).

``--space dummies`` adds four parameters without any effect. ``--space taskset`` is a second family (``taskset.py`` in
the same folder: Metz et al. 2020, six tasks, Adam's eight hyperparameters, 51 steps). ``--noise 0.06`` does what a seed
does: every trial's whole curve is moved by a normal draw of 0.06 of regret, and each of its points by 0.3 of that
besides; the result is the true regret of the configuration with the best value seen. A run that is already in the CSV
is not repeated, unless ``--fresh``.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna

from lightning_hp.space.space import SearchSpace

#: after how many full trainings the best is read
GRID = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40)
SHOWN = (5, 10, 20, 40)
COLUMNS = ("tuner", "space", "task", "seed", *(f"after_{b}" for b in GRID), "trials", "completed", "ask_ms")
DUMMIES = {
    "beta1": {"low": 0.8, "high": 0.99, "scale": "one_minus_log", "tier": "D", "default": 0.9},
    "beta2": {"low": 0.9, "high": 0.9999, "scale": "one_minus_log", "tier": "D", "default": 0.999},
    "epsilon": {"low": 1e-10, "high": 1e-3, "scale": "log", "tier": "D", "default": 1e-8},
    "learning_rate_decay": {"low": 1e-3, "high": 0.3, "scale": "log", "tier": "C", "default": 1e-2},
}
#: Trials planned: the budget is in epochs, and about half of the trials are stopped early.
PLANNED = 80
#: Of a seed's luck: what differs from point to point, in parts of what the whole curve has in common.
FROM_POINT_TO_POINT = 0.3
Pair = tuple[optuna.samplers.BaseSampler, optuna.pruners.BasePruner]


def load_bench(folder: Path, family: str = "lcbench") -> ModuleType:
    """The reader that lies beside the data."""
    spec = importlib.util.spec_from_file_location(family, folder / f"{family}.py")
    if spec is None or spec.loader is None or not (folder / f"{family}.py").is_file():
        raise FileNotFoundError(f"`data` must be a folder with {family}.py, got {str(folder)!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_space(bench: ModuleType, kind: str) -> SearchSpace:
    """The benchmark's ranges, tiers and defaults; ``dummies`` adds four parameters that do nothing."""
    mapping: dict[str, Any] = {}
    for name, (low, high, *given) in bench.RANGES.items():
        scale = given[0] if given else "one_minus_log" if name.startswith("beta") else "log"
        whole = scale.endswith("int")
        axis = {"log-int": "log", "int": "linear"}.get(scale, scale)
        mapping[name] = {"low": low, "high": high, "scale": axis, "type": "int" if whole else "float"}
        mapping[name] |= {"tier": bench.TIERS[name], "default": bench.DEFAULTS[name]}
    return SearchSpace.from_dict(mapping | (DUMMIES if kind == "dummies" else {}))


def _ours(part: str = "", pruner: bool = True, plan: str = "default") -> Callable[[SearchSpace, int, int], Pair]:
    def make(space: SearchSpace, seed: int, steps: int) -> Pair:
        from lightning_hp.search.sampler import CoarseToFineSampler

        if part == "tiers":  # all alike: no tier says how much a parameter matters, or how far its default is trusted
            space = SearchSpace(tuple(replace(p, tier="B") for p in space.parameters), space.entries)
        sampler = CoarseToFineSampler(space, n_trials=PLANNED, max_steps=steps, seed=seed, plan=plan)
        if part == "zoom":
            sampler.planned = sampler.planned[:-1]
        return sampler, sampler.pruner() if pruner else optuna.pruners.NopPruner()

    return make


def _peer(
    sampler: Callable[[int], optuna.samplers.BaseSampler], pruner: Callable[[int], optuna.pruners.BasePruner]
) -> Callable[[SearchSpace, int, int], Pair]:
    return lambda space, seed, steps: (sampler(seed), pruner(steps))


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed)


def _gp(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=6)


def _ax(seed: int) -> optuna.samplers.BaseSampler:
    from ax_sampler import AxSampler

    return AxSampler(seed)


def _syne_tune(space: SearchSpace, seed: int, steps: int) -> Pair:
    from syne_tune_sampler import SyneTuneSampler

    sampler = SyneTuneSampler(seed, steps)
    return sampler, sampler.pruner()


def _none(steps: int) -> optuna.pruners.BasePruner:
    return optuna.pruners.NopPruner()


TUNERS: dict[str, Callable[[SearchSpace, int, int], Pair]] = {
    "lightning_hp": _ours(),
    "ours, plan opening": _ours(plan="opening"),
    "ours, plan tiers": _ours(plan="tiers"),
    "ours, tiers all alike": _ours("tiers"),
    "ours, no zoom": _ours("zoom"),
    "ours, no pruner": _ours(pruner=False),
    "TPE": _peer(_tpe, _none),
    "TPE + SuccessiveHalving": _peer(
        _tpe, lambda steps: optuna.pruners.SuccessiveHalvingPruner(min_resource=3, reduction_factor=3)
    ),
    "TPE + Median": _peer(_tpe, lambda steps: optuna.pruners.MedianPruner()),
    "TPE + Hyperband": _peer(_tpe, lambda steps: optuna.pruners.HyperbandPruner(1, steps, 3)),
    "GP": _peer(_gp, _none),
    "Ax": _peer(_ax, _none),
    "Syne Tune ASHA-CQR": _syne_tune,
    "random": _peer(lambda seed: optuna.samplers.RandomSampler(seed=seed), _none),
}
#: Ax and Syne Tune are asked for by name: they are not in the extra ``bench``, and take long for every ask
DEFAULT_TUNERS = [name for name in TUNERS if not name.startswith(("ours", "Ax", "Syne Tune"))]


def run(
    bench: ModuleType, tuner: str, kind: str, task: str, seed: int, budget: int = max(GRID), noise: float = 0.0
) -> dict[str, Any]:
    """One tuner on one task: its regret after each number of full trainings in ``GRID``."""
    space = make_space(bench, kind)
    problem = bench.TaskSet(task) if kind == "taskset" else bench.LCBench(task)
    steps = bench.MAX_STEPS if kind == "taskset" else bench.MAX_EPOCHS
    sampler, pruner = TUNERS[tuner](space, seed, steps)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    study.enqueue_trial(space.defaults())
    spent, finished, asks, trials = 0, [], [], 0
    scatter, luck = noise * (problem.median - problem.best), np.random.default_rng([seed, *task.encode()])
    while spent < budget * steps:
        start = time.perf_counter()
        trial = study.ask()
        natural = space.suggest(trial)
        asks.append(1000 * (time.perf_counter() - start))
        trials += 1
        true = problem.curve({name: natural[name] for name in bench.RANGES})
        curve = true + scatter * (luck.standard_normal() + FROM_POINT_TO_POINT * luck.standard_normal(len(true)))
        state = None
        for step, value in enumerate(curve[: budget * steps - spent], start=1):
            spent += 1
            trial.report(float(value), step)
            if step < steps and trial.should_prune():
                state = optuna.trial.TrialState.PRUNED
                break
        else:
            if step == steps:
                finished.append((spent, float(value), float(true[-1])))
        if state is None and step == steps:
            study.tell(trial, float(value))
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    row: dict[str, Any] = {"tuner": tuner, "space": kind, "task": task, "seed": seed}
    for b in GRID:
        ends = [(value, end) for at, value, end in finished if at <= b * steps]
        row[f"after_{b}"] = f"{problem.regret(min(ends)[1]) if ends else 1.0:.5f}"
    return row | {"trials": trials, "completed": len(finished), "ask_ms": f"{statistics.median(asks):.2f}"}


def table(rows: Iterable[dict[str, Any]], tuners: Iterable[str]) -> str:
    """Mean and median regret after 5, 10, 20 and 40 full trainings, one line a tuner."""
    rows = list(rows)
    lines = ["| tuner | runs | " + " | ".join(f"{b}" for b in SHOWN) + " | median regrets | trials | ms an ask |"]
    lines.append("|" + "---|" * (len(SHOWN) + 5))
    for tuner in tuners:
        mine = [row for row in rows if row["tuner"] == tuner]
        if not mine:
            continue
        found = np.array([[float(row[f"after_{b}"]) for b in SHOWN] for row in mine])
        means = " | ".join(f"{m:.3f}" for m in found.mean(axis=0))
        medians = " / ".join(f"{m:.3f}" for m in np.median(found, axis=0))
        trials, ask = np.mean([int(r["trials"]) for r in mine]), np.median([float(r["ask_ms"]) for r in mine])
        lines.append(f"| {tuner} | {len(mine)} | {means} | {medians} | {trials:.0f} | {ask:.0f} |")
    return "\n".join(lines)


def plot(rows: Iterable[dict[str, Any]], tuners: Iterable[str], path: Path, title: str) -> None:
    """Mean regret against epochs spent, in full trainings, both axes logarithmic; a self-contained SVG-like HTML."""
    import plotly.graph_objects as go

    rows, figure = list(rows), go.Figure()
    for tuner in tuners:
        mine = [row for row in rows if row["tuner"] == tuner]
        if mine:
            mean = np.mean([[float(row[f"after_{b}"]) for b in GRID] for row in mine], axis=0)
            width = 4 if tuner == "lightning_hp" else 2
            figure.add_scatter(x=GRID, y=mean, name=tuner, mode="lines+markers", line={"width": width})
    figure.update_xaxes(type="log", title="epochs spent, in full trainings of 52", tickvals=GRID)
    figure.update_yaxes(type="log", title="mean normalised regret")
    figure.update_layout(title=title, template="plotly_white", width=900, height=560)
    figure.write_html(path, include_plotlyjs="cdn")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with lcbench.py and lcbench/")
    parser.add_argument("--tuners", nargs="+", default=DEFAULT_TUNERS, choices=list(TUNERS), metavar="TUNER")
    parser.add_argument("--space", choices=("plain", "dummies", "taskset"), default="plain")
    parser.add_argument("--noise", type=float, default=0.0, help="of one training, in parts of the unit of regret")
    parser.add_argument("--tasks", default="dev", help="dev, held-out, or task ids joined by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=max(GRID), help="full trainings; later columns repeat the last")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--name", default="search_efficiency", help="stem of the CSV and the plot")
    parser.add_argument("--fresh", nargs="*", default=[], metavar="TUNER", help="repeat these even where stored")
    given = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    bench = load_bench(given.data, "taskset" if given.space == "taskset" else "lcbench")
    tasks = _tasks(bench, given.data, given.tasks)
    given.out.mkdir(parents=True, exist_ok=True)
    stem = f"{given.name}_{given.space}" + (f"_noise_{given.noise:g}" if given.noise else "")
    path = given.out / f"{stem}.csv"
    rows = list(csv.DictReader(path.open())) if path.is_file() else []
    rows = [row for row in rows if row["tuner"] not in given.fresh]
    seen = {(row["tuner"], row["task"], int(row["seed"])) for row in rows}
    for tuner in given.tuners:
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            for task in tasks:
                if (tuner, task, seed) not in seen:
                    rows.append(run(bench, tuner, given.space, task, seed, given.budget, given.noise))
                    _write(path, rows)
    chosen = [r for r in rows if r["task"] in tasks and r["tuner"] in given.tuners]
    print(table(chosen, given.tuners))
    title = f"{len(tasks)} LCBench tasks, {given.seeds} seeds, space {given.space}"
    plot(chosen, given.tuners, given.out / f"{stem}.html", title)
    return 0


def _tasks(bench: ModuleType, folder: Path, wanted: str) -> list[str]:
    import json

    if wanted == "dev":
        return list(bench.DEV_TASKS)
    known = list(json.loads((folder / "lcbench" / "reference.json").read_text()))
    if wanted == "held-out":
        return [task for task in known if task not in bench.DEV_TASKS]
    return wanted.split(",")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    beside = path.with_suffix(".part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
