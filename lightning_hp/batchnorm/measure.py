"""The data pass: replay recorded training calls in three modes and measure what enters each layer and what comes out.

The modes:

1. *train*: BN layers normalise by the batch, dropout as in training. The moments of every layer's input are pooled.
   They do not depend on any running statistic, so a deviation of a running statistic from them belongs to that very
   layer.
2. *running*: eval mode as it is. Its outputs are what the user gets.
3. *population*: eval mode with the pooled moments of pass 1 in place of the running ones. Its outputs are what the
   user should get; the difference to 2 is the damage. Its layer inputs against those of pass 1 show train/eval
   differences (dropout).

Under torch.distributed every moment is summed over ranks: every rank must call `measure` with the same number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_hp.batchnorm.inputs import input_hooks, is_plain, unmeasured
from lightning_hp.batchnorm.observe import Step, preserved, replay
from lightning_hp.batchnorm.snapshot import Facts, FunctionalGap, LayerData, LayerState, Snapshot, state_of
from lightning_hp.batchnorm.statistics import LayerNames, Moments, find_layers, is_instance_norm, sum_over_ranks
from lightning_hp.batchnorm.structure import trace

__all__ = ["common_steps", "install", "measure"]

_FEW_STEPS = 8
MAX_DOMAINS = 8  # more calls of one layer in a step than this are pooled: a recurrent use, not domains


class _Gatherer:
    """Collects, for each layer and each of its calls within a step, the moments of every batch."""

    def __init__(self, layers: LayerNames) -> None:
        self.layers = layers
        self.batches: dict[str, list[list[Moments]]] = {name: [] for name in layers}
        self.rows: dict[str, list[int]] = {name: [] for name in layers}
        self.sample_scatter: dict[str, tuple[float, Tensor]] = {}
        self._position: dict[str, int] = {}
        self.calls: dict[str, int] = dict.fromkeys(layers, 0)

    def begin_step(self, _index: int) -> None:
        self._position = {}

    def __call__(self, name: str, x: Tensor) -> None:
        layer = self.layers[name]
        if x.dim() < 2 or (is_instance_norm(layer) and x.dim() < 3):
            return
        if x.shape[1] != layer.running_mean.numel():  # type: ignore[union-attr]
            return
        self.calls[name] += 1
        position = self._position.get(name, 0)
        self._position[name] = position + 1
        slots = self.batches[name]
        while len(slots) <= min(position, MAX_DOMAINS):
            slots.append([])
        slots[min(position, MAX_DOMAINS)].append(Moments.of(x))
        self.rows[name].append(int(x.shape[0]))
        if x.shape[0] > 1:
            # Scatter between examples of their own means: what independent rows would pass on to the batch mean.
            per_row = x.detach().float().flatten(2).mean(2) if x.dim() > 2 else x.detach().float()
            scatter = per_row.var(0, correction=0).cpu().double() * x.shape[0]
            freedom, total = self.sample_scatter.get(name, (0.0, torch.zeros_like(scatter)))
            self.sample_scatter[name] = (freedom + x.shape[0] - 1, total + scatter)


def _pool(parts: list[Moments], channels: int) -> Moments:
    total = Moments.empty(channels)
    for part in parts:
        total = total.merge(part)
    return total


def _batch_noise(slots: list[list[Moments]], pooled: Moments, eps: float) -> tuple[float, float, Tensor]:
    """Spread of batch means and log variances between steps within a domain, over all ranks.

    Returns:
        sd of batch means in input sds (rms over channels), sd of log batch variances (rms over channels), and the
        variance of batch means, `C`-vector.
    """
    channels = pooled.mean.numel()
    means, logs = Moments.empty(channels), Moments.empty(channels)
    scale = pooled.variance() + eps
    lost = 0
    for slot in slots:
        kept = [b for b in slot if b.n > 1]
        if not kept:
            continue
        full = max(b.n for b in kept)
        kept = [b for b in kept if b.n >= 0.5 * full]  # a remainder batch is noisier by design
        rows = Moments.of(torch.stack([b.mean for b in kept])).over_ranks()
        ratio = Moments.of(
            torch.stack([((b.variance() + eps) / scale).clamp_min(1e-9).log() for b in kept])
        ).over_ranks()
        means = Moments(means.n + rows.n, means.mean, means.m2 + rows.m2)
        logs = Moments(logs.n + ratio.n, logs.mean, logs.m2 + ratio.m2)
        lost += 1
    between = means.m2 / max(means.n - lost, 1.0)
    spread = logs.m2 / max(logs.n - lost, 1.0)
    alive = pooled.variance() > eps * 1e-3
    if not bool(alive.any()):
        return 0.0, 0.0, between
    return (
        float((between / scale)[alive].mean().sqrt()),
        float(spread[alive].mean().sqrt()),
        between,
    )


def measure(
    model: nn.Module,
    steps: Sequence[Step],
    facts: Facts | None = None,
    training: dict[str, bool] | None = None,
    train_mode: bool = False,
) -> Snapshot:
    """Take a snapshot with a data pass over recorded training steps. The model is left exactly as it was.

    Args:
        model: the model the steps were recorded on.
        steps: recorded steps (`CallRecorder.steps`); without any, the snapshot has no data.
        facts: what the training run observed.
        training: mode of each layer during training, where it differs from now.
        train_mode: put the whole model in train mode for pass 1; for a model that was loaded, not trained (offline).

    Returns:
        A `Snapshot`. Layers that no call reached have no data.
    """
    facts = facts or Facts()
    layers = find_layers(model)
    modes = {name: (training or {}).get(name, True if train_mode else layer.training) for name, layer in layers.items()}
    states = {name: state_of(name, layer, modes[name]) for name, layer in layers.items()}
    steps = common_steps(steps)
    if not steps or not layers:
        return Snapshot(states, facts=facts, structure=trace(model, layers, []))

    with preserved(model):
        if train_mode:
            model.train()
        for name, layer in layers.items():
            layer.training = modes[name]
        gather = _Gatherer(layers)
        with input_hooks(layers, gather) as in_training:
            replay(model, steps, on_step=gather.begin_step)
    pooled = {
        name: _pool([m for slot in gather.batches[name] for m in slot], layer.running_mean.numel()).over_ranks()  # type: ignore[union-attr]
        for name, layer in layers.items()
    }
    seen = {name for name, moments in pooled.items() if moments.n > 0}

    outputs: dict[tuple[int, int], list[Tensor]] = {}
    own = {name: layer for name, layer in layers.items() if not is_plain(layer)}
    with preserved(model), input_hooks(own, lambda name, x: None) as in_evaluation:
        model.eval()
        replay(model, steps, on_output=lambda i, j, out: outputs.__setitem__((i, j), _floats(out)))
    blind = unmeasured(layers, in_training, in_evaluation)
    seen -= blind
    in_eval = _Gatherer(layers)
    gap = _GapSums()
    with preserved(model):
        model.eval()
        install({name: layers[name] for name in seen if modes[name]}, pooled)
        with input_hooks(layers, in_eval):
            replay(model, steps, on_output=lambda i, j, out: gap.add(_floats(out), outputs.pop((i, j))))
    data = {
        name: _layer_data(name, states[name], gather, in_eval, pooled[name], len(steps))
        for name in layers
        if name in seen
    }
    return Snapshot(states, data, gap.result(), trace(model, layers, steps[-1:], modes), facts, blind)


def install(layers: LayerNames, moments: dict[str, Moments]) -> None:
    """Write population moments into running buffers: mean and unbiased variance, by `copy_`."""
    with torch.no_grad():
        for name, layer in layers.items():
            layer.running_mean.copy_(moments[name].mean)  # type: ignore[union-attr]
            layer.running_var.copy_(moments[name].variance())  # type: ignore[union-attr]


def common_steps(steps: Sequence[Step]) -> list[Step]:
    """The latest steps, as many as the rank with the fewest has: SyncBatchNorm needs every rank in every call."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(steps)
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, len(steps))
    shared = min(gathered)
    return list(steps)[-shared:] if shared else []


