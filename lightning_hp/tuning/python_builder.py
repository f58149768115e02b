"""Trials of ``tune()``: module, data and Trainer from Python callables; a key of the space is an argument of one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_hp.search.space import SearchSpace
from lightning_hp.tuning.built import Built
from lightning_hp.tuning.length import TrainingLength
from lightning_hp.tuning.quiet import quiet_lightning
from lightning_hp.tuning.trial_outputs import METRICS_FILE, MetricsLog, callbacks_of_trial, loggers_of_trial
from lightning_hp.tuning.yaml_file import ConfigError


@dataclass(frozen=True)
class PythonBuilder:
    """Builds from Python callables; a key of the space is an argument of the module or of the data module.

    Attributes:
        module: Class or function that gives a LightningModule.
        data: Class or function that gives a LightningDataModule, an instance of one, or None.
        trainer: Arguments of ``Trainer``.
    """

    module: Callable[..., pl.LightningModule]
    data: Callable[..., pl.LightningDataModule] | pl.LightningDataModule | None = None
    trainer: Mapping[str, Any] | None = None

    def build(
        self,
        arguments: Mapping[str, Any],
        folder: Path,
        seed: int,
        callbacks: Sequence[pl.Callback] = (),
        length: TrainingLength = TrainingLength(),  # noqa: B008 - frozen
    ) -> Built:
        """Make the objects of one trial; see :meth:`.CliBuilder.build`."""
        for_module, for_data = self._split(arguments)
        options: dict[str, Any] = {
            **(self.trainer or {}),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
            "enable_checkpointing": True,
        }
        options |= length.to_json()
        options["logger"] = loggers_of_trial(options.get("logger"), folder)
        own = callbacks_of_trial(deepcopy(list(options.get("callbacks") or [])), folder)
        options["callbacks"] = [*own, MetricsLog(folder / METRICS_FILE), *callbacks]
        with quiet_lightning():
            pl.seed_everything(seed, workers=True)
            data = self.data(**for_data) if callable(self.data) else deepcopy(self.data)
            return Built(self.module(**for_module), data, pl.Trainer(**options))

    def trainer_settings(self) -> Mapping[str, Any]:
        """The arguments of the Trainer."""
        return self.trainer or {}

    def fixed_part(self, space: SearchSpace) -> dict[str, Any]:
        """What all trials share, as plain JSON: the callables with their defaults, and the Trainer's arguments."""
        tuned = {entry.key.split(".")[-1] for entry in space.entries}
        trainer = {k: v for k, v in (self.trainer or {}).items() if k not in ("callbacks", "logger")}
        return {
            "module": _signature(self.module, tuned),
            "data": _signature(self.data, tuned),
            "trainer": json.loads(json.dumps(trainer, default=_plain_text)),
        }

    def check(self, space: SearchSpace) -> None:
        """Check that every key of the space is an argument of the module or of the data module.

        Raises:
            ConfigError: Naming the key and the arguments there are.
        """
        for point in space.examples():
            self._split(space.arguments(point))

    def _split(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        takers = {"module": _accepted(self.module), "data": _accepted(self.data) if callable(self.data) else Taken()}
        split: dict[str, dict[str, Any]] = {"module": {}, "data": {}}
        for key, value in arguments.items():
            name = key.split(".")[-1]
            root = {"model": "module", "module": "module", "data": "data"}.get(key.split(".")[0] if "." in key else "")
            asked = [root] if root else list(takers)
            # who names an argument takes it before who takes anything
            fits = [p for p in asked if name in takers[p].names] or [p for p in asked if takers[p].anything]
            if not fits:
                module, data = (", ".join(sorted(takers[p].names)) or "nothing" for p in ("module", "data"))
                raise ConfigError(
                    f"`space.{key}` must be an argument of the module ({module}) or of the data module ({data})"
                )
            for part in fits:
                split[part][name] = value
        return split["module"], split["data"]


@dataclass(frozen=True)
class Taken:
    """The arguments that a callable takes: by name, and whether it takes any other."""

    names: frozenset[str] = frozenset()
    anything: bool = False


def _signature(source: Any, tuned: set[str]) -> dict[str, Any] | None:
    """What tells two modules or data modules apart: name, and defaults of the arguments that are not tuned."""
    if source is None:
        return None
    kind = source if callable(source) else type(source)
    name = f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', repr(kind))}"
    parameters = inspect.signature(kind).parameters.values()
    defaults = {
        p.name: p.default for p in parameters if p.name not in tuned and p.default is not inspect.Parameter.empty
    }
    plain = json.loads(json.dumps(defaults, default=_plain_text))
    return {"name": name.replace(".<locals>", ""), "defaults": plain}


def _plain_text(value: Any) -> str:
    """A value that JSON does not know: its kind, since its text may hold an address in memory."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _accepted(made: Callable[..., Any]) -> Taken:
    parameters = inspect.signature(made).parameters.values()
    named = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return Taken(named, any(p.kind is p.VAR_KEYWORD for p in parameters))
