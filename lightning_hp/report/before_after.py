"""What a refreshed study changed: the two records of the ledger, side by side.

The metric when tuned, what the old values reach on today's data (from the re-test), and what the new ones reach; and
every hyperparameter by tier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_hp.ledger.changes import change_sentences
from lightning_hp.report.axes import number_text, value_text
from lightning_hp.report.lineage import Lineage, StudyLink
from lightning_hp.report.view import StudyView, finite, value_of
from lightning_hp.space.parameters import Choice, Parameter


@dataclass(frozen=True)
class ValueChange:
    """One hyperparameter before and after.

    Attributes:
        tier: Its tier.
        name: Its name.
        parameter: Of this study's space, None where that has no such parameter.
        before: The older best's value, None where it was not in use.
        after: The newer best's value, likewise.
    """

    tier: str
    name: str
    parameter: Parameter | None
    before: Any
    after: Any

    def text(self, value: Any) -> str:
        """A value as text."""
        if value is None:
            return "not in use"
        return str(value) if self.parameter is None else value_text(self.parameter, value)

    @property
    def change(self) -> str:
        """Such as ``x 3.2``, ``+64``, ``same``; empty where the two cannot be compared."""
        before, after = self.before, self.after
        if before == after or self.text(before) == self.text(after):
            return "same"
        if not (_is_number(before) and _is_number(after)):
            return ""
        if self.parameter is not None and self.parameter.scale in ("log", "one_minus_log"):
            one = 1.0 if self.parameter.scale == "one_minus_log" else 0.0
            distance_before, distance_after = abs(one - before), abs(one - after)
            if distance_before > 0 and distance_after > 0:
                return f"{'1 − value ' if one else ''}× {number_text(distance_after / distance_before, 2)}"
        return f"{'+' if after > before else '−'}{number_text(abs(after - before), 3)}"

    def places(self) -> list[float]:
        """Positions of both in the range, from 0 to 1; empty where one has none."""
        both = (self.before, self.after)
        if self.parameter is None or None in both:
            return []
        if isinstance(self.parameter, Choice) and not all(self.parameter.holds(value) for value in both):
            return []
        try:
            return [min(max(float(u), 0.0), 1.0) for u in self.parameter.unit([self.parameter.store(v) for v in both])]
        except (ValueError, TypeError):  # another kind of value than today's
            return []


@dataclass(frozen=True)
class Refresh:
    """Before and after a refresh.

    Attributes:
        older: The study that was refreshed.
        scores: The metric before, the same values on today's data, and after; each with what it is. None where not
            known.
        gain: What the refresh brought against the old values on today's data; empty where that is not known.
        changes: All hyperparameters of either record, by tier.
        moved: What the training data did since, in sentences; columns that did the same share one. None if not known.
    """

    older: StudyLink
    scores: tuple[tuple[str, float | None], ...]
    gain: str
    changes: tuple[ValueChange, ...]
    moved: tuple[str, ...] | None


def refresh_of(view: StudyView, lineage: Lineage | None) -> Refresh | None:
    """Before and after of a study; None of one that refreshes no other."""
    if lineage is None or lineage.older is None:
        return None
    scores = _scores(view, lineage, lineage.older)
    moved = lineage.moved
    return Refresh(
        lineage.link_to(lineage.older),
        scores,
        _gain(view, before=scores[1][1], after=scores[2][1]),
        tuple(_changes(view, lineage, lineage.older)),
        None if moved is None else tuple(change_sentences(moved)),
    )


def _changes(view: StudyView, lineage: Lineage, older_record: Mapping[str, Any]) -> list[ValueChange]:
    older = _tier_and_value(older_record["hyperparameters"])
    if lineage.own is not None:
        newer = _tier_and_value(lineage.own["hyperparameters"])
    elif view.best is not None:
        stored = view.best.params
        newer = {
            p.name: (p.tier, p.natural(stored[p.stored_name])) for p in view.space.parameters if p.stored_name in stored
        }
    else:
        newer = {}
    parameters = {p.name: p for p in view.space.parameters}
    absent = ("?", None)
    tiers = {name: newer.get(name, older.get(name, absent))[0] for name in {**newer, **older}}
    return [
        ValueChange(tiers[name], name, parameters.get(name), older.get(name, absent)[1], newer.get(name, absent)[1])
        for name in sorted(tiers, key=lambda name: tiers[name])
    ]


def _scores(view: StudyView, lineage: Lineage, older_record: Mapping[str, Any]) -> tuple[tuple[str, float | None], ...]:
    best = lineage.own["value"] if lineage.own is not None else value_of(view.best) if view.best is not None else None
    retest = lineage.retest
    when = f", re-tested {retest['at'][:10]}" if retest is not None else ""
    return (
        (f"old values, when tuned {older_record['tuned_at'][:10]}", older_record["value"]),
        (f"old values on today's data{when}", lineage.retested_value()),
        ("new values" + ("" if lineage.own is not None else ", so far"), best),
    )


def _gain(view: StudyView, before: float | None, after: float | None) -> str:
    if before is None or after is None or not before:
        return ""
    share = abs(after - before) / abs(before)
    if share < 0.005:
        return "as good as the old values"
    is_better = after < before if view.minimises else after > before
    return f"{share:.0%} {'better' if is_better else 'worse'} than the old values on today's data"


def _tier_and_value(by_tier: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, Any]]:
    return {name: (tier, value) for tier, values in by_tier.items() for name, value in values.items()}


def _is_number(value: Any) -> bool:
    return finite(value) and not isinstance(value, bool)
