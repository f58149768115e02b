"""Trials of a LightningCLI project: its own command with some values replaced and its outputs kept apart.

The values are put on the command line, behind the project's files (``fit --config train.yaml --model.lr=0.1``), so
the project's own parser resolves everything: classes named by a word, parts in files of their own, links, defaults,
the environment. What it resolved is the one source of everything else: the file's own values of the space, the part
that stays the same, ``best.yaml``, and what cannot be tuned.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentError

from lightning_hp.project import key_paths
from lightning_hp.project.build_facts import optimizers
from lightning_hp.project.built import Built, refuse_keys_of_the_study
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.parser_errors import parser_error
from lightning_hp.project.project_cli import Call, Place, ProjectCLI, import_path
from lightning_hp.project.quiet import quiet_lightning
from lightning_hp.project.resolved import Resolved, differences, resolve
from lightning_hp.project.trial_outputs import METRICS_FILE, MetricsLog, callbacks_of_trial, loggers_of_trial
from lightning_hp.project.yaml_file import ConfigError, read_yaml
from lightning_hp.space.choices import Choice
from lightning_hp.space.space import SearchSpace

#: parts of the configuration that decide nothing about what is learned, or that the study itself sets
_OF_NO_EFFECT = (
    "seed_everything",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.log_every_n_steps",
    "trainer.enable_checkpointing",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
)


@dataclass(frozen=True)
class CliBuilder:
    """Builds what the project's command builds, with some values replaced.

    Attributes:
        config: The LightningCLI file, or several, later ones over earlier ones; they are not changed.
        model: Class path, for files that name no model class.
        data: Class path, for files that name no data class.
        cli: The project's own LightningCLI, see :class:`.ProjectCLI`.
    """

    config: Path | tuple[Path, ...]
    model: str | None = None
    data: str | None = None
    cli: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The LightningCLI files."""
        return self.config if isinstance(self.config, tuple) else (self.config,)

    @property
    def project(self) -> ProjectCLI:
        """How the project calls LightningCLI."""
        return ProjectCLI(self.model, self.data, self.cli)

    @property
    def classes(self) -> dict[str, str]:
        """What the files do not say, by the option of ``lightning-hp fit`` that does."""
        return self.project.options()

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
            folder: ``default_root_dir``, and where all that the trial writes goes.
            seed: For ``seed_everything``.
            callbacks: Added to those of the project.
            length: Its limits replace the file's.

        Raises:
            ConfigError: If the file or a value does not fit.
        """
        call = self.called(self.values_of(arguments, folder, seed, length), folder, callbacks)
        return Built(call.cli.model, call.cli.datamodule, call.cli.trainer, call.train)

    def values_of(
        self, arguments: Mapping[str, Any], folder: Path, seed: int, length: TrainingLength
    ) -> dict[str, Any]:
        """Every value of a trial that replaces one of the project, by key; see :meth:`build`."""
        values = {**arguments, "trainer.default_root_dir": str(folder), "seed_everything": seed}
        return values | limits(length)

    def called(self, values: Mapping[str, Any], folder: Path, callbacks: Sequence[pl.Callback]) -> Call:
        """The project's command with these values, left where the objects of the trial are built."""
        return self._call(values, "built", instantiated=self.keeping_apart(folder, callbacks))

    def keeping_apart(self, folder: Path, callbacks: Sequence[pl.Callback]) -> Callable[[dict[str, Any]], None]:
        """What changes the arguments of a trial's Trainer: all that the trial writes goes to its folder."""

        def keep_apart(trainer: dict[str, Any]) -> None:
            trainer["enable_progress_bar"] = trainer["enable_model_summary"] = False
            trainer["enable_checkpointing"] = True
            trainer["logger"] = loggers_of_trial(trainer.get("logger"), folder)
            own = callbacks_of_trial(trainer["callbacks"], folder)
            trainer["callbacks"] = [*own, MetricsLog(folder / METRICS_FILE), *callbacks]

        return keep_apart

    @cached_property
    def own(self) -> Resolved:
        """The project's own configuration, as its parser resolves it.

        Raises:
            ConfigError: If the files are no LightningCLI files.
        """
        for file in self.files:
            read_yaml(file, "config")
        try:
            return self.resolve({})
        except Exception as error:  # also of the project's code, which sets its parser up
            names = ", ".join(map(str, self.files))
            reason = " ".join(str(error).split())
            if "${" in reason:
                reason += "; a command with parser_mode omegaconf resolves such values: name yours as `cli`"
            raise ConfigError(f"`config` must be a LightningCLI file, got {names!r}: {reason}") from error

    def resolve(self, arguments: Mapping[str, Any]) -> Resolved:
        """The configuration with some values replaced.

        Raises:
            ConfigError: If a value does not fit.
        """
        return resolve(self._call(arguments, "parsed"))

    def trainer_settings(self) -> Mapping[str, Any]:
        """The project's arguments of the Trainer."""
        return self.own.config.get("trainer") or {}

    def takes(self) -> list[str]:
        """Every key of the model, the data and the optimizer that the project's configuration has."""
        sections = ("model", "data", "optimizer", "lr_scheduler")
        return [key for section in sections for key in key_paths.dotted(self.own.config.get(section), section)]

    def defaults(self, keys: Iterable[str]) -> dict[str, Any]:
        """The project's own value of each key; one that it has none of is left out."""
        values = {}
        for key in keys:
            place = self._place(key)
            if place is not None:
                values[key] = key_paths.value_at(self.own.config, place)
        return values

    def fixed_part(self, space: SearchSpace) -> dict[str, Any]:
        """What all trials share, as plain JSON: the configuration without the tuned keys, and the classes' arguments.

        The length of the training is left out, as are seed, loggers and what else has no effect on a trial's value.
        """
        keys = [*(entry.key for entry in space.entries), *_OF_NO_EFFECT]
        places = [place for key in keys if (place := self._place(key)) is not None]
        fixed = {
            "config": key_paths.without(self.own.config, places),
            "signatures": dict(self.own.signatures),
            **self.classes,
        }
        plain: dict[str, Any] = json.loads(json.dumps(fixed, default=str))
        return plain

    def check(self, space: SearchSpace) -> None:
        """Check, before the first trial, that the files load and that every key of the space decides what it names.

        Raises:
            ConfigError: Naming the file or the key, and what to write instead.
        """
        trainer = self.own.config.get("trainer") or {}
        for switch in ("fast_dev_run", "barebones"):
            if trainer.get(switch):
                raise ConfigError(
                    f"`trainer.{switch}` must be false, got {trainer[switch]!r}: it leaves no checkpoint of a trial; "
                    "use limit_train_batches for a quick look"
                )
        refuse_keys_of_the_study(entry.key for entry in space.entries)
        for entry in space.entries:
            self._check_key(entry.key)
        for point in _points(space):
            arguments = space.arguments(point)
            try:
                resolved = self._check_values(arguments)
            except ConfigError:
                for key in arguments:  # each alone, for an error that names it
                    self._check_values({k: v for k, v in arguments.items() if k in (key, *space.deciders(key))}, key)
                raise
            self.written_back(resolved)
        if self.own.config.get("ckpt_path"):
            self._check_warm_start(space)

    def _check_warm_start(self, space: SearchSpace) -> None:
        """Refuse what the optimizer's state in a checkpoint overwrites: learning rate, momentum and the like."""
        points = space.examples()
        with tempfile.TemporaryDirectory() as folder:

            def optimizers_at(point: Mapping[str, Any]) -> Any:
                built = self.build(space.arguments(point), Path(folder), 0)
                return optimizers(built.model, built.trainer)

            at_defaults = optimizers_at(points[0])
            for parameter in space.parameters:
                ends = {parameter.stored_name: parameter.at(0.0)}, {parameter.stored_name: parameter.at(1.0)}
                if any(optimizers_at({**points[0], **end}) != at_defaults for end in ends):
                    key = next(entry.key for entry in space.entries if parameter.name in entry.names)
                    raise ConfigError(
                        f"`space.{key}` must decide its value, but `ckpt_path` restores the optimizer with its own; "
                        "load the weights alone, in the model or in before_fit, and leave out `ckpt_path`"
                    )

    def written_back(self, resolved: Resolved) -> str:
        """A configuration as a LightningCLI file that the project's command resolves to just this configuration.

        Raises:
            ConfigError: If it resolves to something else.
        """
        text = resolved.to_yaml()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "best.yaml")
            file.write_text(text, encoding="utf-8")
            try:
                again = self.of_file(file).resolve({})
            except ConfigError as error:
                raise ConfigError(f"`config` must be one that best.yaml can repeat: {error}") from None
        if changes := differences(resolved.config, again.config):
            raise ConfigError(f"`config` must be one that best.yaml can repeat, but there {'; '.join(changes[:3])}")
        return text

    def of_file(self, file: Path) -> CliBuilder:
        """The same project with another file in place of its own."""
        return replace(self, config=file)

    def _check_key(self, key: str) -> None:
        try:
            key_paths.find(self.own.config, key)
        except key_paths.AmbiguousKey as error:
            raise ConfigError(f"`space.{key}` must say which of several it means: {error}") from None
        for link in self.own.links:
            if link.sets(key):
                raise ConfigError(
                    f"`space.{key}` must not be set by a link: the project computes it from "
                    f"{' and '.join(link.sources)}; tune that instead"
                )

    def _check_values(self, arguments: Mapping[str, Any], named: str = "") -> Resolved:
        """Check that values reach what they are meant for, through parser and hooks of the project."""
        try:
            resolved = self.resolve(arguments)
        except ConfigError as error:
            if not named:
                raise
            must = f"`space.{named}` must be something that {self._name}{self._hint(named)}"
            raise ConfigError(must if "ambiguous option" in str(error) else f"{must}: {error}") from None
        for key, value in arguments.items():
            place = key_paths.find(resolved.config, key)
            if place is None:
                raise ConfigError(f"`space.{key}` must be something that {self._name}{self._hint(key)}")
            there = key_paths.value_at(resolved.config, place)
            if not same(value, there):
                by = "the checkpoint of `ckpt_path` does" if resolved.config.get("ckpt_path") else "something else does"
                raise ConfigError(f"`space.{key}` must decide its value, but {by}: {there!r} where {value!r} was given")
        hooked = self._call(arguments, "hooked").config
        for key, value in arguments.items():
            there = _in_namespace(hooked, resolved.config, key)
            if not same(value, there):
                raise ConfigError(
                    f"`space.{key}` must decide its value, but before_instantiate_classes of the project's "
                    f"LightningCLI makes it {there!r} where {value!r} was given"
                )
        return resolved

    @property
    def _name(self) -> str:
        return f"{' with '.join(map(str, self.files))} takes"

    def _hint(self, key: str) -> str:
        """The paths that may be meant, or the arguments there are where the key points into a class."""
        ends = key_paths.ending_in(self.own.config, key.split(".")[-1])
        if ends:
            return f" (there is {', '.join(ends)})"
        part = key.split(".")[0]
        value = self.own.config.get(part)
        path = value.get("class_path") if isinstance(value, Mapping) else self.own.fixed_classes.get(part)
        if not isinstance(path, str):
            return ""
        with contextlib.suppress(ConfigError):
            taken = [n for n in inspect.signature(import_path(path, part)).parameters if n not in ("args", "kwargs")]
            return f" ({path} takes {', '.join(taken)})"
        return ""

    def _place(self, key: str) -> key_paths.Place | None:
        try:
            return key_paths.find(self.own.config, key)
        except key_paths.AmbiguousKey:
            return None

    def _call(self, values: Mapping[str, Any], until: Place, **changes: Callable[[Any], None]) -> Call:
        if any("[" in key or key.startswith("trainer.callbacks.") for key in values):
            values = key_paths.with_lists_replaced(self.own.config, values)
        arguments = [part for file in self.files for part in ("--config", str(file))]
        # a class first: its arguments are those of the new one
        for key, value in sorted(values.items(), key=lambda item: not item[0].endswith("class_path")):
            arguments.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
        try:
            with quiet_lightning():
                return self.project.call(arguments, until, **changes)
        except ArgumentError as error:
            raise ConfigError(parser_error(str(error))) from error


