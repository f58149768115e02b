"""A study as text for a terminal: the winner and the evidence, as tables by rich."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_hp.search.labels import label
from lightning_hp.study.results import fit_command


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
        _line(f"best.yaml  {found['best_yaml']}   ({fit_command(found)})", console)


def _line(text: str, console: Console) -> None:
    """A line as it is: names, paths and errors may hold what rich would take for markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def number(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, list | dict):
        return label(value)
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
