"""How many trials shall share a structure, and how many be trained at once? Stacked studies, simulated.

    OMP_NUM_THREADS=1 python benchmarks/cohorts.py DATA [--places 2 4 --share 0.5 0.25 0.125 --seeds 0 1 --noise 0.06]

DATA is the folder that ``search_efficiency.py`` takes. Asking, stopping and taking free places are those of a study
(``lightning_hp.search``, ``lightning_hp.tuning.cohort_plan``); configurations and their curves come from the surrogate
of LCBench, and nothing is trained. The clock is simulated: an epoch of a stack of m members costs ``ALONE + EACH * m``,
as measured on the digits (two hidden layers of 150 to 185 units, batch 32: 0.55, 0.65, 1.05, 1.85 ms a step with 1, 2,
4, 8 members), in units of an epoch of a stack of one. What asks cost is left out.

Shown is the regret of the configuration with the best value seen after 5, 10 and 20 trainings' worth of time, 52 epochs
each.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from search_efficiency import FROM_POINT_TO_POINT, load_bench, make_space

from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.search.stages import stage_at

#: seconds of a stack's epoch, in units of that of a stack of one
ALONE, EACH = 0.65, 0.35
GRID = (5, 10, 20)
PLANNED = 60
COLUMNS = ("places", "share", "task", "seed", *(f"after_{b}" for b in GRID), "trials", "complete", "structures")


class Member:
    """A trial in a stack."""

    def __init__(self, trial: optuna.Trial, true: np.ndarray, seen: np.ndarray) -> None:
        self.trial, self.true, self.seen, self.done = trial, true, seen, 0


class Simulation:
    """One study; its clock counts epochs of a stack of one."""

    def __init__(self, bench: ModuleType, task: str, seed: int, noise: float) -> None:
        self.bench, self.space, self.steps = bench, make_space(bench, "plain"), bench.MAX_EPOCHS
        self.problem = bench.LCBench(task)
        self.sampler = CoarseToFineSampler(self.space, n_trials=PLANNED, max_steps=self.steps, seed=seed)
        self.study = optuna.create_study(sampler=self.sampler, pruner=self.sampler.pruner())
        self.scatter = noise * (self.problem.median - self.problem.best)
        self.luck = np.random.default_rng([seed, *task.encode()])
        self.clock, self.ends = 0.0, []  # (when, value seen, true value)
        self.structures: set[Any] = set()

    def ask(self) -> Member:
        trial = self.study.ask()
        natural = self.space.suggest(trial)
        true = self.problem.curve({name: natural[name] for name in self.bench.RANGES})
        noise = self.luck.standard_normal() + FROM_POINT_TO_POINT * self.luck.standard_normal(len(true))
        return Member(trial, true, true + self.scatter * noise)

    def companions(self, first: optuna.Trial, newest: int, n: int) -> list[Member]:
        """Further members of a structure, inside the stage, as in ``lightning_hp.tuning.together``."""
        fixed = {p.stored_name: first.params[p.stored_name] for p in self.space.parameters if p.cardinality is not None}
        stage = stage_at(self.sampler.planned, first.number)
        end = float("inf") if stage is self.sampler.planned[-1] else stage.last
        n = int(min(n, max(0, end - 1 - newest)))
        with self.sampler.together(fixed, n):
            return [self.ask() for _ in range(n)]

    def cohort(self, places: int, turns: int, budget: float) -> None:
        first = self.ask()
        fixed = tuple(first.trial.params[p.stored_name] for p in self.space.parameters if p.cardinality is not None)
        self.structures.add(fixed)
        stack = [first, *self.companions(first.trial, first.trial.number, places - 1)]
        trials = len(stack)
        while stack and self.clock < budget:
            self.clock += ALONE + EACH * len(stack)
            for one in stack:
                one.done += 1
                one.trial.report(float(one.seen[one.done - 1]), one.done)
            stopped = self.stopped([one for one in stack if one.done < self.steps])
            for one in list(stack):
                if one.done == self.steps:
                    self.study.tell(one.trial, float(one.seen[-1]))
                    self.ends.append((self.clock, float(one.seen[-1]), float(one.true[-1])))
                elif one in stopped:
                    self.study.tell(one.trial, state=TrialState.PRUNED)
                else:
                    continue
                stack.remove(one)
            free = min(places - len(stack), places * turns - trials)
            if stack and free > 0:
                newest = len(self.study.get_trials(deepcopy=False)) - 1
                joining = self.companions(first.trial, newest, free)
                trials += len(joining)
                stack += joining
        for one in stack:
            self.study.tell(one.trial, state=TrialState.FAIL)

    def stopped(self, members: list[Member]) -> list[Member]:
        at_step: dict[int, list[Member]] = {}
        for one in members:
            at_step.setdefault(one.done, []).append(one)
        out = []
        for group in at_step.values():
            frozen = [self.study.get_trials(deepcopy=False)[one.trial.number] for one in group]
            verdicts = self.study.pruner.cull(self.study, frozen)
            out += [one for one, verdict in zip(group, verdicts, strict=True) if verdict]
        return out

    def regret(self, budget: float) -> float:
        ends = [(seen, true) for when, seen, true in self.ends if when <= budget]
        return self.problem.regret(min(ends)[1]) if ends else 1.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with lcbench.py and lcbench/")
    parser.add_argument("--places", nargs="+", type=int, default=[2, 4], help="members that are trained at once")
    parser.add_argument("--share", nargs="+", type=float, default=[0.5, 0.25, 0.125], help="structures a trial")
    parser.add_argument("--tasks", nargs="+", help="default: the development tasks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--noise", type=float, default=0.06)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cohorts.csv")
    given = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    bench = load_bench(given.data)
    tasks = given.tasks or list(bench.DEV_TASKS)
    rows = list(csv.DictReader(given.out.open())) if given.out.is_file() else []
    seen = {tuple(row[name] for name in COLUMNS[:4]) for row in rows}
    ways = [(p, s) for p in given.places for s in given.share if round(1 / s) >= p]
    for seed in given.seeds:
        for task in tasks:
            for places, share in ways:
                if (str(places), str(share), task, str(seed)) in seen:
                    continue
                simulation = Simulation(bench, task, seed, given.noise)
                budget = max(GRID) * simulation.steps
                while simulation.clock < budget:
                    simulation.cohort(places, max(1, round(1 / share / places)), budget)
                trials = simulation.study.get_trials(deepcopy=False)
                row: dict[str, Any] = {"places": places, "share": share, "task": task, "seed": seed}
                row |= {f"after_{b}": f"{simulation.regret(b * simulation.steps):.5f}" for b in GRID}
                row |= {"trials": len(trials), "complete": sum(t.state is TrialState.COMPLETE for t in trials)}
                rows.append({k: str(v) for k, v in (row | {"structures": len(simulation.structures)}).items()})
                with given.out.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    writer.writeheader()
                    writer.writerows(rows)
    print("| places | share | runs | " + " | ".join(map(str, GRID)) + " | trials | complete |")
    print("|" + "---|" * (len(GRID) + 5))
    for way in dict.fromkeys((row["places"], row["share"]) for row in rows):
        mine = [row for row in rows if (row["places"], row["share"]) == way]
        regrets = [statistics.mean(float(row[f"after_{b}"]) for row in mine) for b in GRID]
        counts = [statistics.mean(int(row[name]) for row in mine) for name in ("trials", "complete")]
        print("", *way, len(mine), *(f"{r:.3f}" for r in regrets), *(f"{c:.0f}" for c in counts), "", sep=" | ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
