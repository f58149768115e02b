"""Trials of ``tune()``: module, data and Trainer from Python callables; a key of the space is an argument of one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_hp.project.built import Built, refuse_keys_of_the_study
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.python_project import check_project, copied_callbacks, data_of, plain_json, signature_of
from lightning_hp.project.quiet import quiet_lightning
from lightning_hp.project.trial_outputs import METRICS_FILE, MetricsLog, callbacks_of_trial, loggers_of_trial
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.space.space import SearchSpace


@dataclass(frozen=True)
class PythonBuilder:
    """Builds from Python callables; a key of the space is an argument of the module or of the data module.

    Attributes:
        module: Class or function that gives a LightningModule.
        data: Class or function that gives a LightningDataModule or loaders, an instance of a data module, or None.
        trainer: Arguments of ``Trainer``.
    """

    module: Callable[..., pl.LightningModule]
    data: Callable[..., Any] | pl.LightningDataModule | None = None
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
        split = self._split(arguments)
        options: dict[str, Any] = {
            **(self.trainer or {}),
            **split["trainer"],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
            "enable_checkpointing": True,
        }
        options |= length.to_json()
        options["logger"] = loggers_of_trial(options.get("logger"), folder)
        own = callbacks_of_trial(copied_callbacks(options.get("callbacks")), folder)
        options["callbacks"] = [*own, MetricsLog(folder / METRICS_FILE), *callbacks]
        with quiet_lightning():
            pl.seed_everything(seed, workers=True)
            data = data_of(self.data(**split["data"])) if callable(self.data) else deepcopy(self.data)
            return Built(self.module(**split["module"]), data, pl.Trainer(**options))

    def trainer_settings(self) -> Mapping[str, Any]:
        """The arguments of the Trainer."""
        return self.trainer or {}

    def takes(self) -> list[str]:
        """The arguments that the module and the data module name."""
        return sorted(self._takers["module"].names | self._takers["data"].names)

    def defaults(self, keys: Iterable[str]) -> dict[str, Any]:
        """The project's own values: defaults of the module's and data module's arguments, arguments of the Trainer.

        Args:
            keys: Of the space; those without a value of their own are left out.
        """
        values: dict[str, Any] = {}
        for key in keys:
            name = key.split(".")[-1]
            for part in self._takers_of(key):
                if part == "trainer" and name in (self.trainer or {}):
                    values[key] = (self.trainer or {})[name]
                elif part != "trainer" and self._takers[part].defaults.get(name) not in (None, (), []):
                    values[key] = self._takers[part].defaults[name]
        return values

    def fixed_part(self, space: SearchSpace) -> dict[str, Any]:
        """What all trials share, as plain JSON: the callables with their defaults, and the Trainer's arguments."""
        tuned = {entry.key.split(".")[-1] for entry in space.entries}
        of_trainer = self._split(space.arguments(space.defaults()))["trainer"]
        left_out = {"callbacks", "logger", "max_epochs", "max_steps", *of_trainer}  # the length is kept apart
        trainer = {key: value for key, value in (self.trainer or {}).items() if key not in left_out}
        return {
            "module": signature_of(self.module, tuned),
            "data": signature_of(self.data, tuned),
            "trainer": plain_json(trainer),
        }

    def check(self, space: SearchSpace) -> None:
        """Check what ``tune()`` was given, and that every key of the space is an argument of something.

        Raises:
            ConfigError: Naming the argument or the key, and what is expected.
        """
        check_project(self.module, self.data, self.trainer)
        refuse_keys_of_the_study(entry.key for entry in space.entries)
        for point in space.examples():
            self._split(space.arguments(point))

    @cached_property
    def _takers(self) -> dict[str, Taken]:
        data = accepted(self.data) if callable(self.data) else Taken()
        return {"module": accepted(self.module), "data": data, "trainer": accepted(pl.Trainer)}

    def _takers_of(self, key: str) -> list[str]:
        """Who is given the value of a key: ``module``, ``data``, both, or ``trainer``.

        Raises:
            ConfigError: If nobody takes it.
        """
        name, takers = key.split(".")[-1], self._takers
        root = _ROOTS.get(key.split(".")[0] if "." in key else "")
        roots = [root] if root else ["module", "data"]
        # who names an argument takes it before who takes anything
        fits = [p for p in roots if name in takers[p].names] or [p for p in roots if takers[p].anything]
        if not fits:
            module, data = (", ".join(sorted(takers[p].names)) or "nothing" for p in ("module", "data"))
            raise ConfigError(
                f"`space.{key}` must be an argument of the module ({module}), of the data module ({data}) or, as "
                "`trainer.NAME`, of the Trainer; a function that takes it and makes the module or the data will do too"
            )
        return fits

    def _split(self, arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The arguments of the module, of the data module and of the Trainer."""
        split: dict[str, dict[str, Any]] = {part: {} for part in self._takers}
        for key, value in arguments.items():
            for part in self._takers_of(key):
                split[part][key.split(".")[-1]] = value
        return split


#: first part of a key -> who takes its value
_ROOTS = {"model": "module", "module": "module", "data": "data", "trainer": "trainer"}


@dataclass(frozen=True)
class Taken:
    """The arguments that a callable takes.

    Attributes:
        names: Those that it names.
        anything: Whether it takes any other.
        defaults: Their defaults, where they have any.
    """

    names: frozenset[str] = frozenset()
    anything: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


def accepted(source: Callable[..., Any]) -> Taken:
    """What a callable takes."""
    parameters = inspect.signature(source).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    defaults = {p.name: p.default for p in named if p.default is not p.empty}
    return Taken(frozenset(p.name for p in named), any(p.kind is p.VAR_KEYWORD for p in parameters), defaults)
