"""What the dashboard shows of a study beside its own pages: notes, figures and short attributes.

A study's note says what a person would ask first: the best values by tier, the stages, what mattered, what is at an
edge, what failed, how old it is. Only the best trials and flagged ones get a note of their own, since a study with
thousands of notes makes the page slow. What a person writes below the line that ends our part of a note stays.

One process at a time writes them. An error while they are written is logged and never stops the study.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import warnings
from datetime import datetime
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial

from lightning_hp.report import figures
from lightning_hp.report.audit_svg import audit_picture
from lightning_hp.report.audits import Audit
from lightning_hp.report.axes import number_text
from lightning_hp.report.markdown import study_note, trial_note
from lightning_hp.report.model import Report, read_report
from lightning_hp.report.view import value_of
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.upstream import note_target, stored_figures, study_number

_log = logging.getLogger(__name__)
#: seconds between two decorations of a study, unless forced; longer where one takes long, so that it never takes more
#: than this share of a study's time
EVERY, SHARE = 30.0, 0.02
#: trials that get a note: the best, and of the flagged ones the latest
BEST, FLAGGED = 3, 12
#: ends our part of a note
LINE = "\n\n---\n*Written by lightning_hp. What you write below this line stays.*\n"
_FIGURE = "lightning-hp-"


def decorate(
    study: optuna.Study,
    paths: StudyPaths,
    *,
    report: Report | None = None,
    force: bool = False,
    now: datetime | None = None,
) -> bool:
    """Bring what the dashboard shows of a study up to date.

    Call it where a stage ends and where the study ends, never in the middle of a trial. Of several processes one does
    the work, at most every ``EVERY`` seconds and for at most ``SHARE`` of the time. Nothing that goes wrong is raised.

    Args:
        study: A study that lightning_hp made.
        paths: Its folder.
        report: What the study has to say; None reads it from the study and its folder.
        force: Whether to do it however short the last time is ago, as at the end of a study.
        now: The clock for dates, with a time zone; None is the current time.

    Returns:
        Whether it was done.
    """
    try:
        stamp = paths.root / "locks" / "decorated"
        stamp.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(paths.root / "locks" / "decorate.lock", timeout=60 if force else 0):
            if not force and _too_soon(stamp):
                return False
            begun = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                _decorate(study, report or read_report(study, paths, now=now))
            stamp.write_text(f"{time.perf_counter() - begun:.3f}", encoding="utf-8")
            return True
    except Timeout:
        return False
    except Exception:  # by contract: a picture is not worth a study
        _log.warning("study %r could not be decorated", study.study_name, exc_info=True)
        return False


def _too_soon(stamp: Path) -> bool:
    """Whether the notes were written too short a time ago; the stamp holds the seconds that this took."""
    try:
        took = float(stamp.read_text(encoding="utf-8") or 0)
        return time.time() - stamp.stat().st_mtime < max(EVERY, took / SHARE)
    except (OSError, ValueError):
        return False


def _decorate(study: optuna.Study, report: Report) -> None:
    view = report.view
    flagged = report.flagged[-FLAGGED:]
    _write_attributes(study, report)
    if study.metric_names is None:
        study.set_metric_names([report.monitor])
    _save(study, None, study_note(report, study_number(study), flagged))
    for trial in {t.number: t for t in (*flagged, *view.ranked[:BEST])}.values():
        audit = report.audit_of(trial)
        _save(study, trial, trial_note(report, trial, audit, _upload(study, report.paths, trial, audit)))
    _save_figures(study, report)


def _write_attributes(study: optuna.Study, report: Report) -> None:
    """The study's short attributes ``best``, ``stage`` and ``stale_after``: their only home; changes are written."""
    attributes: dict[str, str] = {}
    if report.best is not None:
        attributes["best"] = f"{report.monitor} {number_text(value_of(report.best))} (trial {report.best.number})"
    if report.last_stage is not None:
        attributes["stage"] = report.last_stage.name
    lineage = report.lineage
    if lineage is not None and lineage.newer is not None:
        attributes["stale_after"] = lineage.verdict.reason
    elif lineage is not None and lineage.own is not None and lineage.verdict.next_date is not None:
        attributes["stale_after"] = lineage.verdict.next_date.strftime("%Y-%m-%d")
    for name, text in attributes.items():
        if study.user_attrs.get(name) != text:
            study.set_user_attr(name, text)


def _save(study: optuna.Study, trial: FrozenTrial | None, body: str) -> None:
    """Replace our part of a note and keep what a person wrote below it; an unchanged note is not written."""
    from optuna_dashboard import get_note, save_note

    target = note_target(study, trial)
    stored = get_note(target)
    _, end_of_ours, theirs = stored.partition(LINE)
    kept = theirs if end_of_ours else (f"\n{stored}" if stored else "")
    if stored != body + LINE + kept:
        save_note(target, body + LINE + kept)


def _upload(study: optuna.Study, paths: StudyPaths, trial: FrozenTrial, audit: Audit) -> str | None:
    """The audit's picture as an artifact of the study (a finished trial takes none); the address of it.

    The picture is uploaded once: its name holds a fingerprint of what it shows.
    """
    from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact

    drawn = audit_picture(audit)
    if not drawn:
        return None
    name = f"audit-{trial.number:04d}-{hashlib.sha256(drawn.encode()).hexdigest()[:12]}.svg"
    paths.artifacts.mkdir(parents=True, exist_ok=True)
    artifact = next((meta.artifact_id for meta in get_all_artifact_meta(study) if meta.filename == name), None)
    if artifact is None:
        file = paths.trial(trial.number).root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(drawn, encoding="utf-8")
        try:
            artifact = upload_artifact(
                artifact_store=FileSystemArtifactStore(paths.artifacts), file_path=str(file), study_or_trial=study,
                mimetype="image/svg+xml",
            )  # fmt: skip
        finally:
            file.unlink()
    return f"/artifacts/{study_number(study)}/{artifact}"


def _save_figures(study: optuna.Study, report: Report) -> None:
    """Write the figures that have changed."""
    from optuna_dashboard import save_plotly_graph_object

    stored = stored_figures(study, _FIGURE)
    events = () if report.lineage is None else report.lineage.since
    for name, figure in figures.study_figures(report.view, report.measured, events).items():
        if stored.get(name) != json.loads(figure.to_json()):
            save_plotly_graph_object(study, figure, graph_object_id=name)
