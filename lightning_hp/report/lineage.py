"""Where a study stands in the life of what was tuned: what it replaced, what replaced it, and what happened between.

A study that refreshes another one has no ledger of its own: its record stands in the ledger of the first study, with
all checks and re-tests. Paths in a ledger are those of the day they were written; a folder that was moved or copied is
found again beside the ledger.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from optuna.trial import TrialState

from lightning_hp.ledger import dates, records
from lightning_hp.ledger.changes import Change, changes_of, summarise_changes
from lightning_hp.ledger.dates import Verdict as Verdict
from lightning_hp.ledger.drift import compare_fingerprints
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError, find_study

_log = logging.getLogger(__name__)
TUNINGS = ("tuned", "retuned")


class EventRow(NamedTuple):
    """One event of a ledger, or several quiet checks as one: its date, what was done, what came of it."""

    day: str
    what: str
    outcome: str


@dataclass(frozen=True)
class StudyLink:
    """Another study of the ledger.

    Attributes:
        name: Of its folder.
        address: Of its report, from this study's folder; empty where there is none.
    """

    name: str
    address: str


@dataclass(frozen=True)
class Lineage:
    """One study in its ledger.

    Attributes:
        root: The folder of the first study, which holds the ledger.
        folder: The folder of this study.
        verdict: How old its values are; of a study that was replaced, that it was.
        own: The record of its end, None while it runs.
        older: The record that it replaces, None for a first study.
        newer: The record that replaced it.
        before: Events between the older record and its own.
        since: Events since its own record, to the newer one.
    """

    root: Path
    folder: Path
    verdict: dates.Verdict
    own: records.Record | None = None
    older: records.Record | None = None
    newer: records.Record | None = None
    before: tuple[records.Record, ...] = ()
    since: tuple[records.Record, ...] = ()

    def study_of(self, record: Mapping[str, Any]) -> StudyPaths:
        """The folder of the study that a record is about; it need not exist."""
        return StudyPaths(_folder_or_beside(Path(str(record.get("study") or "")), self.root.parent))

    def link_to(self, record: Mapping[str, Any]) -> StudyLink:
        """The study that a record is about."""
        paths = self.study_of(record)
        address = Path(os.path.relpath(paths.report, self.folder)).as_posix() if paths.report.is_file() else ""
        return StudyLink(paths.root.name, address)

    @property
    def moved(self) -> list[Change] | None:
        """How the training data differ from those of the older record, one change a column; None if not known."""
        if self.older is None or self.own is None:
            return None
        before, after = (record["fingerprints"].get("data") for record in (self.older, self.own))
        if before is None or after is None:
            return None
        return [drift.change for drift in compare_fingerprints(before, after)]

    @property
    def retest(self) -> records.Record | None:
        """The re-test that led to this study."""
        return next((e for e in reversed(self.before) if e["event"] == "retested"), None)

    def retested_value(self) -> float | None:
        """What the older record's values reach on the data of that re-test; None where that cannot be read."""
        if self.retest is None or not self.retest.get("study"):
            return None
        folder = _folder_or_beside(Path(self.retest["study"]), self.root / "retests")
        try:
            study, _ = find_study(str(folder))
            first = study.get_trials(deepcopy=False)[0]  # the recorded best is the first to be trained
        except (StudyError, OSError, ValueError, IndexError):
            return None
        return first.value if first.state is TrialState.COMPLETE and not first.user_attrs.get("diverged") else None


def lineage_of(paths: StudyPaths, previous: str | None, now: datetime) -> Lineage | None:
    """A study's place in its ledger.

    Args:
        paths: Its folder.
        previous: Folder of the study that it refreshes, as its description says; None for a first study.
        now: The clock, with a time zone.

    Returns:
        None without a ledger that can be read, or with an empty one.
    """
    root = paths.root if previous is None else _folder_or_beside(Path(previous), paths.root.parent)
    ledger = StudyPaths(root).ledger
    if not ledger.exists():
        return None
    try:
        events = _events_of(records.read(ledger), paths.root.name)
        if not events:
            return None
        return _place(events, root, paths.root, previous is not None, now)
    except (OSError, ValueError) as error:  # one line that names the file, and the line in it
        _log.warning("no age of %s: %s", paths.root.name, error)
        return None


