"""What mattered in a study, as typed rows: read from its evidence, plain JSON that another version may have written.

A study has one measure of importance, over all that it searched. The numbers of a stage hold within that stage's box
only, so they are kept apart and carry the ranges that they depend on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_hp.report.axes import ends_text, value_text
from lightning_hp.report.view import StudyView, finite
from lightning_hp.space.parameters import Parameter

#: shown where all parameters were measured and none stood out
NO_EFFECT = "No hyperparameter had more effect than chance alone would give. With more trials this may change."


@dataclass(frozen=True)
class ImportanceRow:
    """What one parameter explains of the difference between good and bad trials of the study.

    Attributes:
        parameter: It.
        share: Its part of the effect of all parameters, from 0 to 1.
        has_effect: Whether that is more than chance would give.
        measured_tier: The tier that the measurement puts it in, None if it does not say.
    """

    parameter: Parameter
    share: float
    has_effect: bool
    measured_tier: str | None


@dataclass(frozen=True)
class StageImportance:
    """What mattered within the box of one stage.

    Attributes:
        name: Of the stage.
        trials: How many trials it was measured with.
        shares: Parameter name to its part, from 0 to 1.
        ranges: Parameter name to the range that the stage searched, as text: what the share depends on.
        held: Parameter name to the value that the stage held it at, as text: likewise.
    """

    name: str
    trials: int
    shares: Mapping[str, float]
    ranges: Mapping[str, str]
    held: Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """The evidence of a study.

    Attributes:
        rows: The study's measure, most important parameter first; empty where nothing was measured.
        within_stages: The same question within single stages.
        disagreements: Sentences on tiers that the measurement contradicts.
        edges: Sentences on ranges that should be wider.
        why_not: Why nothing was measured, a sentence; empty otherwise.
        method: What it was measured by, ``coarse trials`` or ``model``; empty where that is not known.
        trials: How many trials it was measured with, 0 where that is not known.
    """

    rows: tuple[ImportanceRow, ...] = ()
    within_stages: tuple[StageImportance, ...] = ()
    disagreements: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()
    why_not: str = ""
    method: str = ""
    trials: int = 0

    @classmethod
    def read(cls, view: StudyView, evidence: Mapping[str, Any]) -> Measured:
        """Read the evidence; entries that are missing or of another form are left out.

        Args:
            view: The study.
            evidence: What ``search.evidence`` gave, or ``evidence.json`` of any version.
        """
        parameters = evidence.get("parameters")
        entries = parameters if isinstance(parameters, Mapping) else {}
        rows = [
            ImportanceRow(parameter, min(max(float(entry["importance"]), 0.0), 1.0), bool(entry.get("effect")),
                          str(entry["measured_tier"]) if entry.get("measured_tier") else None)
            for parameter in view.space.parameters
            if isinstance(entry := entries.get(parameter.name), Mapping) and finite(entry.get("importance"))
        ]  # fmt: skip
        listed = evidence.get("stages")
        stages = [stage for stage in listed if isinstance(stage, Mapping)] if isinstance(listed, list) else []
        within = [_within(view, stage) for stage in stages]
        measured_by = evidence.get("measured_by")
        how = measured_by if isinstance(measured_by, Mapping) else {}
        return cls(
            tuple(sorted(rows, key=lambda row: -row.share)),
            tuple(stage for stage in within if stage is not None),
            _sentences(evidence, "disagreements"),
            _sentences(evidence, "edges"),
            str(evidence.get("why_not_measured") or ""),
            str(how.get("method") or ""),
            how["trials"] if isinstance(how.get("trials"), int) else 0,
        )

    @property
    def has_effect(self) -> bool:
        """Whether any parameter had more effect than chance would give."""
        return any(row.has_effect for row in self.rows)

    @property
    def no_effect(self) -> str:
        """What stands for the share of a parameter without effect: only coarse trials are compared with chance."""
        return "no clear effect" if self.method == "model" else "no more than chance"

    def main_pair(self, view: StudyView) -> tuple[Parameter, Parameter] | None:
        """The two parameters that mattered most in the study; by tier where that is not known."""
        if len(view.space) < 2:
            return None
        shares = {row.parameter.name: row.share for row in self.rows if row.has_effect}
        first, second = sorted(view.space.parameters, key=lambda p: (-shares.get(p.name, 0.0), p.tier))[:2]
        return first, second


def _within(view: StudyView, stage: Mapping[str, Any]) -> StageImportance | None:
    """What led within a stage; None where it was not measured.

    Evidence of earlier versions has the numbers in the stage itself, without the ranges: those are then read from the
    study.
    """
    name = str(stage.get("name"))
    measured = stage["within"] if isinstance(stage.get("within"), Mapping) else stage
    importance, trials = measured.get("importance"), measured.get("trials")
    if not isinstance(importance, Mapping) or not importance:
        return None
    shares = {str(key): float(share) for key, share in importance.items() if finite(share)}
    between, held = measured.get("between"), measured.get("at")
    stage_view = next((one for one in view.stages if one.name == name), None)
    ranges, values = {}, {}
    for parameter in view.space.parameters:
        if isinstance(between, Mapping) and isinstance(between.get(parameter.name), list):
            ends = dict.fromkeys(value_text(parameter, natural) for natural in between[parameter.name])
            ranges[parameter.name] = (", " if parameter.is_categorical else " to ").join(ends)
        elif isinstance(held, Mapping) and parameter.name in held:
            values[parameter.name] = value_text(parameter, held[parameter.name])
        elif stage_view is not None and parameter.name in shares:
            ranges[parameter.name] = ends_text(parameter, *stage_view.interval(parameter.stored_name))
    return StageImportance(name, trials if isinstance(trials, int) else 0, shares, ranges, values)


def _sentences(evidence: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """The sentences of one kind, plain text."""
    entries = evidence.get(kind)
    listed = entries if isinstance(entries, list) else []
    sentences = [entry.get("sentence") if isinstance(entry, Mapping) else entry for entry in listed]
    return tuple(str(sentence) for sentence in sentences if sentence)
