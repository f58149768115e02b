"""A multilayer perceptron with batch normalisation: which layers it has, and in which order.

Shapes: N rows of a mini-batch, F input features, O outputs, H_l units of hidden layer l.
Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) of one unit over a mini-batch:
``Z_norm = (Z - mean) / sqrt(var + epsilon)`` and ``Z_tilde = gamma * Z_norm + beta``, with the biased variance.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
NORMS = ("z", "a", "none")


def layer_widths(hidden_units: int | Sequence[int], num_layers: int | None) -> tuple[int, ...]:
    """Return the width of every hidden layer.

    Args:
        hidden_units: One width for all hidden layers, or one per layer.
        num_layers: Number of hidden layers. With a list of widths it must be its length, or None.

    Returns:
        Widths from the first hidden layer to the last; empty for a linear model (``num_layers=0``).

    Raises:
        ValueError: If a width or the number of layers is out of range, or the two disagree.
        TypeError: If a width is no integer.
    """
    if isinstance(hidden_units, int) and not isinstance(hidden_units, bool):
        if num_layers is None:
            raise ValueError("`num_layers` must be an integer when `hidden_units` is a single width, got None")
        if num_layers < 0:
            raise ValueError(f"`num_layers` must be 0 or more, got {num_layers!r}")
        widths: tuple[int, ...] = (hidden_units,) * num_layers
        checked: tuple[int, ...] = (hidden_units,)
    else:
        if isinstance(hidden_units, str) or not isinstance(hidden_units, Sequence):
            raise TypeError(f"`hidden_units` must be an integer or a list of integers, got {hidden_units!r}")
        widths = checked = tuple(hidden_units)
        if num_layers is not None and num_layers != len(widths):
            raise ValueError(
                f"`num_layers` must be the length of `hidden_units` ({len(widths)}) or None, got {num_layers!r}"
            )
    for width in checked:
        if not isinstance(width, int) or isinstance(width, bool):
            raise TypeError(f"`hidden_units` must be an integer or a list of integers, got {hidden_units!r}")
        if width < 1:
            raise ValueError(f"`hidden_units` must be 1 or more in every layer, got {hidden_units!r}")
    return widths


class BatchNormMLP(nn.Module):
    """Hidden layers of Linear, batch normalisation, activation and dropout, then one Linear output layer.

    With ``norm="z"`` a layer is Linear (without bias: the subtracted mean cancels it, and beta takes its place),
    BatchNorm1d, activation, dropout. With ``norm="a"`` it is Linear, activation, BatchNorm1d, dropout; the bias stays,
    because the activation between it and the norm does not let it cancel.

    Attributes:
        hidden: The hidden layers in order, one ``nn.Sequential`` each.
        output: The last Linear.
        widths: Units of every hidden layer.

    Example:
        >>> net = BatchNormMLP(64, 10, hidden_units=[128, 64], num_layers=None)
        >>> import torch
        >>> net(torch.zeros(5, 64)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        hidden_units: int | Sequence[int] = 128,
        num_layers: int | None = 2,
        activation: str = "relu",
        norm: str = "z",
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        """Build the layers.

        Args:
            num_features: F, at least 1.
            num_outputs: O, at least 1.
            hidden_units: One width for all hidden layers, or one per layer.
            num_layers: Number of hidden layers; None with a list of widths.
            activation: One of ``ACTIVATIONS``.
            norm: "z" before the activation, "a" after it, "none" without normalisation.
            bn_epsilon: Added to the variance, above 0.
            bn_momentum: Weight of the newest mini-batch in the running statistics, above 0 and at most 1
                (PyTorch's convention: ``running = (1 - bn_momentum) * running + bn_momentum * batch``).
            dropout: Probability that a hidden unit is zeroed in training, from 0 to below 1.

        Raises:
            ValueError: If an argument is out of range, with its name.
            TypeError: If ``hidden_units`` is neither an integer nor a list of integers.
        """
        super().__init__()
        self.widths = layer_widths(hidden_units, num_layers)
        check_mlp_arguments(activation, norm, bn_epsilon, bn_momentum, dropout)
        for name, value in (("num_features", num_features), ("num_outputs", num_outputs)):
            if value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value!r}")
        layers: list[nn.Module] = []
        fan_in = num_features
        for width in self.widths:
            parts: list[nn.Module] = [nn.Linear(fan_in, width, bias=norm != "z"), ACTIVATIONS[activation]()]
            if norm != "none":
                parts.insert(1 if norm == "z" else 2, nn.BatchNorm1d(width, eps=bn_epsilon, momentum=bn_momentum))
            if dropout > 0:
                parts.append(nn.Dropout(dropout))
            layers.append(nn.Sequential(*parts))
            fan_in = width
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(fan_in, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map features to outputs (logits or regression values).

        Args:
            x: Features, shape (N, F). In train mode with normalisation N must be at least 2.

        Returns:
            Outputs, shape (N, O).
        """
        output: Tensor = self.output(self.hidden(x))
        return output


def check_mlp_arguments(activation: str, norm: str, bn_epsilon: float, bn_momentum: float, dropout: float) -> None:
    """Raise ValueError for an argument that `BatchNormMLP` cannot take, whatever the number of features."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {', '.join(NORMS)}, got {norm!r}")
    if not bn_epsilon > 0:
        raise ValueError(f"`bn_epsilon` must be above 0, got {bn_epsilon!r}")
    if not 0 < bn_momentum <= 1:
        raise ValueError(f"`bn_momentum` must be above 0 and at most 1, got {bn_momentum!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be at least 0 and below 1, got {dropout!r}")
