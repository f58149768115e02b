"""Milliseconds until a study knows its next trial's 10 parameters, at 50, 200 and 1,000 finished trials, in one run.

    OMP_NUM_THREADS=1 python benchmarks/suggestion_cost.py

In-memory storage. Each trial holds a learning curve of 50 steps, and every third was stopped at step 13, so that our
sampler has its curves to model; the others use final values only. An ask is ``study.ask`` and all ``suggest`` calls.
``first`` is the first ask of a fresh sampler, with every fit still to be made; then the median of ``--asks`` asks,
each told at once. On a shared machine the processor time is what to compare. Optuna's GP is left out at 1,000 trials
unless ``--slow``: it takes more than ten seconds an ask.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import optuna

from lightning_hp.search import CoarseToFineSampler, SearchSpace, engine

STEPS = 50
#: Nothing is ever left to gain, so that every ask looks for the maximum, and then for a point to explore.
EXPLORING = "lightning_hp, every ask explores"
SPACE = SearchSpace.from_dict(
    {
        "learning_rate": {"low": 1e-5, "high": 1.0, "scale": "log", "tier": "A"},
        "momentum": {"low": 0.1, "high": 0.99, "scale": "one_minus_log", "tier": "B"},
        "batch_size": {"choices": [16, 32, 64, 128], "tier": "B"},
        "units": {"low": 16, "high": 512, "scale": "log", "tier": "B"},
        "layers": {"low": 1, "high": 5, "tier": "C"},
        "weight_decay": {"low": 1e-6, "high": 1e-1, "scale": "log", "tier": "C"},
        "dropout": {"low": 0.0, "high": 0.8, "tier": "C"},
        "activation": {"choices": ["relu", "gelu", "tanh"], "tier": "C"},
        "beta2": {"low": 0.9, "high": 0.9999, "scale": "one_minus_log", "tier": "D"},
        "epsilon": {"low": 1e-10, "high": 1e-3, "scale": "log", "tier": "D"},
    }
)


def filled(n: int) -> optuna.Study:
    """A study with n finished trials."""
    rng = np.random.default_rng(0)
    study = optuna.create_study()
    for i in range(n):
        unit = rng.random(len(SPACE))
        end = float(((unit - 0.4) ** 2 * np.linspace(1, 0.1, len(SPACE))).sum())
        last = 13 if i % 3 == 2 else STEPS
        curve = {step: end + 1.0 / step for step in range(1, last + 1)}
        state = optuna.trial.TrialState.PRUNED if last < STEPS else optuna.trial.TrialState.COMPLETE
        params, wide = SPACE.at(unit), SPACE.distributions
        study.add_trial(
            optuna.create_trial(
                params=params, distributions=wide, value=curve[last], intermediate_values=curve, state=state
            )
        )
    return study


def measure(study: optuna.Study, asks: int) -> tuple[float, float, float]:
    """The first ask, the median of the following, and its processor time, in milliseconds."""
    taken, used = [], []
    for _ in range(asks + 1):
        start, before = time.perf_counter(), time.process_time()
        trial = study.ask()
        natural = SPACE.suggest(trial)
        used.append(1000 * (time.process_time() - before))
        taken.append(1000 * (time.perf_counter() - start))
        study.tell(trial, float(natural["dropout"]))
    return taken[0], statistics.median(taken[1:]), statistics.median(used[1:])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asks", type=int, default=15)
    parser.add_argument("--slow", action="store_true", help="Optuna's GP at 1,000 trials too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "suggestion_cost.csv")
    given = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    samplers = {
        "lightning_hp": lambda: CoarseToFineSampler(SPACE, n_trials=2000, max_steps=STEPS, seed=0),
        EXPLORING: lambda: CoarseToFineSampler(SPACE, n_trials=2000, max_steps=STEPS, seed=0),
        "TPE": lambda: optuna.samplers.TPESampler(seed=0),
        "GP": lambda: optuna.samplers.GPSampler(seed=0),
    }
    rows = []
    threshold = engine.EXHAUSTED
    for name, make in samplers.items():
        engine.EXHAUSTED = math.inf if name == EXPLORING else threshold
        study = filled(20)  # imports are not counted
        study.sampler = make()
        measure(study, 1)
        for n in (50, 200, 1000):
            if name == "GP" and n == 1000 and not given.slow:
                continue
            study = filled(n)
            study.sampler = make()
            first, usual, used = measure(study, 3 if name == "GP" else given.asks)
            rows.append(
                {
                    "sampler": name,
                    "finished": n,
                    "first_ms": f"{first:.1f}",
                    "ask_ms": f"{usual:.1f}",
                    "cpu_ms": f"{used:.1f}",
                }
            )
            print(
                "{sampler:12} {finished:5}: first {first_ms:>7} ms, then {ask_ms:>7} ms, cpu {cpu_ms:>6} ms".format(
                    **rows[-1]
                )
            )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
