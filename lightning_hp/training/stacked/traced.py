"""A LightningModule's own steps over all members at once: ``torch.func.vmap`` of ``functional_call``.

The module is not changed. One copy of it runs with every member's tensors; ``self.log`` is captured; what a step may
know of the Trainer is the epoch and the step, anything else is refused. Layers whose scalars differ between members
(the rate of a dropout, momentum and epsilon of a batch norm) are replaced, in the copy, by layers that take them as
tensors. Metrics inside the copy count nothing. Shapes: M members, B rows.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchmetrics import Metric, MetricCollection

from lightning_hp.training.stacked.logs import Captured
from lightning_hp.training.stacked.refusal import NotStackable

_DROPOUTS = (nn.Dropout,)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class TrainerFacts:
    """What a step may know of its Trainer.

    Attributes:
        asked: Whether anybody has asked for epoch or step.
    """

    sanity_checking = False
    world_size, global_rank, local_rank = 1, 0, 0
    is_global_zero = True

    def __init__(self, epoch: int = 0, step: int = 0) -> None:
        """Start at an epoch (0 first) and an optimizer step."""
        self.asked = False
        self._epoch, self._step = epoch, step

    def at(self, epoch: int, step: int) -> None:
        """Go on to an epoch and an optimizer step."""
        self._epoch, self._step = epoch, step

    @property
    def current_epoch(self) -> int:
        """The epoch, 0 first."""
        self.asked = True
        return self._epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps so far."""
        self.asked = True
        return self._step

    def __getattr__(self, name: str) -> Any:
        """Refuse everything else."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotStackable(f"a step uses self.trainer.{name}, which needs a Trainer")


class MemberDropout(nn.Module):
    """Dropout whose rate is a tensor, shape ()."""

    def __init__(self, rate: float) -> None:
        """Keep the rate as a buffer."""
        super().__init__()
        self.register_buffer("rate", torch.tensor(rate), persistent=False)
        self.rate: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements at random in train mode, and scale the others up."""
        if not self.training:
            return x
        kept = torch.rand_like(x) >= self.rate.to(x.dtype)
        return torch.where(kept, x / (1 - self.rate.to(x.dtype)), torch.zeros((), dtype=x.dtype, device=x.device))


