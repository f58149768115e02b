"""The project's own command, called in this process and stopped where a trial needs it.

A project starts its trainings by a LightningCLI: the plain one, a subclass, a function that makes the call
(``def main(): MyCLI(Net, trainer_defaults=...)``) or a script. All are called as their users call them, with the
arguments in ``sys.argv``, so whatever they pass to LightningCLI holds in a trial. The call is left by an exception of
this module at one of three places:

=============  ========================================================================================
parsed         the configuration is known; nothing was seeded, no hook of the project has run
hooked         ``before_instantiate_classes`` has run too
built          module, data and Trainer exist; the next step is the fit, which the caller starts
=============  ========================================================================================

For that, methods of ``LightningCLI`` are replaced while the call runs; subclasses reach them through ``super()``.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from lightning_hp.project.parser_errors import as_raised
from lightning_hp.project.yaml_file import ConfigError

Place = Literal["parsed", "hooked", "built"]
#: the LightningCLI subcommand that a trial runs
FIT = "fit"


class _Left(BaseException):
    """Leaves the project's code; no ``except Exception`` of it catches this."""


@dataclass
class Call:
    """One call of the project's command, as far as it came.

    Attributes:
        cli: The LightningCLI that the project made.
        arguments: Of ``trainer.fit``, where the project calls it itself (``run=False``): positional, by name.
    """

    cli: LightningCLI
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    @property
    def parser(self) -> Any:
        """The parser of ``fit``."""
        return getattr(self.cli, "_subcommand_parsers", {}).get(FIT, self.cli.parser)

    @property
    def config(self) -> Any:
        """The configuration of ``fit``: values by dotted path, a ``jsonargparse.Namespace``."""
        return self.cli.config.get(FIT, self.cli.config)

    def train(self) -> None:
        """Train as the project does: with the hooks of its LightningCLI, or by its own call of ``trainer.fit``."""
        if self.arguments is not None:
            positional, named = self.arguments
            self.cli.trainer.fit(*positional, **named)
        elif hasattr(self.cli, "_subcommand_parsers"):
            self.cli._run_subcommand(FIT)
        else:
            self.cli.trainer.fit(self.cli.model, datamodule=self.cli.datamodule)


def _nothing(*args: Any) -> None:
    """What is done at a place where nothing is to be done."""