def _events_of(ledger: records.Ledger, folder: str) -> list[records.Record]:
    """The events of the name that this study was recorded under: nearly always the only one."""
    named = [r["name"] for r in ledger.records if r["event"] in TUNINGS and _is_of(r, folder)]
    names = ledger.names
    return ledger.of(named[-1] if named else names[-1]) if names else []


def _is_of(record: Mapping[str, Any], folder: str) -> bool:
    return Path(str(record.get("study") or record["name"])).name == folder


def _place(events: Sequence[records.Record], root: Path, folder: Path, is_refresh: bool, now: datetime) -> Lineage:
    """Where a study stands among the events of its ledger.

    Args:
        events: All of its name, oldest first.
        root: The folder of the first study.
        folder: The folder of this study.
        is_refresh: Whether it refreshes another one.
        now: The clock, with a time zone.
    """
    verdict = dates.verdict(events, now)
    tunings = [i for i, event in enumerate(events) if event["event"] in TUNINGS]
    own = [i for i in tunings if _is_of(events[i], folder.name)]
    if not own and not is_refresh and tunings:  # a folder that was renamed
        own = tunings[:1]
    if not own:
        return _running(events, tunings[-1] if tunings and is_refresh else None, root, folder, verdict)
    earlier = [i for i in tunings if i < own[0]]
    later = [i for i in tunings if i > own[-1]]
    newer = events[later[0]] if later else None
    if newer is not None:
        name = Path(str(newer.get("study") or newer["name"])).name
        reason = f"replaced by {name} on {newer['at'][:10]}"
        verdict = replace(verdict, status="replaced", reason=reason, todo="nothing", dates={})
    return Lineage(
        root,
        folder,
        verdict,
        own=events[own[-1]],
        older=events[earlier[-1]] if earlier else None,
        newer=newer,
        before=tuple(events[earlier[-1] + 1 : own[0]]) if earlier else (),
        since=tuple(events[own[-1] + 1 : later[0] if later else len(events)]),
    )


def _running(
    events: Sequence[records.Record], last_tuning: int | None, root: Path, folder: Path, verdict: dates.Verdict
) -> Lineage:
    """A study that has not ended, and so has no record of its own."""
    if last_tuning is None:
        return Lineage(root, folder, verdict)
    return Lineage(root, folder, verdict, older=events[last_tuning], before=tuple(events[last_tuning + 1 :]))


def _folder_or_beside(folder: Path, beside: Path) -> Path:
    """A folder as it was named, else the one of its name beside."""
    return folder if folder.is_dir() else beside / folder.name


def event_rows(events: Sequence[Mapping[str, Any]], most: int = 12) -> tuple[list[EventRow], int]:
    """Events for a table; checks that found nothing become one row.

    Args:
        events: Of a ledger, oldest first.
        most: Most rows.

    Returns:
        The rows, newest first, and how many older ones are left out.
    """
    rows: list[EventRow | None] = []
    quiet: dict[str, tuple[int, int]] = {}  # kind -> the row of checks that found nothing, and how many they are
    for event in events:
        day, kind = str(event["at"])[:10], str(event.get("kind", ""))
        if event["event"] == "checked":
            row, times = quiet.get(kind, (None, 0))
            if row is not None:
                rows[row] = None
            quiet[kind] = (len(rows), times + 1)
            rows.append(EventRow(day, _check(kind), f"nothing new, {times + 1} times" if times else "nothing new"))
        elif event["event"] == "drifted":
            quiet.pop(kind, None)
            rows.append(EventRow(day, _check(kind), summarise_changes(changes_of(event))))
        elif event["event"] == "retested":
            outcome, summary = str(event["outcome"]), str(event.get("summary") or "")
            rows.append(EventRow(day, "re-test", summary if summary.startswith(outcome) else f"{outcome}: {summary}"))
        elif event["event"] == "postponed":
            by = f" by {event['by']}" if event.get("by") else ""
            rows.append(EventRow(day, "postponed", f"until {str(event['until'])[:10]}{by}: {event['why']}"))
    kept = [row for row in rows if row is not None]
    return kept[::-1][:most], max(0, len(kept) - most)


def _check(kind: str) -> str:
    words = {"data": "training data", "moments": "shifted inputs", "model": "model", "space": "search space"}
    return f"check of {words.get(kind, kind)}"
