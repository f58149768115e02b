"""What the commands print: the winner, the evidence, a search space. Tables for a person, by rich."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_hp.search.parameters import Choice, Parameter
from lightning_hp.search.presets import OPENS_FROM, PRESETS, preset
from lightning_hp.search.space import SearchSpace
from lightning_hp.search.stages import plan_stages
from lightning_hp.tuning.config import ConfigError, TuneConfig

if TYPE_CHECKING:
    from lightning_hp.tuning.finish import Result


def summarise(result: Result, console: Console) -> None:
    """Print the end of ``lightning-hp tune``."""
    show_result(json.loads((result.folder / "result.json").read_text(encoding="utf-8")), console)
    _line(f"report     {result.report}", console)


def show_result(found: Mapping[str, Any], console: Console) -> None:
    """Print the winner: its values by tier, its metrics, and where its files are."""
    counts = ", ".join(f"{n} {state}" for state, n in found["trials"].items() if n)
    console.print(
        Text.assemble("study ", (found["study"], "bold"), f": {counts}, {found['seconds']:.0f} s of training")
    )
    console.print(
        Text.assemble(
            "best  ", (f"{found['monitor']} {found['value']:.6g}", "bold green"), f" in trial {found['trial']}"
        )
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("tier", "hyperparameter", "value"):
        table.add_column(column)
    for tier, values in found["by_tier"].items():
        for i, (name, value) in enumerate(values.items()):
            table.add_row(tier if i == 0 else "", Text(name), Text(number(value)))
    console.print(table)
    for split in ("validation", "test"):
        if found[split]:
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in sorted(found[split].items()))
            _line(f"{split:<10} {metrics}", console)
    if found.get("ledger"):
        dates = ", ".join(f"{tier} {at[:10]}" for tier, at in found["ledger"]["retest_at"].items())
        _line(f"re-test    {dates}", console)
    _line(f"checkpoint {found['checkpoint']}", console)
    if found.get("best_yaml"):
        _line(f"best.yaml  {found['best_yaml']}   (lightning-hp fit {found['best_yaml']})", console)


def _line(text: str, console: Console) -> None:
    """A line as it is: names, paths and errors may hold what rich would take for markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def number(value: Any) -> str:
    """A value as a person reads it."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def show_evidence(measured: Mapping[str, Any], console: Console) -> None:
    """Print the evidence of a study: importance beside the assumed tier, and the sentences drawn from it."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("hyperparameter", "tier", "measured", "importance"):
        table.add_column(column, justify="right" if column == "importance" else "left")
    ordered = sorted(measured["parameters"].items(), key=lambda item: -(item[1]["importance"] or 0.0))
    for name, found in ordered:
        importance = found["importance"]
        table.add_row(
            Text(name),
            found["tier"],
            found["measured_tier"] or "-",
            "closed" if not found["open"] else "-" if importance is None else f"{importance:.2f}",
        )
    console.print(table)
    for sentence in sentences(measured):
        _line(f"- {sentence}", console)


def sentences(measured: Mapping[str, Any]) -> list[str]:
    """What the evidence says, in words."""
    said = [*measured["disagreements"], *(edge["sentence"] for edge in measured["edges"])]
    if measured["unimportant"]:
        said.append(f"no measurable effect: {', '.join(measured['unimportant'])}")
    if measured["why_not_measured"]:
        said.append(measured["why_not_measured"])
    return said


def show_space(given: str, trials: int | None, console: Console) -> None:
    """Print a search space as a table: tier, scale, range, default, and when each parameter opens.

    Args:
        given: ``tune.yaml``, or the name of a preset.
        trials: Budget to plan for; None for the file's, or 60.
        console: Where to.

    Raises:
        ConfigError: If there is no such file or preset, or the file does not fit.
    """
    if given in PRESETS:
        space, planned_for, opens = SearchSpace.from_dict(preset(given)), trials or 60, OPENS_FROM.get(given)
        plan = "default"
    elif Path(given).is_file():
        config = TuneConfig.from_file(given)
        space, planned_for, plan = config.space, trials or config.budget.trials, config.plan
        opens = OPENS_FROM.get(config.preset or "")
    else:
        raise ConfigError(f"`config` must be a file or one of the presets {', '.join(PRESETS)}, got {given!r}")
    stages = plan_stages(space, planned_for, opens, plan)
    first = {tier: next((s for s in stages if tier in s.tiers), None) for tier in space.tiers}
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("tier", "hyperparameter", "scale", "range", "default", "opens"):
        table.add_column(column)
    for parameter in sorted(space.parameters, key=lambda p: p.tier):
        stage = first[parameter.tier]
        opening = f"trial {stage.first}" if stage else f"not within {planned_for} trials"
        name = parameter.name
        if parameter.active_if:
            name += " (if " + " and ".join(f"{c.name} {c.operator} {c.value}" for c in parameter.active_if) + ")"
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
        return ", ".join(str(choice) for choice in parameter.choices)
    return f"{number(parameter.low)} to {number(parameter.high)}"
