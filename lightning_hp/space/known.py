"""What the name of a hyperparameter tells: its tier, its scale, its usual range, and a range around a value of it.

Tiers after the importance order usual for networks trained by mini-batch gradient descent: A the learning rate; B
momentum, hidden units, mini-batch size; C number of layers, learning-rate decay; D Adam's beta1, beta2, epsilon.

The usual ranges are those of the presets. A range around a value (of the user's own configuration) follows one of these
rules, by name:

=========================  ==========================================================================================
learning rate, its decay   Two decades on each side. What is good depends on model, data and batch size, so the value is
and weight decay           all there is to go by; the presets reach as far from their defaults (1e-4 to 1 around 1e-2).
momentum, beta1, beta2     The usual range, and at least half and twice the distance from 1 of the value: an average
                           with weight b looks back over 1 / (1 - b) values, so this is twice and half the memory.
epsilon                    1e-10 to 1e-3, and at least a decade on each side. It is added to a root mean square of
                           gradients: small ones are all alike, large ones turn Adam into momentum (Choi et al. 2019).
dropout                    0 to 0.5 (Srivastava et al. 2014), to twice the value where that is more, but at most half
                           way from the value to 1.
hidden units               A quarter to twice the value: the cost of a layer grows with the square.
layers                     Half to twice the value, and at least two more.
mini-batch size            A quarter, half, once, twice and four times the value: memory and the noise of the gradient
                           are proportional to it.
=========================  ==========================================================================================

A value of 0 that switches something off has no place on a log axis: decay and weight decay are then choices, 0 and the
decades of the usual range.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_hp.space.fields import is_number


@dataclass(frozen=True)
class Known:
    """What a name tells.

    Attributes:
        tier: The usual tier.
        scale: The usual scale.
        numeric: Whether choices given as text are numbers.
        usual: The usual range as fields of a space's entry, empty where there is none.
        around: The range around a value of at least 0, as such fields, None where there is no rule.
    """

    tier: str = "B"
    scale: str = "linear"
    numeric: bool = False
    usual: Mapping[str, Any] = field(default_factory=dict)
    around: Callable[[float], dict[str, Any]] | None = None

    def scale_for(self, kind: str, low: float, high: float) -> str:
        """The usual scale where it fits the bounds, else linear.

        Args:
            kind: ``int`` or ``float``.
            low: Lower bound.
            high: Upper bound.
        """
        if self.scale == "log" and low <= 0:
            return "linear"
        if self.scale == "one_minus_log" and (high >= 1 or kind == "int"):
            return "linear"
        return self.scale

    def range_for(self, value: Any = None) -> dict[str, Any]:
        """A range as fields of a space's entry: around a value, else the usual one; empty where nothing is known.

        Args:
            value: A number, or a list of them (one a layer); the usual range is given for anything else.
        """
        values = value if isinstance(value, list | tuple) else [value]
        numbers = [v for v in values if is_number(v) and 0 <= v < math.inf]
        if self.around is None or not numbers or len(numbers) < len(values):
            return dict(self.usual)
        least, most = self.around(float(min(numbers))), self.around(float(max(numbers)))
        if "choices" in least or "choices" in most:
            both = [*_values(least), *_values(most)]
            return {"choices": sorted(set(both))}
        return {"low": least["low"], "high": most["high"]}


def _values(fields: Mapping[str, Any]) -> Sequence[float]:
    return fields["choices"] if "choices" in fields else (fields["low"], fields["high"])


def _short(value: float) -> float:
    """Without binary noise: 3e-4 / 100 is 2.9999999999999997e-06."""
    return float(f"{value:.12g}")


def _decades(value: float, usual: Mapping[str, Any]) -> dict[str, Any]:
    if value > 0:
        return {"low": _short(value / 100), "high": _short(value * 100)}
    first, last = math.ceil(math.log10(usual["low"]) - 1e-9), math.floor(math.log10(usual["high"]) + 1e-9)
    return {"choices": [0.0, *(_short(10.0**exponent) for exponent in range(first, last + 1))]}


def _memory(value: float, usual: Mapping[str, Any]) -> dict[str, Any]:
    if value >= 1:
        return dict(usual)
    distance = 1 - value
    low = max(min(usual["low"], _short(1 - 2 * distance)), 0.0)
    return {"low": low, "high": max(usual["high"], _short(1 - distance / 2))}


def _epsilon(value: float) -> dict[str, Any]:
    if value == 0:
        return dict(_EPSILON)
    return {"low": min(_EPSILON["low"], _short(value / 10)), "high": max(_EPSILON["high"], _short(value * 10))}


def _dropout(value: float) -> dict[str, Any]:
    return {"low": 0.0, "high": max(0.5, _short(min(2 * value, (1 + value) / 2)))}


def _units(value: float) -> dict[str, Any]:
    return {"low": max(1, math.floor(value / 4)), "high": max(2, math.ceil(value * 2))}


def _layers(value: float) -> dict[str, Any]:
    least = max(1, math.floor(value / 2))
    return {"low": min(least, math.floor(value)), "high": math.ceil(max(2 * value, value + 2))}


def _batch(value: float) -> dict[str, Any]:
    return {"choices": sorted({max(1, round(value * part)) for part in (0.25, 0.5, 1, 2, 4)})}


_RATE = {"low": 1e-5, "high": 1.0}
_MOMENTUM = {"low": 0.9, "high": 0.999, "default": 0.9}
_BETA1 = {"low": 0.8, "high": 0.99, "default": 0.9}
_BETA2 = {"low": 0.9, "high": 0.9999, "default": 0.999}
_EPSILON = {"low": 1e-10, "high": 1e-3, "default": 1e-8}
_DECAY = {"low": 1e-3, "high": 0.3, "default": 1e-2}
_WEIGHT_DECAY = {"low": 1e-6, "high": 1e-1, "default": 1e-4}

KNOWN: dict[str, Known] = {
    "learning_rate": Known("A", "log", usual=_RATE, around=lambda value: _decades(value, _RATE) if value else _RATE),
    "momentum": Known("B", "one_minus_log", usual=_MOMENTUM, around=lambda value: _memory(value, _MOMENTUM)),
    "hidden_units": Known("B", usual={"low": 16, "high": 256, "default": 128}, around=_units),
    "batch_size": Known("B", "log", numeric=True, usual={"choices": [32, 64, 128, 256], "default": 64}, around=_batch),
    "batch_growth": Known("C"),
    "num_layers": Known("C", usual={"low": 1, "high": 4, "default": 2}, around=_layers),
    "learning_rate_decay": Known("C", "log", usual=_DECAY, around=lambda value: _decades(value, _DECAY)),
    "weight_decay": Known("C", "log", usual=_WEIGHT_DECAY, around=lambda value: _decades(value, _WEIGHT_DECAY)),
    "dropout": Known("C", usual={"low": 0.0, "high": 0.5, "default": 0.0}, around=_dropout),
    "beta1": Known("D", "one_minus_log", usual=_BETA1, around=lambda value: _memory(value, _BETA1)),
    "beta2": Known("D", "one_minus_log", usual=_BETA2, around=lambda value: _memory(value, _BETA2)),
    "epsilon": Known("D", "log", usual=_EPSILON, around=_epsilon),
}

#: what is a part of one, and so at most 1
SHARES = ("momentum", "beta1", "beta2", "dropout", "learning_rate_decay")
#: other names for the same things
_ALIASES = {
    "lr": "learning_rate",
    "max_lr": "learning_rate",
    "base_lr": "learning_rate",
    "peak_lr": "learning_rate",
    "init_lr": "learning_rate",
    "initial_lr": "learning_rate",
    "lr_decay": "learning_rate_decay",
    "wd": "weight_decay",
    "hidden_size": "hidden_units",
    "hidden_sizes": "hidden_units",
    "hidden_dim": "hidden_units",
    "hidden_dims": "hidden_units",
    "hidden_channels": "hidden_units",
    "hidden": "hidden_units",
    "width": "hidden_units",
    "widths": "hidden_units",
    "units": "hidden_units",
    "channels": "hidden_units",
    "base_channels": "hidden_units",
    "num_channels": "hidden_units",
    "hidden_features": "hidden_units",
    "filters": "hidden_units",
    "num_filters": "hidden_units",
    "d_model": "hidden_units",
    "layers": "num_layers",
    "n_layers": "num_layers",
    "depth": "num_layers",
    "num_blocks": "num_layers",
    "n_blocks": "num_layers",
    "dropout_rate": "dropout",
    "drop_rate": "dropout",
    "dropout_p": "dropout",
    "dropout_prob": "dropout",
    "drop_prob": "dropout",
    "train_batch_size": "batch_size",
    "b1": "beta1",
    "b2": "beta2",
    "beta_1": "beta1",
    "beta_2": "beta2",
    "betas.0": "beta1",
    "betas.1": "beta2",
    "eps": "epsilon",
}
#: parts of a model that have values of their own: ``lr_generator`` and ``head_lr`` are learning rates
_OF_A_PART = [
    "actor",
    "attention",
    "attn",
    "backbone",
    "body",
    "classifier",
    "critic",
    "decoder",
    "disc",
    "discriminator",
    "embedding",
    "encoder",
    "gen",
    "generator",
    "head",
    "policy",
]
#: what parts of a model have
_HAD_BY_PARTS = ("learning_rate", "weight_decay", "dropout")


def canonical(key: str) -> str:
    """The name under which a key's last part is known: ``model.init_args.lr`` is a ``learning_rate``.

    Elements of a list are written ``betas.0`` or ``betas[0]``; those of a list of hidden units are ``hidden_units``. A
    name that is not known is its own.
    """
    last = parts_of(re.sub(r"\[(\d+)\]", r".\1", key))[-1]
    name = _ALIASES.get(last, last)
    if name in KNOWN:
        return name
    if (of_list := _ALIASES.get(last.partition(".")[0])) == "hidden_units":
        return of_list
    for part in _OF_A_PART:
        rest = last.removeprefix(f"{part}_").removesuffix(f"_{part}")
        if rest != last and _ALIASES.get(rest, rest) in _HAD_BY_PARTS:
            return _ALIASES.get(rest, rest)
    return name


def parts_of(key: str) -> list[str]:
    """The parts of a dotted key; the place in a list belongs to the list's own part (``betas.0``)."""
    return re.split(r"\.(?!\d+(?:\.|$))", key)


def guess(key: str) -> Known:
    """What is known of a parameter by the last part of its key; tier B and a linear scale where nothing is."""
    return KNOWN.get(canonical(key), Known())