def _layer_data(
    name: str, state: LayerState, gather: _Gatherer, in_eval: _Gatherer, pooled: Moments, steps: int
) -> LayerData:
    slots = gather.batches[name]
    noise, noise_var, between = _batch_noise(slots, pooled, state.eps)
    rows = sorted(gather.rows[name])[len(gather.rows[name]) // 2]
    values = sorted(m.n for slot in slots for m in slot)[len(gather.rows[name]) // 2]
    freedom, scatter = gather.sample_scatter.get(name, (0.0, torch.zeros(state.channels, dtype=torch.float64)))
    summed = sum_over_ranks(torch.cat([scatter, torch.tensor([freedom], dtype=torch.float64)]))
    expected = summed[:-1] / summed[-1].clamp_min(1.0) / max(rows, 1)
    alive = expected > 1e-12
    if bool(alive.any()) and steps < _FEW_STEPS:
        # The spread between so few batches says little (nothing, with one): at least that of independent rows is there.
        independent = float((expected / (pooled.variance() + state.eps))[alive].mean().sqrt())
        noise, noise_var = max(noise, independent), max(noise_var, 2.0**0.5 * independent)
    ratio = float((between[alive] / expected[alive]).clamp_max(1e3).mean()) if bool(alive.any()) else 1.0
    return LayerData(
        train=pooled,
        domains=tuple(_pool(slot, state.channels).over_ranks() for slot in slots),
        population=_pool([m for slot in in_eval.batches[name] for m in slot], state.channels).over_ranks(),
        calls_per_step=gather.calls[name] / steps,
        rows=float(rows),
        values=float(values),
        batch_noise=noise,
        batch_noise_var=noise_var,
        iid_ratio=ratio,
        steps=steps,
    )


def _floats(output: Any) -> list[Tensor]:
    leaves = tree_flatten(output)[0]
    return [
        leaf.detach().float()
        for leaf in leaves
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0
    ]


class _GapSums:
    """Running sums behind `FunctionalGap`; summed over ranks at the end."""

    def __init__(self) -> None:
        self.kl = self.changed = self.class_rows = self.square = self.spread = 0.0

    def add(self, population: list[Tensor], running: list[Tensor]) -> None:
        for good, actual in zip(population, running, strict=True):
            if good.shape != actual.shape or good.shape[0] < 1:
                continue
            self.square += float((good - actual).double().square().sum())
            self.spread += float((good - good.mean(0, keepdim=True)).double().square().sum())
            if good.dim() == 2 and good.shape[1] > 1:
                p, q = good.double().log_softmax(1), actual.double().log_softmax(1)
                self.kl += float((p.exp() * (p - q)).sum())
                self.changed += float((good.argmax(1) != actual.argmax(1)).sum())
                self.class_rows += good.shape[0]

    def result(self) -> FunctionalGap:
        sums = torch.tensor([self.kl, self.changed, self.class_rows, self.square, self.spread], dtype=torch.float64)
        kl, changed, rows, square, spread = sum_over_ranks(sums).tolist()
        rows = max(rows, 1.0)
        return FunctionalGap(kl / rows, (square / max(spread, 1e-12)) ** 0.5, changed / rows)
