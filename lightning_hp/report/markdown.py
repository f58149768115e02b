"""The notes of a study and of its trials, as Markdown (GitHub's, as the dashboard renders it: no HTML, no formulas)."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.report.audits import Audit
from lightning_hp.report.measured import NO_EFFECT
from lightning_hp.report.model import Report
from lightning_hp.report.outcomes import reason_of
from lightning_hp.report.rendering import render_markdown
from lightning_hp.report.view import finite, finite_points


def study_note(report: Report, number: int, flagged: Sequence[FrozenTrial]) -> str:
    """The note of a study.

    Args:
        report: The study.
        number: The study's number in its storage, for links.
        flagged: Trials to look at.
    """
    return render_markdown("study_note.md", report=report, number=number, flagged=flagged, no_effect=NO_EFFECT)


def trial_note(report: Report, trial: FrozenTrial, audit: Audit, picture: str | None) -> str:
    """The note of a trial.

    Args:
        report: Its study.
        trial: The trial.
        audit: Its BatchNorm audit; an empty one where there is none.
        picture: Address of the audit's picture, None for none.
    """
    view = report.view
    has_failed = trial.state is TrialState.FAIL or (trial.state is TrialState.COMPLETE and not finite(trial.value))
    points = finite_points(trial)
    pick = min if view.minimises else max
    seconds = trial.user_attrs.get("seconds")
    return render_markdown(
        "trial_note.md",
        report=report,
        trial=trial,
        stage=view.stage_of(trial),
        reason=reason_of(trial) if has_failed else "",
        traceback=str(trial.user_attrs.get("traceback") or ""),
        value=trial.value if finite(trial.value) else None,
        rank=next((place for place, ranked in enumerate(view.ranked, start=1) if ranked.number == trial.number), None),
        best_point=pick(points, key=lambda point: point[1]) if points else None,
        last_step=points[-1][0] if points else None,
        seconds=float(seconds) if finite(seconds) else None,
        is_whole=all(parameter.stored_name in trial.params for parameter in view.space.parameters),
        audit=audit,
        picture=None if picture is None else Markup(picture),
    )
