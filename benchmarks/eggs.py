"""A thousand eggs: many digits configurations in one study, trained together; seconds, memory, the winner.

    OMP_NUM_THREADS=1 python benchmarks/eggs.py --trials 1000 --folder runs/eggs

The same command goes on after a ``kill -9``; at most the cohort that was in training is run again.
"""

from __future__ import annotations

import argparse
import resource
import time

from time_to_target import SPACE, TRAINER

from lightning_hp import tune
from lightning_hp.training import BatchNormClassifier, DigitsDataModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", default="runs/eggs")
    arguments = parser.parse_args()
    wall, cpu = time.perf_counter(), time.process_time()
    result = tune(
        BatchNormClassifier,
        DigitsDataModule,
        SPACE,
        trials=arguments.trials,
        max_epochs=arguments.epochs,
        trainer=TRAINER,
        engine="stacked",
        name="eggs",
        folder=arguments.folder,
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"wall {time.perf_counter() - wall:.1f} s, CPU {time.process_time() - cpu:.1f} s, peak {memory:.0f} MB")
    print(f"trials {len(result.study.get_trials(deepcopy=False))}, best {result.value:.5g} in trial {result.trial}")


if __name__ == "__main__":
    main()
