"""How old the values of a study are: when they were found and confirmed, and when each tier is due for a re-test.

A page is read long after it was written: dates stand in it as they are, and its script counts the days anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from lightning_hp.ledger import dates
from lightning_hp.report.lineage import Lineage

#: status of the ledger to the tone in which it is shown
TONES = {"fresh": "good", "due": "warn", "stale": "bad", "invalid": "bad", "untuned": "dim", "replaced": "dim"}


@dataclass(frozen=True)
class DueRow:
    """When one tier is due.

    Attributes:
        tier: The tier.
        interval: Such as ``30d``, a dash where it is not known.
        date: UTC.
        days: Whole days left, or over.
        is_over: Whether the date has passed.
    """

    tier: str
    interval: str
    date: datetime
    days: int
    is_over: bool

    @property
    def text(self) -> str:
        """Such as ``in 29 days`` or ``2 days over``."""
        return f"{days_text(self.days)} over" if self.is_over else f"in {days_text(self.days)}"


@dataclass(frozen=True)
class Age:
    """The age of a study's values.

    Attributes:
        tone: ``good``, ``warn``, ``bad`` or ``dim``.
        reason: Why it has its status, a sentence without its full stop.
        todo: What to run, empty for nothing.
        history: When the values were found and last confirmed, as text; dates only.
        tuned_at: When they were found, None where newer ones have replaced them.
        due: All tiers.
        ago: How long ago they were found, as text.
    """

    tone: str
    reason: str
    todo: str
    history: str
    tuned_at: datetime | None
    due: tuple[DueRow, ...]
    ago: str


def age_of(lineage: Lineage | None, now: datetime) -> Age | None:
    """The age of a study's values; None without a ledger, and of a refreshing study that has not ended.

    Args:
        lineage: Its place in its ledger.
        now: The clock, with a time zone.
    """
    if lineage is None or (lineage.own is None and lineage.older is not None):
        return None
    verdict = lineage.verdict
    intervals = {} if lineage.own is None else lineage.own.get("retune_after", {})
    due = [
        DueRow(tier, str(intervals.get(tier, "–")), date, abs(date - now).days, date <= now)
        for tier, date in sorted(verdict.dates.items())
    ]
    tuned_at = verdict.tuned_at if lineage.newer is None else None
    return Age(
        tone=TONES.get(verdict.status, "dim"),
        reason=verdict.reason,
        todo="" if verdict.todo == "nothing" else verdict.todo,
        history=_history(lineage),
        tuned_at=tuned_at,
        due=tuple(due),
        ago="" if tuned_at is None else _ago(now - tuned_at),
    )


def next_date(verdict: dates.Verdict) -> datetime | None:
    """The date on which a fresh study becomes due; None for any other."""
    return verdict.next_date if verdict.status == "fresh" else None


def _history(lineage: Lineage) -> str:
    if lineage.own is None:
        return "Not tuned to its end yet."
    text = f"Tuned on {str(lineage.own['tuned_at'])[:10]}"
    confirmed = lineage.verdict.confirmed_at if lineage.newer is None else None
    return text + (f"; confirmed by a re-test on {confirmed:%Y-%m-%d}." if confirmed is not None else ".")


def _ago(gone: timedelta) -> str:
    return f"{days_text(gone.days)} ago" if gone.days > 0 else "today"


def days_text(days: int) -> str:
    """Such as ``1 day``, ``12 days``."""
    return "1 day" if days == 1 else f"{max(days, 0)} days"
