"""Observes a model without changing it: records its calls, replays them, and puts everything back.

A training step is arbitrary code: it may parse dictionaries, train two networks, or build two views of each image.
Guessing how it feeds the model fails in most projects. So the *calls* are recorded instead: while a step runs, the
outermost calls into modules that contain a tracked layer are kept with their arguments (`CallRecorder`). Later they
are replayed under `no_grad`, in any mode, as often as needed (`replay`), inside `preserved`, which restores modes,
buffers, momenta, flags and random state.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from lightning_hp.batchnorm.statistics import find_layers

__all__ = ["Call", "CallRecorder", "Step", "is_replaying", "preserved", "replay"]


@dataclass(frozen=True)
class Call:
    """One outermost call into a module that contains tracked layers.

    Attributes:
        module: qualified name inside the model; "" is the model itself.
        args: positional arguments, tensors detached and copied.
        kwargs: keyword arguments, likewise.
        rows: size of the first dimension of the first tensor among them.
    """

    module: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int


Step = list[Call]
"""The calls of one training batch, in order."""


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def call_of(module: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Call:
    """A `Call` with its tensors detached and copied, so that later in-place changes do not reach it."""
    with torch.inference_mode(False), torch.no_grad():
        if not kwargs and all(type(arg) is Tensor for arg in args):  # the usual call, without the cost of a tree walk
            args, kwargs = tuple(arg.clone() for arg in args), {}
        else:
            args, kwargs = tree_map(_copied, (args, kwargs or {}))
    leading = [t for t in args if isinstance(t, Tensor)] or _tensors((args, kwargs))
    rows = next((int(t.shape[0]) for t in leading if t.dim() > 0), 0)
    return Call(module, args, kwargs, rows)


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _bytes(call: Call) -> int:
    tensors = (
        call.args
        if not call.kwargs and all(type(arg) is Tensor for arg in call.args)
        else _tensors((call.args, call.kwargs))
    )
    return sum(t.nbytes for t in tensors)


def _in_backward() -> bool:
    # Activation checkpointing calls inner modules again during backward; those calls belong to no step.
    task = getattr(torch._C, "_current_graph_task_id", None)
    return task is not None and task() != -1


def _compiled_insides(model: nn.Module) -> Iterator[str]:
    """Names below which hooks would be traced into a compiled graph: they would fire once, or break the graph."""
    for name, module in model.named_modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            yield name
        elif hasattr(module, "_orig_mod"):
            yield f"{name}._orig_mod" if name else "_orig_mod"


_MIN_STEPS = 16  # the spread between batches is estimated from them


class CallRecorder:
    """Keeps the calls of the last few recorded steps.

    Args:
        model: the module whose calls are recorded; it is not kept alive in `Call`s.
        max_steps: recorded steps that are kept; older ones are dropped.
        max_rows: older steps are dropped while the others hold this many rows (at least 16 steps are kept).
        max_bytes: upper limit of the memory of kept arguments; older steps are dropped first.

    Attributes:
        rows: rows in all kept steps.

    Raises:
        ValueError: if a limit is not positive.

    Example:
        >>> recorder = CallRecorder(model, max_steps=32)
        >>> with recorder.recording():
        ...     loss = training_step(batch)
        >>> recorder.steps
    """

    def __init__(
        self, model: nn.Module, max_steps: int = 128, max_rows: int = 2048, max_bytes: int = 256 * 2**20
    ) -> None:
        if max_steps < 1:
            raise ValueError(f"`max_steps` must be at least 1, got {max_steps!r}")
        if max_rows < 1:
            raise ValueError(f"`max_rows` must be at least 1, got {max_rows!r}")
        if max_bytes < 1:
            raise ValueError(f"`max_bytes` must be at least 1, got {max_bytes!r}")
        layers = list(find_layers(model))
        inside = tuple(_compiled_insides(model))
        self._candidates = {
            name: module
            for name, module in model.named_modules()
            if any(layer == name or layer.startswith(f"{name}." if name else "") for layer in layers)
            and not any(name == prefix or name.startswith(f"{prefix}.") for prefix in inside)
        }
        self._roots: dict[str, nn.Module] | None = None
        self._depth = 0
        self._current: Step | None = None
        self._kept: deque[tuple[Step, int, int]] = deque()
        self._max_steps, self._max_rows, self._max_bytes = max_steps, max_rows, max_bytes
        self.rows = self._bytes = 0
        self._handles: list[Any] = []

    @property
    def possible(self) -> bool:
        """False when every call runs inside a compiled graph, where none can be seen."""
        return bool(self._candidates)

    @property
    def steps(self) -> list[Step]:
        """Recorded steps, oldest first."""
        return [step for step, _, _ in self._kept]

    @property
    def count(self) -> int:
        """Number of recorded steps."""
        return len(self._kept)

    def clear(self) -> None:
        """Forget every recorded step."""
        self._kept.clear()
        self.rows = self._bytes = 0

    def start(self) -> None:
        """Begin one step: put the hooks on. `recording` is the form that cannot forget to stop."""
        self.stop(keep=False)
        self._current, self._depth = [], 0
        # The first recording hooks every ancestor of a tracked layer to learn which are called from outside; the
        # later ones hook only these, so that a recorded step costs microseconds.
        for name, module in (self._roots or self._candidates).items():
            self._handles.append(module.register_forward_pre_hook(self._enter(name), prepend=True, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def stop(self, keep: bool = True) -> None:
        """End the step: take the hooks off, and keep what was recorded if `keep`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        step, self._current = self._current, None
        if not keep or not step:
            return
        if self._roots is None:
            self._roots = {call.module: self._candidates[call.module] for call in step}
        size, rows = sum(map(_bytes, step)), max(call.rows for call in step)
        kept = self._kept
        while kept and (
            self._bytes + size > self._max_bytes
            or len(kept) >= self._max_steps
            or (len(kept) >= _MIN_STEPS and self.rows >= self._max_rows)
        ):
            _, old_rows, old_size = kept.popleft()
            self.rows -= old_rows
            self._bytes -= old_size
        kept.append((step, rows, size))
        self.rows += rows
        self._bytes += size

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls made inside as one step; nothing is kept if an exception leaves it."""
        self.start()
        done = False
        try:
            yield
            done = True
        finally:
            self.stop(keep=done)

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Lightning sends `training_step` through DDP by patching `forward` for one call, under this name. That
            # outer call carries the batch, not the model's input, and cannot be replayed.
            redirected = getattr(module.__dict__.get("forward"), "__name__", "") == "wrapped_forward"
            if self._depth == 0 and self._current is not None and not redirected and not _in_backward():
                self._current.append(call_of(name, args, kwargs))
            if not redirected:
                self._depth += 1

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth = max(self._depth - 1, 0)


@contextmanager
def _random_state() -> Iterator[None]:
    """Restore the generators of torch, CUDA, Python and (if loaded) NumPy, also after an exception."""
    numpy = sys.modules.get("numpy")
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy is not None:
            numpy.random.set_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back, also after an exception: modes, buffers (by `copy_`), momenta, tracking flags and random state.

    What modules keep in plain Python attributes is not known here and not restored.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    layers = [(layer, layer.momentum, layer.track_running_stats) for layer in find_layers(model).values()]
    with _random_state():
        try:
            yield
        finally:
            with torch.inference_mode(False), torch.no_grad():
                for module, name, buffer, value in buffers:
                    buffer.copy_(value)
                    module._buffers[name] = buffer
            for layer, momentum, tracking in layers:
                layer.momentum, layer.track_running_stats = momentum, tracking
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode


_replaying = 0


def _replay_over() -> None:
    global _replaying
    _replaying -= 1


def is_replaying() -> bool:
    """True while recorded calls are replayed: hooks that collect data from a running model must ignore these calls."""
    return _replaying > 0


def replay(
    model: nn.Module,
    steps: Sequence[Step],
    on_output: Callable[[int, int, Any], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Make the recorded calls again, without gradients and without compiled graphs (hooks inside those do not fire).

    Modes and buffers are the caller's business: see `preserved`.

    Args:
        model: the model the calls were recorded on.
        steps: recorded steps.
        on_output: called with (step index, call index, output) after each call.
        on_step: called with the step index before each step.
    """
    global _replaying
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def moved(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, Tensor) and leaf.device != device else leaf

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        # reentrant checkpointing says so whenever there is nothing to differentiate
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")
        stance = getattr(torch.compiler, "set_stance", None)
        if stance is not None and "torch._dynamo" in sys.modules:  # nothing is compiled without it, and it loads slowly
            stack.enter_context(stance("force_eager"))
        _replaying += 1
        stack.callback(_replay_over)
        for index, step in enumerate(steps):
            if on_step is not None:
                on_step(index)
            for position, call in enumerate(step):
                module = model.get_submodule(call.module) if call.module else model
                # A call may change its argument in place (ReLU(inplace=True) first): give it a copy.
                args, kwargs = tree_map(
                    lambda leaf: moved(leaf).clone() if isinstance(leaf, Tensor) else leaf, (call.args, call.kwargs)
                )
                output = module(*args, **kwargs)
                if on_output is not None:
                    on_output(index, position, output)
