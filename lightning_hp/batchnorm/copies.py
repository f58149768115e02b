"""Copies of a trained module that only evaluation calls: moving averages kept beside the model (`ema.module`).

Such a copy has statistics of its own, and no training call ever reaches it. Its statistics follow from the calls of the
module it was copied from: same inputs, other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hp.batchnorm.observe import Step, call_of, preserved, replay
from lightning_hp.batchnorm.statistics import find_layers

__all__ = ["calls_for_copy", "find_copies"]

_ALIKE = 0.3  # cosine of the weights; an average is close to what it averages, another block of the same shape is at 0
_VALUES = 256  # weights of a matrix that are looked at


def find_copies(model: nn.Module, steps: Sequence[Step]) -> dict[str, str]:
    """Modules that hold tracked layers, are never called in training, and are copies of one that is.

    A copy has the type and the shapes of its original, and weights that resemble it.

    Args:
        model: the model.
        steps: recorded training steps.

    Returns:
        Name of the copy -> name of the original; outermost modules only.
    """
    modules, layers = dict(model.named_modules()), list(find_layers(model))
    owners = [name for name in modules if name and any(layer == name or _inside(layer, name) for layer in layers)]
    likeness = _likeness({name: modules[name] for name in owners})
    if not likeness:
        return {}  # nearly every model; nothing was called for that
    called: set[str] = set()
    handles = [module.register_forward_pre_hook(_note(name, called)) for name, module in modules.items()]
    try:
        with preserved(model):
            replay(model, steps[-1:])
    finally:
        for handle in handles:
            handle.remove()
    copies: dict[str, str] = {}
    for name in owners:
        if any(one == name or _inside(one, name) for one in called) or any(_inside(name, copy) for copy in copies):
            continue
        alike = {original: like for (copy, original), like in likeness.items() if copy == name and original in called}
        if alike:
            copies[name] = max(alike, key=lambda original: alike[original])
    return copies


def _note(name: str, called: set[str]) -> Any:
    return lambda module, args: called.add(name)


def _inside(name: str, outer: str) -> bool:
    return name.startswith(f"{outer}.")


def _likeness(modules: dict[str, nn.Module]) -> dict[tuple[str, str], float]:
    """Cosine of the weight matrices of every two modules of one type and shape, where it is high; in both orders."""
    groups: dict[Any, list[tuple[str, Tensor]]] = {}
    for name, module in modules.items():
        matrices = {key: p for key, p in module.named_parameters() if p.dim() > 1}  # gamma is 1 in every new layer
        if matrices:
            shapes = tuple((key, tuple(p.shape)) for key, p in matrices.items())
            values = torch.cat([_some(p) for p in matrices.values()])
            groups.setdefault((type(module), shapes), []).append((name, values / values.norm().clamp_min(1e-30)))
    return {
        (one, other): like
        for group in groups.values()
        for one, a in group
        for other, b in group
        if not (one == other or _inside(one, other) or _inside(other, one)) and (like := float(a @ b)) > _ALIKE
    }


def _some(parameter: Tensor) -> Tensor:
    flat = parameter.detach().flatten()
    places = torch.linspace(0, len(flat) - 1, min(len(flat), _VALUES)).long()
    return flat[places.to(flat.device)].cpu().double()


def calls_for_copy(model: nn.Module, steps: Sequence[Step], copy: str, original: str) -> list[Step]:
    """The recorded steps as calls of the copy, with the arguments that the original received.

    The model is left as it was.

    Args:
        model: the model.
        steps: recorded training steps.
        copy: name of the copy.
        original: name of the module it was copied from.
    """
    redirected: list[Step] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        redirected[-1].append(call_of(copy, args, kwargs))

    handle = model.get_submodule(original).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with preserved(model):
            replay(model, steps, on_step=lambda index: redirected.append([]))
    finally:
        handle.remove()
    return [step for step in redirected if step]
