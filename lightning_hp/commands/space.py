"""``lightning-hp space``: a search space as a table, and when each parameter opens."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_hp.commands.output import output_console
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.report.text import number
from lightning_hp.search.plan import SearchPlan
from lightning_hp.search.stages import plan_stages
from lightning_hp.space.parameters import Choice, Parameter
from lightning_hp.space.presets import PRESETS
from lightning_hp.tuning.config import TuneConfig


def space_verb(options: Namespace) -> int:
    """Print the search space of a ``tune.yaml`` or of a preset.

    Raises:
        ConfigError: If there is no such file or preset, or the file does not fit.
    """
    show_space(options.config, options.trials, output_console())
    return 0


def show_space(file_or_preset: str, trials: int | None, console: Console) -> None:
    """Print a search space as a table: tier, scale, range, default, and when each parameter opens.

    Args:
        file_or_preset: ``tune.yaml``, or the name of a preset.
        trials: Budget to plan for; None for the file's, or 60.
        console: Where to.

    Raises:
        ConfigError: If there is no such file or preset, or the file does not fit.
    """
    if file_or_preset in PRESETS:
        search = SearchPlan.of(file_or_preset)
    elif Path(file_or_preset).is_file():
        search = TuneConfig.from_file(file_or_preset).search
    else:
        raise ConfigError(f"`config` must be a file or one of the presets {', '.join(PRESETS)}, got {file_or_preset!r}")
    space, planned_for = search.space, trials or search.n_trials
    stages = plan_stages(space, planned_for, search.opens_from, search.plan)
    first = {tier: next((s for s in stages if tier in s.tiers), None) for tier in space.tiers}
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("tier", "hyperparameter", "scale", "range", "default", "opens"):
        table.add_column(column)
    for parameter in sorted(space.parameters, key=lambda p: p.tier):
        stage = first[parameter.tier]
        opening = f"trial {stage.first}" if stage else f"not within {planned_for} trials"
        name = parameter.name
        if parameter.active_if:
            name += " (if " + " and ".join(c.text for c in parameter.active_if) + ")"
        scale = "choice" if isinstance(parameter, Choice) else parameter.scale
        default = Text(number(parameter.default))
        table.add_row(parameter.tier, Text(name), scale, Text(range_of(parameter)), default, opening)
    console.print(table)
    console.print(f"stages for {planned_for} trials:", highlight=False)
    for stage in stages:
        console.print(f"  {stage.name:<14} trials {stage.first} to {stage.last - 1}", highlight=False)


def range_of(parameter: Parameter) -> str:
    """The range of a parameter, natural values."""
    if isinstance(parameter, Choice):
        return ", ".join(str(label) for label in parameter.labels)
    return f"{number(parameter.low)} to {number(parameter.high)}"
