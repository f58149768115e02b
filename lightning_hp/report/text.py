"""A study as text for a terminal: the winner and the evidence, as tables by rich."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_hp.space.labels import label
from lightning_hp.study.results import stored_fit_command


def show_result(result: Mapping[str, Any], console: Console) -> None:
    """Print the winner: its values by tier, its metrics, and where its files are.

    Args:
        result: The content of ``result.json``.
        console: Where to.
    """
    counts = ", ".join(f"{count} {state}" for state, count in result["trials"].items() if count)
    seconds, best = f"{result['seconds']:.0f}", f"{result['monitor']} {result['value']:.6g}"
    console.print(Text.assemble("study ", (result["study"], "bold"), f": {counts}, {seconds} s of training"))
    confirmed = result.get("confirmed") or {}
    on_seeds = f"; {confirmed['text']}" if confirmed else ""
    console.print(Text.assemble("best  ", (best, "bold green"), f" in trial {result['trial']}{on_seeds}"))
    if (left := confirmed.get("left", 0)) > 0:
        _line(f"left       {left} of the budget's trials: fewer decided which configuration is best", console)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("tier", "hyperparameter", "value"):
        table.add_column(column)
    for tier, values in result["by_tier"].items():
        for i, (name, value) in enumerate(values.items()):
            table.add_row(tier if i == 0 else "", Text(name), Text(number(value)))
    console.print(table)
    for split in ("validation", "test"):
        if result[split]:
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in sorted(result[split].items()))
            _line(f"{split:<10} {metrics}", console)
    if result.get("ledger"):
        dates = ", ".join(f"{tier} {at[:10]}" for tier, at in result["ledger"]["retest_at"].items())
        _line(f"re-test    {dates}", console)
    _line(f"checkpoint {result['checkpoint']}", console)
    if result.get("best_yaml"):
        _line(f"best.yaml  {result['best_yaml']}   ({stored_fit_command(result)})", console)


def _line(text: str, console: Console) -> None:
    """A line as it is: names, paths and errors may hold what rich would take for markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def number(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, list | dict):
        return label(value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def show_evidence(evidence: Mapping[str, Any], console: Console) -> None:
    """Print the evidence of a study: importance beside the assumed tier, and the sentences drawn from it.

    Args:
        evidence: The content of ``evidence.json``.
        console: Where to.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("hyperparameter", "tier", "measured", "importance"):
        table.add_column(column, justify="right" if column == "importance" else "left")
    for name, row in sorted(evidence["parameters"].items(), key=lambda item: -(item[1]["importance"] or 0.0)):
        measured = "-" if row["importance"] is None else f"{row['importance']:.2f}"
        table.add_row(Text(name), row["tier"], row["measured_tier"] or "-", measured if row["open"] else "closed")
    console.print(table)
    for sentence in evidence_sentences(evidence):
        _line(f"- {sentence}", console)


def evidence_sentences(evidence: Mapping[str, Any]) -> list[str]:
    """What the evidence says, in words."""
    sentences = [*evidence["disagreements"], *(edge["sentence"] for edge in evidence["edges"])]
    if evidence["unimportant"]:
        sentences.append(f"no measurable effect: {', '.join(evidence['unimportant'])}")
    if evidence["why_not_measured"]:
        sentences.append(evidence["why_not_measured"])
    return sentences
