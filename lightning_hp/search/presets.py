"""What is known about hyperparameters before any measurement: their tier, scale, range and default.

Tiers after the importance order usual for networks trained by mini-batch gradient descent: A the learning rate; B
momentum, hidden units, mini-batch size; C number of layers, learning-rate decay; D Adam's beta1, beta2, epsilon.
``playbook`` orders by trial budget instead (Godbole et al., Deep Learning Tuning Playbook, section on Adam): below 10
trials only the learning rate; from 10 also beta1; from 25 also epsilon; beta2 later.

A preset holds argument names; a mapping with dotted paths is made by :func:`preset` with ``paths``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    """What a name tells.

    Attributes:
        tier: The usual tier.
        scale: The usual scale.
        numeric: Whether choices given as text are numbers.
    """

    tier: str = "B"
    scale: str = "linear"
    numeric: bool = False

    def scale_for(self, kind: str, low: float, high: float) -> str:
        """The usual scale where it fits the bounds, else linear."""
        if self.scale == "log" and low <= 0:
            return "linear"
        if self.scale == "one_minus_log" and (high >= 1 or kind == "int"):
            return "linear"
        return self.scale


_KNOWN = {
    "learning_rate": Known("A", "log"),
    "lr": Known("A", "log"),
    "momentum": Known("B", "one_minus_log"),
    "hidden_units": Known("B", "linear"),
    "batch_size": Known("B", "log", numeric=True),
    "batch_growth": Known("C", "linear"),
    "num_layers": Known("C", "linear"),
    "learning_rate_decay": Known("C", "log"),
    "lr_decay": Known("C", "log"),
    "weight_decay": Known("C", "log"),
    "dropout": Known("C", "linear"),
    "beta1": Known("D", "one_minus_log"),
    "beta2": Known("D", "one_minus_log"),
    "epsilon": Known("D", "log"),
    "eps": Known("D", "log"),
}


def guess(name: str) -> Known:
    """What is known of a parameter by the last part of its name; tier B and a linear scale where nothing is."""
    return _KNOWN.get(name.rsplit(".", 1)[-1], Known())


_LEARNING_RATE = {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A", "default": 1e-2}
_ADAM_RATE = {"low": 1e-5, "high": 1e-1, "scale": "log", "tier": "A", "default": 1e-3}
_MOMENTUM = {"low": 0.9, "high": 0.999, "scale": "one_minus_log", "tier": "B", "default": 0.9}
_BATCH = {"choices": [32, 64, 128, 256], "tier": "B", "default": 64}
_DECAY = {"low": 1e-3, "high": 0.3, "scale": "log", "tier": "C", "default": 1e-2}
_WEIGHT_DECAY = {"low": 1e-6, "high": 1e-1, "scale": "log", "tier": "C", "default": 1e-4}
_BETA1 = {"low": 0.8, "high": 0.99, "scale": "one_minus_log", "tier": "D", "default": 0.9}
_BETA2 = {"low": 0.9, "high": 0.9999, "scale": "one_minus_log", "tier": "D", "default": 0.999}
_EPSILON = {"low": 1e-10, "high": 1e-3, "scale": "log", "tier": "D", "default": 1e-8}
_UNITS = {"low": 16, "high": 256, "scale": "linear", "tier": "B", "default": 128}
_LAYERS = {"low": 1, "high": 4, "tier": "C", "default": 2}
_DROPOUT = {"low": 0.0, "high": 0.5, "scale": "linear", "tier": "C", "default": 0.0}

#: name -> parameters, by argument name
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "sgd": {
        "learning_rate": _LEARNING_RATE,
        "momentum": _MOMENTUM,
        "batch_size": _BATCH,
        "learning_rate_decay": _DECAY,
    },
    "adam": {
        "learning_rate": _ADAM_RATE,
        "batch_size": _BATCH,
        "learning_rate_decay": _DECAY,
        "beta1": _BETA1,
        "beta2": _BETA2,
        "epsilon": _EPSILON,
    },
    "adamw": {
        "learning_rate": _ADAM_RATE,
        "batch_size": _BATCH,
        "learning_rate_decay": _DECAY,
        "weight_decay": _WEIGHT_DECAY,
        "beta1": _BETA1,
        "beta2": _BETA2,
        "epsilon": _EPSILON,
    },
    "batchnorm_mlp": {
        "learning_rate": _LEARNING_RATE,
        "momentum": _MOMENTUM,
        "hidden_units": _UNITS,
        "batch_size": _BATCH,
        "num_layers": _LAYERS,
        "learning_rate_decay": _DECAY,
        "weight_decay": _WEIGHT_DECAY,
        "dropout": _DROPOUT,
    },
    "playbook": {
        "learning_rate": _ADAM_RATE,
        "beta1": {**_BETA1, "tier": "B"},
        "epsilon": {**_EPSILON, "tier": "C"},
        "beta2": {**_BETA2, "tier": "D"},
    },
}

#: preset -> tier -> the total number of trials from which the tier opens, where it differs from the usual plan
OPENS_FROM: dict[str, dict[str, int]] = {"playbook": {"A": 0, "B": 10, "C": 25, "D": 100}}

#: arguments that belong to the DataModule; all others belong to the model
_DATA_ARGUMENTS = ("batch_size", "batch_growth")


def preset(name: str, paths: bool = False, only: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """A preset as the mapping that :meth:`SearchSpace.from_dict` takes.

    Args:
        name: One of ``PRESETS``.
        paths: Whether keys are LightningCLI paths (``model.init_args.learning_rate``) instead of argument names.
        only: Keep only these argument names, None for all.

    Raises:
        ValueError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"`space` must be a mapping or one of the presets {', '.join(PRESETS)}, got {name!r}")
    chosen: Mapping[str, dict[str, Any]] = PRESETS[name]
    if only is not None:
        wanted = set(only)
        chosen = {k: v for k, v in chosen.items() if k in wanted}
    return {_path(k) if paths else k: dict(v) for k, v in chosen.items()}


def _path(argument: str) -> str:
    return f"{'data' if argument in _DATA_ARGUMENTS else 'model'}.init_args.{argument}"
