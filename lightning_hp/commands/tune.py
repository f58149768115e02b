"""``lightning-hp tune``: run, or continue, what ``tune.yaml`` describes; options replace some of its keys."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_hp.commands.init import say_what_was_chosen
from lightning_hp.commands.output import output_console, write_line
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.quiet import imports_kept
from lightning_hp.project.yaml_file import ConfigError, read_yaml
from lightning_hp.report.text import show_result
from lightning_hp.starting.first_file import TRIALS, choose
from lightning_hp.starting.project import builder_of, is_train_file, study_name
from lightning_hp.study.aside import move_aside
from lightning_hp.study.paths import StudyPaths, write_text
from lightning_hp.study.results import read_result
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.finish import Result
from lightning_hp.tuning.progress import StudyDisplay
from lightning_hp.tuning.runner import StudyRunner
from lightning_hp.tuning.tune import cli_builder

#: options that replace a key of ``tune.yaml``, and where the key is
_OVERRIDES = {
    "trials": ("budget", "trials"),
    "max_epochs": ("budget", "max_epochs"),
    "max_steps": ("budget", "max_steps"),
    "time": ("budget", "time"),
    "workers": ("caviar", "workers"),
    "name": ("name",),
    "folder": ("folder",),
    "storage": ("storage",),
    "seed": ("seed",),
    "start": ("start",),
}


@imports_kept()
def tune_verb(options: Namespace) -> int:
    """Run a study to its end and print its winner; with ``--worker`` only run trials.

    Raises:
        ConfigError: If the file or an option does not fit.
        StudyError: If the study cannot be opened, or has to stop.
    """
    path = Path(options.config)
    mapping = read_yaml(path, "config")
    if is_train_file(mapping):
        path = _chosen_file(path, options)
        mapping = read_yaml(path, "config")
    elif options.cli_class or options.model_class or options.data_class:
        raise ConfigError("`--cli_class` and the like go with a LightningCLI file; a tune.yaml names them itself")
    _apply_overrides(mapping, options)
    config = TuneConfig.from_dict(mapping, base=path.parent, source=path)
    if options.accept_changes:
        config = replace(config, accept_changes=True)
    builder = cli_builder(config)
    if options.worker:
        StudyRunner(config, builder).work()
        return 0
    if options.restart and (aside := move_aside(config.folder, config.name, config.storage)) is not None:
        write_line(f"the old study is now {aside}")
    workers = config.caviar.workers
    with StudyDisplay(config.name, config.search.n_trials, config.monitor, config.mode, workers) as display:
        result = run(config, builder, display)
    show_end(result)
    return 0


def _chosen_file(train_file: Path, options: Namespace) -> Path:
    """The ``tune.yaml`` of a LightningCLI file, in the study's folder: that of an earlier run, else a new one.

    Raises:
        ConfigError: If the project does not load or does not train, or something has to be chosen by a person.
    """
    name = options.name or study_name(train_file)
    folder = Path(options.folder or f"runs/{name}")
    file = folder / "tune.yaml"
    if file.exists() and not options.restart:
        write_line(f"goes on with what was chosen before: {file}")
        return file
    write_line("no tune.yaml: chooses from the project's values, one batch and one epoch")
    builder = builder_of([train_file], options.model_class, options.data_class, options.cli_class)
    limits = TrainingLength(max_epochs=options.max_epochs, max_steps=options.max_steps)
    first = choose(builder, name, options.trials or TRIALS, limits)
    say_what_was_chosen(first)
    if not first.metric.name:
        raise ConfigError(f"`monitor` must be chosen by you: {first.metric.why}; write a file with lightning-hp init")
    if not first.chosen:
        raise ConfigError("`space` must be written by you: no value is known; write a file with lightning-hp init")
    if options.restart and (aside := move_aside(folder, name, options.storage or "journal")) is not None:
        write_line(f"the old study is now {aside}")
    options.restart = False  # done
    write_text(file, first.text(folder, datetime.now(UTC).date().isoformat()))
    write_line(f"written    {file}; change it, or copy it to a place of your own")
    return file


def show_end(result: Result) -> None:
    """Print the end of a study: its winner and where the report is."""
    show_result(read_result(StudyPaths(result.folder)) or {}, output_console())
    write_line(f"report     {result.report}")


def _apply_overrides(mapping: dict[str, Any], options: Namespace) -> list[str]:
    """Put the options into the mapping of ``tune.yaml``; the same options again as command-line arguments."""
    arguments: list[str] = []
    for option, (*parents, key) in _OVERRIDES.items():
        if options[option] is None:
            continue
        place: Any = mapping
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"`{parent}` must be a mapping, got {place!r}")
        place[key] = options[option]
        arguments += [f"--{option}", str(options[option])]
    return arguments
