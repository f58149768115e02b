"""What a study saves that ends when nothing is left to gain, and what it loses.

    OMP_NUM_THREADS=1 python benchmarks/search_converged.py DATA --seeds 2

DATA as for ``search_efficiency.py``: the surrogate of LCBench. It has no noise, so each trial's losses are
shifted together by one draw of a normal distribution, whose standard deviation is a part (``--noise``) of the task's
distance from the best to the median configuration. One run is one task and one seed: a study of 200 trials with our
sampler and pruner to its end; ``StopWhenConverged``'s criterion is asked after each complete trial, and where it first
holds the study would have ended. (It decides nothing else, so one run gives both studies.)

The loss is the true final loss of the trial that the study would name the best (``winner_candidates``), at the early
end less that at the whole budget, in standard deviations of the noise.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from search_efficiency import load_bench, make_space

from lightning_hp.search import CoarseToFineSampler
from lightning_hp.search.convergence import convergence
from lightning_hp.search.winner import winner_candidates

TRIALS = 200
TASKS = ("3945", "34539", "126026", "146212", "167149", "167161", "167181", "167185", "167200", "168329")


def run(bench: Any, task: str, seed: int, noise: float) -> dict[str, Any]:
    """One study of TRIALS trials: when it would have ended, and what that would have lost."""
    space, problem = make_space(bench, "plain"), bench.LCBench(task)
    sampler = CoarseToFineSampler(space, n_trials=TRIALS, max_steps=bench.MAX_EPOCHS, seed=seed)
    study = optuna.create_study(sampler=sampler, pruner=sampler.pruner())
    scatter = noise * (problem.median - problem.best)
    finals: dict[int, float] = {}
    ended: int | None = None
    spent, complete, early = 0, 0, {"epochs": 0, "complete": 0, "best": 0.0}

    def best() -> float:
        return finals[winner_candidates(study, sampler.engine, k=1)[0].trial.number]

    while len(finals) < TRIALS:
        trial = study.ask()
        natural = space.suggest(trial)
        curve = problem.curve({name: natural[name] for name in bench.RANGES})
        luck = scatter * np.random.default_rng([seed, trial.number]).standard_normal()
        finals[trial.number] = float(curve[-1])
        for step, value in enumerate(curve, start=1):
            spent += 1
            trial.report(float(value) + luck, step)
            if step < len(curve) and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, float(curve[-1]) + luck)
            complete += 1
            if ended is None:
                result = convergence(study, sampler.engine, TRIALS)
                if result is not None and result.converged:
                    ended, early = len(finals), {"epochs": spent, "complete": complete, "best": best()}
    lost = (early["best"] - best()) / scatter if ended is not None else 0.0
    return {
        "task": task,
        "seed": seed,
        "noise": noise,
        "trials": ended or TRIALS,
        "complete": early["complete"] if ended else complete,
        "epochs_part": f"{(early['epochs'] if ended else spent) / spent:.3f}",
        "lost": f"{lost:.3f}",
        "regret": f"{problem.regret(early['best'] if ended else best()):.4f}",
        "regret_whole": f"{problem.regret(best()):.4f}",
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with lcbench.py and lcbench/")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search_converged.csv")
    given = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    bench = load_bench(given.data)
    rows = []
    for seed in range(given.seeds):
        for task in given.tasks.split(","):
            rows.append(run(bench, task, seed, given.noise))
            print(rows[-1], flush=True)
            with given.out.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    trials, lost = np.array([r["trials"] for r in rows]), np.array([float(r["lost"]) for r in rows])
    fewest, part = min(r["complete"] for r in rows), np.mean([float(r["epochs_part"]) for r in rows])
    print(
        f"{len(rows)} studies: ended after {trials.mean() / TRIALS:.2f} of the trials and {part:.2f} of the epochs, "
        f"{(trials < TRIALS).sum()} of them early; lost {lost.mean():.2f} standard deviations of the metric "
        f"(standard error {lost.std(ddof=1) / len(lost) ** 0.5:.2f}), at most {lost.max():.2f}; "
        f"fewest complete trials at an end: {fewest}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
