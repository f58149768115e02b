"""What decides how a build trains, as plain values that can be compared with those of another build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_hp.project.built import Built

#: what a Trainer decides about a training
_TRAINER = (
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "check_val_every_n_epoch",
    "val_check_interval",
    "limit_train_batches",
    "limit_val_batches",
    "num_devices",
    "log_every_n_steps",
    "reload_dataloaders_every_n_epochs",
    "overfit_batches",
)


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """Where the facts of two builds differ: the name of each with a sentence."""
    names = dict.fromkeys([*one, *other])
    return {
        name: f"{name} is {one.get(name)!r} and becomes {other.get(name)!r}"
        for name in names
        if one.get(name) != other.get(name)
    }


def facts(built: Built) -> dict[str, Any]:
    """What decides how a build trains, as plain values."""
    model, data, trainer = built.model, built.data, built.trainer
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return {
        "model": _path(model),
        **{f"model.{name}": _plain(value) for name, value in model.hparams.items()},
        **{f"model.{name}": tuple(value.shape) for name, value in model.state_dict().items()},
        "data": None if data is None else _path(data),
        **({} if data is None else {f"data.{name}": value for name, value in _settings(data).items()}),
        **{f"trainer.{name}": _plain(getattr(trainer, name, None)) for name in _TRAINER},
        "trainer.strategy": (_path(trainer.strategy), _path(trainer.accelerator)),
        **{f"trainer.callbacks[{i}]": (_path(one), _settings(one)) for i, one in enumerate(callbacks)},
        "trainer.loggers": [_path(logger) for logger in trainer.loggers],
        "optimizers": optimizers(model, trainer),
    }


def optimizers(model: pl.LightningModule, trainer: pl.Trainer) -> Any:
    """Class and settings of every group of every optimizer; None where they can only be made in a fit."""
    model.trainer = trainer
    try:
        configured = model.configure_optimizers()
    except Exception:
        return None
    optimizers: list[Any] = []
    for one in configured if isinstance(configured, list | tuple) else [configured]:
        for optimizer in one if isinstance(one, list | tuple) else [one]:
            optimizer = optimizer.get("optimizer") if isinstance(optimizer, Mapping) else optimizer
            groups = getattr(optimizer, "param_groups", ())
            settings = [{name: _plain(value) for name, value in group.items() if name != "params"} for group in groups]
            optimizers.append((_path(optimizer), settings, _settings(optimizer)))
    return optimizers


def _path(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _settings(value: Any) -> dict[str, Any]:
    """Attributes that are plain values."""
    return {
        name: held
        for name, held in vars(value).items()
        if isinstance(held, str | int | float | bool | None | tuple | Path) and not name.startswith("__")
    }


def _plain(value: Any) -> Any:
    """A value that can be compared: itself where it is plain, else its class."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else _path(value)
