"""``lightning-hp fit``: train a LightningCLI file such as ``best.yaml``, by the project's own command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_hp.commands.output import write_line

_USAGE = (
    "usage: lightning-hp fit FILE [--model_class PATH] [--data_class PATH] [--cli_class PATH] [options]\n\n"
    "Train a LightningCLI file such as best.yaml. The paths are for files that name no classes, and for projects\n"
    "with a LightningCLI of their own (a class, a function that makes the call, or a script); further options go\n"
    "to LightningCLI, such as --trainer.max_epochs 5."
)
_CLASSES = ("model_class", "data_class", "cli_class")


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

    file, *rest = arguments
    read_yaml(Path(file), "config")
    paths: dict[str, str] = {}
    for option in _CLASSES:
        if f"--{option}" in rest:
            at = rest.index(f"--{option}")
            if at + 1 == len(rest):
                raise ConfigError(f"`--{option}` must be followed by a class path")
            paths[option] = rest[at + 1]
            del rest[at : at + 2]
    ProjectCLI(*(paths.get(option) for option in _CLASSES)).run(["--config", file, *rest])
    return 0
