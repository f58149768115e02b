"""Where tracked layers stand: in what order they run, what feeds them, what reads them, found by following tensors.

No graph is built. One recorded step is replayed in train mode with hooks on the leaf modules; a layer is fed by the
leaf whose output lives in the same memory as what the layer normalises (a view counts). Functional calls (`F.relu`)
leave no trace by name, but a ReLU in front of a layer shows in the values: none negative, many exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_hp.batchnorm.inputs import input_hooks
from lightning_hp.batchnorm.observe import Step, preserved, replay
from lightning_hp.batchnorm.statistics import LayerNames

__all__ = ["Structure", "trace"]

_AFFINE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Bilinear,
)
_RELUS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Structure:
    """What `trace` found.

    Attributes:
        order: tracked layers in the order of their first call; layers that were not called are missing.
        feeder: layer -> (name, class name) of the leaf module that made its input.
        biased_feeder: layer -> name of the affine module with a bias (that BN cancels) that made its input.
        dropout_before: layers with an active dropout in the leaf modules since the previous tracked layer.
        after_relu: layers whose input has no negative and at least 10% zero values (norm on A, not Z).
        before_relu: layers whose output goes straight into a ReLU module.
        dropouts: number of dropout modules with p > 0 anywhere in the model.
    """

    order: tuple[str, ...] = ()
    feeder: dict[str, tuple[str, str]] = field(default_factory=dict)
    biased_feeder: dict[str, str] = field(default_factory=dict)
    dropout_before: frozenset[str] = frozenset()
    after_relu: frozenset[str] = frozenset()
    before_relu: frozenset[str] = frozenset()
    dropouts: int = 0


def _is_dropout(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Tracer:
    """Collects the structure while one recorded step is replayed: hooks on leaf modules and on what layers normalise.

    Args:
        layers: Tracked layers by name.
    """

    def __init__(self, layers: LayerNames) -> None:
        self.names = {id(layer): name for name, layer in layers.items()}
        self.order: list[str] = []
        self.feeder: dict[str, tuple[str, str]] = {}
        self.biased_feeder: dict[str, str] = {}
        self.dropout_before: set[str] = set()
        self.after_relu: set[str] = set()
        self.before_relu: set[str] = set()
        self._alive: list[Tensor] = []  # memory must not be reused while addresses are compared
        self._made_by: dict[int, tuple[str, nn.Module]] = {}
        self._seen_dropout = False

    def on_input(self, layer: str, x: Tensor) -> None:
        """Note what feeds a layer: the module whose output lives in the memory of ``x``, which the layer normalises."""
        maker = self._made_by.get(_memory(x))
        if layer not in self.order:
            self.order.append(layer)
        if maker is not None and layer not in self.feeder:
            self.feeder[layer] = (maker[0], type(maker[1]).__name__)
            if isinstance(maker[1], _AFFINE) and maker[1].bias is not None:
                self.biased_feeder[layer] = maker[0]
        if self._seen_dropout:
            self.dropout_before.add(layer)
        self._seen_dropout = False
        positive = x.numel() > 0 and float(x.min()) >= 0.0 and float((x == 0).float().mean()) >= 0.1
        if positive and maker is not None:
            self.after_relu.add(layer)

    def on_output(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note that a leaf module made a tensor, and what it read."""
        layer = self.names.get(id(module))
        if layer is not None and layer not in self.order:
            self.order.append(layer)  # not measurable, but here is its place
        elif layer is None and _is_dropout(module) and module.training:
            self._seen_dropout = True
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        maker = self._made_by.get(_memory(tensor)) if tensor is not None else None
        if isinstance(module, _RELUS) and maker is not None and id(maker[1]) in self.names:
            self.before_relu.add(self.names[id(maker[1])])
        if isinstance(output, Tensor):
            self._alive.append(output)
            self._made_by[_memory(output)] = (name, module)


def trace(
    model: nn.Module, layers: LayerNames, steps: Sequence[Step], modes: dict[str, bool] | None = None
) -> Structure:
    """Replay one recorded step and read the structure off it. The model is left as it was.

    Args:
        model: the model.
        layers: its tracked layers.
        steps: one recorded step; without any, only module counts are filled in.
        modes: train mode of each tracked layer.
    """
    dropouts = sum(_is_dropout(module) for module in model.modules())
    if not steps:
        return Structure(dropouts=dropouts)
    tracer = _Tracer(layers)
    handles = []
    try:
        with preserved(model), input_hooks(layers, tracer.on_input):
            for name, layer in layers.items():
                layer.training = (modes or {}).get(name, layer.training)
            for name, module in model.named_modules():
                if id(module) in tracer.names or not any(True for _ in module.children()):
                    handles.append(module.register_forward_hook(partial(tracer.on_output, name)))
            replay(model, steps)
    finally:
        for handle in handles:
            handle.remove()
    return Structure(
        tuple(tracer.order),
        tracer.feeder,
        tracer.biased_feeder,
        frozenset(tracer.dropout_before),
        frozenset(tracer.after_relu),
        frozenset(tracer.before_relu),
        dropouts,
    )
