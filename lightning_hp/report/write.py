"""Everything that is written about a study when something has changed: evidence, report, notes of the dashboard."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import optuna

from lightning_hp.report.html_report import write_report
from lightning_hp.report.lineage import lineage_of
from lightning_hp.report.model import read_report
from lightning_hp.report.notes import decorate
from lightning_hp.study.paths import StudyPaths, write_text
from lightning_hp.study.results import compute_evidence
from lightning_hp.study.storage import StudyError, find_study

_log = logging.getLogger(__name__)


def write_reports(study: optuna.Study, paths: StudyPaths, now: datetime | None = None) -> Path:
    """Write ``evidence.json``, ``report.html`` and the dashboard's notes.

    Args:
        study: A study that lightning_hp made.
        paths: Its folder.
        now: The clock that ages are counted to, with a time zone; None is the current time.

    Returns:
        The report's path.
    """
    evidence = compute_evidence(study)
    write_text(paths.evidence, json.dumps(evidence, indent=1))
    report = read_report(study, paths, evidence=evidence, now=now)
    write_report(report)
    decorate(study, paths, report=report, force=True)
    return paths.report


def write_older_reports(paths: StudyPaths, previous: str, now: datetime | None = None) -> None:
    """Bring the pages of the study that another one has replaced up to date: they then say by what, and link to it.

    What goes wrong is logged: the new study is whole without it.

    Args:
        paths: The folder of the new study.
        previous: The folder of the first study, as the new one's description names it.
        now: As for :func:`write_reports`.
    """
    lineage = lineage_of(paths, previous, now or datetime.now(UTC))
    if lineage is None or lineage.older is None:
        return
    try:
        write_reports(*find_study(str(lineage.study_of(lineage.older).root)), now)
    except (StudyError, OSError, ValueError):
        _log.warning("the pages of the study that %s replaces could not be renewed", paths.root.name, exc_info=True)