class MemberBatchNorm(nn.Module):
    """BatchNorm1d, 2d or 3d whose momentum (and, if asked for, epsilon) is a tensor, shape ().

    The names of its parameters and buffers are those of the layer it stands for.
    """

    def __init__(self, norm: nn.Module, own_epsilon: bool) -> None:
        """Take the place of a layer.

        Args:
            norm: The layer.
            own_epsilon: Whether epsilon differs between members; slower.
        """
        super().__init__()
        layer: Any = norm
        self.weight, self.bias = layer.weight, layer.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(layer, name))
        self.register_buffer("momentum", torch.tensor(float(layer.momentum)), persistent=False)
        self.register_buffer("epsilon", torch.tensor(float(layer.eps)), persistent=False)
        self.own_epsilon, self.eps = own_epsilon, float(layer.eps)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.momentum: Tensor
        self.epsilon: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, and in train mode update the running statistics."""
        mean, var = self.running_mean, self.running_var
        if not self.training:
            return self._normalise(x, mean, var)
        if x.numel() // x.shape[1] < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        # with momentum 1 the kernel leaves the mini-batch's own statistics behind
        new_mean, new_var = torch.zeros_like(mean), torch.zeros_like(var)
        out = functional.batch_norm(x, new_mean, new_var, self.weight, self.bias, True, 1.0, self.eps)
        with torch.no_grad():
            share = self.momentum.to(mean.dtype)
            mean.mul_(1 - share).add_(new_mean * share)
            var.mul_(1 - share).add_(new_var * share)
            self.num_batches_tracked.add_(1)
        if not self.own_epsilon:
            return out
        batch_var, batch_mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        return self._normalise(x, batch_mean, batch_var)

    def _normalise(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if not self.own_epsilon:
            return functional.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        shape = (1, -1, *[1] * (x.dim() - 2))
        out = (x - mean.view(shape)) * (var + self.epsilon.to(x.dtype)).rsqrt().view(shape)
        return out if self.weight is None else out * self.weight.view(shape) + self.bias.view(shape)


class _Mute(nn.Module):
    """Takes the place of a metric: what it is told is not counted, what it is asked for is not a number."""

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return torch.tensor(float("nan"))

    update = compute = forward

    def reset(self) -> None:
        pass


class _MuteCollection(nn.Module):
    """Takes the place of a collection of metrics."""

    def forward(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        return {}

    update = compute = forward

    def items(self, *_: Any, **__: Any) -> list[Any]:
        return []

    keys = values = items

    def reset(self) -> None:
        pass


class _Step(nn.Module):
    """Gives ``functional_call`` a step to call in place of ``forward``."""

    def __init__(self, module: pl.LightningModule) -> None:
        super().__init__()
        self.module = module
        self.step = "training_step"

    def forward(self, *arguments: Any) -> Any:
        return getattr(self.module, self.step)(*arguments)


def settings_of(modules: Sequence[pl.LightningModule]) -> dict[str, list[float]]:
    """Return the scalars of layers that differ between members and that a layer of ours can take, by buffer name."""
    out: dict[str, list[float]] = {}
    children = [dict(module.named_modules()) for module in modules]
    for path, first in children[0].items():
        mine: list[Any] = [one.get(path) for one in children]
        if any(type(layer) is not type(first) for layer in mine):
            raise NotStackable(f"the members have different layers at {path or 'the top'}")
        if type(first) in _DROPOUTS and any(layer.p != first.p for layer in mine):
            out[f"{path}.rate"] = [float(layer.p) for layer in mine]
        if type(first) in _NORMS and first.track_running_stats:
            for name, buffer in (("momentum", "momentum"), ("eps", "epsilon")):
                values = [getattr(layer, name) for layer in mine]
                if None not in values and any(value != values[0] for value in values):
                    out[f"{path}.{buffer}"] = [float(value) for value in values]
    return out


class TracedModule:
    """The steps of one module over all members.

    Attributes:
        facts: Epoch and step, for the module to read.
        captured: What the newest step logged: names and options.
        base: The copy of the module that all members run through.
    """

    def __init__(self, module: pl.LightningModule, settings: Mapping[str, Sequence[float]]) -> None:
        """Copy the module and replace the layers that ``settings`` names.

        Args:
            module: The first member; not changed.
            settings: As `settings_of`.
        """
        self.facts = TrainerFacts()
        self.captured = Captured()
        base = _copy_without_trainer(module)
        for path in {name.rpartition(".")[0] for name in settings}:
            layer = base.get_submodule(path)
            new = (
                MemberDropout(float(layer.p))  # type: ignore[arg-type]
                if type(layer) in _DROPOUTS
                else MemberBatchNorm(layer, f"{path}.epsilon" in settings)
            )
            _replace(base, path, new.to(next(base.parameters()).device).train(layer.training))
        for kind, mute in ((MetricCollection, _MuteCollection), (Metric, _Mute)):
            for path in [path for path, child in base.named_modules() if isinstance(child, kind)]:
                _replace(base, path, mute())
        base.trainer = self.facts  # type: ignore[assignment]
        self._step = _Step(base)
        self.base = base
        self._arguments = {name: takes_index(getattr(base, name)) for name in ("training_step", "validation_step")}

    def losses_and_gradients(
        self,
        trained: dict[str, Tensor],
        others: dict[str, Tensor],
        buffers: dict[str, Tensor],
        batch: Any,
        batch_idx: int,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Run ``training_step`` for all members.

        Args:
            trained: Parameters to differentiate, by name, shape (M, ...).
            others: Fixed parameters and settings.
            buffers: Buffers; updated in place.
            batch: Mini-batch, tensors of shape (M, B, ...).
            batch_idx: Its number in the epoch.

        Returns:
            Losses (M,), gradients by name, and logged values by name, shape (M,).
        """

        def loss(trained: Any, others: Any, buffers: Any, batch: Any) -> Any:
            output, tensors, logged = self._call("training_step", {**trained, **others, **buffers}, batch, batch_idx)
            if isinstance(output, Mapping):
                output = output.get("loss")
            if not isinstance(output, Tensor):
                raise NotStackable("training_step returns no loss, or not always")
            mean = output.mean()
            return mean, (mean.detach(), _picked(tensors, buffers), logged)

        run = vmap(grad_and_value(loss, has_aux=True), in_dims=(0, 0, 0, 0), randomness="different")
        with sdpa_kernel(SDPBackend.MATH):  # the only attention that has a batching rule on the CPU
            gradients, (_, (losses, new_buffers, logged)) = run(trained, others, buffers, batch)
        _put_back(buffers, new_buffers)
        return losses, gradients, logged

    @torch.no_grad()
    def validate(self, tensors: dict[str, Tensor], batch: Any, batch_idx: int, shared: bool) -> dict[str, Tensor]:
        """Run ``validation_step`` for all members.

        Args:
            tensors: Parameters, buffers and settings by name, shape (M, ...).
            batch: Mini-batch, of shape (B, ...) if ``shared``, else (M, B, ...).
            batch_idx: Its number.
            shared: Whether all members read the same rows.

        Returns:
            Logged values by name, shape (M,).
        """

        def logged(tensors: Any, batch: Any) -> Any:
            return self._call("validation_step", tensors, batch, batch_idx)[2]

        with evaluating(self.base), sdpa_kernel(SDPBackend.MATH), _layers_as_written():
            out: dict[str, Tensor] = vmap(logged, in_dims=(0, None if shared else 0), randomness="different")(
                tensors, batch
            )
        return out

    def _call(self, step: str, tensors: dict[str, Tensor], batch: Any, batch_idx: int) -> tuple[Any, Any, Any]:
        self.captured = Captured()
        vars(self.base)["log"] = self.captured.log
        self._step.step = step
        named = {f"module.{name}": tensor for name, tensor in tensors.items()}
        arguments = (batch, batch_idx) if self._arguments[step] else (batch,)
        output = functional_call(self._step, named, arguments)
        return output, named, self.captured.values


def _picked(named: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: named[f"module.{name}"] for name in buffers}


def _put_back(buffers: dict[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Take over buffers that a step has replaced; those that it changed in place are there already."""
    with torch.no_grad():
        for name, tensor in new.items():
            if tensor.data_ptr() != buffers[name].data_ptr():
                buffers[name].copy_(tensor)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode for a while, and every layer back into the mode it had."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


@contextmanager
def _layers_as_written() -> Iterator[None]:
    """Have attention layers compute what they say: their fused form for eval mode has no batching rule."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _copy_without_trainer(module: pl.LightningModule) -> pl.LightningModule:
    owners = [child for child in module.modules() if isinstance(child, pl.LightningModule)]
    trainers = [owner._trainer for owner in owners]
    try:
        for owner in owners:
            owner._trainer = None
        return copy.deepcopy(module)
    finally:
        for owner, trainer in zip(owners, trainers, strict=True):
            owner._trainer = trainer


def _replace(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)


def takes_index(step: Any) -> bool:
    """Whether a step takes the number of the mini-batch beside the mini-batch."""
    parameters = list(inspect.signature(step).parameters.values())
    if parameters and parameters[0].name == "dataloader_iter":
        raise NotStackable("a step that takes dataloader_iter reads its own data")
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
