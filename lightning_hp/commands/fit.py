"""``lightning-hp fit``: train a LightningCLI file such as ``best.yaml``, by the project's own command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_hp.commands.output import write_line

_USAGE = (
    "usage: lightning-hp fit FILE [--model_class PATH] [--data_class PATH] [--cli_class PATH] [options]\n\n"
    "Train a LightningCLI file, such as best.yaml, and print the metrics that were logged last. Use the PATH options\n"
    "if the file names no classes, or if the project has a LightningCLI of its own (a class, a function or a\n"
    "script). The best.yaml of a study needs none. Further options go to LightningCLI, such as\n"
    "--trainer.max_epochs 5."
)
#: option -> what it is
_CLASSES = {
    "model_class": "class path, for files that name no model",
    "data_class": "class path, for files that name no data",
    "cli_class": "the project's own command: class, function or script",
}


def fit_verb(arguments: Sequence[str]) -> int:
    """Train; what stands behind the file goes to LightningCLI.

    Raises:
        ConfigError: If the file cannot be read or a class cannot be imported.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        write_line(_USAGE)
        return 0 if arguments else 2

    from lightning_hp.project.project_cli import ProjectCLI
    from lightning_hp.project.yaml_file import ConfigError, read_yaml

    file, *rest = arguments[1:] if arguments[0] == "--config" and len(arguments) > 1 else arguments
    read_yaml(Path(file), "config")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_class_options(parser)
    try:
        options, rest = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise ConfigError(f"`{error.argument_name}` must be followed by a class path") from None
    metrics = ProjectCLI(*classes_of_options(options, Path(file))).run(["--config", file, *rest])
    if metrics:
        write_line("logged last  " + "  ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items())))
    return 0


def add_class_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how a project calls LightningCLI."""
    for option, about in _CLASSES.items():
        names = [f"--{option}", "--cli"] if option == "cli_class" else [f"--{option}"]
        parser.add_argument(*names, metavar="PATH", help=f"{about}; a study's best.yaml needs none")


def classes_of_options(options: argparse.Namespace, file: Path) -> list[str | None]:
    """Model, data and CLI of a project, as the options name them; with none of them as the file's study has them.

    Args:
        options: Parsed by :func:`add_class_options`.
        file: The LightningCLI file.
    """
    from lightning_hp.study.results import stored_classes

    paths = {option: getattr(options, option) for option in _CLASSES}
    if not any(paths.values()):
        paths |= stored_classes(file)
    return [paths[option] for option in _CLASSES]
