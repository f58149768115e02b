"""Gradients of all members between their computation and the optimizer step: accumulated and clipped as a Trainer does.

Shapes: M members; gradients by name, shape (M, ...); limits (M, 1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Accumulated:
    """The sum of gradients over mini-batches; Lightning divides each loss by their number."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._sums: dict[str, Tensor] = {}

    def add(self, gradients: Mapping[str, Tensor], batches: int) -> dict[str, Tensor]:
        """Add the gradients of one mini-batch.

        Args:
            gradients: By name; not kept.
            batches: Mini-batches of one optimizer step.

        Returns:
            The sums so far.
        """
        for name, gradient in gradients.items():
            part = gradient / batches
            self._sums[name] = self._sums[name] + part if name in self._sums else part
        return self._sums


def clip_by_norm(gradients: Mapping[str, Tensor], limits: Tensor) -> None:
    """Scale every member's gradient, in place, to a norm of at most its limit (``torch.nn.utils.clip_grad_norm_``)."""
    rows = len(limits)
    squares = [torch.linalg.vector_norm(g.view(rows, -1), dim=1, keepdim=True) for g in gradients.values()]
    total = torch.linalg.vector_norm(torch.cat(squares, dim=1), dim=1, keepdim=True)
    factor = (limits.to(total.dtype) / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.view(rows, -1).mul_(factor)


def clip_by_value(gradients: Mapping[str, Tensor], limits: Tensor) -> None:
    """Clamp every member's gradient, in place, to its limit on both sides (``torch.nn.utils.clip_grad_value_``)."""
    rows = len(limits)
    for gradient in gradients.values():
        flat = gradient.view(rows, -1)
        limit = limits.to(flat.dtype)
        torch.maximum(torch.minimum(flat, limit, out=flat), -limit, out=flat)