def limits(length: TrainingLength) -> dict[str, int]:
    """The limits of a training as keys of the file."""
    return {f"trainer.{name}": limit for name, limit in length.to_json().items()}


def _points(space: SearchSpace) -> list[dict[str, Any]]:
    """Stored points that show whether every key decides what it names.

    In them every key is handed on, every choice that is more than a number is taken, and every parameter is somewhere
    else than at its default: there a value that something else sets is often the same.
    """
    points = space.examples()
    ends = {p.stored_name: (p.at(0.0), p.at(1.0)) for p in space.parameters}
    points += [{name: low if low != point[name] else high for name, (low, high) in ends.items()} for point in points]
    for parameter in space.parameters:
        if isinstance(parameter, Choice):
            for label, choice in zip(parameter.labels, parameter.choices, strict=True):
                point = {**points[0], parameter.stored_name: label}
                if not isinstance(choice, bool | int | float) and point not in points:
                    points.append(point)
    return points


def same(value: Any, resolved: Any) -> bool:
    """Whether a value of the configuration is the one that was given: classes may be named in full, numbers cast."""
    if isinstance(value, bool) or value is None:
        return value is resolved
    if isinstance(value, int | float):
        return isinstance(resolved, int | float) and not isinstance(resolved, bool) and float(value) == float(resolved)
    if isinstance(value, str):
        if isinstance(resolved, Mapping):
            resolved = resolved.get("class_path")
        return str(resolved) == value or str(resolved).endswith(f".{value}")
    if isinstance(value, list | tuple):
        return (
            isinstance(resolved, list | tuple)
            and len(value) == len(resolved)
            and all(same(a, b) for a, b in zip(value, resolved, strict=True))
        )
    if isinstance(value, Mapping) and isinstance(resolved, Mapping):
        places = {key: key_paths.find(resolved, key) for key in value}
        return all(place and same(value[key], key_paths.value_at(resolved, place)) for key, place in places.items())
    return bool(value == resolved)


def _in_namespace(hooked: Any, resolved: Mapping[str, Any], key: str) -> Any:
    """The value of a key in a configuration that the project's hook has seen: as plain values where it has any."""
    place = key_paths.find(resolved, key) or ()
    value = hooked
    for part in place:
        value = value[part] if isinstance(part, int) or not hasattr(value, "get") else value.get(part)
        if value is None:
            break
    return value.as_dict() if hasattr(value, "as_dict") else value
