"""What the rules look at: one `Snapshot` of a model's tracked layers. Plain data; `measure` fills it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from lightning_hp.batchnorm.statistics import (
    Averaging,
    Moments,
    is_instance_norm,
    mean_error,
    noise_factor,
    variance_error,
)
from lightning_hp.batchnorm.structure import Structure

__all__ = ["Facts", "FunctionalGap", "LayerData", "LayerState", "OtherWeights", "Snapshot", "state_of"]


@dataclass(frozen=True)
class LayerState:
    """What a layer says about itself, without data. Vectors are `C` long, float64, on the CPU."""

    name: str
    kind: str
    channels: int
    momentum: float | None
    eps: float
    updates: int
    running_mean: Tensor
    running_var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    training: bool
    tracking: bool
    dtype: str
    frozen: bool
    instance_norm: bool = False


@dataclass(frozen=True)
class LayerData:
    """What the data pass saw at the input of a layer.

    Attributes:
        train: pooled moments in train mode (for InstanceNorm: mean of the per-example moments).
        domains: the same for the first, second, ... call of the layer within a step.
        population: moments in eval mode with population statistics installed.
        calls_per_step: calls of the layer per training step.
        rows: examples per call. values: values per channel and call (`n`).
        batch_noise: sd of a batch mean between steps, in standard deviations of the input (rms over channels).
        batch_noise_var: sd between steps of the log of a batch variance (rms over channels).
        iid_ratio: variance of batch means over what independent rows would give; 1 when rows are independent.
        steps: number of steps behind these.
    """

    train: Moments
    domains: tuple[Moments, ...]
    population: Moments
    calls_per_step: float
    rows: float
    values: float
    batch_noise: float
    batch_noise_var: float
    iid_ratio: float
    steps: int


@dataclass(frozen=True)
class FunctionalGap:
    """Outputs with running against population statistics, averaged over rows.

    Attributes:
        kl: KL(population || running) of softmaxed outputs, nats; only of `rows x classes` outputs, else 0.
        relative: rms change of the outputs over their standard deviation between rows.
        disagreement: share of rows whose largest output moves to another class; only of `rows x classes` outputs,
        else 0.
    """

    kl: float = 0.0
    relative: float = 0.0
    disagreement: float = 0.0


@dataclass(frozen=True)
class OtherWeights:
    """Validation runs with other weights than training.

    Attributes:
        cause: where they come from, in words.
        repaired: whether the statistics were taken anew for them.
        snapshot: of the model with these weights, after that repair if there was one.
    """

    cause: str
    repaired: bool
    snapshot: Snapshot


@dataclass
class Facts:
    """What only a running training can tell. Every field has a value that triggers no rule.

    Attributes:
        averaging: how each layer's running average weighs its start value and its batches, momenta as they were.
        updates_per_step: updates of each layer per training batch, as observed (mean), by layer.
        eval_updates: updates of each layer seen between start and end of validation, test or prediction.
        nonfinite: layer -> step of the first non-finite or negative statistic.
        initial: layer -> (running mean, running var, updates) before training.
        decayed: layers whose gamma or beta is under weight decay.
        gamma_shrink: layer -> share of the median |gamma| lost since the start of training.
        any_decay, early_stopping, augmented: None when not known.
        validation: layer -> moments of its inputs in validation.
        evaluation: what was measured with the weights of validation, where they are others than those of training.
    """

    averaging: dict[str, Averaging] = field(default_factory=dict)
    updates_per_step: dict[str, float] = field(default_factory=dict)
    eval_updates: dict[str, int] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)
    initial: dict[str, tuple[Tensor, Tensor, int]] = field(default_factory=dict)
    decayed: set[str] = field(default_factory=set)
    gamma_shrink: dict[str, float] = field(default_factory=dict)
    any_decay: bool | None = None
    world_size: int = 1
    accumulate: int = 1
    dataset_rows: int | None = None
    batch_size: int | None = None
    drop_last: bool = True
    early_stopping: bool | None = None
    augmented: bool | None = None
    train_metric: float | None = None
    val_metric: float | None = None
    trained_steps: int | None = None
    validation: dict[str, Moments] = field(default_factory=dict)
    evaluation: OtherWeights | None = None


@dataclass
class Snapshot:
    """Everything the rules may use. `data` and `gap` are empty without a data pass.

    `unmeasured` are layers that ran, but by code that does not show what they normalise (see `inputs`).
    """

    layers: dict[str, LayerState]
    data: dict[str, LayerData] = field(default_factory=dict)
    gap: FunctionalGap | None = None
    structure: Structure = field(default_factory=Structure)
    facts: Facts = field(default_factory=Facts)
    unmeasured: frozenset[str] = frozenset()

    def noise(self, name: str) -> float:
        """Variance of a layer's running average over that of one batch moment."""
        state, averaging = self.layers[name], self.facts.averaging.get(name)
        if averaging is not None and averaging.left < 1.0:
            return averaging.noise
        return noise_factor(state.momentum, max(state.updates, 1))

    def errors(self, name: str) -> tuple[float, float, float, float] | None:
        """`(d, R_d, lv, R_lv)` of a layer: errors of running mean and variance, each also over its expected noise."""
        state, data = self.layers[name], self.data.get(name)
        if data is None or data.train.n == 0:
            return None
        variance = data.train.variance()
        # A channel that is constant has no standard deviation to be off by; rule BN15 tells about it.
        alive = variance > max(1e-12, 1e-2 * min(float(variance.median()), state.eps))
        if not bool(alive.any()):
            return None
        mean, variance = data.train.mean[alive], variance[alive]
        d = mean_error(state.running_mean[alive], mean, variance, state.eps)
        lv = variance_error(state.running_var[alive], variance, state.eps)
        # The pooled moments are themselves a sample of `steps` batches.
        factor = self.noise(name) + 1.0 / max(data.steps, 1)
        noise, noise_var = data.batch_noise * factor**0.5, data.batch_noise_var * factor**0.5
        return d, d / max(noise, 1e-12), lv, lv / max(noise_var, 1e-12)


def state_of(name: str, layer: nn.modules.batchnorm._NormBase, training: bool | None = None) -> LayerState:
    """Read one layer; `training` overrides its present mode (by the mode it had in training)."""
    affine = [p for p in (layer.weight, layer.bias) if p is not None]
    tracked = layer.num_batches_tracked
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return LayerState(
        name=name,
        kind=type(layer).__name__,
        channels=int(layer.running_mean.numel()),
        momentum=layer.momentum,
        eps=float(layer.eps),
        updates=int(tracked) if tracked is not None else 0,
        running_mean=layer.running_mean.detach().cpu().double(),
        running_var=layer.running_var.detach().cpu().double(),
        gamma=None if layer.weight is None else layer.weight.detach().cpu().double(),
        beta=None if layer.bias is None else layer.bias.detach().cpu().double(),
        training=layer.training if training is None else training,
        tracking=bool(layer.track_running_stats),
        dtype=str(layer.running_mean.dtype).removeprefix("torch."),
        frozen=bool(affine) and not any(p.requires_grad for p in affine),
        instance_norm=is_instance_norm(layer),
    )
