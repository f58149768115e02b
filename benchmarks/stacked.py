"""Stacked training against one Lightning loop a model, a plain torch loop and ``jax.jit(jax.vmap(...))``.

    python benchmarks/stacked.py                       # 64 members at 128, 64 and 32 units, batch 64, one thread
    python benchmarks/stacked.py --equality            # largest difference to each member's own Trainer, in float64

All train the same networks on the same rows: 64 inputs, two hidden layers with BatchNorm and ReLU, 10 classes, SGD with
momentum. Times are milliseconds of one model's optimizer step, reading its mini-batch included; every round measures
all ways one after another, and the ratio of a way is the median of its ratios within the rounds.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

THREADS = int(sys.argv[sys.argv.index("--threads") + 1]) if "--threads" in sys.argv else 1
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # before torch is imported
if THREADS == 1:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import lightning.pytorch as pl  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from lightning_hp.training import BatchNormClassifier, DigitsDataModule  # noqa: E402
from lightning_hp.training.stacked import Member, Stack, stack, train_stacked  # noqa: E402

Way = Callable[[], int]  # trains for a while and returns the model-steps it has done


class Foreign(pl.LightningModule):
    """The same network, written without a thought of stacks."""

    def __init__(self, width: int, learning_rate: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__()
        self.learning_rate, self.momentum = learning_rate, momentum
        layers: list[nn.Module] = []
        for fan_in in (64, width):
            layers += [nn.Linear(fan_in, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=self.momentum)


class PlainData(DigitsDataModule):
    """The digits through a plain shuffling DataLoader, as most projects write it."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, self.batch_size, shuffle=True, drop_last=True)


def trainer(**arguments: object) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return pl.Trainer(**{**quiet, "enable_model_summary": False, "max_epochs": 1, **arguments})


def member(seed: int, width: int, own: bool, **arguments: object) -> Member:
    pl.seed_everything(seed, verbose=False)
    rate = 0.005 * (1 + seed % 16)
    module = BatchNormClassifier(hidden_units=width, learning_rate=rate) if own else Foreign(width, rate)
    return Member(module, trainer(**arguments), (DigitsDataModule if own else PlainData)(batch_size=64))


# --- the ways ---


def lightning_loop(width: int, own: bool) -> Way:
    def run() -> int:
        one = member(0, width, own, max_epochs=12, limit_val_batches=0)
        one.trainer.fit(one.module, datamodule=one.datamodule)
        return one.trainer.global_step

    return run


def stacked(width: int, members: int, own: bool) -> Way:
    together: Stack = stack([member(seed, width, own, max_epochs=-1, limit_val_batches=0) for seed in range(members)])
    assert together.way == ("own" if own else "traced")

    def run() -> int:
        feed = together.train_feed()
        for number in range(len(feed.sizes)):
            together.train_batch(feed.batch(number), number)
            together.after_batch(number)
        together.end_epoch()
        return members * len(feed.sizes)

    return run


def torch_loop(width: int) -> Way:
    """One model after another in bare torch, with the fused optimizer."""
    data = DigitsDataModule(batch_size=64)
    data.setup()
    x, y = data.train_set.tensors
    net = Foreign(width)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)

    def run() -> int:
        order = torch.randperm(len(x))[: 64 * 16].view(16, 64)
        for _ in range(4):
            for rows in order:
                optimizer.zero_grad()
                net.training_step([x[rows], y[rows]], 0).backward()
                optimizer.step()
        return 64

    return run


def jax_vmap(width: int, members: int) -> Way:
    import jax
    import jax.numpy as jnp

    data = DigitsDataModule(batch_size=64)
    data.setup()
    x, y = (jnp.asarray(t.numpy()) for t in data.train_set.tensors)

    def init(key: object) -> dict:
        shapes = {"w0": (64, width), "w1": (width, width), "w2": (width, 10)}
        keys = jax.random.split(key, 3)
        weights = {n: jax.random.normal(k, s) / s[0] ** 0.5 for k, (n, s) in zip(keys, shapes.items(), strict=True)}
        for layer in (0, 1):
            weights |= {f"g{layer}": jnp.ones(width), f"b{layer}": jnp.zeros(width)}
        return weights | {"b2": jnp.zeros(10)}

    def loss(weights: dict, running: dict, rows: object, labels: object) -> tuple:
        hidden, new = rows, {}
        for layer in (0, 1):
            z = hidden @ weights[f"w{layer}"]
            mean, var = z.mean(0), z.var(0)
            new[f"mean{layer}"] = 0.9 * running[f"mean{layer}"] + 0.1 * mean
            new[f"var{layer}"] = 0.9 * running[f"var{layer}"] + 0.1 * var * 64 / 63
            z = (z - mean) * jax.lax.rsqrt(var + 1e-5) * weights[f"g{layer}"] + weights[f"b{layer}"]
            hidden = jax.nn.relu(z)
        log_p = jax.nn.log_softmax(hidden @ weights["w2"] + weights["b2"])
        return -jnp.take_along_axis(log_p, labels[:, None], 1).mean(), new

    def step(weights: dict, velocity: dict, running: dict, rate: object, momentum: object, rows: object) -> tuple:
        (value, running), gradient = jax.value_and_grad(loss, has_aux=True)(weights, running, x[rows], y[rows])
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
        return jax.tree.map(lambda w, v: w - rate * v, weights, velocity), velocity, running, value

    together = jax.jit(jax.vmap(step), donate_argnums=(0, 1, 2))
    weights = jax.vmap(init)(jax.random.split(jax.random.PRNGKey(0), members))
    running = {f"{n}{i}": f((members, width)) for i in (0, 1) for n, f in (("mean", jnp.zeros), ("var", jnp.ones))}
    state = [weights, jax.tree.map(jnp.zeros_like, weights), running]
    rate, momentum = jnp.linspace(0.005, 0.08, members), jnp.full(members, 0.9)

    def run() -> int:
        order = torch.stack([torch.randperm(len(x))[: 64 * 16] for _ in range(members)]).numpy()
        for number in range(16):
            rows = jnp.asarray(order[:, 64 * number : 64 * (number + 1)])
            *state[:], value = together(*state, rate, momentum, rows)
        value.block_until_ready()
        return members * 16

    return run


