"""Decides whether tuned hyperparameters are fresh, due, stale or invalid. Pure, standard library only.

The clock is always an argument. Every instant is UTC; text is ISO 8601 with a trailing ``Z``. Intervals are days,
weeks, calendar months or years; a month that is too short ends on its last day (31 January + 1 month = 28 or 29
February), and every date is counted from its anchor, never from the date before it, so the day does not creep.

Order of severity: ``invalid`` (another model, space or data layout) > ``stale`` > ``due`` > ``fresh``.
"""

from __future__ import annotations

import calendar
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from lightning_hp.ledger.changes import Change, changes_of, summarise_changes
from lightning_hp.ledger.drift import Tolerance, compare_fingerprints

TIERS = ("A", "B", "C", "D")
#: Re-test intervals where none are given: tier A monthly, B and C quarterly, D yearly. Monthly is the usual practice of
#: scheduled re-training; the longer ones follow from the lower importance of these tiers (reasoned, not measured).
DEFAULT_INTERVALS: Mapping[str, str] = {"A": "30d", "B": "90d", "C": "90d", "D": "1y"}
#: A record is stale (an error, not a reminder) once it is this many intervals old.
STALE_AFTER_INTERVALS = 2
#: Shifted checks of the reference moments in a row that make a record due: one alone has a false alarm in about a
#: thousand checks a network, which daily checks would meet within three years.
SHIFTED_CHECKS = 2
#: Difference between the clocks of two machines that is not worth an error (Kerberos allows the same five minutes).
CLOCK_SKEW = timedelta(minutes=5)
#: The last date there is; people write it for "never".
LAST = datetime(9999, 12, 31, tzinfo=UTC)
STATUSES = ("fresh", "due", "stale", "invalid")

_INTERVAL = re.compile(r"([1-9][0-9]{0,4})(d|w|mo|y)")
_MOST = {"d": 36_525, "w": 5_217, "mo": 1_200, "y": 100}


@dataclass(frozen=True)
class Interval:
    """A span of calendar time: ``months`` first, then ``days``.

    Args:
        months: Calendar months.
        days: Days of 24 hours.
    """

    months: int = 0
    days: int = 0

    def after(self, moment: datetime, times: int = 1) -> datetime:
        """The instant ``times`` intervals after ``moment``, same time of day.

        A day that the target month lacks becomes its last day. What lies beyond the last date there is becomes that.
        """
        months = moment.year * 12 + moment.month - 1 + self.months * times
        year, month = divmod(months, 12)
        if year > LAST.year:
            return LAST
        day = min(moment.day, calendar.monthrange(year, month + 1)[1])
        try:
            return min(moment.replace(year=year, month=month + 1, day=day) + timedelta(days=self.days * times), LAST)
        except OverflowError:
            return LAST


def parse_interval(text: object, name: str = "retune_after") -> Interval:
    """Reads ``30d``, ``12w``, ``3mo`` or ``1y``.

    Args:
        text: The interval, at most 100 years.
        name: Argument or key that an error names.

    Raises:
        ValueError: In any other case, in one line.
    """
    match = _INTERVAL.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"`{name}` must be an interval such as 30d, 12w, 3mo or 1y, got {text!r}")
    count, unit = int(match[1]), match[2]
    if count > _MOST[unit]:
        raise ValueError(f"`{name}` must be at most 100 years, got {text!r}")
    if unit in ("mo", "y"):
        return Interval(months=count * (12 if unit == "y" else 1))
    return Interval(days=count * (7 if unit == "w" else 1))


def intervals_by_tier(retune_after: object = None, name: str = "retune_after") -> dict[str, str]:
    """One interval a tier, as text.

    Args:
        retune_after: None for the defaults; one interval for every tier; or a mapping of tier to interval, in which a
            tier that is left out keeps its default.
        name: Argument or key that an error names.

    Raises:
        ValueError: If an interval cannot be read or a tier is not one of A, B, C, D.
    """
    if retune_after is None:
        return dict(DEFAULT_INTERVALS)
    if not isinstance(retune_after, Mapping):
        parse_interval(retune_after, name)
        return dict.fromkeys(TIERS, str(retune_after))
    for tier, text in retune_after.items():
        if tier not in TIERS:
            raise ValueError(f"`{name}` must have tiers {', '.join(TIERS)} as keys, got {tier!r}")
        parse_interval(text, f"{name}.{tier}")
    return {**DEFAULT_INTERVALS, **{str(tier): str(text) for tier, text in retune_after.items()}}


def as_utc(moment: object, name: str = "now") -> datetime:
    """The same instant in UTC. A datetime without a time zone is refused: it names no instant."""
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError(f"`{name}` must be a datetime with a time zone, got {moment!r}")
    return _to_utc(moment, name)


def _to_utc(moment: datetime, name: str) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"`{name}` must be a date in UTC from the year 1 to 9999, got {moment.isoformat()}") from None


def to_text(moment: datetime) -> str:
    """ISO 8601 in UTC to the second, such as ``2026-11-21T09:30:00Z``."""
    return as_utc(moment, "moment").strftime("%Y-%m-%dT%H:%M:%SZ")


