"""What ``tune()`` is given, checked before the first trial.

Every trial needs a module, data, callbacks and loggers of its own. Modules and data come from a class or a function
that makes them; callbacks and loggers are copied. What can be neither made again nor copied is refused in one line that
says what to pass instead.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.utils.data import DataLoader

from lightning_hp.project.trial_outputs import loggers_of_trial
from lightning_hp.project.yaml_file import ConfigError

#: what there are loaders for, in the order of a tuple of them
_SPLITS = ("train", "val", "test")


class LoadersModule(pl.LightningDataModule):
    """Loaders that a person has made already, as a data module; all trials share them.

    Args:
        train: For ``fit``.
        val: For validation, None for none.
        test: For the winner's test metrics, None for none.
    """

    def __init__(self, train: Any, val: Any = None, test: Any = None) -> None:
        super().__init__()
        self._loaders = {"train": train, "val": val, "test": test}
        for split, loaders in self._loaders.items():
            if loaders is not None:
                # a function of Python's own: Lightning looks at its code to see that it is overridden
                setattr(self, f"{split}_dataloader", lambda given=loaders: given)

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadersModule:
        """A module of the same loaders: their data is not copied."""
        return LoadersModule(**self._loaders)


def data_of(made: Any) -> pl.LightningDataModule:
    """What a function of the user's made, as a data module.

    Args:
        made: A data module; or loaders: for training, in a tuple with those for validation and for testing, or as a
            mapping with the keys ``train``, ``val`` and ``test``.

    Raises:
        ConfigError: If it is something else.
    """
    if isinstance(made, pl.LightningDataModule):
        return made
    if isinstance(made, DataLoader):
        return LoadersModule(made)
    if isinstance(made, tuple) and 1 <= len(made) <= len(_SPLITS):
        return LoadersModule(*made)
    if isinstance(made, Mapping) and "train" in made and set(made) <= set(_SPLITS):
        return LoadersModule(**made)
    raise ConfigError(
        "`datamodule` must make a LightningDataModule, or loaders as (train, val) or (train, val, test), got one that "
        f"makes {_kind(made)}"
    )


def check_project(module: Any, data: Any, trainer: Any) -> None:
    """Check what ``tune()`` is given.

    Raises:
        ConfigError: Naming the argument, what it must be and what to pass instead.
    """
    if isinstance(module, nn.Module) or not callable(module):
        raise ConfigError(
            f"`module` must be a class or a function that makes a LightningModule, got {_kind(module)}; every trial "
            f"needs a module of its own: pass {_maker(module)}"
        )
    if isinstance(trainer, pl.Trainer):
        raise ConfigError(
            "`trainer` must be a mapping of the Trainer's arguments, such as {'max_epochs': 20}, got a Trainer; every "
            "trial needs one of its own"
        )
    if trainer is not None and not isinstance(trainer, Mapping):
        raise ConfigError(f"`trainer` must be a mapping of the Trainer's arguments, got {_kind(trainer)}")
    if data is not None and not callable(data):
        if not isinstance(data, pl.LightningDataModule):
            raise ConfigError(
                "`datamodule` must be a LightningDataModule, or a class or function that makes one, got "
                f"{_kind(data)}; loaders go to `train_dataloaders` and `val_dataloaders`"
            )
        _check_copy(data, "datamodule", f"pass {_maker(data)}")
    options = dict(trainer or {})
    callbacks = options.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, Sequence) else [callbacks]:
        _check_copy(callback, "trainer['callbacks']", "pass a callback that can be copied")
    loggers_of_trial(options.get("logger"), Path("runs/study/trials/0000"))


def copied_callbacks(configured: Any) -> list[pl.Callback]:
    """Callbacks of a trial's own."""
    callbacks = configured or []
    return deepcopy(list(callbacks) if isinstance(callbacks, Sequence) else [callbacks])


def signature_of(source: Any, tuned: set[str]) -> dict[str, Any] | None:
    """What tells two modules or data modules apart: their name, and defaults of the arguments that are not tuned.

    Args:
        source: A class, a function, an instance, or None.
        tuned: Names of the arguments that trials replace.
    """
    if source is None:
        return None
    kind = source if callable(source) else type(source)
    settings: dict[str, Any] = {}
    while isinstance(kind, functools.partial):
        settings = {**{str(i): value for i, value in enumerate(kind.args)}, **kind.keywords, **settings}
        kind = kind.func
    name = f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', type(kind).__qualname__)}"
    parameters = inspect.signature(kind).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty} | settings
    fixed = {key: value for key, value in defaults.items() if key not in tuned}
    return {"name": name.replace(".<locals>", ""), "defaults": plain_json(fixed)}


def plain_json(value: Any) -> Any:
    """A value as plain JSON types; what JSON does not know becomes the name of its class."""
    return json.loads(json.dumps(value, default=lambda x: f"{type(x).__module__}.{type(x).__qualname__}"))


def _check_copy(value: Any, argument: str, advice: str) -> None:
    try:
        deepcopy(value)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"`{argument}` must be something that every trial can have a copy of, got {_kind(value)} ({reason}); "
            f"{advice}"
        ) from error


def _kind(value: Any) -> str:
    return f"an instance of {type(value).__name__}" if not isinstance(value, str | int | float | None) else repr(value)


def _maker(value: Any) -> str:
    name = type(value).__name__
    return f"the class {name}, or a function such as lambda **hyperparameters: {name}(**hyperparameters)"