# --- measuring ---


def throughput(widths: list[int], members: int, rounds: int, out: Path, with_jax: bool) -> None:
    rows = []
    for width in widths:
        ways: dict[str, Way] = {
            "lightning loop": lightning_loop(width, own=True),
            "lightning loop, foreign": lightning_loop(width, own=False),
            "torch loop": torch_loop(width),
            "stacked, own step": stacked(width, members, own=True),
            "stacked, traced": stacked(width, members, own=False),
        }
        if with_jax:
            ways["jax jit(vmap)"] = jax_vmap(width, members)
        for way in ways.values():
            way()
        times: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                began, busy = time.perf_counter(), time.process_time()
                steps = way()
                times[name].append((time.perf_counter() - began) / steps * 1e3)
                cpu[name].append((time.process_time() - busy) / steps * 1e3)
        for name in ways:
            loop = "lightning loop, foreign" if name == "stacked, traced" else "lightning loop"
            row = {"units": width, "members": members, "threads": THREADS, "way": name}
            row |= {"ms": statistics.median(times[name]), "cpu ms": statistics.median(cpu[name])}
            row |= {"times a Lightning loop": ratio(times[loop], times[name]), "by cpu": ratio(cpu[loop], cpu[name])}
            if with_jax:
                other = "jax jit(vmap)"
                row |= {"time against jax": ratio(times[name], times[other]), "cpu": ratio(cpu[name], cpu[other])}
            rows.append(row)
    show(rows, out / "stacked_throughput.csv")


def ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def equality(out: Path) -> None:
    rows = []
    for optimizer in ("sgd", "adam", "adamw"):
        for schedule in ("none", "exponential", "cosine", "step", "inverse_time"):

            def build(seed: int, optimizer: str = optimizer, schedule: str = schedule) -> Member:
                pl.seed_everything(seed, verbose=False)
                module = BatchNormClassifier(
                    hidden_units=32,
                    optimizer=optimizer,
                    schedule=schedule,
                    learning_rate=0.01 * (seed + 1),
                    learning_rate_decay=0.1 * seed,
                    weight_decay=0.01 * seed,
                    step_every=2,
                )
                return Member(module, trainer(max_epochs=4, precision="64-true"), DigitsDataModule(batch_size=64))

            outcomes = train_stacked([build(seed) for seed in range(4)])
            apart, metrics = 0.0, 0.0
            for seed, outcome in enumerate(outcomes):
                assert outcome.refused is None, outcome.refused
                alone = build(seed)
                alone.trainer.fit(alone.module, datamodule=alone.datamodule)
                mine, theirs = outcome.member.module.state_dict(), alone.module.state_dict()
                apart = max(apart, *(float((mine[name] - t).abs().max()) for name, t in theirs.items()))
                logged = float(alone.trainer.callback_metrics["val_loss"])
                metrics = max(metrics, abs(outcome.metrics["val_loss"] - logged))
            rows.append({"optimizer": optimizer, "schedule": schedule, "steps": outcomes[0].steps, "tensors": apart,
                         "val_loss": metrics})  # fmt: skip
    show(rows, out / "stacked_equality.csv")


def show(rows: list[dict], path: Path) -> None:
    names = list(rows[0])
    print(" | ".join(names))
    for row in rows:
        print(" | ".join(f"{row[n]:.4g}" if isinstance(row[n], float) else str(row[n]) for n in names))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    print(f"-> {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs="+", default=[128, 64, 32])
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-jax", action="store_true")
    parser.add_argument("--equality", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    if arguments.equality:
        equality(arguments.out)
    else:
        throughput(arguments.units, arguments.members, arguments.rounds, arguments.out, not arguments.no_jax)


if __name__ == "__main__":
    main()
