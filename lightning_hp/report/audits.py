"""The BatchNorm audit of a trial, read from its ``audit.json``, and how often each severity was found in a study.

A file may be missing, broken or of another version: what cannot be read is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from lightning_hp.report.view import StudyView, finite

#: user attribute of a study: number of a trial that was audited after its end -> findings by severity
AUDITS = "audits"
SEVERITIES = ("ERROR", "WARN", "INFO")


@dataclass(frozen=True)
class AuditFinding:
    """One finding.

    Attributes:
        severity: One of ``SEVERITIES``.
        rule: Such as ``BN06``.
        layer: Name of the layer, empty for the whole model.
        sentence: What was seen.
        fix: What to do.
    """

    severity: str
    rule: str
    layer: str
    sentence: str
    fix: str


@dataclass(frozen=True)
class Audit:
    """One audit.

    Attributes:
        counts: Severity to number of findings.
        findings: Causes before symptoms.
        layers: What was measured of each layer, as in ``audit.json``.
        content: The whole file.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    findings: tuple[AuditFinding, ...] = ()
    layers: tuple[Mapping[str, Any], ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Audit:
        """Read the content of ``audit.json``."""
        counts = content.get("counts")
        return cls(
            {name: _count(counts, name) for name in SEVERITIES},
            tuple(
                AuditFinding(*(str(entry.get(key) or "") for key in ("severity", "id", "layer", "sentence", "fix")))
                for entry in _mappings(content.get("findings"))
            ),
            tuple(_mappings(content.get("layers"))),
            content,
        )

    @property
    def total(self) -> str:
        """Such as ``1 ERROR, 0 WARN, 2 INFO``."""
        return ", ".join(f"{self.counts.get(severity, 0)} {severity}" for severity in SEVERITIES)


@dataclass(frozen=True)
class SeverityRow:
    """How often a severity was found in a study.

    Attributes:
        severity: One of ``SEVERITIES``.
        findings: How many findings.
        trials: Numbers of the trials that have one.
    """

    severity: str
    findings: int
    trials: tuple[int, ...]


def audited_trials(view: StudyView) -> list[FrozenTrial]:
    """The trials that were audited, by number."""
    return [trial for trial in view.trials if isinstance(_counts(view, trial), Mapping)]


def findings_of(view: StudyView, trial: FrozenTrial, severity: str) -> int:
    """How many findings of a severity a trial has; 0 where it was not audited."""
    return _count(_counts(view, trial), severity)


def _counts(view: StudyView, trial: FrozenTrial) -> Any:
    """Findings of a trial by severity: kept with the trial, or with the study where it was audited after its end."""
    later = view.attributes.get(AUDITS)
    return trial.user_attrs.get("audit", later.get(str(trial.number)) if isinstance(later, Mapping) else None)


def severity_rows(view: StudyView) -> list[SeverityRow]:
    """All severities of a study's audits; empty where no trial was audited."""
    audited = audited_trials(view)
    rows = []
    for severity in SEVERITIES if audited else ():
        counts = {trial.number: findings_of(view, trial, severity) for trial in audited}
        rows.append(SeverityRow(severity, sum(counts.values()), tuple(n for n, count in counts.items() if count)))
    return rows


def _count(counts: Any, severity: str) -> int:
    """How many of a severity there are; attributes of a study may hold anything."""
    count = counts.get(severity) if isinstance(counts, Mapping) else None
    return int(count) if finite(count) else 0


def _mappings(entries: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list | tuple) else []
