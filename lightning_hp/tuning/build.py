"""From natural values to module, data and Trainer: by a LightningCLI file, or by Python classes.

Both builders offer the same calls: ``build`` makes the objects of one trial, ``check`` says before the first trial
which name of the space nobody takes, ``trainer_settings`` gives the Trainer's arguments, which say how long a training
is where the study does not, ``fixed_part`` gives what all trials share.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger

from lightning_hp.search.space import SearchSpace
from lightning_hp.tuning.length import TrainingLength
from lightning_hp.tuning.quiet import quiet_lightning, quiet_lightning_cli
from lightning_hp.tuning.yaml_file import ConfigError, read_yaml


@dataclass
class Built:
    """The objects of one trial. ``data`` is None where the module brings its own loaders."""

    model: pl.LightningModule
    data: pl.LightningDataModule | None
    trainer: pl.Trainer


@dataclass(frozen=True)
class CliBuilder:
    """Builds what a LightningCLI file describes, with some values replaced.

    Attributes:
        config: The LightningCLI file; it is not changed.
        model: Class path, for files that name no model class.
        data: Class path, for files that name no data class.
        cli: Class path of the project's LightningCLI subclass.
    """

    config: Path
    model: str | None = None
    data: str | None = None
    cli: str | None = None

    def build(
        self,
        arguments: Mapping[str, Any],
        folder: Path,
        seed: int,
        callbacks: Sequence[pl.Callback] = (),
        length: TrainingLength = TrainingLength(),  # noqa: B008 - frozen
    ) -> Built:
        """Make the objects of one trial.

        Args:
            arguments: Dotted path into the file to natural value.
            folder: ``default_root_dir``, and where the CSV log goes.
            seed: For ``seed_everything``.
            callbacks: Added to those of the file.
            length: Its limits replace the file's.

        Raises:
            ConfigError: If the file or a value does not fit.
        """
        trainer: dict[str, Any] = {
            "trainer.default_root_dir": str(folder),
            "trainer.enable_progress_bar": False,
            "trainer.enable_model_summary": False,
            "trainer.enable_checkpointing": True,
            "trainer.logger": _csv_logger(folder),
        }
        trainer |= {f"trainer.{name}": limit for name, limit in length.to_json().items()}
        made = self._cli({**arguments, **trainer, "seed_everything": seed}, list(callbacks))
        return Built(made.model, made.datamodule, made.trainer)

    def trainer_settings(self) -> Mapping[str, Any]:
        """The arguments that the file gives the Trainer."""
        trainer = read_yaml(self.config, "config").get("trainer")
        return trainer if isinstance(trainer, Mapping) else {}

    def fixed_part(self, space: SearchSpace) -> dict[str, Any]:
        """What all trials share, as plain JSON: the file without the tuned keys."""
        fixed: dict[str, Any] = json.loads(json.dumps(read_yaml(self.config, "config"), default=str))
        for entry in space.entries:
            *parents, last = entry.key.split(".")
            place: Any = fixed
            for part in parents:
                place = place.get(part) if isinstance(place, dict) else None
            if isinstance(place, dict):
                place.pop(last, None)
        return {"config": fixed, **self.classes}

    def check(self, space: SearchSpace) -> None:
        """Check that the file loads, and that every key of the space is something it takes.

        Raises:
            ConfigError: Naming the file or the key.
        """
        unseeded = {"seed_everything": False}  # the caller's random state stays as it is
        try:
            self._cli(unseeded, [], instantiate=False)
        except ConfigError as error:
            raise ConfigError(f"`config` must be a LightningCLI file, got {str(self.config)!r}: {error}") from None
        for point in space.examples():
            arguments = space.arguments(point)
            with contextlib.suppress(ConfigError):
                self._cli({**arguments, **unseeded}, [], instantiate=False)
                continue
            for key in arguments:
                alone = {k: v for k, v in arguments.items() if k in (key, *space.deciders(key))}
                try:
                    self._cli({**alone, **unseeded}, [], instantiate=False)
                except ConfigError as error:
                    hint = self._hint(key)
                    raise ConfigError(
                        f"`space.{key}` must be something that {self.config} takes{hint}: {error}"
                    ) from None

    @property
    def classes(self) -> dict[str, str]:
        """The class paths that the file itself does not give, by the option of ``lightning-hp fit`` that does."""
        given = {"model_class": self.model, "data_class": self.data, "cli_class": self.cli}
        return {option: path for option, path in given.items() if path}

    def _hint(self, key: str) -> str:
        """The arguments there are, where the key points into a class."""
        part = key.split(".")[0]
        given = read_yaml(self.config, "config").get(part)
        path = given.get("class_path") if isinstance(given, Mapping) else None
        path = path or {"model": self.model, "data": self.data}.get(part)
        if not isinstance(path, str):
            return ""
        with contextlib.suppress(ConfigError):
            taken = [n for n in inspect.signature(import_path(path, part)).parameters if n not in ("args", "kwargs")]
            return f" ({path} takes {', '.join(taken)})"
        return ""

    def resolved(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The file's mapping with some values replaced: a plain LightningCLI file again."""
        merged = deepcopy(read_yaml(self.config, "config"))
        for key, value in arguments.items():
            *parents, last = key.split(".")
            place = merged
            for part in parents:
                found = place.get(part)
                if not isinstance(found, dict):
                    place[part] = found = {}
                place = found
            place[last] = value
        return merged

    def _cli(self, values: Mapping[str, Any], callbacks: list[pl.Callback], instantiate: bool = True) -> LightningCLI:
        arguments = ["--config", str(self.config)]
        for key, value in values.items():
            arguments += [f"--{key}={value if isinstance(value, str) else json.dumps(value)}"]
        kind, options = lightning_cli(self.model, self.data, self.cli)

        def parse(cli: LightningCLI, parser: Any, args: Any) -> None:
            parser.exit_on_error = False  # raise, instead of printing usage and leaving
            kind.parse_arguments(cli, parser, args)

        changed: dict[str, Any] = {"parse_arguments": parse}
        if not instantiate:
            changed["instantiate_classes"] = lambda cli: None
        try:
            with quiet_lightning(), quiet_lightning_cli():
                return type(kind.__name__, (kind,), changed)(
                    run=False,
                    save_config_callback=None,
                    args=arguments,
                    trainer_defaults={"callbacks": callbacks},
                    **options,
                )
        except ArgumentError as error:
            raise ConfigError(_parser_error(str(error))) from error


