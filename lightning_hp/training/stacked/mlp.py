"""All members of a stack of `BatchNormMLP`s at once: forward, backward and validation in plain matrix operations.

Activations lie as (M, H, B), features before rows, so that the mean over the rows of a mini-batch is the mean over
contiguous memory for every member and unit alike, and one grouped matrix product serves all members. The backward pass
is written out (Ioffe and Szegedy 2015, section 3); memory is reused from step to step. Tests hold it against autograd.
Shapes: M members, B rows of a mini-batch, F features, H units of a layer, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_hp.training.stacked.activations import ACTIVATIONS
from lightning_hp.training.stacked.protocol import Tensors
from lightning_hp.training.stacked.refusal import NotStackable

#: rows that a validation holds in memory at a time
VALIDATION_ROWS = 512


@dataclass
class _Layer:
    """What the forward pass of one hidden layer leaves for the backward pass."""

    standard: Tensor  # normalised values, or the product itself without a norm
    inverse: Tensor | None  # 1 / sqrt(var + eps), (M, H, 1)
    before: Tensor  # input of the activation
    after: Tensor  # output of the activation
    output: Tensor  # output of the layer
    kept: Tensor | None  # 0 or 1 / (1 - rate), where there is dropout


class _Settings:
    """The members' scalars in the shapes in which a step needs them; the same for all layers."""

    def __init__(self, settings: Tensors) -> None:
        self.momentum = settings["bn_momentum"].unsqueeze(1)
        self.rest = 1 - self.momentum
        self.epsilon = settings["bn_epsilon"].view(-1, 1, 1)
        self.rate = settings["dropout"].view(-1, 1, 1)
        self.kept = 1 - self.rate


