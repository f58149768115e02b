"""``best.yaml``: the winner as a LightningCLI file, for the project's own command, checked before it is written.

It holds what the project's parser resolved for the winner, so nothing depends on where the files of the project say it.
It is loaded back and built, and what is built is compared with what the winner's values build: classes, arguments,
shapes, optimizers, callbacks and Trainer.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_hp.project.build_facts import facts, unlike
from lightning_hp.project.cli_builder import CliBuilder, limits
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.yaml_file import ConfigError


def best_yaml(builder: CliBuilder, arguments: Mapping[str, Any], seed: int, length: TrainingLength) -> str:
    """The LightningCLI file of a trial.

    Args:
        builder: Of the project.
        arguments: The trial's natural values, by key of the space.
        seed: The trial's.
        length: The study's length of a training; its limits replace the project's.

    Raises:
        ConfigError: If the file would not build what the trial was built from.
    """
    text = builder.written_back(builder.resolve({**arguments, **limits(length), "seed_everything": seed}))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "best.yaml")
        file.write_text(text, encoding="utf-8")
        trial = Path(folder, "trial")
        winner = facts(builder.build(arguments, trial, seed, [], length))
        changes = unlike(winner, facts(builder.of_file(file).build({}, trial, seed)))
        if changes:  # some attributes, such as the time, differ from build to build
            by_chance = unlike(winner, facts(builder.build(arguments, trial, seed, [], length)))
            changes = {name: change for name, change in changes.items() if name not in by_chance}
    if changes:
        some = "; ".join(list(changes.values())[:3])
        raise ConfigError(f"`config` must be one that best.yaml can repeat, but there {some}")
    return text


def fit_command(builder: CliBuilder, file: Path) -> str:
    """The command that trains a file of the project."""
    options = [part for option, path in builder.classes.items() for part in (f"--{option}", path)]
    return shlex.join(["lightning-hp", "fit", str(file), *options])
