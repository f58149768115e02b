"""Spaces for well-known optimizers and models.

``playbook`` orders by trial budget (Godbole et al., Deep Learning Tuning Playbook, section on Adam): below 10 trials
only the learning rate; from 10 also beta1; from 25 also epsilon; beta2 later. The others order by :mod:`.known`.

A preset holds argument names; :func:`preset` makes LightningCLI paths of them, or fits them to what a project takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_hp.space.known import canonical, guess

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


def preset(
    name: str,
    paths: bool = False,
    only: Iterable[str] | None = None,
    takes: Iterable[str] | None = None,
    values: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """A preset as the mapping that :meth:`SearchSpace.from_dict` takes.

    Args:
        name: One of ``PRESETS``.
        paths: Whether keys are LightningCLI paths (``model.init_args.learning_rate``) instead of argument names.
        only: Keep only these argument names, None for all.
        takes: What the model and the data take, as argument names or as paths: the preset's names are matched with
            these, also where they say ``lr``, ``eps`` or ``betas.0``; what nothing takes is left out. None to keep the
            preset's own names.
        values: The values of the user's own configuration, by the keys of ``takes`` (or of the result): they become
            the defaults, and where one lies outside the preset's range, the range is the one around it (:mod:`.known`).

    Raises:
        ValueError: If there is no such preset, a name could mean several arguments, or nothing takes a learning rate.
    """
    if name not in PRESETS:
        raise ValueError(f"`space` must be a mapping or one of the presets {', '.join(PRESETS)}, got {name!r}")
    chosen: Mapping[str, dict[str, Any]] = PRESETS[name]
    if only is not None:
        wanted = set(only)
        chosen = {argument: entry for argument, entry in chosen.items() if argument in wanted}
    if takes is not None:
        keys = _matched(name, chosen, list(takes))
    else:
        keys = {argument: _path(argument) if paths else argument for argument in chosen}
    counter = keys.get("num_layers")
    return {
        keys[argument]: _with_value(argument, entry, (values or {}).get(keys[argument]), counter)
        for argument, entry in chosen.items()
        if argument in keys
    }


def _matched(name: str, arguments: Iterable[str], takes: Sequence[str]) -> dict[str, str]:
    """The key that takes each argument of a preset; what nothing takes is left out."""
    matched: dict[str, str] = {}
    for argument in arguments:
        keys = [key for key in takes if canonical(key) == argument]
        depth = min((key.count(".") for key in keys), default=0)
        nearest = [key for key in keys if key.count(".") == depth]
        if len(nearest) > 1:
            raise ValueError(
                f"`space` must name its parameters: {argument} of the preset {name!r} could be "
                f"{' or '.join(sorted(nearest))}; write a mapping from paths to ranges instead of {name!r}"
            )
        if nearest:
            matched[argument] = nearest[0]
    if "learning_rate" in arguments and "learning_rate" not in matched:
        raise ValueError(
            f"`space` must name its parameters: nothing takes the learning rate of the preset {name!r} "
            f"(learning_rate or lr), there is {', '.join(takes) or 'nothing'}"
        )
    return matched


def _with_value(argument: str, entry: Mapping[str, Any], value: Any, counter: str | None) -> dict[str, Any]:
    """An entry of a preset, starting at the user's own value; a list has a value for each of ``counter`` layers."""
    if value is None:
        return dict(entry)
    if "choices" in entry:
        fits = value in entry["choices"]
    else:
        fits = isinstance(value, int | float) and entry["low"] <= value <= entry["high"]
    fields = dict(entry)
    if not fits:
        around = guess(argument).range_for(value)
        kept = ("tier",) if "choices" in around else ("tier", "scale")
        fields = {**around, **{field: entry[field] for field in kept if field in entry}}
    layers = {"per_layer": counter} if isinstance(value, list) and counter is not None else {}
    return {**fields, **layers, "default": value}


def _path(argument: str) -> str:
    return f"{'data' if argument in _DATA_ARGUMENTS else 'model'}.init_args.{argument}"