def from_text(text: object, name: str = "at") -> datetime:
    """Reads an ISO 8601 instant; a date alone means midnight UTC, another offset is converted.

    Raises:
        ValueError: If it is no such text, or has a time but no offset.
    """
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    if moment is not None and moment.tzinfo is None and isinstance(text, str) and len(text) == 10:
        moment = moment.replace(tzinfo=UTC)
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"`{name}` must be a date or a time in ISO 8601 with its offset, got {text!r}")
    return _to_utc(moment, name)


@dataclass(frozen=True)
class Verdict:
    """The verdict on the age of the hyperparameters tuned under one name.

    Args:
        name: Name of the tuned model or study.
        status: ``fresh``, ``due``, ``stale`` or ``invalid``; ``untuned`` where no record exists.
        reason: One sentence, without a full stop.
        todo: What to do about it.
        dates: Next re-test date by tier.
        tuned_at: When the study ended.
        confirmed_at: When a re-test last confirmed them.
        age: Time since ``tuned_at``.
        study: The study that tuned them.
        refresh: What re-tests and refreshes it: a command, or a call for a study of Python classes.
    """

    name: str
    status: str
    reason: str
    todo: str
    dates: Mapping[str, datetime] = field(default_factory=dict)
    tuned_at: datetime | None = None
    confirmed_at: datetime | None = None
    age: timedelta | None = None
    study: str = ""
    refresh: str = ""

    @property
    def next_date(self) -> datetime | None:
        """The earliest re-test date over the tiers."""
        return min(self.dates.values(), default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; instants as text, the age in days."""
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "todo": self.todo,
            "next": to_text(self.next_date) if self.next_date else None,
            "dates": {tier: to_text(date) for tier, date in self.dates.items()},
            "tuned_at": to_text(self.tuned_at) if self.tuned_at else None,
            "confirmed_at": to_text(self.confirmed_at) if self.confirmed_at else None,
            "age_days": round(self.age / timedelta(days=1), 2) if self.age is not None else None,
            "study": self.study,
        }


def verdict(
    records: Sequence[Mapping[str, Any]],
    now: datetime,
    fingerprints: Mapping[str, Any] | None = None,
    tolerance: Tolerance | None = None,
) -> Verdict:
    """Judges one name from its records.

    The last ``tuned`` or ``retuned`` record counts, with the events after it. Rules:

    * A tier is due from its date on, stale from twice its interval on, counted from the tuning or from the last re-test
      that confirmed it.
    * A postponement moves the date of every tier to at least its own; until then neither drift nor a lost re-test makes
      the record due. It does not make a changed model valid.
    * Training data that moved, a lost re-test, or shifted reference moments in two checks in a row: due now.
    * Another model signature, search space or data layout (columns, dtypes, classes): invalid.

    Args:
        records: Records of one name, in the order of the ledger.
        now: The clock, with a time zone.
        fingerprints: Current ``model`` and ``space`` (text) and ``data`` (a data fingerprint); what is left out is not
            compared, and the last recorded check of it counts.
        tolerance: How far data may move; the default is that of :func:`lightning_hp.ledger.drift.compare_fingerprints`.

    Raises:
        ValueError: If the records have several names, or one lies in the future of ``now``.
    """
    now = as_utc(now)
    names = list(dict.fromkeys(str(record["name"]) for record in records))
    if len(names) > 1:
        raise ValueError(f"`records` must be of one name, got {', '.join(names)}")
    for record in records:
        if from_text(record["at"]) - now > CLOCK_SKEW:
            where = getattr(record, "where", "") or "record"
            clock = to_text(now)
            raise ValueError(f"{where}: {record['at']} lies after the clock's {clock}; set the clock or mend the line")
    last = max((i for i, record in enumerate(records) if record["event"] in ("tuned", "retuned")), default=None)
    if last is None:
        name = names[0] if names else ""
        return Verdict(name, "untuned", "no record of a tuning", "tune it: lightning-hp tune CONFIG")
    base = records[last]
    state = _replay(base, records[last + 1 :])
    if fingerprints is not None:
        _compare_current(state, fingerprints, tolerance)
    return _judge(base, state, now)


@dataclass
class _State:
    """The state of a record after all events since the tuning."""

    anchor: datetime
    fingerprints: dict[str, Any]
    confirmed_at: datetime | None = None
    postponed: Mapping[str, Any] | None = None
    beaten: str = ""
    invalid: dict[str, str] = field(default_factory=dict)  # what changed -> sentence
    moved: str = ""
    shifted: int = 0
    shift: str = ""

    def set_check(self, kind: str, changes: Sequence[Change], structural: bool) -> None:
        """Takes one check of ``kind``; no changes means that it passed."""
        sentence = summarise_changes(changes)
        if kind == "moments":
            self.shifted, self.shift = (self.shifted + 1, sentence) if changes else (0, "")
            return
        self.invalid.pop(kind, None)
        if kind == "data":
            self.moved = ""
        if not changes:
            return
        if kind == "data" and not structural:
            self.moved = sentence
        else:
            self.invalid[kind] = sentence


def _replay(base: Mapping[str, Any], later: Sequence[Mapping[str, Any]]) -> _State:
    state = _State(from_text(base["at"]), dict(base.get("fingerprints") or {}))
    for record in later:
        event, at = record["event"], from_text(record["at"])
        if event == "postponed":
            state.postponed = record
        elif event == "retested" and record["outcome"] == "confirmed":
            fingerprints = {**state.fingerprints, **(record.get("fingerprints") or {})}
            state = _State(at, fingerprints, confirmed_at=at)
        elif event == "retested" and record["outcome"] == "beaten":
            state.beaten = f"re-test of {_day(at)} found better values"
        elif event in ("checked", "drifted"):
            state.set_check(record["kind"], changes_of(record), bool(record.get("structural")))
    return state


def _compare_current(state: _State, current: Mapping[str, Any], tolerance: Tolerance | None) -> None:
    for kind in ("model", "space"):
        recorded, present = state.fingerprints.get(kind), current.get(kind)
        if recorded is not None and present is not None:
            changed = Change(f"{kind} changed: was {recorded}, is {present}")
            state.set_check(kind, [] if recorded == present else [changed], True)
    recorded, present = state.fingerprints.get("data"), current.get("data")
    if recorded is not None and present is not None:
        drifts = compare_fingerprints(recorded, present, tolerance or Tolerance())
        state.set_check("data", [drift.change for drift in drifts], any(drift.structural for drift in drifts))


def _judge(base: Mapping[str, Any], state: _State, now: datetime) -> Verdict:
    until = from_text(state.postponed["until"]) if state.postponed else None
    dates, stale = _dates_by_tier(base["retune_after"], state.anchor, until)
    tuned_at, study = from_text(base["at"]), str(base.get("study") or base["name"])
    excused = until is not None and now < until
    status, reasons = _status_and_reasons(state, dates, stale, now, excused)
    if excused and state.postponed:
        by = f" by {state.postponed['by']}" if state.postponed.get("by") else ""
        reasons.append(f"postponed until {_day(from_text(state.postponed['until']))}{by}: {state.postponed['why']}")
    refresh = refresh_text(study, str(base.get("tuned_by") or "command"))
    todo = {
        "fresh": "nothing",
        "due": refresh,
        "stale": refresh,
        "invalid": "tune again: the record describes another model, space or data",
    }[status]
    age = max(now - tuned_at, timedelta())
    return Verdict(
        str(base["name"]), status, "; ".join(reasons), todo, dates, tuned_at, state.confirmed_at, age, study, refresh
    )


def _dates_by_tier(
    retune_after: Mapping[str, str], anchor: datetime, until: datetime | None
) -> tuple[dict[str, datetime], dict[str, datetime]]:
    """When each tier becomes due and when stale; a postponement moves both."""
    due, stale = {}, {}
    for tier, text in retune_after.items():
        interval = parse_interval(text)
        due[tier], stale[tier] = interval.after(anchor), interval.after(anchor, STALE_AFTER_INTERVALS)
        if until is not None and until > due[tier]:
            due[tier], stale[tier] = until, interval.after(until, STALE_AFTER_INTERVALS - 1)
    return due, stale


def _status_and_reasons(
    state: _State, dates: Mapping[str, datetime], stale: Mapping[str, datetime], now: datetime, excused: bool
) -> tuple[str, list[str]]:
    """The status and why: the worst of what holds, with everything else that speaks for a re-test behind it."""
    reasons = [text for text in (state.moved, state.beaten) if text]
    if state.shifted >= SHIFTED_CHECKS:
        reasons.append(f"shifted in {state.shifted} checks in a row: {state.shift}")
    overdue = sorted((tier for tier in dates if now >= dates[tier]), key=lambda tier: dates[tier])
    too_old = sorted((tier for tier in stale if now >= stale[tier]), key=lambda tier: stale[tier])
    if state.invalid:
        return "invalid", [*state.invalid.values(), *reasons]
    if too_old:
        return "stale", [f"stale since {_day(stale[too_old[0]])} (tier {', '.join(too_old)})", *reasons]
    if overdue:
        return "due", [f"due since {_day(dates[overdue[0]])} (tier {', '.join(overdue)})", *reasons]
    if reasons and not excused:
        return "due", reasons
    first = min(dates, key=lambda tier: dates[tier])
    reasons = [f"fresh until {_day(dates[first])} (tier {first})", *reasons]
    if 0 < state.shifted < SHIFTED_CHECKS:
        reasons.append(f"shifted in {state.shifted} check, due at {SHIFTED_CHECKS} in a row: {state.shift}")
    return "fresh", reasons


def refresh_text(study: str, tuned_by: str) -> str:
    """The command that re-tests and refreshes a study, as a person types it.

    Args:
        study: Its folder or name.
        tuned_by: ``command`` (a configuration file says what is tuned), or ``python`` (a script does).
    """
    if tuned_by == "python":
        return f"in the script that tuned it: lightning_hp.retune({study!r}, ...)"
    return f"lightning-hp retune {shlex.quote(study)}"


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")
