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
from typing import Any

from optuna.trial import TrialState

from lightning_hp.ledger import dates, records
from lightning_hp.ledger.dates import Verdict as Verdict
from lightning_hp.ledger.drift import compare
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError, find_study

_log = logging.getLogger(__name__)
TUNINGS = ("tuned", "retuned")


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
        """The folder of the study that a record tells of; it need not exist."""
        return StudyPaths(_found(Path(str(record.get("study") or "")), self.root.parent))

    def link_to(self, record: Mapping[str, Any]) -> str:
        """Where that study's report is, from this study's folder; empty where there is none."""
        report = self.study_of(record).report
        return Path(os.path.relpath(report, self.folder)).as_posix() if report.is_file() else ""

    @property
    def moved(self) -> list[str] | None:
        """How the training data differ from those of the older record, a sentence a column; None if not known."""
        if self.older is None or self.own is None:
            return None
        was, now = (one["fingerprints"].get("data") for one in (self.older, self.own))
        if was is None or now is None:
            return None
        return [drift.sentence for drift in compare(was, now)]

    @property
    def retest(self) -> records.Record | None:
        """The re-test that led to this study."""
        return next((e for e in reversed(self.before) if e["event"] == "retested"), None)

    def retested_value(self) -> float | None:
        """What the older record's values reach on the data of that re-test; None where that cannot be read."""
        if self.retest is None or not self.retest.get("study"):
            return None
        given = Path(self.retest["study"])
        try:
            study, _ = find_study(str(_found(given, self.root / "retests")))
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
    root = paths.root if previous is None else _found(Path(previous), paths.root.parent)
    ledger = StudyPaths(root).ledger
    if not ledger.exists():
        return None
    try:
        known = _of_study(records.read(ledger), paths.root.name)
        if not known:
            return None
        return _placed(known, root, paths.root, previous is not None, now)
    except (OSError, ValueError) as error:  # one line that names the file, and the line in it
        _log.warning("no age of %s: %s", paths.root.name, error)
        return None


def _of_study(ledger: records.Ledger, folder: str) -> list[records.Record]:
    """The events of the name that this study was recorded under: nearly always the only one."""
    named = [r["name"] for r in ledger.records if r["event"] in TUNINGS and _is_of(r, folder)]
    names = ledger.names
    return ledger.of(named[-1] if named else names[-1]) if names else []


def _is_of(record: Mapping[str, Any], folder: str) -> bool:
    return Path(str(record.get("study") or record["name"])).name == folder


def _placed(known: Sequence[records.Record], root: Path, folder: Path, refreshing: bool, now: datetime) -> Lineage:
    verdict = dates.verdict(known, now)
    tunings = [i for i, r in enumerate(known) if r["event"] in TUNINGS]
    mine = [i for i in tunings if _is_of(known[i], folder.name)]
    if not mine and not refreshing and tunings:  # a folder that was renamed
        mine = tunings[:1]
    if not mine:  # it runs still
        last = tunings[-1] if tunings and refreshing else None
        older = None if last is None else known[last]
        return Lineage(root, folder, verdict, older=older, before=tuple(known[last + 1 :]) if last is not None else ())
    own = mine[-1]
    earlier = [i for i in tunings if i < mine[0]]
    later = [i for i in tunings if i > own]
    end = later[0] if later else len(known)
    newer = known[later[0]] if later else None
    if newer is not None:
        name = Path(str(newer.get("study") or newer["name"])).name
        reason = f"replaced by {name} on {newer['at'][:10]}"
        verdict = replace(verdict, status="replaced", reason=reason, todo="nothing", dates={})
    return Lineage(
        root,
        folder,
        verdict,
        own=known[own],
        older=known[earlier[-1]] if earlier else None,
        newer=newer,
        before=tuple(known[earlier[-1] + 1 : mine[0]]) if earlier else (),
        since=tuple(known[own + 1 : end]),
    )


def _found(given: Path, beside: Path) -> Path:
    """A folder as it was named, else the one of its name beside."""
    return given if given.is_dir() else beside / given.name


def story(events: Sequence[Mapping[str, Any]], most: int = 12) -> tuple[list[tuple[str, str, str]], int]:
    """Events for a table: date, what was done, what came of it; checks that found nothing are drawn together.

    Args:
        events: Of a ledger, oldest first.
        most: Most lines.

    Returns:
        The lines, newest first, and how many older ones are left out.
    """
    lines: list[tuple[str, str, str] | None] = []
    quiet: dict[str, tuple[int, int]] = {}  # kind -> the line of checks that found nothing, and how many they are
    for event in events:
        day, kind = str(event["at"])[:10], str(event.get("kind", ""))
        if event["event"] == "checked":
            line, times = quiet.get(kind, (None, 0))
            if line is not None:
                lines[line] = None
            quiet[kind] = (len(lines), times + 1)
            lines.append((day, _check(kind), f"nothing new, {times + 1} times" if times else "nothing new"))
        elif event["event"] == "drifted":
            quiet.pop(kind, None)
            lines.append((day, _check(kind), dates.summarise([str(f) for f in event["findings"]])))
        elif event["event"] == "retested":
            outcome, summary = str(event["outcome"]), str(event.get("summary") or "")
            lines.append((day, "re-test", summary if summary.startswith(outcome) else f"{outcome}: {summary}"))
        elif event["event"] == "postponed":
            by = f" by {event['by']}" if event.get("by") else ""
            lines.append((day, "postponed", f"until {str(event['until'])[:10]}{by}: {event['why']}"))
    told = [line for line in lines if line is not None]
    return told[::-1][:most], max(0, len(told) - most)


def _check(kind: str) -> str:
    words = {"data": "training data", "moments": "shifted inputs", "model": "model", "space": "search space"}
    return f"check of {words.get(kind, kind)}"