class MLPStep:
    """Losses, gradients and outputs of M members of one structure; holds scratch memory, no weights."""

    def __init__(self, layers: int, activation: str, norm: str, dropout: bool) -> None:
        """Keep the structure.

        Args:
            layers: Hidden layers.
            activation: As `BatchNormMLP`.
            norm: "z", "a" or "none".
            dropout: Whether any member has a dropout rate above 0.
        """
        self.layers, self.norm, self.dropout = layers, norm, dropout
        self.activation = ACTIVATIONS[activation]
        self._memory: dict[tuple[Any, ...], Tensor] = {}

    def _space(self, name: str, like: Tensor, *shape: int) -> Tensor:
        key = (name, shape, like.dtype, like.device)
        if key not in self._memory:
            if len(self._memory) > 60:  # other mini-batch sizes, other numbers of members
                self._memory.clear()
            self._memory[key] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return self._memory[key]

    # --- forward ---

    def outputs(self, weights: Tensors, buffers: Tensors, settings: Tensors, x: Tensor) -> tuple[Tensor, list[_Layer]]:
        """Run the hidden layers and the output layer in train mode, and update the running statistics.

        Args:
            weights: Parameters of the network by name, shape (M, ...).
            buffers: Its buffers, changed in place.
            settings: ``bn_momentum``, ``bn_epsilon`` and ``dropout``, shape (M,).
            x: Features, shape (M, B, F).

        Returns:
            Outputs (M, O, B), and what `backward` needs.
        """
        saved = []
        hidden = x.transpose(1, 2)
        shaped = _Settings(settings)
        for number in range(self.layers):
            layer = self._layer(number, weights, buffers, shaped, hidden)
            saved.append(layer)
            hidden = layer.output
        return torch.baddbmm(weights["net.output.bias"].unsqueeze(2), weights["net.output.weight"], hidden), saved

    def _layer(self, number: int, weights: Tensors, buffers: Tensors, settings: _Settings, hidden: Tensor) -> _Layer:
        weight = weights[f"net.hidden.{number}.0.weight"]
        shape = (len(weight), weight.shape[1], hidden.shape[2])
        z = torch.bmm(weight, hidden, out=self._space(f"z{number}", weight, *shape))
        if self.norm != "z":
            z.add_(weights[f"net.hidden.{number}.0.bias"].unsqueeze(2))
        activation, inverse, standard = self.activation, None, z
        at = f"net.hidden.{number}.{1 if self.norm == 'z' else 2}"
        out = self._space(f"a{number}", weight, *shape)
        if self.norm == "z":
            inverse = self._standardise(z, at, buffers, settings)
            before = torch.mul(z, weights[f"{at}.weight"].unsqueeze(2), out=out)
            before.add_(weights[f"{at}.bias"].unsqueeze(2))
        else:
            before = z
        after = before
        if not activation.by_result or self.norm != "z":
            after = self._space(f"h{number}", weight, *shape)
        activation.forward(before, after)
        result = after
        if self.norm == "a":
            standard = self._space(f"s{number}", weight, *shape).copy_(after)
            inverse = self._standardise(standard, at, buffers, settings)
            result = torch.mul(standard, weights[f"{at}.weight"].unsqueeze(2), out=out)
            result.add_(weights[f"{at}.bias"].unsqueeze(2))
        kept = None
        if self.dropout:
            kept = torch.rand(shape, out=self._space(f"k{number}", weight, *shape))
            torch.ge(kept, settings.rate, out=kept)
            kept.div_(settings.kept)
            result = torch.mul(result, kept, out=self._space(f"d{number}", weight, *shape))
        return _Layer(standard, inverse, before, after, result, kept)

    def _standardise(self, z: Tensor, at: str, buffers: Tensors, settings: _Settings) -> Tensor:
        """Make mean 0 and variance 1 over the rows, in place; return 1 / sqrt(var + eps), shape (M, H, 1)."""
        rows = z.shape[2]
        if rows < 2:
            raise NotStackable("batch normalisation needs 2 rows or more in every mini-batch")
        mean = z.mean(2, keepdim=True)
        z.sub_(mean)
        var = torch.linalg.vector_norm(z, dim=2, keepdim=True).square_().div_(rows)
        momentum, rest = settings.momentum, settings.rest
        buffers[f"{at}.running_mean"].mul_(rest).addcmul_(mean.squeeze(2), momentum)
        buffers[f"{at}.running_var"].mul_(rest).addcmul_(var.squeeze(2), momentum, value=rows / (rows - 1))
        buffers[f"{at}.num_batches_tracked"].add_(1)
        inverse: Tensor = var.add_(settings.epsilon).rsqrt_()
        z.mul_(inverse)
        return inverse

    # --- backward ---

    def backward(
        self, weights: Tensors, gradients: Tensors, saved: Sequence[_Layer], x: Tensor, output_gradient: Tensor
    ) -> None:
        """Write the gradients of all parameters.

        Args:
            weights: Parameters of the network by name.
            gradients: Where to write; a name that is missing is not trained.
            saved: As `outputs` returned.
            x: Features, shape (M, B, F).
            output_gradient: Of the loss by the outputs, shape (M, O, B).
        """
        last = saved[-1].output if saved else x.transpose(1, 2)
        _write(gradients, "net.output.bias", partial(_sum_rows, output_gradient))
        _write(gradients, "net.output.weight", partial(_product, output_gradient, last.transpose(1, 2)))
        weight = weights["net.output.weight"]
        for number in reversed(range(self.layers)):
            layer = saved[number]
            g = self._space(f"g{number % 2}", layer.output, *layer.output.shape)
            torch.bmm(weight.transpose(1, 2), output_gradient, out=g)
            if layer.kept is not None:
                g.mul_(layer.kept)
            if self.norm == "a":
                self._norm_backward(g, layer, f"net.hidden.{number}.2", weights, gradients)
            self.activation.backward(g, layer.before, layer.after)
            if self.norm == "z":
                self._norm_backward(g, layer, f"net.hidden.{number}.1", weights, gradients)
            else:
                _write(gradients, f"net.hidden.{number}.0.bias", partial(_sum_rows, g))
            below = x if number == 0 else saved[number - 1].output.transpose(1, 2)
            name = f"net.hidden.{number}.0.weight"
            _write(gradients, name, partial(_product, g, below))
            weight, output_gradient = weights[name], g

    def _norm_backward(self, g: Tensor, layer: _Layer, at: str, weights: Tensors, gradients: Tensors) -> None:
        """Turn the gradient of the norm's output into that of its input, in place."""
        rows = g.shape[2]
        assert layer.inverse is not None
        work = torch.mul(g, layer.standard, out=self._space("work", g, *g.shape))
        by_gamma, by_beta = work.sum(2, keepdim=True), g.sum(2, keepdim=True)
        _write(gradients, f"{at}.weight", lambda out: out.copy_(by_gamma.squeeze(2)))
        _write(gradients, f"{at}.bias", lambda out: out.copy_(by_beta.squeeze(2)))
        g.addcmul_(layer.standard, by_gamma, value=-1 / rows).sub_(by_beta, alpha=1 / rows)
        g.mul_(layer.inverse * weights[f"{at}.weight"].unsqueeze(2))

    # --- evaluation ---

    def predict(self, weights: Tensors, buffers: Tensors, settings: Tensors, x: Tensor) -> Tensor:
        """Return the outputs in eval mode, shape (M, O, B), for features of shape (M, B, F)."""
        hidden = x.transpose(1, 2)
        for number in range(self.layers):
            hidden = torch.bmm(weights[f"net.hidden.{number}.0.weight"], hidden)
            if self.norm != "z":
                hidden.add_(weights[f"net.hidden.{number}.0.bias"].unsqueeze(2))
                self.activation.forward(hidden.clone() if not self.activation.by_result else hidden, hidden)
            if self.norm != "none":
                at = f"net.hidden.{number}.{1 if self.norm == 'z' else 2}"
                inverse = (buffers[f"{at}.running_var"] + settings["bn_epsilon"].unsqueeze(1)).rsqrt_()
                hidden.sub_(buffers[f"{at}.running_mean"].unsqueeze(2))
                hidden.mul_(inverse.mul_(weights[f"{at}.weight"]).unsqueeze(2))
                hidden.add_(weights[f"{at}.bias"].unsqueeze(2))
            if self.norm == "z":
                self.activation.forward(hidden.clone() if not self.activation.by_result else hidden, hidden)
        return torch.baddbmm(weights["net.output.bias"].unsqueeze(2), weights["net.output.weight"], hidden)


