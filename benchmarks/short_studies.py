"""Short studies whose trainings are partly luck: how good is the winner of 20 trials, confirmations included?

    OMP_NUM_THREADS=1 python benchmarks/short_studies.py DATA --trials 20 --noise 0.06 --seeds 4 --out rows.csv

DATA as for ``search_efficiency.py``, whose 17 development tasks these are. A study has a budget of trials, not of
epochs, as a user gives it: the search, what is trained again on fresh seeds, and what is given back to the search are
those of ``lightning-hp tune``. ``--noise`` is a seed's luck, in parts of the unit of regret: a normal draw for a whole
curve, 0.3 of that for each of its points. The result is the regret of the winner's values without luck. ``--late``
trains nothing again before the search has ended, and leaves unspent what the confirmation does not need. A run that is
already in the file is not repeated; ``--against`` another file compares the same runs.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import optuna
from search_efficiency import FROM_POINT_TO_POINT, load_bench, make_space

from lightning_hp.space.space import SearchSpace
from lightning_hp.study.confirmed import CONFIRMS
from lightning_hp.study.trials import best_trials
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.confirmation import enqueue_leader, go_on, left_to_search

COLUMNS = ("task", "seed", "noise", "planned", "regret", "trials", "full_trainings", "complete", "again")


class Task:
    """One task of the simulator, with luck.

    Args:
        bench: The simulator.
        name: Of the task.
        noise: Of a training, in parts of the unit of regret.
        seed: Of the luck.
    """

    def __init__(self, bench: ModuleType, name: str, noise: float, seed: int) -> None:
        self.bench, self.name, self.seed = bench, name, seed
        self.problem = bench.LCBench(name)
        self.scatter = noise * (self.problem.median - self.problem.best)
        self.epochs = 0

    def without_luck(self, natural: Mapping[str, float]) -> np.ndarray:
        """The loss after each epoch."""
        curve: np.ndarray = self.problem.curve({name: natural[name] for name in self.bench.RANGES})
        return curve

    def train(self, study: optuna.Study, space: SearchSpace) -> None:
        """Run the study's next trial; one that confirms another one is not stopped."""
        trial = study.ask()
        true = self.without_luck(space.suggest(trial))
        luck = np.random.default_rng([self.seed, *self.name.encode(), trial.number])
        common = luck.standard_normal()
        curve = true + self.scatter * (common + FROM_POINT_TO_POINT * luck.standard_normal(len(true)))
        for step, value in enumerate(curve, start=1):
            self.epochs += 1
            trial.report(float(value), step)
            if step < len(curve) and CONFIRMS not in trial.user_attrs and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return
        study.tell(trial, float(curve[-1]))


def run(
    bench: ModuleType, space: SearchSpace, name: str, seed: int, trials: int, noise: float, late: bool
) -> dict[str, object]:
    """One study; a row."""
    config = TuneConfig.from_arguments(space, {"trials": trials}, {"name": "short", "seed": seed})
    sampler = config.search.sampler()
    study = optuna.create_study(sampler=sampler, pruner=sampler.pruner())
    task = Task(bench, name, noise, seed)
    while True:
        while left_to_search(study, study.get_trials(deepcopy=False), config) > 0:
            if not late:
                enqueue_leader(study, sampler.planned, config)
            task.train(study, space)
        numbers, more = go_on(study, sampler.engine, config, at_once=False)
        if not numbers and (late or not more):
            break
        while any(t.state is optuna.trial.TrialState.WAITING for t in study.get_trials(deepcopy=False)):
            task.train(study, space)
    winner = best_trials(study, 1)[0]
    regret = task.problem.regret(float(task.without_luck(space.natural(winner.params))[-1]))
    again = [CONFIRMS in t.user_attrs for t in study.trials]
    complete = [t.state is optuna.trial.TrialState.COMPLETE for t in study.trials]
    numbers_of = (len(again), f"{task.epochs / bench.MAX_EPOCHS:.2f}", sum(complete) - sum(again), sum(again))
    return dict(zip(COLUMNS, (name, seed, noise, trials, f"{regret:.5f}", *numbers_of), strict=True))


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def told(rows: Sequence[Mapping[str, str]], others: Sequence[Mapping[str, str]]) -> str:
    """Mean regret of some rows, and its difference from that of the same runs of other code."""
    key = ("task", "seed", "noise", "planned")
    regrets = {tuple(row[k] for k in key): float(row["regret"]) for row in rows}
    before = {tuple(row[k] for k in key): float(row["regret"]) for row in others}
    line = f"{len(rows)} studies: {_mean_and_error(list(regrets.values()))}"
    for column in ("trials", "full_trainings", "complete", "again"):
        line += f"; {column} {statistics.fmean(float(row[column]) for row in rows):.1f}"
    same = [one for one in regrets if one in before]
    if same:
        line += f"\nagainst the other code, {len(same)} studies: {statistics.fmean(before[o] for o in same):.4f}, "
        line += f"difference {_mean_and_error([regrets[o] - before[o] for o in same])}"
    return line


def _mean_and_error(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values) / len(values) ** 0.5:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--noise", type=float, default=0.06)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--late", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", type=Path, default=None)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    bench = load_bench(options.data)
    space = make_space(bench, "plain")
    wanted = [
        (t, str(s), str(options.noise), str(options.trials)) for s in range(options.seeds) for t in bench.DEV_TASKS
    ]
    rows = read(options.out)
    done = {(row["task"], row["seed"], row["noise"], row["planned"]) for row in rows}
    for task, seed, noise, trials in [one for one in wanted if one not in done]:
        result = run(bench, space, task, int(seed), int(trials), float(noise), options.late)
        row = {name: str(v) for name, v in result.items()}
        rows.append(row)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    shown = [row for row in rows if (row["task"], row["seed"], row["noise"], row["planned"]) in wanted]
    print(told(shown, read(options.against) if options.against else []))


if __name__ == "__main__":
    main()
