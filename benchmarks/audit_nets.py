"""Small nets for audit.py: digits as rows or images, MLPs and CNNs, one plain training loop with the watch on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hp.batchnorm.measure import measure
from lightning_hp.batchnorm.snapshot import Snapshot
from lightning_hp.batchnorm.watch import TrainingWatch


@cache
def digits(split: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1,200 training and 597 validation rows of sklearn's digits, scaled to about unit variance; `split` shuffles."""
    raw = load_digits()
    x = torch.tensor(raw.data, dtype=torch.float32) / 16.0
    y = torch.tensor(raw.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(split))
    x, y = x[order], y[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


@dataclass
class Recipe:
    """How one net is built and trained."""

    kind: str = "mlp"
    width: int = 64
    depth: int = 2
    optimizer: str = "adam"
    lr: float = 1e-3
    batch: int = 32
    momentum: float | None = 0.1
    epochs: int = 8
    seed: int = 0
    bias: bool = False
    dropout: float = 0.0
    dropout_first: bool = False
    norm_on: str = "z"
    decay: float = 0.0
    decay_affine: bool = False
    schedule: bool = False
    shuffle: bool = True
    drop_last: bool = True
    eps: float = 1e-5
    build: Callable[[Recipe], nn.Module] | None = None


def mlp(recipe: Recipe) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 64
    for _ in range(recipe.depth):
        layers.append(nn.Linear(inputs, recipe.width, bias=recipe.bias))
        norm = nn.BatchNorm1d(recipe.width, eps=recipe.eps, momentum=recipe.momentum)
        layers += [norm, nn.ReLU()] if recipe.norm_on == "z" else [nn.ReLU(), norm]
        if recipe.dropout:
            layers.append(nn.Dropout(recipe.dropout))
        inputs = recipe.width
    return nn.Sequential(*layers, nn.Linear(inputs, 10))


def cnn(recipe: Recipe) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    channels, width = 1, max(8, recipe.width // 8)
    for block in range(recipe.depth):
        layers.append(nn.Conv2d(channels, width, 3, padding=1, stride=1 if block == 0 else 2, bias=recipe.bias))
        layers += [nn.BatchNorm2d(width, eps=recipe.eps, momentum=recipe.momentum), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10))


def build(recipe: Recipe) -> nn.Module:
    torch.manual_seed(recipe.seed)
    if recipe.build is not None:
        return recipe.build(recipe)
    return cnn(recipe) if recipe.kind == "cnn" else mlp(recipe)


def optimizer_of(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    vectors = [p for p in net.parameters() if p.dim() < 2 and p.requires_grad]
    matrices = [p for p in net.parameters() if p.dim() >= 2 and p.requires_grad]
    groups = [
        {"params": matrices, "weight_decay": recipe.decay},
        {"params": vectors, "weight_decay": recipe.decay if recipe.decay_affine else 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.Adam(groups, lr=recipe.lr)


def batches(x: Tensor, y: Tensor, recipe: Recipe, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1000 * recipe.seed + epoch)
    order = torch.randperm(len(x), generator=generator) if recipe.shuffle else torch.arange(len(x))
    last = len(x) - recipe.batch + 1 if recipe.drop_last else len(x)
    for start in range(0, last, recipe.batch):
        rows = order[start : start + recipe.batch]
        yield x[rows], y[rows]


@dataclass
class Run:
    """A trained net, its data and what was watched."""

    net: nn.Module
    recipe: Recipe
    watch: TrainingWatch
    data: tuple[Tensor, Tensor, Tensor, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)

    def snapshot(self) -> Snapshot:
        facts = self.watch.facts()
        for name, value in self.extra.items():
            setattr(facts, name, value)
        return measure(self.net, self.watch.steps, facts, self.watch.training)

    def loss(self) -> float:
        """Validation loss in eval mode."""
        return loss_of(self.net, self.data[2], self.data[3])


@torch.no_grad()
def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> float:
    modes = [m.training for m in net.modules()]
    net.eval()
    value = float(F.cross_entropy(net(x).float(), y))
    for module, mode in zip(net.modules(), modes, strict=True):
        module.training = mode
    return value


Hook = Callable[[nn.Module, int, int, Tensor, Tensor], None]


def train(
    recipe: Recipe,
    data: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    net: nn.Module | None = None,
    before: Hook | None = None,
    after: Hook | None = None,
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
    every_n_steps: int = 10,
) -> Run:
    """Train one net; `before` and `after` are called around every batch with (net, epoch, index, x, y)."""
    data = data or digits(recipe.seed % 5)
    x, y = data[0], data[1]
    net = net if net is not None else build(recipe)
    optimizer = optimizer_of(net, recipe)
    total = max(recipe.epochs * (len(x) // recipe.batch), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: max(0.0, 1 - s / total) if recipe.schedule else 1.0
    )
    net.train()
    watch = TrainingWatch(net, every_n_steps)
    count = len(x) // recipe.batch
    for epoch in range(recipe.epochs):
        for index, (xb, yb) in enumerate(batches(x, y, recipe, epoch)):
            watch.before_batch(index, count, epoch == recipe.epochs - 1)
            if before is not None:
                before(net, epoch, index, xb, yb)
            out = forward(net, xb) if forward is not None else net(xb)
            loss = F.cross_entropy(out.float(), yb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if after is not None:
                after(net, epoch, index, xb, yb)
            watch.after_batch(epoch * count + index)
    return Run(net, recipe, watch, data)