def _sum_rows(gradient: Tensor, out: Tensor) -> None:
    torch.sum(gradient, 2, out=out)


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    torch.bmm(left, right, out=out)


def _write(gradients: Tensors, name: str, write: Callable[[Tensor], Any]) -> None:
    if name in gradients:
        write(gradients[name])


def cross_entropy(output: Tensor, target: Tensor, gradient: bool = True) -> tuple[Tensor, Tensor | None]:
    """Return the mean cross-entropy of every member, and its gradient by the outputs.

    Args:
        output: Logits, shape (M, O, B).
        target: Classes, int64 of shape (M, B).
        gradient: Whether the gradient is wanted.

    Returns:
        Losses (M,), and the gradient (M, O, B) or None.
    """
    log_p = torch.log_softmax(output, dim=1)
    index = target.unsqueeze(1)
    losses = log_p.gather(1, index).squeeze(1).mean(1).neg_()
    if not gradient:
        return losses, None
    out = log_p.exp_()
    out.scatter_add_(1, index, out.new_full((), -1.0).expand_as(index))
    return losses, out.div_(output.shape[2])


def squared_error(output: Tensor, target: Tensor, gradient: bool = True) -> tuple[Tensor, Tensor | None]:
    """Return the mean squared error of every member over rows and outputs, and its gradient by the outputs.

    Args:
        output: Shape (M, O, B).
        target: Shape (M, O, B).
        gradient: Whether the gradient is wanted.

    Returns:
        Losses (M,), and the gradient (M, O, B) or None.
    """
    difference = output - target
    losses = difference.square().mean((1, 2))
    return losses, difference.mul_(2 / (output.shape[1] * output.shape[2])) if gradient else None


