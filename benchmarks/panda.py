"""Does babysitting help, and does it do no harm? ``python benchmarks/panda.py --section rescue harm cost --seed 0``.

Three small trainings (panda_tasks.py): digits with a BatchNorm MLP and SGD, Friedman's tabular regression with a plain
MLP and SGD, digits with a small CNN and AdamW. A *start* is where a user begins. Bad: a learning rate 10 to 100 times
too high or too low, a momentum of 0 or nearly 1, a bad batch size. Good: within a factor of 1.5 of the tuned rate.
All methods have equal epochs; probes, searches and learning-rate finders pay for their steps. The value is the
validation loss of the final weights (40 % of the rows), divided by that of tuned trainings with the same seed (mean of
three, at 0.8, 1 and 1.25 times the tuned rate, constant): 1 is as good as tuned.

Sections: ``rescue`` (bar 1) bad starts unattended, rules, probe; ``harm`` (bar 2) the same from good starts; ``others``
(bar 3) what a user would pick instead, from both; ``cost`` (bar 5) time of watching a step beyond an empty callback's.
Rows are appended to results/panda.csv and not computed again.
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.tuner import Tuner
from panda_tasks import EPOCHS, TASKS, TUNED, Data, Module, Start, bad_starts, good_starts, quiet_trainer

from lightning_hp import PandaBabysitter
from lightning_hp.callbacks.panda.probes import FORK

FILE = Path(__file__).parent / "results" / "panda.csv"
FIELDS = ["seed", "task", "kind", "number", "start", "method", "loss", "interventions", "checks", "by_noise"]
#: training steps that Lightning's finder takes
FINDER_STEPS = 100


class Plateau(Module):
    def with_schedule(self, optimizer):
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Cosine(Module):
    def with_schedule(self, optimizer):
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class OneCycle(Module):
    def with_schedule(self, optimizer):
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class NAdamW(Module):
    def configure_optimizers(self):
        return torch.optim.NAdam(self.parameters(), lr=2e-3, weight_decay=1e-2, decoupled_weight_decay=True)


class Prodigy(Module):
    def configure_optimizers(self):
        from prodigyopt import Prodigy as Optimizer

        return Optimizer(self.parameters(), lr=1.0)


class ScheduleFree(Module):
    """Switched as its documentation asks for: evaluation uses the averaged weights."""

    def configure_optimizers(self):
        from schedulefree import AdamWScheduleFree

        return AdamWScheduleFree(self.parameters(), lr=2.5e-3)

    def on_train_epoch_start(self):
        self.optimizers(use_pl_optimizer=False).train()

    def on_validation_epoch_start(self):
        if self.trainer.state.fn == "fit":
            self.optimizers(use_pl_optimizer=False).eval()

    def on_train_end(self):
        self.optimizers(use_pl_optimizer=False).eval()


OTHERS: dict[str, type[Module]] = {
    "ReduceLROnPlateau": Plateau,
    "cosine": Cosine,
    "one-cycle": OneCycle,
    "lr_find": Module,
    "Prodigy": Prodigy,
    "schedule-free AdamW": ScheduleFree,
    "NAdamW": NAdamW,
}
BABYSAT = ("rules", "probe")


def train(task: str, start: Start, seed: int, method: str) -> dict[str, object]:
    """Train once; return the row's loss and, where babysat, its interventions."""
    pl.seed_everything(seed, verbose=False)
    module, data = OTHERS.get(method, Module)(task, start), Data(task, start.batch_size)
    epochs, callbacks = EPOCHS, []
    if method == "lr_find":
        finder = quiet_trainer([], EPOCHS, tempfile.gettempdir())
        found = Tuner(finder).lr_find(module, datamodule=data, num_training=FINDER_STEPS).suggestion()
        module.lr = start.learning_rate if found is None else found
        steps = math.ceil(0.6 * 1797 / start.batch_size) if task != "tabular" else math.ceil(1200 / start.batch_size)
        epochs = max(1, EPOCHS - round(FINDER_STEPS / steps))
        data = Data(task, start.batch_size)
    panda = PandaBabysitter(mode=method, dirpath="") if method in BABYSAT else None
    if panda is not None:
        callbacks.append(panda)
    trainer = quiet_trainer(callbacks, epochs)
    trainer.fit(module, data)
    if method == "schedule-free AdamW":  # the weights are the averaged ones after its eval()
        module.on_validation_epoch_start = lambda: None
    loss = float(trainer.validate(module, data, verbose=False)[0]["val_loss"])
    row: dict[str, object] = {"loss": loss}
    if panda is not None:
        done = panda.history.done
        row["interventions"] = sum(one.what.rule not in ("wind_down", "probe") for one in done)
        row["checks"] = len(panda.history.windows)
        # rules and probes decide "beyond noise"; the wind-down is planned, and what a person can plan is no alarm
        alarms = ("divergence", "plateau", "overfitting", "too_fast", "slow_start", "raise")
        row["by_noise"] = sum(one.what.rule in alarms for one in done) + changed_by_probes(done)
    return row


