"""What a layer normalises: the input of `batch_norm`, which is not always the input of the layer.

A plain layer passes its argument on. A subclass may transpose it, leave out padding or take a logarithm first, and its
running statistics describe the result. So for a layer with a `forward` of its own the call of `F.batch_norm` (or
`torch.batch_norm`, `F.instance_norm`, ...) with the layer's own statistics is caught inside that `forward`. A layer
that makes no such call, or hands over other tensors, is *not measurable*: nothing is known about what its statistics
should be, so it is neither judged by data nor repaired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from lightning_hp.batchnorm.observe import is_replaying
from lightning_hp.batchnorm.statistics import LayerNames

__all__ = ["Seen", "input_hooks", "is_plain", "unmeasured"]

_PLAIN = (_BatchNorm.forward, SyncBatchNorm.forward, _InstanceNorm.forward)
_NORMALISERS = frozenset(
    [
        *("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm"),
        *("_batch_norm_with_update", "_batch_norm_no_update", "instance_norm"),
    ]
)


@dataclass
class Seen:
    """Which layers ran while their inputs were looked at.

    Attributes:
        called: layers whose `forward` ran.
        measured: those of them whose normalisation was seen.
    """

    called: set[str] = field(default_factory=set)
    measured: set[str] = field(default_factory=set)


def is_plain(layer: nn.Module) -> bool:
    """True when the layer runs PyTorch's own `forward`, which normalises its argument."""
    return "forward" not in layer.__dict__ and type(layer).forward in _PLAIN


def _same(tensor: Any, buffer: Tensor | None) -> bool:
    return (
        isinstance(tensor, Tensor)
        and buffer is not None
        and tensor.shape == buffer.shape
        and tensor.data_ptr() == buffer.data_ptr()
    )


class _Listener(TorchFunctionMode):
    """Catches the normalisation inside one call of a layer; everything is passed on unchanged."""

    def __init__(self, layer: _NormBase, on_input: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._layer, self._on_input = layer, on_input

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _NORMALISERS:
            # looked up now: `functional_call` puts other tensors in the place of the buffers
            mean, var = self._layer.running_mean, self._layer.running_var
            values = [*args, *(kwargs or {}).values()]
            x = args[0] if args else (kwargs or {}).get("input")
            own = any(_same(v, mean) for v in values) and any(_same(v, var) for v in values)
            if own and isinstance(x, Tensor):
                self._on_input(x)
        return func(*args, **(kwargs or {}))


def _batched(layer: _NormBase, x: Tensor) -> Tensor:
    """InstanceNorm takes one example without a batch dimension, too."""
    single = isinstance(layer, _InstanceNorm) and x.dim() == layer._get_no_batch_dim()
    return x.unsqueeze(0) if single else x


@contextmanager
def input_hooks(layers: LayerNames, on_input: Callable[[str, Tensor], None], live: bool = False) -> Iterator[Seen]:
    """Call `on_input(name, x)` with everything that the given layers normalise; the model is as before at the end.

    Args:
        layers: layers by name.
        on_input: called before the normalisation, with its input.
        live: somebody else runs the model, perhaps compiled: plain layers then get a forward hook, which a compiled
            graph ignores, and calls of `layer.forward` that go around `layer(...)` are not seen.

    Yields:
        Which layers ran, and which of them were measured.
    """
    seen = Seen()
    undo: list[Callable[[], None]] = []

    def tell(name: str, x: Tensor) -> None:
        if live and is_replaying():
            return
        seen.measured.add(name)
        on_input(name, _batched(layers[name], x))

    try:
        for name, layer in layers.items():
            undo.append(_hook(name, layer, tell, seen) if live and is_plain(layer) else _wrap(name, layer, tell, seen))
        yield seen
    finally:
        for restore in reversed(undo):
            restore()


def _hook(name: str, layer: _NormBase, tell: Callable[[str, Tensor], None], seen: Seen) -> Callable[[], None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.called.add(name)
        x = args[0] if args else kwargs.get("input")
        if isinstance(x, Tensor):
            tell(name, x)

    return layer.register_forward_pre_hook(hook, with_kwargs=True).remove


def _wrap(name: str, layer: _NormBase, tell: Callable[[str, Tensor], None], seen: Seen) -> Callable[[], None]:
    own, plain = layer.__dict__.get("forward"), is_plain(layer)
    original = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.called.add(name)
        if plain:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, Tensor):
                tell(name, x)
            return original(*args, **kwargs)
        with _Listener(layer, lambda x: tell(name, x)):
            return original(*args, **kwargs)

    layer.__dict__["forward"] = forward

    def restore() -> None:
        if own is None:
            layer.__dict__.pop("forward", None)
        else:
            layer.__dict__["forward"] = own

    return restore


def unmeasured(layers: LayerNames, *passes: Seen) -> frozenset[str]:
    """Layers with a `forward` of their own that ran in some pass without their normalisation being seen in each.

    The statistics that training writes must be those that evaluation reads, so both passes have to show the call.
    """
    ran = set().union(*(seen.called for seen in passes))
    return frozenset(
        name for name in ran if not is_plain(layers[name]) and not all(name in seen.measured for seen in passes)
    )