class ClassifierStep(MLPStep):
    """The stacked step of `BatchNormClassifier`."""

    def losses_and_gradients(
        self, weights: Tensors, buffers: Tensors, settings: Tensors, batch: Sequence[Tensor], gradients: Tensors
    ) -> Tensor:
        """As `StackedStep.losses_and_gradients`."""
        x, y = batch
        with torch.no_grad():
            output, saved = self.outputs(weights, buffers, settings, x)
            losses, by_output = cross_entropy(output, y)
            assert by_output is not None
            self.backward(weights, gradients, saved, x, by_output)
        return losses

    @torch.no_grad()
    def validate(
        self, weights: Tensors, buffers: Tensors, settings: Tensors, batches: Sequence[Sequence[Tensor]]
    ) -> dict[str, Tensor]:
        """Return ``val_loss`` and ``val_accuracy``, shape (M,)."""
        rows, loss, right = 0, torch.zeros(()), torch.zeros(())
        for x, y in _pieces(batches):
            output = self.predict(weights, buffers, settings, x)
            loss = loss.to(output) + cross_entropy(output, y, gradient=False)[0] * y.shape[1]
            right = right.to(output) + (output.argmax(1) == y).sum(1)
            rows += y.shape[1]
        return {"val_loss": loss / rows, "val_accuracy": right / rows}


class RegressorStep(MLPStep):
    """The stacked step of `BatchNormRegressor`; targets are standardised by each member's own mean and scale."""

    def losses_and_gradients(
        self, weights: Tensors, buffers: Tensors, settings: Tensors, batch: Sequence[Tensor], gradients: Tensors
    ) -> Tensor:
        """As `StackedStep.losses_and_gradients`."""
        x, y = batch
        with torch.no_grad():
            output, saved = self.outputs(weights, buffers, settings, x)
            losses, by_output = squared_error(output, self._standard(output, y, buffers))
            assert by_output is not None
            self.backward(weights, gradients, saved, x, by_output)
        return losses

    def _standard(self, output: Tensor, target: Tensor, buffers: Tensors) -> Tensor:
        mean, scale = _column(buffers["_mean"]), _column(buffers["_scale"])
        return (_targets(output, target) - mean) / scale

    @torch.no_grad()
    def validate(
        self, weights: Tensors, buffers: Tensors, settings: Tensors, batches: Sequence[Sequence[Tensor]]
    ) -> dict[str, Tensor]:
        """Return ``val_loss``, ``val_mae`` and ``val_r2`` (the mean over the targets), shape (M,)."""
        mean, scale = _column(buffers["_mean"]), _column(buffers["_scale"])
        outputs, targets = [], []
        for x, y in _pieces(batches):
            output = self.predict(weights, buffers, settings, x)
            outputs.append(output)
            targets.append(_targets(output, y))
        output, target = torch.cat(outputs, 2), torch.cat(targets, 2)
        loss, _ = squared_error(output, (target - mean) / scale, gradient=False)
        error = output * scale + mean - target
        spread = (target - target.mean(2, keepdim=True)).square().sum(2)
        return {
            "val_loss": loss,
            "val_mae": error.abs().mean((1, 2)),
            "val_r2": (1 - error.square().sum(2) / spread).mean(1),
        }


def _column(statistic: Tensor) -> Tensor:
    """Return (M,) or (M, T) as (M, 1 or T, 1)."""
    return statistic.reshape(len(statistic), -1, 1)


def _targets(output: Tensor, target: Tensor) -> Tensor:
    """Return targets (M, B) or (M, B, T) as (M, T, B)."""
    shaped = target.reshape(*target.shape[:2], -1).transpose(1, 2)
    if shaped.shape != output.shape:
        raise ValueError(f"`target` must have shape {tuple(output.shape)}, got {tuple(shaped.shape)}")
    return shaped


def _pieces(batches: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [
        piece
        for x, y in batches
        for piece in zip(x.split(VALIDATION_ROWS, dim=1), y.split(VALIDATION_ROWS, dim=1), strict=True)
    ]


def any_above_zero(settings: Mapping[str, Sequence[float]], name: str) -> bool:
    """Whether a setting is above 0 for any member."""
    return any(number > 0 for number in settings[name])
