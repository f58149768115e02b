"""The report of a study: one HTML file that holds all it shows and opens anywhere, without network.

It answers in this order: what is the answer, can it be trusted, how was it found, what mattered, what went wrong, and
when to look again. Everything is read from the study and its folder, so that it can be written at any time: a study of
one trial, of failures only or of thousands of trials has a report too; a section without content is left out.
"""

from __future__ import annotations

import html
import json
import logging
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna

from lightning_hp.ledger import dates
from lightning_hp.report import before_after, figures, sections
from lightning_hp.report.axes import duration_text, number_text
from lightning_hp.report.funnel import reached
from lightning_hp.report.lineage import lineage_of
from lightning_hp.report.measured import main_pair
from lightning_hp.report.page import Page
from lightning_hp.report.style import MOST_POINTS
from lightning_hp.report.view import StudyView, curve_of, value_of
from lightning_hp.study.paths import StudyPaths, write_text

_log = logging.getLogger(__name__)


def write_report(
    study: optuna.Study,
    paths: StudyPaths,
    evidence: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> Path:
    """Write ``report.html`` into the study folder, replacing an older one in one step.

    Args:
        study: A study that lightning_hp made.
        paths: Its folder.
        evidence: What mattered, as ``search.evidence`` gives it; None reads ``evidence.json`` of the folder.
        result: The winner, as the runner writes it; None reads ``result.json`` of the folder.
        now: The clock, with a time zone; None is the current time.

    Returns:
        The path of the report.

    Raises:
        StudyError: If lightning_hp did not make the study.
        OSError: If the file cannot be written.
    """
    now = now or datetime.now(UTC)
    view = StudyView.read(study)
    found = evidence if evidence is not None else read_json(paths.evidence)
    won = result if result is not None else read_json(paths.result)
    write_text(paths.report, render(view, paths, found or {}, won or {}, now))
    return paths.report


def render(
    view: StudyView, paths: StudyPaths, evidence: Mapping[str, Any], result: Mapping[str, Any], now: datetime
) -> str:
    """The report as text; arguments as for :func:`write_report`."""
    page = Page(f"{view.name} – tuning report")
    lineage = lineage_of(paths, view.description.previous, now)
    parts = [
        sections.head(view, None if lineage is None else lineage.verdict),
        before_after.replaced(lineage),
        _tiles(view, result),
        before_after.before_after(view, lineage),
        sections.winner(view, paths, result),
        _history(view, page),
        _funnel(view, page),
        sections.mattered(view, page, evidence),
        _landscape(view, page, evidence),
        _curves(view, page),
        sections.leaders(view),
        sections.advice(evidence),
        sections.failures(view, paths),
        sections.audits(view, paths),
        before_after.life(lineage, now),
        _foot(view, now),
    ]
    return page.html("\n".join(part for part in parts if part))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping from a file; empty where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        _log.warning("%s cannot be read", path, exc_info=True)
        return {}
    return found if isinstance(found, dict) else {}


def _tiles(view: StudyView, result: Mapping[str, Any]) -> str:
    best = view.best
    tiles = []
    if best is not None:
        which = f"best {view.description.monitor}, trial {best.number}"
        tiles.append((number_text(value_of(best)), which))
    for name, value in sorted(sections.metrics(result, "test").items(), key=lambda m: "loss" in m[0])[:2]:
        tiles.append((number_text(value), name if "test" in name else f"{name}, test split"))
    counts = [f"{len(view.complete)} complete"]
    counts += [f"{len(view.pruned)} pruned"] if view.pruned else []
    counts += [f"{len(view.failed)} failed"] if view.failed else []
    tiles.append((f"{len(view.trials)} of {view.description.plan.n_trials}", "trials: " + ", ".join(counts)))
    took = result.get("seconds")
    if took is None:
        took = sum(t.duration.total_seconds() for t in view.trials if t.duration is not None)
    tiles.append((duration_text(took), "of training"))
    shown = "".join(f'<div class="tile"><b>{html.escape(v)}</b><span>{html.escape(w)}</span></div>' for v, w in tiles)
    return f'<div class="tiles">{shown}</div>'


def _history(view: StudyView, page: Page) -> str:
    if not view.trials:
        return ""
    better = "Lower" if view.minimises else "Higher"
    metric = html.escape(view.description.monitor)
    drawn = page.plot(figures.history(view), f"{view.description.monitor} by trial, coloured by stage")
    return sections.section(
        "Progress", f"{better} {metric} is better. The line is the best so far; the ring is the winner.", drawn
    )


def _funnel(view: StudyView, page: Page) -> str:
    finished = [t for t in view.trials if t.state.is_finished()]
    if not view.placed(finished)[0]:
        return ""
    panels = []
    for parameter in sorted(view.space.parameters, key=lambda p: p.tier):
        title = f"{sections.chip(parameter.tier)} {html.escape(parameter.name)}"
        figure = figures.zoom_funnel(view, parameter)
        drawn = page.plot(figure, f"values of {parameter.name} by trial, with the boxes of the stages")
        panels.append(f'<div class="panel"><h3>{title}</h3>{drawn}</div>')
    said = (
        "Every parameter on its own scale, trials running downwards. A box is the range that a stage searched: coarse "
        "stages look everywhere, fine ones zoom in. Strong points are the best quarter; grey ones stand at the default "
        "while their tier is closed."
    )
    if len(finished) > MOST_POINTS:
        said += f" Of {len(finished)} trials about {MOST_POINTS} are drawn."
    stages = "".join(
        f'<span class="key"><i class="dot" style="background:{s.colour}"></i>{html.escape(s.name)}</span>'
        for s in reached(view)
    )
    return sections.section("Zoom", said, f'<p>{stages}</p><div class="panels">{"".join(panels)}</div>')


def _landscape(view: StudyView, page: Page, evidence: Mapping[str, Any]) -> str:
    pair = main_pair(view, evidence)
    counted = [t for t in view.complete if not t.user_attrs.get("diverged")]
    if pair is None or len(view.placed(counted)[0]) < figures.FEWEST_FOR_LANDSCAPE:
        return ""
    drawn = page.plot(figures.contour(view, *pair), f"value over {pair[0].name} and {pair[1].name}")
    said = "The two that mattered most. The stronger the colour the better; blank where no complete trial is near."
    return sections.section("Landscape", said, drawn)


def _curves(view: StudyView, page: Page) -> str:
    if not any(curve_of(t) for t in view.ranked):
        return ""
    said = (
        "The best trials over their validations, with the median and the middle half of all complete ones behind them."
    )
    return sections.section(
        "Learning curves", said, page.plot(figures.curves(view), "learning curves of the best trials")
    )


def _foot(view: StudyView, now: datetime) -> str:
    description = view.description
    versions = dict(description.versions or {}) or {
        "lightning_hp": version("lightning-hp"),
        "optuna": optuna.__version__,
    }
    said = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"<footer>Written {html.escape(dates.to_text(now))} on Python {platform.python_version()}. "
        f"Seed {description.plan.seed}. First run with {html.escape(said)}. "
        f"Space {view.space.fingerprint[:12]}.</footer>"
    )
