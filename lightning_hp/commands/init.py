"""``lightning-hp init``: write a first ``tune.yaml`` for a project, and say what was chosen."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path

from jsonargparse import Namespace

from lightning_hp.commands.output import write_line
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.starting.first_file import FirstFile, choose, flow, plain
from lightning_hp.starting.project import builder_of, file_for_classes, study_name
from lightning_hp.study.paths import write_text


def init_verb(options: Namespace) -> int:
    """Write a first ``tune.yaml``; nothing is replaced.

    Raises:
        ConfigError: If the project does not load or does not train, or a file is there already.
    """
    project: str = options.project or ""
    files = [Path(file) for file in options.config]
    if not files and Path(project).suffix in (".yaml", ".yml"):
        project, files = "", [Path(project)]
    if bool(project) == bool(files):
        raise ConfigError("`init` needs a LightningCLI file, or package.module:Module where there is none")
    training_file = Path("train.yaml") if project else None
    output = Path(options.output or (training_file or files[0]).parent / "tune.yaml")
    for file in (output, training_file):
        if file is not None and file.exists():
            raise ConfigError(f"`--output` must be a file that does not exist yet, got {str(file)!r}")
    if training_file is not None:
        write_text(training_file, file_for_classes(project, options.data_class, options.max_epochs))
    try:
        if training_file is not None:
            builder = builder_of([training_file], None, None, options.cli_class)
            name, limits = project.replace(":", ".").rpartition(".")[2], TrainingLength()
        else:
            builder = builder_of(files, options.model_class, options.data_class, options.cli_class)
            name, limits = study_name(files[0]), TrainingLength(max_epochs=options.max_epochs)
        write_line("looking at the project: its values, one batch, one epoch" if not options.no_run else "reading")
        first = choose(builder, options.name or name, options.trials, limits, train=not options.no_run)
    except BaseException:
        if training_file is not None:
            training_file.unlink()
        raise
    write_text(output, first.text(output.parent, datetime.now(UTC).date().isoformat()))
    say_what_was_chosen(first)
    write_line(f"written    {', '.join(str(file) for file in (training_file, output) if file)}")
    missing = first.missing()
    before = f"write {' and '.join(missing)} into {output}; then " if missing else ""
    write_line(f"next       {before}lightning-hp tune {shlex.quote(str(output))}")
    return 0


def say_what_was_chosen(first: FirstFile) -> None:
    """Print what is searched, on which metric, and what it costs."""
    metric = first.metric
    logged = f"; {'also ' if metric.name else ''}logged: {', '.join(metric.others)}" if metric.others else ""
    write_line(f"metric     {f'{metric.name} ({metric.mode})' if metric.name else 'not chosen'}: {metric.why}{logged}")
    by_tier = sorted(first.chosen, key=lambda one: str(one.fields["tier"]))
    for title, chosen in zip(["searched", *[""] * len(by_tier)], by_tier, strict=False):
        write_line(f"{title:<10} {chosen.candidate.key} {flow(chosen.fields)}, yours {plain(chosen.candidate.value)}")
    if first.left:
        count = "1 value" if len(first.left) == 1 else f"{len(first.left)} values"
        write_line(f"left out   {count} of unclear meaning, listed in the file as comments")
    write_line(f"cost       {first.cost()}")
