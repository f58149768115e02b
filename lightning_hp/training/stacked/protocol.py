"""What a module may offer to be stacked fastest: its own step over all members at once, in pure functions.

A module without these is stacked through ``torch.func.vmap`` of its ``training_step``, which needs no change to it.
A module with them says itself what several models have in common and how to compute all their gradients together.
Tensors carry the members in their first dimension. Shapes: M members, B rows of a mini-batch.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from torch import Tensor

Tensors = Mapping[str, Tensor]


class StackedStep(Protocol):
    """Computes losses and gradients, and validates, for a whole stack. Holds no weights; may hold scratch memory."""

    def losses_and_gradients(
        self, weights: Tensors, buffers: Tensors, settings: Tensors, batch: Sequence[Tensor], gradients: Tensors
    ) -> Tensor:
        """Write the gradient of every member's mean loss into ``gradients`` and update ``buffers`` in place.

        Args:
            weights: Parameters by name, shape (M, ...).
            buffers: Buffers by name, shape (M, ...).
            settings: What `stack_settings` returned, by name, shape (M,).
            batch: Tensors of shape (M, B, ...).
            gradients: Where to write, same names and shapes as the trained among ``weights``.

        Returns:
            Mean losses, shape (M,).
        """
        ...

    def validate(
        self, weights: Tensors, buffers: Tensors, settings: Tensors, batches: Sequence[Sequence[Tensor]]
    ) -> dict[str, Tensor]:
        """Return what validation would log, by name, shape (M,); ``batches`` are tensors of shape (M, B, ...)."""
        ...


@runtime_checkable
class Stackable(Protocol):
    """The methods by which a LightningModule offers its own stacked step."""

    #: hooks of the module that the stacked step stands for
    stack_covers: Collection[str]
    #: name under which the mean of an epoch's training losses is logged, or None
    stack_train_metric: str | None
    #: (may be left out, False then) whether members of one key may have tensors of different sizes: those of a smaller
    #: one are filled up with zeros, at the end of every dimension. The step must compute the same as without them, and
    #: give the weights there a gradient of 0, so that they stay 0.
    # stack_pads: bool

    def stack_key(self) -> Hashable:
        """Return what members must have in common."""
        ...

    def stack_settings(self) -> dict[str, float]:
        """Return the scalars in which members may differ, beside those of the optimizer."""
        ...

    def stack_step(self, settings: Mapping[str, Sequence[float]]) -> StackedStep:
        """Return the step for members with these settings."""
        ...


def own_step(module: pl.LightningModule) -> Stackable | None:
    """Return the module if it offers its own step, and nothing that the step stands for was overridden since.

    The class that defines ``stack_key`` vouches for the steps it has; a subclass that changes one of them is stacked
    like any other module.
    """
    if not isinstance(module, Stackable):
        return None
    for cls in type(module).__mro__:
        if "stack_key" in vars(cls):
            break
        if any(name in vars(cls) for name in ("training_step", "validation_step", "forward", *module.stack_covers)):
            return None
    return module


def covered_hooks(module: pl.LightningModule) -> Collection[str]:
    """Return the hooks of a module that a stack may leave out because its own step stands for them."""
    step: Any = own_step(module)
    return () if step is None else step.stack_covers
