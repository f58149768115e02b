"""Writes the next re-test dates as an iCalendar text (RFC 5545), one all-day event a name and date. Pure.

An event keeps its identity over the years (a hash of source, name and tiers), so a calendar that is fed again moves the
event instead of adding one. Tiers that share a date share an event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta

from lightning_hp.ledger.dates import LAST, Verdict, as_utc

_PRODUCT = "-//lightning-hp//re-test dates//EN"
#: Bytes of a content line before it is folded (RFC 5545, 3.1).
_LINE_BYTES = 75


def to_ics(verdicts: Iterable[tuple[str, Verdict]], now: datetime) -> str:
    """Make the calendar.

    Args:
        verdicts: Pairs of source (the ledger's path) and verdict; those without a date are left out. A date that has
            passed stands on the day of ``now``.
        now: The clock; also the revision of every event, so that a later file wins.

    Returns:
        Text with CRLF at the end of every line.
    """
    now = as_utc(now)
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", f"PRODID:{_PRODUCT}", "CALSCALE:GREGORIAN"]
    for source, verdict in verdicts:
        lines += _events(source, verdict, now)
    return "".join(f"{_fold(line)}\r\n" for line in (*lines, "END:VCALENDAR"))


def _events(source: str, verdict: Verdict, now: datetime) -> list[str]:
    by_day: dict[str, list[str]] = {}
    days = {}
    for tier, date in sorted(verdict.dates.items()):
        overdue = verdict.status != "fresh" and date == verdict.next_date
        day = now if overdue else max(date, now)
        key = f"{day:%Y%m%d}"
        by_day.setdefault(key, []).append(tier)
        days[key] = day
    lines = []
    for key, tiers in by_day.items():
        identity = hashlib.sha256("\0".join((source, verdict.name, *tiers)).encode()).hexdigest()[:24]
        title = f"Re-test {verdict.name} (tier {', '.join(tiers)})"
        text = f"{verdict.reason}\nDo: {verdict.refresh}\nLedger: {source}"
        lines += [
            "BEGIN:VEVENT",
            f"UID:{identity}@lightning-hp",
            f"DTSTAMP:{now:%Y%m%dT%H%M%SZ}",
            # seconds since 2020 fit the 32-bit integer that calendars keep
            f"SEQUENCE:{max(0, int(now.timestamp()) - 1_577_836_800)}",
            f"DTSTART;VALUE=DATE:{key}",
            *_end(days[key]),
            f"SUMMARY:{_escape(title)}",
            f"DESCRIPTION:{_escape(text)}",
            "TRANSP:TRANSPARENT",
            "END:VEVENT",
        ]
    return lines


def _end(day: datetime) -> list[str]:
    """The line with the day after, the end of the event; 9999-12-31 has none, and no end means one day."""
    last = f"{day:%Y%m%d}" == f"{LAST:%Y%m%d}"
    return [] if last else [f"DTEND;VALUE=DATE:{day + timedelta(days=1):%Y%m%d}"]


def _escape(text: str) -> str:
    """Backslash, semicolon, comma and end of line as RFC 5545, 3.3.11 wants them; other control characters go."""
    for character in ("\\", ";", ","):
        text = text.replace(character, "\\" + character)
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\\n")
    return "".join(character for character in text if character >= " ")


def _fold(line: str) -> str:
    """Lines of at most 75 bytes, never cut inside a character."""
    parts, size = [""], 0
    for character in line:
        width = len(character.encode())
        if size + width > _LINE_BYTES:
            parts.append(" ")
            size = 1
        parts[-1] += character
        size += width
    return "\r\n".join(parts)
