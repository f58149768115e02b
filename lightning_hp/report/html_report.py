"""The report of a study: one HTML file that holds all it shows and opens anywhere, without network.

It answers in this order: what is the answer, can it be trusted, how was it found, what mattered, what went wrong, and
when to look again. Everything is read from the study and its folder, so that it can be written at any time: a study of
one trial, of failures only or of thousands of trials has a report too; a section without content is left out.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import optuna

from lightning_hp.report import figures
from lightning_hp.report.age import TONES, next_date
from lightning_hp.report.audit_svg import audit_picture
from lightning_hp.report.measured import NO_EFFECT
from lightning_hp.report.model import Report
from lightning_hp.report.page import Page
from lightning_hp.report.style import MOST_POINTS
from lightning_hp.report.view import NEUTRAL, StudyView, finite_points
from lightning_hp.study.paths import write_text


def write_report(report: Report) -> Path:
    """Write ``report.html`` into the study folder, replacing an older one in one step.

    Returns:
        The path of the file.

    Raises:
        OSError: If the file cannot be written; an older one is untouched then.
    """
    write_text(report.paths.report, html_report(report))
    return report.paths.report


def html_report(report: Report) -> str:
    """The report as one HTML page."""
    view, measured = report.view, report.measured
    finished = [trial for trial in view.trials if trial.state.is_finished()]
    audit = None if report.best is None else report.audit_of(report.best)
    rows = {row.parameter.name: row for row in measured.rows}
    return Page(f"{view.name} – tuning report").render(
        "report.html",
        report=report,
        figures=figures,
        tones=TONES,
        due=None if report.lineage is None else next_date(report.lineage.verdict),
        finished=len(finished),
        most_points=MOST_POINTS,
        can_draw_funnel=bool(view.positions(finished)[0]),
        pair=figures.landscape_pair(view, measured),
        has_curves=any(finite_points(trial) for trial in view.ranked),
        no_effect=NO_EFFECT,
        study_rows=rows,
        within_rows=[*(row.parameter for row in measured.rows), *(p for p in view.by_tier if p.name not in rows)],
        neutral=NEUTRAL,
        audit=audit,
        picture="" if audit is None else audit_picture(audit),
        python=platform.python_version(),
        versions=_versions(view),
    )


def _versions(view: StudyView) -> str:
    """The packages of the first run; today's where they were not recorded."""
    recorded = dict(view.description.versions or {})
    versions = recorded or {"lightning_hp": version("lightning-hp"), "optuna": optuna.__version__}
    return ", ".join(f"{package} {number}" for package, number in versions.items())