def changed_by_probes(done) -> int:
    """Number of probes that ended with another value than they began with."""
    changed, begun = 0, {}
    for one in done:
        if FORK in one.what.save:
            begun = one.before
        elif one.what.rule == "probe_end":
            changed += {**begun, **one.what.values} != begun
    return changed


def rows_of(kind: str, methods: list[str], seed: int, number: int) -> None:
    """Compute what is missing, row by row."""
    known = {(r["seed"], r["task"], r["kind"], r["number"], r["method"]) for r in read()}
    FILE.parent.mkdir(exist_ok=True)
    for task in TASKS:
        starts = (bad_starts if kind == "bad" else good_starts)(task, seed, number)
        for index, start in enumerate(starts):
            run_seed = 1000 * seed + 100 + index
            jobs: list[tuple[str, Start, str]] = []
            for factor in (0.8, 1.0, 1.25):
                tuned = replace(TUNED[task], learning_rate=TUNED[task].learning_rate * factor)
                jobs.append((f"tuned x{factor}", tuned, "unattended"))
            jobs += [(method, start, method) for method in methods]
            for name, where, method in jobs:
                tuned_kind = "tuned" if name.startswith("tuned") else kind
                if (str(seed), task, tuned_kind, str(index), name) in known:
                    continue
                row = train(task, where, run_seed, method)
                row |= {"seed": seed, "task": task, "kind": tuned_kind, "number": index, "method": name}
                append(row | {"start": where.what})
                known.add((str(seed), task, tuned_kind, str(index), name))


def read() -> list[dict[str, str]]:
    if not FILE.is_file():
        return []
    with FILE.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(row: dict[str, object]) -> None:
    new = not FILE.is_file()
    with FILE.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def ratios(seeds: list[int], kind: str) -> dict[str, dict[tuple[str, str, str], float]]:
    """Method to start (task, seed, number) to loss ratio; NaN counts as infinite."""
    rows = [row for row in read() if int(row["seed"]) in seeds]
    tuned: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        if row["kind"] == "tuned":
            tuned.setdefault((row["task"], row["seed"], row["number"]), []).append(float(row["loss"]))
    result: dict[str, dict[tuple[str, str, str], float]] = {}
    for row in rows:
        if row["kind"] == kind:
            where = (row["task"], row["seed"], row["number"])
            loss = float(row["loss"])
            ratio = loss / statistics.fmean(tuned[where]) if math.isfinite(loss) else math.inf
            result.setdefault(row["method"], {})[where] = ratio
    return result


def table(seeds: list[int], kind: str) -> None:
    """Print a table of all methods over the starts of these seeds."""
    print(f"\n{kind} starts, seeds {', '.join(map(str, seeds))}: loss / tuned loss of the same seed\n")
    print("| method | starts | within 10 % | within 25 % | median | " + " | ".join(f"{t} median" for t in TASKS) + " |")
    print("|---|--:|--:|--:|--:|" + "--:|" * len(TASKS))
    for method, values in sorted(ratios(seeds, kind).items(), key=lambda item: statistics.median(item[1].values())):
        every = list(values.values())
        cells = [f"{len(every)}", f"{sum(v <= 1.1 for v in every) / len(every):.0%}"]
        cells += [f"{sum(v <= 1.25 for v in every) / len(every):.0%}", f"{statistics.median(every):.3f}"]
        for task in TASKS:
            own = [value for (where, *_), value in values.items() if where == task]
            cells.append(f"{statistics.median(own):.3f}" if own else "")
        print(f"| {method} | " + " | ".join(cells) + " |")


