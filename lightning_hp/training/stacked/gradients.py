"""Gradients of all members between their computation and the optimizer step: accumulated and clipped as a Trainer does.

Shapes: M members, P numbers a member. Gradients are matrices (M, P), one for each parameter group of the optimizer, see
:mod:`.layout`; limits are (M, 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Accumulated:
    """The sum of gradients over mini-batches; Lightning divides each loss by their number."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._sums: list[Tensor] = []

    def add(self, gradients: Sequence[Tensor], batches: int) -> list[Tensor]:
        """Add the gradients of one mini-batch.

        Args:
            gradients: Of this mini-batch; not kept.
            batches: Mini-batches of one optimizer step.

        Returns:
            The sums so far.
        """
        parts = [gradient / batches for gradient in gradients]
        self._sums = [a.add_(b) for a, b in zip(self._sums, parts, strict=True)] if self._sums else parts
        return self._sums


def clip_by_norm(gradients: Sequence[Tensor], limits: Tensor) -> None:
    """Scale every member's gradient, in place, to a norm of at most its limit (``torch.nn.utils.clip_grad_norm_``)."""
    norms = [torch.linalg.vector_norm(gradient, dim=1, keepdim=True) for gradient in gradients]
    total = torch.linalg.vector_norm(torch.cat(norms, dim=1), dim=1, keepdim=True)
    factor = (limits.to(total.dtype) / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)


def clip_by_value(gradients: Sequence[Tensor], limits: Tensor) -> None:
    """Clamp every member's gradient, in place, to its limit on both sides (``torch.nn.utils.clip_grad_value_``)."""
    for gradient in gradients:
        limit = limits.to(gradient.dtype)
        torch.maximum(torch.minimum(gradient, limit, out=gradient), -limit, out=gradient)