def lightning_cli(model: str | None, data: str | None, cli: str | None) -> tuple[Any, dict[str, Any]]:
    """The LightningCLI class of a project, and the classes to call it with; None means that the file names them.

    Raises:
        ConfigError: If one cannot be imported.
    """
    options: dict[str, Any] = {}
    if model:
        options["model_class"] = import_path(model, "model")
    if data:
        options["datamodule_class"] = import_path(data, "data")
    return (import_path(cli, "cli") if cli else LightningCLI), options


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
        """Make the objects of one trial; see :meth:`CliBuilder.build`."""
        for_module, for_data = self._split(arguments)
        options: dict[str, Any] = {
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": CSVLogger(str(folder), name="", version=""),
            **(self.trainer or {}),
            "default_root_dir": str(folder),
            "enable_checkpointing": True,
        }
        options |= length.to_json()
        options["callbacks"] = [*deepcopy(list(options.get("callbacks") or [])), *callbacks]
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


def _csv_logger(folder: Path) -> dict[str, Any]:
    return {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(folder), "name": "", "version": ""},
    }


def import_path(path: str, what: str) -> Any:
    """What a dotted path names.

    Raises:
        ConfigError: If it cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"`{what}` must be a class that can be imported, got {path!r}: {error}") from error


def _parser_error(text: str) -> str:
    """What an argument parser says, as one line, without what does not help."""
    said = " ".join(text.split())
    # a class_path that may also be null is reported as a union: only the class's own complaint is of use
    said = re.sub(r"Does not validate against any of the Union subtypes.*?Errors: - ", "", said)
    return re.sub(r"\s*(- Expected a <class 'NoneType'>.*|Given value type: .*)$", "", said)
