"""Activations of stacked networks, and their derivatives, in given memory.

Each is 0 at 0, on which the filling of narrow members relies (see :func:`.modules.mlp_key`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An activation and its derivative, both written into given memory.

    Attributes:
        forward: From the input, (M, H, B), to the output; both may be the same memory where ``by_result``.
        backward: From the gradient of the output, the input and the output to the gradient of the input, in place.
        by_result: Whether the derivative follows from the output alone, so that the input need not be kept.
    """

    forward: Callable[[Tensor, Tensor], Any]
    backward: Callable[[Tensor, Tensor, Tensor], Any]
    by_result: bool


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        lambda x, out: torch.clamp(x, min=0, out=out),
        lambda g, x, y: aten.threshold_backward.grad_input(g, y, 0, grad_input=g),
        True,
    ),
    "leaky_relu": Activation(
        lambda x, out: aten.leaky_relu.out(x, 0.01, out=out),
        lambda g, x, y: aten.leaky_relu_backward.grad_input(g, y, 0.01, True, grad_input=g),
        True,
    ),
    "elu": Activation(
        lambda x, out: aten.elu.out(x, out=out),
        lambda g, x, y: aten.elu_backward.grad_input(g, 1, 1, 1, True, y, grad_input=g),
        True,
    ),
    "tanh": Activation(
        lambda x, out: torch.tanh(x, out=out),
        lambda g, x, y: aten.tanh_backward.grad_input(g, y, grad_input=g),
        True,
    ),
    "gelu": Activation(
        lambda x, out: aten.gelu.out(x, out=out),
        lambda g, x, y: aten.gelu_backward.grad_input(g, x, grad_input=g),
        False,
    ),
    "silu": Activation(
        lambda x, out: aten.silu.out(x, out=out),
        lambda g, x, y: aten.silu_backward.grad_input(g, x, grad_input=g),
        False,
    ),
}