@dataclass(frozen=True)
class ProjectCLI:
    """How a project calls LightningCLI.

    Attributes:
        model: Class path, for files that name no model class.
        data: Class path, for files that name no data class.
        cli: Class path of a LightningCLI subclass, path of a function that makes the call, or a script (``main.py``).
    """

    model: str | None = None
    data: str | None = None
    cli: str | None = None

    def target(self) -> Callable[[], object]:
        """What starts the project's LightningCLI, with its arguments in ``sys.argv``.

        Raises:
            ConfigError: If something cannot be imported, or does not go together.
        """
        classes = {"model_class": self.model, "datamodule_class": self.data}
        options = {key: import_path(path, key.split("_")[0]) for key, path in classes.items() if path}
        if self.cli is None:
            return lambda: LightningCLI(**options)
        if self.cli.endswith(".py"):
            script = Path(self.cli)
            if not script.is_file():
                raise ConfigError(f"`cli` must be a script that exists, got {self.cli!r}")
            start: Callable[[], object] = partial(runpy.run_path, str(script), run_name="__main__")
        else:
            command = import_path(self.cli, "cli")
            if isinstance(command, type):
                return lambda: command(**options)
            if not callable(command):
                raise ConfigError(f"`cli` must be a LightningCLI class, a function or a script, got {self.cli!r}")
            start = command
        if options:
            raise ConfigError(f"`model` and `data` must be left out where `cli` makes the call, got `cli` {self.cli!r}")
        return start

    def run(self, arguments: Sequence[str]) -> dict[str, float]:
        """Run the project's command to its end: ``fit`` with these arguments.

        Returns:
            What was logged last, by metric; nothing in other processes than the first.
        """
        start, calls = self.target(), list[LightningCLI]()

        def entered(cli: LightningCLI) -> None:
            calls.append(cli)
            _save_no_config(cli)

        setup_parser = _with_arguments(arguments, entered)
        with _replaced(LightningCLI, setup_parser=setup_parser), _own_arguments(), as_raised():
            start()
        trainer = getattr(calls[-1], "trainer", None) if calls else None
        if trainer is None or not trainer.is_global_zero:
            return {}
        return {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}

    def call(
        self,
        arguments: Sequence[str],
        until: Place,
        configured: Callable[[Any], None] = _nothing,
        instantiated: Callable[[dict[str, Any]], None] = _nothing,
    ) -> Call:
        """Run the project's command up to a place.

        Args:
            arguments: Options of ``fit``.
            until: Where to leave.
            configured: Is given the configuration before its classes are instantiated, and may change it.
            instantiated: Is given the arguments of the Trainer, all instantiated, and may change them.

        Raises:
            ConfigError: If the project makes no LightningCLI, or leaves before it comes to the place.
            Exception: Of the project's classes, as they raise it.
        """
        visit = _Visit(arguments, until, configured, instantiated)
        start = self.target()
        with visit.in_place(), contextlib.suppress(_Left), as_raised():
            try:
                start()
            except SystemExit as error:
                raise ConfigError(f"`cli` must train, got a command that ends with exit code {error.code}") from error
        if visit.cli is None:
            raise ConfigError(f"`cli` must make a LightningCLI, got {self.cli!r}, which makes none")
        return Call(visit.cli, visit.fit_arguments)

    def again(self, call: Call, config: Any, dump: Any, instantiated: Callable[[dict[str, Any]], None]) -> Call:
        """Make the objects of another configuration by the LightningCLI of a call that has come to ``built``.

        Args:
            call: That call; what it has made stays as it is.
            config: Of the subcommand, where there is one, resolved.
            dump: The same as plain values, as LightningCLI gives it to ``save_hyperparameters``.
            instantiated: As for :meth:`call`.
        """
        cli = copy.copy(call.cli)
        attributes = vars(call.cli).copy()
        visit = _Visit((), "built", _nothing, instantiated)
        try:
            # its parser gives the classes what stands in this very object
            call.cli.config = Namespace({FIT: config, "subcommand": FIT}) if FIT in attributes["config"] else config
            call.cli.config_dump = dump
            with visit.in_place(), as_raised():
                call.cli._set_seed()
                call.cli.instantiate_classes()
            vars(cli).update(vars(call.cli))
        finally:
            vars(call.cli).clear()
            vars(call.cli).update(attributes)
        return Call(cli)

    def options(self) -> dict[str, str]:
        """The same as options of ``lightning-hp fit``."""
        paths = {"model_class": self.model, "data_class": self.data, "cli_class": self.cli}
        return {option: path for option, path in paths.items() if path}