def harm(seeds: list[int]) -> None:
    """Paired test on the logarithm of the loss ratio, one-sided: is the babysat loss larger?"""
    from scipy.stats import ttest_rel, wilcoxon

    good = ratios(seeds, "good")
    for method in BABYSAT:
        if method not in good or "unattended" not in good:
            continue
        shared = [start for start in good[method] if start in good["unattended"]]
        babysat = [math.log(good[method][start]) for start in shared]
        alone = [math.log(good["unattended"][start]) for start in shared]
        mean = statistics.fmean(b - a for b, a in zip(babysat, alone, strict=True))
        t = ttest_rel(babysat, alone, alternative="greater").pvalue
        w = wilcoxon(babysat, alone, alternative="greater").pvalue
        rows = [r for r in read() if int(r["seed"]) in seeds and (r["kind"], r["method"]) == ("good", method)]
        alarms, checks = (sum(int(row[key]) for row in rows) for key in ("by_noise", "checks"))
        worst = max(math.exp(b - a) for b, a in zip(babysat, alone, strict=True))
        print(
            f"{method}: babysat / unattended {math.exp(mean):.3f} (geometric mean of {len(shared)}), worst {worst:.2f};"
            f" worse? p = {t:.2f} (paired t), {w:.2f} (Wilcoxon); {alarms} interventions in {checks} checks"
            f" ({alarms / checks:.1%})"
        )


HOOKS = (
    "on_train_epoch_start",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_end",
)


class Empty(pl.Callback):
    """The hooks of the babysitter, empty."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pass

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pass

    def on_validation_start(self, trainer, pl_module):
        pass

    def on_validation_end(self, trainer, pl_module):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        pass


class Clock:
    """Process time spent in the hooks of one callback."""

    def __init__(self, callback: pl.Callback) -> None:
        self.seconds = 0.0
        for name in HOOKS:
            setattr(callback, name, self._timed(getattr(callback, name)))

    def _timed(self, hook):
        def timed(*args):
            began = time.process_time()
            hook(*args)
            self.seconds += time.process_time() - began

        return timed


class Whole(pl.Callback):
    """Process time from the first step to the last, validation left out."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer, pl_module):
        self.seconds -= time.process_time()

    def on_validation_start(self, trainer, pl_module):
        self.seconds += time.process_time()

    def on_validation_end(self, trainer, pl_module):
        self.seconds -= time.process_time()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds += time.process_time()


def cost(rounds: int, epochs: int) -> None:
    """Time in the babysitter's hooks beyond that in an empty callback's, both in the same fits of digits (batch 64).

    The whole is the process time of the same steps without the babysitter's share. Batch size and momentum are out of
    its reach, so that the work stays what it is. The callback that is called first after a step finds cold caches:
    each is first in one fit of a pair.
    """
    start = replace(TUNED["digits"], batch_size=64)
    shares: list[float] = []
    for index in range(2 * rounds):
        pl.seed_everything(index // 2, verbose=False)
        panda, empty, whole = PandaBabysitter(dirpath="", settings={"tiers": ["A"]}), Empty(), Whole()
        watched, idle = Clock(panda), Clock(empty)
        order = [panda, empty] if index % 2 else [empty, panda]
        trainer = quiet_trainer([*order, whole], epochs)
        trainer.fit(Module("digits", start), Data("digits", 64))
        rest = whole.seconds - watched.seconds
        shares.append((watched.seconds - idle.seconds) / rest)
        step = rest / trainer.global_step * 1e6
        print(
            f"fit {index}: {trainer.global_step} steps of {step:.0f} us, {len(panda.history.windows)} checks;"
            f" watching {shares[-1]:+.2%} of a step ({shares[-1] * step:.1f} us),"
            f" called {'first' if index % 2 else 'second'}"
        )
    pairs = [statistics.fmean(shares[index : index + 2]) for index in range(0, 2 * rounds, 2)]
    middle, low, high = statistics.median(pairs), min(pairs), max(pairs)
    print(f"cost, median of {rounds} pairs of fits: {middle:+.2%} ({low:+.2%} to {high:+.2%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--section", nargs="+", default=["rescue", "harm"], choices=["rescue", "harm", "others", "cost"]
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--number", type=int, default=10, help="starts of each task")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of fits of the cost section")
    parser.add_argument("--epochs", type=int, default=200, help="epochs of a fit in the cost section, 16 steps each")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seeds, number = arguments.seed, arguments.number
    everything = ["unattended", *BABYSAT, *OTHERS]
    for section, kind, methods in (
        ("rescue", "bad", everything[:3]),
        ("harm", "good", everything[:3]),
        ("others", "bad", everything),
        ("others", "good", everything),
    ):
        if section in arguments.section:
            for seed in seeds:
                rows_of(kind, methods, seed, number)
            table(seeds, kind)
        if section == "harm" and section in arguments.section:
            harm(seeds)
    if "cost" in arguments.section:
        cost(arguments.rounds, arguments.epochs)


if __name__ == "__main__":
    main()
