"""What is read from the evidence of a study, which is plain JSON and may come from another version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lightning_hp.report.view import StudyView, finite
from lightning_hp.search.parameters import Parameter

#: said where all of them were measured and none stood out
NO_EFFECT = "No hyperparameter had more effect than chance alone would give. With more trials this may change."


def importances(evidence: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Stage name to parameter name to share, of the stages that could be measured."""
    listed = evidence.get("stages")
    stages = [s for s in listed if isinstance(s, Mapping)] if isinstance(listed, list) else []
    # evidence of earlier versions has the numbers in the stage itself
    within = {str(s["name"]): s["within"] if isinstance(s.get("within"), Mapping) else s for s in stages}
    return {
        name: {str(k): float(v) for k, v in measured["importance"].items() if finite(v)}
        for name, measured in within.items()
        if isinstance(measured.get("importance"), Mapping) and measured["importance"]
    }


def sentences(evidence: Mapping[str, Any], kind: str) -> list[str]:
    """The sentences of one kind, plain text."""
    found = evidence.get(kind)
    listed = found if isinstance(found, list) else []
    return [str(one["sentence"]) if isinstance(one, Mapping) else str(one) for one in listed]


def main_pair(view: StudyView, evidence: Mapping[str, Any]) -> tuple[Parameter, Parameter] | None:
    """The two parameters that mattered most: in the study, then over its stages, then by tier."""
    if len(view.space) < 2:
        return None
    total: Counter[str] = Counter()
    for shares in importances(evidence).values():
        total.update(shares)
    found = evidence.get("parameters")
    overall = {k: v["importance"] for k, v in found.items() if v.get("effect")} if isinstance(found, Mapping) else {}
    order = sorted(view.space.parameters, key=lambda p: (-overall.get(p.name, 0.0), -total[p.name], p.tier))
    return order[0], order[1]
