"""What a probe costs beside the training and one value after the other: ``python benchmarks/panda_probes.py``.

Digits, batches of 32, a 64-64-64-10 MLP with BatchNorm: once as `BatchNormClassifier`, which brings its own stacked
step, and once as a plain module. Process time; unit: steps of the same fit, its Trainer's loops included.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings

import lightning.pytorch as pl
import torch
from panda_tasks import Data, quiet_trainer
from torch import nn
from torch.nn import functional

from lightning_hp import BatchNormClassifier, PandaBabysitter
from lightning_hp.callbacks.panda.beside import Neighbours
from lightning_hp.callbacks.panda.probes import FORK


class Plain(pl.LightningModule):
    """The same network without a step of ours."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [layer for _ in range(2) for layer in (nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(64, 10))

    def training_step(self, batch, index):
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


class Clock:
    """Process time spent in some methods of a class, one number a call."""

    def __init__(self, kind: type, *names: str) -> None:
        self.calls: dict[str, list[float]] = {name: [] for name in names}
        for name in names:
            setattr(kind, name, self._timed(getattr(kind, name), self.calls[name]))

    def _timed(self, method, calls):
        def timed(*arguments, **options):
            began = time.process_time()
            try:
                return method(*arguments, **options)
            finally:
                calls.append(time.process_time() - began)

        return timed


def fit(build, stacked: bool, epochs: int) -> tuple[PandaBabysitter, float]:
    """Train once; return the babysitter and the process time of the fit."""
    pl.seed_everything(0, verbose=False)
    settings = {"start_share": 0.0, "on_overfitting": None, "stack_probes": stacked}
    panda = PandaBabysitter("probe", dirpath="", settings=settings)
    trainer = quiet_trainer([panda], epochs)
    began = time.process_time()
    trainer.fit(build(), Data("digits", 32))
    return panda, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60, help="34 steps each")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    clock = Clock(Neighbours, "begin", "train", "windows")
    ours = lambda: BatchNormClassifier(64, 10, hidden_units=64)  # noqa: E731
    for what, build in (("BatchNormClassifier", ours), ("plain module", Plain)):
        costs = []
        for _ in range(arguments.rounds):
            for calls in clock.calls.values():
                calls.clear()
            panda, seconds = fit(build, True, arguments.epochs)
            assert not panda.history.not_stacked, panda.history.not_stacked
            begin, train = clock.calls["begin"], clock.calls["train"]
            extra = sum(map(sum, clock.calls.values()))
            step = (seconds - extra) / panda.history.step
            count, length = panda.history.count("probe_end"), len(train) / panda.history.count("probe_end")
            one = extra / count
            costs.append(1 + one / step / length)
            turns, whole = fit(build, False, arguments.epochs)
            begun = [done.step for done in turns.history.done if FORK in done.what.save]
            ends = [done.step for done in turns.history.done if done.what.rule == "probe_end"]
            thrown = statistics.fmean(end - start for start, end in zip(begun, ends, strict=True)) / length
            print(
                f"{what}: a step {step * 1e6:.0f} us, two neighbours' {statistics.median(train) * 1e6:.0f} us;"
                f" a probe of {length:.0f} steps costs {costs[-1]:.2f} of itself beside, {thrown:.2f} in turn"
                f" (begins in {statistics.median(begin) * 1e3:.1f} ms, the first in {begin[0] * 1e3:.0f} ms);"
                f" the fits {seconds:.2f} s and {whole:.2f} s, probes {count} and {len(ends)}"
            )
        print(f"{what}: {statistics.median(costs):.2f} (of {arguments.rounds})")


if __name__ == "__main__":
    main()
