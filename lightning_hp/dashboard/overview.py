"""All studies on one page, and each in one line: how good, which stage, how far, how old, how big.

Optuna's list of studies has names and directions only. What is shown here is read from storage and from the study
folders on every request; only sizes on disk are kept for a minute.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.dashboard.babysat import BabysatRun, value_text
from lightning_hp.dashboard.combined_storage import CombinedStorage
from lightning_hp.report.age import TONES
from lightning_hp.report.axes import number_text
from lightning_hp.report.lineage import Verdict, lineage_of
from lightning_hp.report.page import Page
from lightning_hp.report.view import value_of
from lightning_hp.study.description import ATTRIBUTE
from lightning_hp.study.questions import is_gate
from lightning_hp.study.trials import ranked_since
from lightning_hp.study.upstream import study_number

#: seconds for which a folder's size is believed
SIZE_KEPT = 60.0
#: seconds between two loads of the overview
REFRESH = 15
#: folder to the moment of its measurement, seconds, and its size, bytes
_sizes: dict[Path, tuple[float, int]] = {}


@dataclass(frozen=True)
class Status:
    """One study in short.

    Attributes:
        number: Its number in the storage that is served.
        name: Its name.
        metric: What is measured, as far as it is known.
        best: The best value, None without a complete trial.
        best_trial: Its trial's number.
        stage: Of the last trial that has one, such as ``4 fine ABC``; empty where there is none.
        finished: Trials that have ended.
        running: Trials that are running.
        planned: Planned total, None where it is not known.
        active: When a trial last began or ended.
        verdict: Of its ledger, None without one.
        size: Of its folder in bytes, None without one.
        has_report: Whether the folder holds a report.
        form: Address of the form where it waits for a person's answer, None where it does not.
    """

    number: int
    name: str
    metric: str
    best: float | None
    best_trial: int | None
    stage: str
    finished: int
    running: int
    planned: int | None
    active: datetime | None
    verdict: Verdict | None
    size: int | None
    has_report: bool
    form: str | None = None

    @property
    def line(self) -> str:
        """Such as ``4 fine ABC, best 0.081; stale since 2026-01-31 (tier A)``."""
        result = f"best {number_text(self.best)}" if self.best is not None else f"{self.finished} trials, none complete"
        text = f"{self.stage}, {result}" if self.stage else result
        return f"{text}; {self.verdict.reason}" if self.verdict is not None else text

    @property
    def tone(self) -> str:
        """``good``, ``warn``, ``bad`` or ``dim``, by age."""
        return TONES.get(self.verdict.status, "dim") if self.verdict is not None else "dim"


def statuses(combined: CombinedStorage, now: datetime) -> list[Status]:
    """All studies, those with trials running or ended last first."""
    studies = combined.get_all_studies()
    names = {study.study_name for study in studies}
    studies = [study for study in studies if not is_gate(study.study_name, names)]
    rows = [status_of(combined, study_number(study), study.study_name, now) for study in studies]
    never = datetime(1970, 1, 1, tzinfo=UTC)
    return sorted(rows, key=lambda s: (s.running > 0, s.active or never), reverse=True)


def status_of(combined: CombinedStorage, number: int, name: str, now: datetime) -> Status:
    """What the overview shows of one study.

    Args:
        combined: Where it is.
        number: Its number there.
        name: How it is called.
        now: The clock, with a time zone.

    Raises:
        KeyError: If there is no such study.
    """
    trials = combined.get_all_trials(number, deepcopy=False)
    attributes = combined.get_study_user_attrs(number)
    description: dict[str, Any] = attributes.get(ATTRIBUTE) or {}
    directions = combined.get_study_directions(number)
    minimises, since = directions[0] is not StudyDirection.MAXIMIZE, description.get("since", 0)
    ranked = ranked_since(trials, minimises, since) if len(directions) == 1 else []
    best = ranked[0] if ranked else None
    stages = [t.user_attrs["stage"] for t in trials if "stage" in t.user_attrs]
    paths = combined.folder_of(number)
    lineage = lineage_of(paths, description.get("previous"), now) if paths is not None else None
    names = combined.get_study_system_attrs(number).get("study:metric_names") or [""]
    return Status(
        number=number,
        name=name,
        metric=str(description.get("monitor") or names[0]),
        best=value_of(best) if best is not None else None,
        best_trial=best.number if best is not None else None,
        stage=str(stages[-1]) if stages else "",
        finished=sum(t.state.is_finished() for t in trials),
        running=sum(t.state is TrialState.RUNNING for t in trials),
        planned=description.get("n_trials"),
        active=_active(trials),
        verdict=lineage.verdict if lineage is not None else None,
        size=size_of(paths.root) if paths is not None else None,
        has_report=paths is not None and paths.report.is_file(),
        form=combined.form_of(number),
    )


def _active(trials: list[FrozenTrial]) -> datetime | None:
    """When a trial last began or ended; Optuna keeps local time without a zone."""
    moments = [m for t in trials for m in (t.datetime_complete or t.datetime_start,) if m is not None]
    return max(moments).astimezone(UTC) if moments else None


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; links are not followed, vanished files not counted."""
    now = time.monotonic()
    measured_at, size = _sizes.get(folder, (float("-inf"), 0))
    if now - measured_at < SIZE_KEPT:
        return size
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    _sizes[folder] = (now, total)
    return total


def size_text(size: int | None) -> str:
    """Bytes in the unit that suits: ``812 kB``, ``3.4 MB``."""
    if size is None:
        return "–"
    if size < 999_500:
        return f"{round(size / 1e3)} kB"
    return f"{size / 1e6:.1f} MB" if size < 999.5e6 else f"{size / 1e9:.1f} GB"


def ago_text(since: datetime | None, now: datetime) -> str:
    """How long ago: ``just now``, ``12 min ago``, ``3 h ago``, ``5 days ago``."""
    if since is None:
        return "–"
    gone = now - since
    if gone < timedelta(minutes=1):
        return "just now"
    if gone < timedelta(hours=1):
        return f"{gone // timedelta(minutes=1)} min ago"
    if gone < timedelta(hours=48):
        return f"{gone // timedelta(hours=1)} h ago"
    return f"{gone // timedelta(days=1)} days ago"


def overview(combined: CombinedStorage, now: datetime, babysat: Sequence[BabysatRun] = ()) -> str:
    """The page, as HTML.

    Args:
        combined: The studies.
        now: The clock, with a time zone.
        babysat: Babysat runs, in the order in which they are shown.
    """
    studies = statuses(combined, now)
    counts = {
        tone: sum(study.verdict is not None and study.verdict.status == tone for study in studies) for tone in TONES
    }
    return Page("Studies – lightning_hp", refresh=REFRESH).render(
        "overview.html",
        studies=studies,
        running=sum(study.running > 0 for study in studies),
        counts={status: count for status, count in counts.items() if count},
        ago=lambda moment: ago_text(moment, now),
        babysat=babysat,
        text=value_text,
        size=lambda study: size_text(study.size),
    )
