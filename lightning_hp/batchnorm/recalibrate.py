"""Repair running statistics: from data (exact population statistics) or without data (debiasing).

Everything here writes with `copy_` (a rebound buffer breaks averaged copies, DDP and later training), and what only
holds for a while is a context manager. Weights are never touched.

Two ways to take population statistics from recorded steps ("precise BN", Wu & Johnson 2021, arXiv 2105.07576):

* *pooled*: one pass, BatchNorm layers in train mode, moments of all batches merged by rows. Upstream layers normalise
  by their batch, so batches must not be small (second layer's variance x0.60 at 2 rows, x0.94 at 8, x0.99 at 32,
  measured).
* *sequential*: one pass a layer, in order of execution, everything in eval mode, each layer with the statistics of
  the layers before already replaced. Exact at any batch size (x0.999 at 2 rows), because it is what inference computes.

Dropout is off in both: statistics are for inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_hp.batchnorm.inputs import Seen, input_hooks, is_plain, unmeasured
from lightning_hp.batchnorm.measure import common_steps, install
from lightning_hp.batchnorm.observe import Step, preserved, replay
from lightning_hp.batchnorm.statistics import (
    Averaging,
    LayerNames,
    Moments,
    find_layers,
    is_instance_norm,
    without_start,
)

__all__ = [
    "Recalibration",
    "constant_momentum",
    "debias",
    "population_statistics",
    "recalibrate",
    "recalibrate_if_better",
    "temporary_statistics",
]

METHODS = ("auto", "pooled", "sequential")
_ENOUGH_VALUES = 32  # pooled second-layer variance is within 1% from here on (measured)
_FEW_LAYERS = 8  # so many passes cost less than being approximate


@dataclass(frozen=True)
class Recalibration:
    """What `recalibrate_if_better` did.

    Attributes:
        kept: True if the new statistics stayed.
        before: loss with the old statistics. after: with the new ones; lower is better.
        layers: names of the layers whose statistics were replaced (or were tried).
        reason: one sentence.
    """

    kept: bool
    before: float
    after: float
    layers: tuple[str, ...]
    reason: str


def _moments_of(layer: nn.Module, x: Tensor) -> Moments:
    """Moments of one input; InstanceNorm's statistics are means over examples of each example's own moments."""
    if not is_instance_norm(layer):
        return Moments.of(x)
    spatial = x.detach().float().flatten(2)
    var, mean = torch.var_mean(spatial, dim=2, correction=1)
    mean, var = mean.mean(0).cpu().double(), var.mean(0).cpu().double()
    rows = float(x.shape[0])
    return Moments(rows, mean, var * max(rows - 1.0, 0.0))


def _pass(
    model: nn.Module, steps: Sequence[Step], layers: LayerNames
) -> tuple[dict[str, Moments], dict[str, int], Seen]:
    """One replay: pooled input moments of `layers`, in order of first call, the fewest values in any call, who ran."""
    pooled: dict[str, Moments] = {}
    fewest: dict[str, int] = {}

    def on_input(name: str, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[1] != layers[name].running_mean.numel() or x.numel() == 0:  # type: ignore[union-attr]
            return
        moments = _moments_of(layers[name], x)
        pooled[name] = pooled[name].merge(moments) if name in pooled else moments
        fewest[name] = min(fewest.get(name, x.numel()), x.numel() // x.shape[1])

    with input_hooks(layers, on_input) as seen:
        replay(model, steps)
    return pooled, fewest, seen


def population_statistics(
    model: nn.Module, steps: Sequence[Step], layers: Collection[str] | None = None, method: str = "auto"
) -> dict[str, Moments]:
    """Population moments of the inputs of tracked layers, as inference would see them. The model is left as it was.

    Under torch.distributed all ranks must call this; moments are summed over them. Layers that are not measurable (see
    `inputs`) have no moments, so nothing repairs them.

    Args:
        model: the model the steps were recorded on.
        steps: recorded steps; 1,000 to 10,000 rows suffice (Wu & Johnson 2021).
        layers: names to look at; None takes every tracked layer that is called.
        method: "pooled", "sequential" or "auto" (sequential for up to eight layers or fewer than 32 values a batch).

    Returns:
        Moments by layer, in order of execution.

    Raises:
        ValueError: if `steps` is empty, `method` unknown, or `layers` names a layer that is not tracked.
    """
    steps = common_steps(steps)
    if not steps:
        raise ValueError("`steps` must hold at least one recorded step, got none")
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}, got {method!r}")
    tracked = find_layers(model)
    unknown = sorted(set(layers or ()) - set(tracked))
    if unknown:
        raise ValueError(f"`layers` must name tracked layers {sorted(tracked)}, got {unknown!r}")
    chosen = {name: layer for name, layer in tracked.items() if layers is None or name in layers}
    with preserved(model):
        model.eval()
        for layer in chosen.values():
            layer.training = True
        pooled, fewest, seen = _pass(model, steps, chosen)
        own = {name: layer for name, layer in chosen.items() if not is_plain(layer)}
        if own:
            model.eval()
            *_, evaluated = _pass(model, steps, own)
            for name in unmeasured(chosen, seen, evaluated):
                pooled.pop(name, None)
        pooled = {name: moments.over_ranks() for name, moments in pooled.items()}
        if method == "auto":
            sequential = len(pooled) <= _FEW_LAYERS or min(fewest.values(), default=_ENOUGH_VALUES) < _ENOUGH_VALUES
            method = "sequential" if sequential else "pooled"
    if method == "pooled":
        return pooled
    with preserved(model):
        model.eval()
        for name in pooled:
            exact, *_ = _pass(model, steps, {name: chosen[name]})
            pooled[name] = exact[name].over_ranks()
            install({name: chosen[name]}, pooled)
    return pooled


def recalibrate(
    model: nn.Module, steps: Sequence[Step], layers: Collection[str] | None = None, method: str = "auto"
) -> dict[str, Moments]:
    """Replace running statistics by population statistics, for good. See `population_statistics` for the arguments.

    Layers whose new statistics are not finite keep the old ones.

    Returns:
        The moments that were written, by layer.
    """
    fresh = population_statistics(model, steps, layers, method)
    fresh = {name: m for name, m in fresh.items() if bool(torch.isfinite(m.mean).all() and torch.isfinite(m.m2).all())}
    tracked = find_layers(model)
    install({name: tracked[name] for name in fresh}, fresh)
    return fresh


@contextmanager
def temporary_statistics(model: nn.Module, moments: Mapping[str, Moments]) -> Iterator[None]:
    """Run with other running statistics; the old ones come back, also after an exception."""
    layers = {name: layer for name, layer in find_layers(model).items() if name in moments}
    old = {
        name: (layer.running_mean.clone(), layer.running_var.clone())  # type: ignore[union-attr]
        for name, layer in layers.items()
    }
    try:
        install(layers, dict(moments))
        yield
    finally:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.running_mean.copy_(old[name][0])  # type: ignore[union-attr]
                layer.running_var.copy_(old[name][1])  # type: ignore[union-attr]


def recalibrate_if_better(
    model: nn.Module,
    steps: Sequence[Step],
    evaluate: Callable[[], float],
    layers: Collection[str] | None = None,
    method: str = "auto",
    tolerance: float = 0.0,
) -> Recalibration:
    """Recalibrate, and keep it only if the loss that `evaluate` returns does not rise.

    Args:
        model: the model.
        steps: recorded training steps.
        evaluate: returns the validation loss of the model as it stands, lower is better; called twice.
        layers: see `population_statistics`.
        method: see `population_statistics`.
        tolerance: share by which the loss may rise and the new statistics are still kept.

    Returns:
        What was done. If `evaluate` raises, the old statistics are back.
    """
    before = evaluate()
    fresh = population_statistics(model, steps, layers, method)
    with temporary_statistics(model, fresh):
        after = evaluate()
    better = math.isfinite(after) and (not math.isfinite(before) or after <= before + tolerance * abs(before))
    if better:
        tracked = find_layers(model)
        install({name: tracked[name] for name in fresh}, fresh)
    verdict = "not higher, kept" if better else "higher, rolled back"
    return Recalibration(better, before, after, tuple(fresh), f"validation loss {before:.4g} -> {after:.4g}: {verdict}")


def constant_momentum(
    model: nn.Module, initial: Mapping[str, tuple[Tensor, Tensor, int]] | None = None
) -> dict[str, Averaging]:
    """What `debias` has to know, of a training in which no momentum was ever changed.

    Args:
        model: the trained model.
        initial: layer -> (running mean, running variance, updates) before training; the default is that of a new layer.

    Returns:
        How the running averages of the layers that count their updates weigh their start value.
    """
    averaging = {}
    for name, layer in find_layers(model).items():
        if layer.num_batches_tracked is not None:
            before = initial[name][2] if initial and name in initial else 0
            averaging[name] = Averaging().after(int(layer.num_batches_tracked) - before, layer.momentum, before)
    return averaging


def debias(
    model: nn.Module,
    averaging: Mapping[str, Averaging],
    initial: Mapping[str, tuple[Tensor, Tensor, int]] | None = None,
    layers: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Take the start value out of running averages after a short run; needs no data (see `statistics.without_start`).

    How much of the start value is left depends on every momentum there was, which a model does not remember: after a
    schedule, take `Facts.averaging` of the watch that saw the training.

    Layers that cannot be debiased are left alone: no update, nothing left of the start value, or nothing but it.

    Args:
        model: the model; its running statistics are changed for good.
        averaging: of each layer: `TrainingWatch.facts().averaging`, or `constant_momentum(model)`.
        initial: layer -> (running mean, running variance, updates) before training; the default is that of a new
            layer, (0, 1, 0).
        layers: names to change; None takes all.

    Returns:
        Names of the layers that were changed.
    """
    changed = []
    for name, layer in find_layers(model).items():
        left = averaging.get(name, Averaging()).left
        if (layers is not None and name not in layers) or not 0.0 < left < 1.0:
            continue
        mean, var = layer.running_mean, layer.running_var
        assert mean is not None
        assert var is not None
        start_mean, start_var, _ = (initial or {}).get(name, (torch.zeros(()), torch.ones(()), 0))
        with torch.no_grad():
            mean.copy_(without_start(mean.cpu(), start_mean.cpu().double(), left))
            var.copy_(without_start(var.cpu(), start_var.cpu().double(), left).clamp_min(0.0))
        changed.append(name)
    return tuple(changed)
