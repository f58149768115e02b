"""Tasks of panda.py: three small trainings whose good hyperparameters are known, and starts around them."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_hp.training.data import InMemoryDataModule

EPOCHS = 27


@dataclass(frozen=True)
class Start:
    """Where one training begins."""

    learning_rate: float
    momentum: float  # of SGD, or beta1 of AdamW
    batch_size: int
    what: str = "tuned"


class Data(InMemoryDataModule):
    """Rows of one task, 60 % for training and 40 % for validation (many, so that the loss is known well)."""

    def __init__(self, task: str, batch_size: int) -> None:
        super().__init__(batch_size=batch_size, val_fraction=0.4, test_fraction=0.0)
        self.task = task

    def load(self) -> None:
        (x, y), (xv, yv) = rows(self.task)
        self.train_set, self.val_set, self.test_set = TensorDataset(x, y), TensorDataset(xv, yv), None


@functools.lru_cache
def rows(task: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    if task == "tabular":
        draw = np.random.default_rng(0)
        x = draw.random((2000, 10))  # Friedman's first function, noise 1
        y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        y = y + draw.normal(size=len(y))
        x, y = (x - 0.5) * np.sqrt(12), (y - y.mean()) / y.std()
        targets = torch.from_numpy(y.astype(np.float32))[:, None]
    else:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = (x - x.mean()) / x.std()
        targets = torch.from_numpy(y)
    order = np.random.default_rng(1).permutation(len(x))
    features = torch.from_numpy(x.astype(np.float32))
    if task == "cnn":
        features = features.reshape(-1, 1, 8, 8)
    train, val = order[: int(0.6 * len(x))], order[int(0.6 * len(x)) :]
    return (features[train], targets[train]), (features[val], targets[val])


def network(task: str) -> nn.Module:
    if task == "digits":
        layers: list[nn.Module] = []
        for width in (64, 128):
            layers += [nn.Linear(width, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(128, 10))
    if task == "tabular":
        return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class Module(pl.LightningModule):
    """One task's network; ``optimizer`` builds the optimizer, ``schedule`` a scheduler configuration or None."""

    def __init__(self, task: str, start: Start, method: str = "constant") -> None:
        super().__init__()
        self.task, self.start, self.method = task, start, method
        self.net = network(task)
        self.lr = start.learning_rate  # where lr_find looks for it

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        output = self.net(batch[0])
        return F.mse_loss(output, batch[1]) if self.task == "tabular" else F.cross_entropy(output, batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]))

    def configure_optimizers(self):
        rate, momentum = self.lr, self.start.momentum
        if self.task == "cnn":
            optimizer = torch.optim.AdamW(self.parameters(), rate, betas=(momentum, 0.999))
        else:
            optimizer = torch.optim.SGD(self.parameters(), rate, momentum=momentum)
        return self.with_schedule(optimizer)

    def with_schedule(self, optimizer):
        return optimizer


TASKS = ("digits", "tabular", "cnn")
TUNED: dict[str, Start] = {
    "digits": Start(0.02, 0.9, 32),
    "tabular": Start(0.02, 0.9, 32),
    "cnn": Start(0.01, 0.9, 32),
}


def bad_starts(task: str, seed: int, number: int = 10) -> list[Start]:
    """Six bad learning rates (10 to 100 times off, both ways), two momenta, two batch sizes."""
    draw = np.random.default_rng([seed, TASKS.index(task), 1])
    tuned, starts = TUNED[task], []
    for index in range(number):
        kind = index % 10
        if kind < 6:
            factor = float(10 ** draw.uniform(1, 2)) ** (1 if kind % 2 else -1)
            starts.append(replace(tuned, learning_rate=tuned.learning_rate * factor, what=f"rate x{factor:.3g}"))
        elif kind < 8:
            momentum = 0.0 if kind == 6 else float(1 - 10 ** draw.uniform(-3, -2.3))
            starts.append(replace(tuned, momentum=momentum, what=f"momentum {momentum:.4g}"))
        else:
            size = int(draw.integers(2, 5)) if kind == 8 else int(draw.integers(400, 1000))
            starts.append(replace(tuned, batch_size=size, what=f"batch {size}"))
    return starts


def good_starts(task: str, seed: int, number: int = 10) -> list[Start]:
    """The tuned values, each within a factor of 1.5 (learning rate only)."""
    draw = np.random.default_rng([seed, TASKS.index(task), 2])
    factors = [float(1.5 ** draw.uniform(-1, 1)) for _ in range(number)]
    return [replace(TUNED[task], learning_rate=TUNED[task].learning_rate * f, what=f"good x{f:.2f}") for f in factors]


def quiet_trainer(callbacks: list[pl.Callback], epochs: int, folder: str | None = None, **options) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=callbacks,
        default_root_dir=folder or os.devnull, **options,
    )  # fmt: skip