@dataclass
class _Visit:
    arguments: Sequence[str]
    until: Place
    configured: Callable[[Any], None]
    instantiated: Callable[[dict[str, Any]], None]
    cli: LightningCLI | None = None
    fit_arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _fit: Callable[..., NoReturn] | None = None

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        original = {name: getattr(LightningCLI, name) for name in ("_set_seed", "instantiate_classes")}
        prepare, instantiate = LightningCLI._prepare_subcommand_parser, LightningCLI._instantiate_trainer

        def set_seed(cli: LightningCLI) -> None:
            if self.until == "parsed":
                raise _Left
            if self.until == "built":  # else the caller's random state stays as it is
                original["_set_seed"](cli)

        def instantiate_classes(cli: LightningCLI) -> None:
            if self.until == "hooked":
                raise _Left
            self.configured(cli.config.get(FIT, cli.config))
            original["instantiate_classes"](cli)

        def instantiate_trainer(cli: LightningCLI, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
            arguments = {**config, "callbacks": _all_callbacks(cli, config, callbacks)}
            self.instantiated(arguments)
            with _replaced(cli, trainer_defaults={}):  # its callbacks are in `arguments`
                trainer = instantiate(cli, arguments, [])
            # on the instance, since a Trainer of the project's own may do something before it calls `super().fit`
            vars(trainer)["fit"] = partial(fit, trainer)
            self._stack.callback(vars(trainer).pop, "fit")
            return trainer

        def prepare_parser(cli: LightningCLI, trainer: type, subcommand: str, **options: Any) -> Any:
            if subcommand == FIT:
                return prepare(cli, trainer, subcommand, **options)
            cli._subcommand_method_arguments[subcommand] = []  # never run: a full parser takes 20 ms
            return cli.init_parser(**options)

        def run_subcommand(cli: LightningCLI, subcommand: str) -> NoReturn:
            raise _Left

        def fit(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> NoReturn:
            if self.cli is None or trainer is not getattr(self.cli, "trainer", None):
                raise ConfigError("`cli` must train with the Trainer of its LightningCLI, got one that it makes itself")
            self.fit_arguments = (args, kwargs)
            raise _Left

        with (
            self._stack,
            _own_arguments(),
            _replaced(
                LightningCLI,
                setup_parser=_with_arguments(self.arguments, self._enter),
                parse_arguments=_from_command_line,
                _set_seed=set_seed,
                instantiate_classes=instantiate_classes,
                _instantiate_trainer=instantiate_trainer,
                _prepare_subcommand_parser=prepare_parser,
                _run_subcommand=run_subcommand,
            ),
        ):
            self._fit = fit
            yield

    def _enter(self, cli: LightningCLI) -> None:
        self.cli = cli
        self._stack.enter_context(_replaced(pl.Trainer, fit=self._fit))  # now that its signature has been read
        for parser in (cli.parser, *getattr(cli, "_subcommand_parsers", {}).values()):
            parser.exit_on_error = False  # raise, instead of printing usage and leaving
        _save_no_config(cli)


def _save_no_config(cli: LightningCLI) -> None:
    """Leave out the copy of the configuration, which would refuse to replace one; a project's own class stays."""
    if cli.save_config_callback is SaveConfigCallback:
        cli.save_config_callback = None
    else:
        cli.save_config_kwargs = {**cli.save_config_kwargs, "overwrite": True}


def _all_callbacks(cli: LightningCLI, config: dict[str, Any], callbacks: list[pl.Callback]) -> list[pl.Callback]:
    """Those of the file, those with a key of their own, and those that the project's command always adds."""
    every: list[pl.Callback] = []
    for given in (config.get("callbacks"), callbacks, cli.trainer_defaults.get("callbacks")):
        every += [] if given is None else given if isinstance(given, list) else [given]
    return every


def _with_arguments(arguments: Sequence[str], then: Callable[[LightningCLI], None]) -> Callable[..., None]:
    """``setup_parser`` that then puts the arguments where the project's command reads them."""
    setup = LightningCLI.setup_parser

    def setup_parser(cli: LightningCLI, add_subcommands: bool, *args: Any, **kwargs: Any) -> None:
        sys.argv[1:] = [FIT, *arguments] if add_subcommands else list(arguments)
        setup(cli, add_subcommands, *args, **kwargs)
        then(cli)

    return setup_parser


_parse = LightningCLI.parse_arguments


def _from_command_line(cli: LightningCLI, parser: Any, args: Any) -> None:
    if args is not None:
        raise ConfigError("`cli` must read its arguments from the command line, got a call with arguments of its own")
    _parse(cli, parser, args)


@contextlib.contextmanager
def _own_arguments() -> Iterator[None]:
    """Give back ``sys.argv`` as it was."""
    with _replaced(sys, argv=sys.argv[:1]):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Replace attributes of an object, a class or a module for a while."""
    before = {name: getattr(owner, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def import_path(path: str, what: str) -> Any:
    """What a dotted path names.

    Raises:
        ConfigError: If it cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: a path that begins with a dot
        raise ConfigError(f"`{what}` must be a class that can be imported, got {path!r}: {error}") from error
