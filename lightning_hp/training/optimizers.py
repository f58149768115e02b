"""From flat hyperparameters to an optimizer and a learning-rate schedule, for any ``nn.Module``.

Units: a schedule is a factor on the learning rate as a function of the epoch (0 in the first epoch); it is stepped once
an epoch. One number, ``decay``, sets the strength of every schedule; 0 is a constant rate with each of them. With t the
epoch and T the number of epochs planned:

    none           1
    exponential    (1 - decay) ** t
    inverse_time   1 / (1 + decay * t)
    step           (1 - decay) ** floor(t / step_every)
    cosine         1 - decay * (1 - cos(pi * min(t, T) / T)) / 2       (reaches 1 - decay at T)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("none", "exponential", "cosine", "step", "inverse_time")
# The last word of a normalisation layer's class name: BatchNorm1d, GroupNorm, LlamaRMSNorm. torch has no common base.
_NORM_CLASS = re.compile(r"Norm(\d+d)?$")


def _is_norm(module: nn.Module) -> bool:
    return any(_NORM_CLASS.search(cls.__name__) for cls in type(module).__mro__)


def parameter_groups(module: nn.Module, weight_decay: float, decay_norm_and_bias: bool = False) -> list[dict[str, Any]]:
    """Split the parameters into those with weight decay and those without.

    Biases (every parameter with the word "bias" in its name, as in ``in_proj_bias``) and the parameters that belong
    directly to a normalisation layer (gamma and beta) are left out of weight decay: shrinking a scale or an offset does
    not restrain the function that the weights compute. A parameter that several modules share appears once, and without
    decay if any of them asks for that. Frozen parameters (``requires_grad=False``) are left out.

    Args:
        module: Any module.
        weight_decay: Weight decay of the first group.
        decay_norm_and_bias: Decay everything.

    Returns:
        Optimizer parameter groups, decayed first; a group without parameters is left out.

    Raises:
        ValueError: If the module has no parameter that requires a gradient.
    """
    order: dict[nn.Parameter, bool] = {}
    for owner in module.modules():
        norm = _is_norm(owner)
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad:
                exempt = not decay_norm_and_bias and (norm or "bias" in name.split("_"))
                order[parameter] = order.get(parameter, False) or exempt
    if not order:
        raise ValueError("`module` must have a parameter that requires a gradient, got none")
    groups = [
        {"params": [p for p, exempt in order.items() if not exempt], "weight_decay": weight_decay},
        {"params": [p for p, exempt in order.items() if exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def check_optimizer_arguments(
    optimizer: str,
    learning_rate: float,
    momentum: float,
    nesterov: bool,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    """Raise ValueError, naming the argument, for a value that no optimizer here can take."""
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"`optimizer` must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    for name, value in (("learning_rate", learning_rate), ("epsilon", epsilon)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"`{name}` must be above 0 and finite, got {value!r}")
    for name, value in (("momentum", momentum), ("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            raise ValueError(f"`{name}` must be at least 0 and below 1, got {value!r}")
    if not (weight_decay >= 0 and math.isfinite(weight_decay)):
        raise ValueError(f"`weight_decay` must be at least 0 and finite, got {weight_decay!r}")
    if nesterov and optimizer == "sgd" and momentum == 0:
        raise ValueError("`momentum` must be above 0 with `nesterov`, got 0")


def build_optimizer(
    module: nn.Module,
    optimizer: str = "sgd",
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    nesterov: bool = False,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decay_norm_and_bias: bool = False,
) -> Optimizer:
    """Build an optimizer over `parameter_groups`.

    Args:
        module: What is trained.
        optimizer: "sgd", "adam" (weight decay added to the gradient) or "adamw" (decoupled weight decay).
        learning_rate: Step size, above 0.
        momentum: Of SGD, from 0 to below 1.
        nesterov: SGD with Nesterov's momentum.
        beta1: Of Adam: decay of the average of gradients.
        beta2: Of Adam: decay of the average of squared gradients.
        epsilon: Of Adam: added to the denominator.
        weight_decay: At least 0.
        decay_norm_and_bias: Also decay gamma, beta and biases.

    Returns:
        The optimizer.

    Raises:
        ValueError: If an argument is out of range or the module has nothing to train.
    """
    check_optimizer_arguments(optimizer, learning_rate, momentum, nesterov, beta1, beta2, epsilon, weight_decay)
    groups = parameter_groups(module, weight_decay, decay_norm_and_bias)
    # One fused kernel instead of a Python loop over small tensors: about half of a small network's optimizer step.
    # It takes no sparse gradients.
    dense = not any(getattr(part, "sparse", False) for part in module.modules())
    parameters = [p for group in groups for p in group["params"]]
    fused = (dense and all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)) or None
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, fused=fused)
    adam = torch.optim.AdamW if optimizer == "adamw" else torch.optim.Adam
    return adam(groups, lr=learning_rate, betas=(beta1, beta2), eps=epsilon, weight_decay=weight_decay, fused=fused)


def check_schedule_arguments(schedule: str, learning_rate_decay: float, step_every: int) -> None:
    """Raise ValueError, naming the argument, for a schedule that cannot be built."""
    if schedule not in SCHEDULES:
        raise ValueError(f"`schedule` must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if not (learning_rate_decay >= 0 and math.isfinite(learning_rate_decay)):
        raise ValueError(f"`learning_rate_decay` must be at least 0 and finite, got {learning_rate_decay!r}")
    below_1 = schedule in ("exponential", "step")
    if (learning_rate_decay > 1 and schedule == "cosine") or (learning_rate_decay >= 1 and below_1):
        most = "below 1" if below_1 else "at most 1"
        raise ValueError(
            f"`learning_rate_decay` must be {most} with schedule {schedule!r}, got {learning_rate_decay!r}"
        )
    if step_every < 1:
        raise ValueError(f"`step_every` must be 1 or more epochs, got {step_every!r}")


def learning_rate_factor(
    schedule: str, learning_rate_decay: float, step_every: int = 10, max_epochs: int | None = None
) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the epoch (formulas in the module's docstring).

    Args:
        schedule: One of ``SCHEDULES``.
        learning_rate_decay: Strength; 0 is a constant rate. Not used by "none".
        step_every: Epochs between two steps of "step".
        max_epochs: Epochs planned, needed by "cosine" only.

    Returns:
        A function from epoch (0 first) to factor.

    Raises:
        ValueError: If an argument is out of range, or "cosine" is not told the number of epochs.
    """
    check_schedule_arguments(schedule, learning_rate_decay, step_every)
    decay = float(learning_rate_decay)
    if schedule == "cosine" and decay > 0:
        if max_epochs is None or max_epochs < 1:
            raise ValueError(f"`max_epochs` must be 1 or more with schedule 'cosine', got {max_epochs!r}")
        span = max_epochs
        return lambda epoch: 1 - decay * (1 - math.cos(math.pi * min(epoch, span) / span)) / 2
    if schedule == "exponential":
        return lambda epoch: (1 - decay) ** epoch
    if schedule == "step":
        return lambda epoch: (1 - decay) ** (epoch // step_every)
    if schedule == "inverse_time":
        return lambda epoch: 1 / (1 + decay * epoch)
    return lambda epoch: 1.0


def build_schedule(
    optimizer: Optimizer,
    schedule: str = "exponential",
    learning_rate_decay: float = 0.0,
    step_every: int = 10,
    max_epochs: int | None = None,
) -> LambdaLR | None:
    """Build the schedule, to be stepped once an epoch, or None where the rate is constant.

    Args:
        optimizer: Whose learning rates are scaled.
        schedule: One of ``SCHEDULES``.
        learning_rate_decay: Strength; 0 is a constant rate.
        step_every: Epochs between two steps of "step".
        max_epochs: Epochs planned, needed by "cosine" only.

    Returns:
        A scheduler, or None.

    Raises:
        ValueError: As `learning_rate_factor`.
    """
    factor = learning_rate_factor(schedule, learning_rate_decay, step_every, max_epochs)
    if schedule == "none" or learning_rate_decay == 0:
        return None
    return LambdaLR(optimizer, factor)
