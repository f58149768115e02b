"""Which layers keep running statistics, what their inputs look like, and how noisy a running average must be.

Shape legend: ``C`` channels of a layer, ``B`` rows (examples) of one forward call, ``n`` values per channel and call
(``B`` for BatchNorm1d on ``B x C``, ``B * H * W`` for BatchNorm2d). ``m`` is PyTorch's momentum: the weight of the
*new* batch, ``r <- (1 - m) r + m x``. ``T`` is the number of updates. Everything is computed in float64 on the CPU.

Sources: Chan, Golub, LeVeque 1979 (merging moments without cancellation); Wu & Johnson 2021, arXiv 2105.07576
(population against running statistics). The noise formulas are derived in the docstrings below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

__all__ = [
    "Averaging",
    "LayerNames",
    "Moments",
    "debiased",
    "find_layers",
    "mean_error",
    "noise_factor",
    "recover_batch_moments",
    "sum_over_ranks",
    "variance_error",
    "without_start",
]

LayerNames = dict[str, _NormBase]


def find_layers(model: nn.Module) -> LayerNames:
    """Every layer of `model` that owns running statistics, by qualified name, in registration order.

    Found are BatchNorm1d/2d/3d, SyncBatchNorm, their subclasses, and InstanceNorm built with
    `track_running_stats=True`. A layer whose flag was switched off later still has its buffers and is still listed
    (that is a fault to report). Lazy layers are listed once they are materialised. The wrapper names `_orig_mod` of
    torch.compile and `module` of DDP stay in the name, so that a name can be given to `get_submodule`. A layer
    registered twice is listed once.

    Args:
        model: any module.

    Returns:
        An ordered dict from name to layer. Empty when nothing is tracked.
    """
    layers: LayerNames = {}
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase):
            continue
        mean, var = module.running_mean, module.running_var
        if mean is None or var is None or is_lazy(mean) or is_lazy(var):
            continue
        layers[name] = module
    return layers


def is_instance_norm(layer: nn.Module) -> bool:
    """True for InstanceNorm: its batch moments are taken per example, so `n` is the size of one map."""
    return isinstance(layer, _InstanceNorm)


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation of a set of values, per channel.

    Attributes:
        n: number of values per channel; a float because weights may be summed over ranks.
        mean: `C`-vector, float64.
        m2: `C`-vector, sum of squared deviations from `mean`, float64.
    """

    n: float
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Moments of `values`, a `B x C x ...` tensor, over every dimension but the second.

        Raises:
            ValueError: if `values` has fewer than two dimensions.
        """
        if values.dim() < 2:
            raise ValueError(
                f"`values` must have at least two dimensions (rows, channels), got shape {tuple(values.shape)}"
            )
        flat = values.detach().transpose(0, 1).reshape(values.shape[1], -1)
        n = flat.shape[1]
        if n == 0:
            zero = torch.zeros(flat.shape[0], dtype=torch.float64)
            return cls(0.0, zero, zero.clone())
        # float32 var_mean is a stable two-pass algorithm, and a cast of the whole activation would cost more than the
        # pass. Half types are cast: their own accumulation would be the fault being looked for.
        work = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
        var, mean = torch.var_mean(work, dim=1, correction=0)
        return cls(float(n), mean.cpu().double(), var.cpu().double() * n)

    @classmethod
    def empty(cls, channels: int) -> Moments:
        """Moments of nothing: the neutral element of `merge`."""
        return cls(0.0, torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64))

    def merge(self, other: Moments) -> Moments:
        """Moments of the union (Chan's formula): exact, weighted by rows, no `E[x^2] - E[x]^2` cancellation."""
        n = self.n + other.n
        if n == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        m2 = self.m2 + other.m2 + delta.square() * (self.n * other.n / n)
        return Moments(n, mean, m2)

    def variance(self, unbiased: bool = True) -> Tensor:
        """Variance per channel, `C`-vector; with one value only it is zero either way."""
        return self.m2 / max(self.n - (1.0 if unbiased else 0.0), 1.0)

    def over_ranks(self) -> Moments:
        """Moments of the values of every rank, equal on every rank; itself when torch.distributed is not in use.

        Two sums: the pooled mean first, then every rank's squared deviations from it. Every rank must call this.
        """
        if not _distributed():
            return self
        total = sum_over_ranks(torch.tensor([self.n], dtype=torch.float64))
        n = float(total.item())
        weight = self.n / n if n else 0.0
        mean = sum_over_ranks(torch.nan_to_num(self.mean) * weight if self.n == 0 else self.mean * weight)
        m2 = sum_over_ranks(self.m2 + self.n * (self.mean - mean).square())
        return Moments(n, mean, m2)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a float64 tensor over ranks (NCCL gets it on its device); a copy of it in one process."""
    if not _distributed():
        return values.clone()
    on_device = (
        values.to(torch.device("cuda", torch.cuda.current_device())) if dist.get_backend() == "nccl" else values.clone()
    )
    dist.all_reduce(on_device, op=dist.ReduceOp.SUM)
    return on_device.to(values.device)


def merge_all(parts: Iterator[Moments] | list[Moments], channels: int) -> Moments:
    """Merge any number of moments; of none, the empty ones."""
    total = Moments.empty(channels)
    for part in parts:
        total = total.merge(part)
    return total


def recover_batch_moments(before: Tensor, after: Tensor, momentum: float) -> Tensor:
    """The batch moment that one update mixed into a running average, from the buffers alone.

    Inverts `after = (1 - m) before + m x`. No hook and no forward pass is needed, so it also works under
    torch.compile. Valid only if exactly one update lies between the two buffers: check `num_batches_tracked`. The
    error is the rounding of the buffer divided by `m` (float32, value 50, m = 0.01: 2e-4).

    Args:
        before: running mean or variance before the update, any shape.
        after: the same buffer after it.
        momentum: PyTorch's momentum in (0, 1].

    Raises:
        ValueError: if `momentum` is not in (0, 1].
    """
    if not 0.0 < momentum <= 1.0:
        raise ValueError(f"`momentum` must be in (0, 1], got {momentum!r}")
    return before.double() + (after.double() - before.double()) / momentum


def noise_factor(momentum: float | None, updates: int) -> float:
    """Variance of a running average divided by the variance of one batch moment.

    For iid batch moments with variance v, `r_T = (1-m)^T r_0 + m sum_i (1-m)^(T-i) x_i` has variance
    `v * m / (2 - m) * (1 - (1-m)^(2T))`. The last factor is the transient. A cumulative average (`momentum=None`) has
    `v / T`. So `n / noise_factor` is the effective number of values behind a running statistic, `n (2 - m) / m` in
    the long run.

    Args:
        momentum: PyTorch's momentum in [0, 1], or None.
        updates: `num_batches_tracked`.

    Returns:
        The factor in [0, 1]; 0 when nothing was ever averaged (`momentum` 0 or no update).
    """
    if updates <= 0:
        return 0.0
    if momentum is None:
        return 1.0 / updates
    m = min(max(momentum, 0.0), 1.0)
    if m == 0.0:
        return 0.0
    return m / (2.0 - m) * (1.0 - (1.0 - m) ** (2 * updates))


@dataclass(frozen=True)
class Averaging:
    """How a running average weighs what it has seen, whatever momenta it was updated with.

    Attributes:
        left: weight of the start value, in [0, 1].
        noise: variance of the average over the variance of one batch moment (see `noise_factor`).
    """

    left: float = 1.0
    noise: float = 0.0

    def after(self, updates: int, momentum: float | None, counted: int = 0) -> Averaging:
        """The same after more updates with one momentum.

        Args:
            updates: how many.
            momentum: PyTorch's momentum in [0, 1], or None for a cumulative average.
            counted: `num_batches_tracked` before them; a cumulative average weighs by it.
        """
        if updates <= 0:
            return self
        if momentum is None:
            keep = counted / (counted + updates)
            return Averaging(self.left * keep, keep**2 * self.noise + (1.0 - keep) ** 2 / updates)
        keep = (1.0 - min(max(momentum, 0.0), 1.0)) ** updates
        return Averaging(self.left * keep, keep**2 * self.noise + noise_factor(momentum, updates))


def effective_rows(values_per_batch: float, momentum: float | None, updates: int) -> float:
    """Effective number of values behind a running statistic: `n (2 - m) / m` once warmed up."""
    factor = noise_factor(momentum, updates)
    return values_per_batch / factor if factor > 0 else math.inf


def debiased(running: Tensor, initial: Tensor | float, momentum: float, updates: int) -> Tensor:
    """Remove the start value from a running average: `(r - (1-m)^T r_0) / (1 - (1-m)^T)`.

    This is Adam's bias correction for a start other than zero. It needs no data. After it, the average weighs the T
    batches by `m (1-m)^(T-i) / (1 - (1-m)^T)`, which sums to one.

    Args:
        running: running mean or variance, `C`-vector.
        initial: value before the first update (0 for a mean, 1 for a variance).
        momentum: PyTorch's momentum in (0, 1].
        updates: `num_batches_tracked`, at least 1.

    Raises:
        ValueError: if there was no update or `momentum` is not in (0, 1].
    """
    if updates < 1:
        raise ValueError(f"`updates` must be at least 1, got {updates!r}")
    if not 0.0 < momentum <= 1.0:
        raise ValueError(f"`momentum` must be in (0, 1], got {momentum!r}")
    return without_start(running, initial, (1.0 - momentum) ** updates)


def without_start(running: Tensor, initial: Tensor | float, left: float) -> Tensor:
    """The same for a start value of known weight, in [0, 1): `(r - left r_0) / (1 - left)`."""
    return (running.double() - left * initial) / (1.0 - left)


def mean_error(running_mean: Tensor, mean: Tensor, variance: Tensor, eps: float) -> float:
    """How far a running mean is off, in standard deviations: `d = rms_c |r - mu| / sqrt(s2 + eps)`."""
    scaled = (running_mean.double() - mean) / (variance + eps).clamp_min(1e-300).sqrt()
    return float(scaled.square().mean().sqrt())


def variance_error(running_var: Tensor, variance: Tensor, eps: float) -> float:
    """How far a running variance is off, as a log ratio: `lv = rms_c |log((r_v + eps) / (s2 + eps))|`."""
    ratio = (running_var.double() + eps).clamp_min(1e-12) / (variance + eps).clamp_min(1e-12)
    return float(ratio.log().square().mean().sqrt())
