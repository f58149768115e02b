"""The pictures of a study, as Plotly figures; the report and the dashboard share them.

Every figure has a transparent background and mid-grey text, so that it can be put on a light or a dark page; a page may
set its own text colour. Text from outside (names of parameters, stages, metrics) is escaped, since Plotly reads some
HTML. Positions are in units of a parameter's scale, values in the units of the metric, steps are validations.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from lightning_hp.report.audits import audited_trials, findings_of
from lightning_hp.report.funnel import PANELS, zoom_funnel, zoom_grid
from lightning_hp.report.landscape import contour
from lightning_hp.report.measured import Measured
from lightning_hp.report.outcomes import reason_of
from lightning_hp.report.style import (
    BAD,
    LEGEND,
    LINE,
    MOST_POINTS,
    fit_dashboard_box,
    ring,
    style,
    thinned,
    value_axis,
    whole_axis,
)
from lightning_hp.report.view import NEUTRAL, TIER_COLOURS, StudyView, finite, finite_points, value_of
from lightning_hp.space.parameters import Parameter

__all__ = ["best_so_far", "contour", "curves", "history", "importance", "study_figures", "zoom_funnel", "zoom_grid"]

#: fewest trials that a landscape is drawn from
FEWEST_FOR_LANDSCAPE = 6
#: most trials drawn in a figure of the dashboard, which sends it again at each poll
FEW_POINTS = 150
SEVERITY_COLOURS = {"ERROR": BAD, "WARN": "#d9822b", "INFO": NEUTRAL}


def history(view: StudyView, most: int = MOST_POINTS) -> go.Figure:
    """Value by trial number: coloured by stage, with the best so far, pruned, diverged and failed trials marked.

    Failed trials have no value and stand at the lower edge; pruned ones at the last value they reported.

    Args:
        view: The study.
        most: Most complete and most pruned trials to draw.
    """
    figure = go.Figure()
    metric = html.escape(view.description.monitor)
    shown = {t.number for t in thinned(view, view.complete, most)}
    values = [value_of(t) for t in view.complete] + [v for t in view.pruned for _, v in finite_points(t)[-1:]]
    last = view.trials[-1].number if view.trials else 1
    for stage in view.stages:
        mine = [t for t in view.complete if view.stage_of(t) is stage and t.number in shown]
        figure.add_trace(
            _points([t for t in mine if not t.user_attrs.get("diverged")], stage.name, stage.colour, metric)
        )
    figure.add_trace(_marks(view, view.diverged, "diverged", "diamond-open", metric))
    figure.add_trace(_marks(view, thinned(view, view.pruned, most), "pruned", "triangle-down-open", metric))
    best_x, best_y = best_so_far(view)
    figure.add_trace(
        go.Scatter(
            x=best_x, y=best_y, mode="lines", name="best so far", hoverinfo="skip",
            line={"shape": "hv", "width": 1.8, "color": LINE},
        )
    )  # fmt: skip
    failed = view.failed
    figure.add_trace(
        go.Scatter(
            x=[t.number for t in failed], y=[0.025] * len(failed), yaxis="y2", mode="markers", name="failed",
            marker={"symbol": "x-thin", "size": 7, "line": {"width": 1.6, "color": BAD}},
            customdata=[html.escape(reason_of(t)) for t in failed],
            hovertemplate="trial %{x}: %{customdata}<extra></extra>",
        )
    )  # fmt: skip
    if view.best is not None:
        figure.add_trace(ring([view.best.number], [value_of(view.best)]))
    figure.data = tuple(t for t in figure.data if len(t.x or ()))
    style(figure, height=360)
    figure.update_layout(
        xaxis={"title": {"text": "trial"}, "showgrid": False, "range": [-0.8, last + 0.8], **whole_axis([0, last])},
        yaxis={"title": {"text": metric}, **value_axis(values)},
        yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        legend=LEGEND,
    )
    return figure


def best_so_far(view: StudyView) -> tuple[list[int], list[float]]:
    """The best value so far over the complete trials that did not diverge: trial numbers and values, steps only."""
    numbers: list[int] = []
    bests: list[float] = []
    for trial in view.complete:
        value = value_of(trial)
        if trial.user_attrs.get("diverged"):
            continue
        if not bests or (value < bests[-1] if view.minimises else value > bests[-1]):
            numbers.append(trial.number)
            bests.append(value)
    if numbers:
        numbers.append(view.trials[-1].number)
        bests.append(bests[-1])
    return numbers, bests


def curves(view: StudyView, most: int = 3) -> go.Figure:
    """Learning curves of the best trials, with the median trial and the middle half of all complete ones behind them.

    Args:
        view: The study.
        most: How many of the best are drawn.
    """
    figure = go.Figure()
    metric = html.escape(view.description.monitor)
    ranked = [t for t in view.ranked if finite_points(t)]
    steps, low, middle, high = quartiles([finite_points(t) for t in ranked])
    if len(ranked) >= 4:
        figure.add_trace(
            go.Scatter(x=steps, y=high, mode="lines", line={"width": 0}, hoverinfo="skip", showlegend=False)
        )
        figure.add_trace(
            go.Scatter(
                x=steps, y=low, mode="lines", line={"width": 0}, fill="tonexty", fillcolor="rgba(128,134,145,0.16)",
                name="middle half of trials", hoverinfo="skip",
            )
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=steps, y=middle, mode="lines", name="median", line={"width": 1.6, "dash": "dot", "color": LINE}
            )
        )
    for place, trial in reversed(list(enumerate(ranked[:most]))):
        points = finite_points(trial)
        line = {"width": 2.6 if place == 0 else 1.2, "color": view.colour_of(trial)}
        figure.add_trace(
            go.Scatter(
                x=[s for s, _ in points], y=[v for _, v in points], line=line, opacity=1 if place == 0 else 0.6,
                mode="lines+markers" if len(points) == 1 else "lines",
                name=f"trial {trial.number}" + (" (best)" if place == 0 else ""),
                hovertemplate=f"trial {trial.number}, step %{{x}}: %{{y:.4~g}}<extra></extra>",
            )
        )  # fmt: skip
    style(figure, height=340)
    values = [v for t in ranked[:most] for _, v in finite_points(t)] + list(middle)
    figure.update_layout(
        xaxis={"title": {"text": "validation"}, "showgrid": False, "rangemode": "tozero"},
        yaxis={"title": {"text": metric}, **value_axis(values)},
        legend={**LEGEND, "traceorder": "reversed"},
    )
    return figure


def quartiles(
    curves_by_trial: Sequence[Sequence[tuple[int, float]]],
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Lower quartile, median and upper quartile of curves at each step that at least four of them reach."""
    by_step: dict[int, list[float]] = {}
    for curve in curves_by_trial:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    steps = sorted(s for s, values in by_step.items() if len(values) >= 4)
    table = np.array([np.quantile(by_step[s], (0.25, 0.5, 0.75)) for s in steps]).reshape(-1, 3)
    return steps, table[:, 0].tolist(), table[:, 1].tolist(), table[:, 2].tolist()


def importance(view: StudyView, measured: Measured) -> go.Figure:
    """What mattered in the study: a bar a parameter, coloured by its assumed tier; grey where chance would do as much.

    Args:
        view: The study.
        measured: Its evidence.
    """
    figure = go.Figure()
    rows = measured.rows[::-1]  # Plotly draws the first bar at the bottom
    colours = [TIER_COLOURS.get(row.parameter.tier, NEUTRAL) if row.has_effect else NEUTRAL for row in rows]
    figure.add_trace(
        go.Bar(
            y=[f"{html.escape(row.parameter.name)}  <b>{row.parameter.tier}</b>" for row in rows],
            x=[round(row.share, 4) for row in rows],
            orientation="h",
            marker={"color": colours},
            customdata=["" if row.has_effect else f", {measured.no_effect}" for row in rows],
            hovertemplate="%{y}: %{x:.0%}%{customdata}<extra></extra>",
        )
    )
    style(figure, height=110 + 25 * len(rows))
    figure.update_layout(
        showlegend=False, bargap=0.35, xaxis={"tickformat": ".0%", "rangemode": "tozero", "nticks": 5},
        yaxis={"showgrid": False, "automargin": True},
    )  # fmt: skip
    return figure


def landscape_pair(view: StudyView, measured: Measured) -> tuple[Parameter, Parameter] | None:
    """The two parameters over which the landscape is drawn; None where too few trials are complete."""
    counted = [trial for trial in view.complete if not trial.user_attrs.get("diverged")]
    pair = measured.main_pair(view)
    return pair if pair is not None and len(view.positions(counted)[0]) >= FEWEST_FOR_LANDSCAPE else None


def _points(trials: Sequence[FrozenTrial], name: str, colour: str, metric: str) -> go.Scatter:
    return go.Scatter(
        x=[t.number for t in trials], y=[value_of(t) for t in trials], mode="markers", name=html.escape(name),
        marker={"size": 8, "color": colour, "line": {"width": 0}},
        hovertemplate=f"trial %{{x}}: {metric} %{{y:.4~g}}<extra>{html.escape(name)}</extra>",
    )  # fmt: skip


def _marks(view: StudyView, trials: Sequence[FrozenTrial], name: str, symbol: str, metric: str) -> go.Scatter:
    last_values = [(t, [t.value] if finite(t.value) else [v for _, v in finite_points(t)[-1:]]) for t in trials]
    valued = [(t, v) for t, values in last_values for v in values]
    return go.Scatter(
        x=[t.number for t, _ in valued], y=[v for _, v in valued], mode="markers", name=name,
        marker={"size": 7, "symbol": symbol, "color": [view.colour_of(t) for t, _ in valued], "opacity": 0.75},
        hovertemplate=f"trial %{{x}}: {name} at {metric} %{{y:.4~g}}<extra></extra>",
    )  # fmt: skip


def audit_history(view: StudyView, most: int = MOST_POINTS) -> go.Figure:
    """BatchNorm findings by trial, stacked by severity.

    Args:
        view: The study.
        most: Most trials to draw; the last ones.
    """
    figure = go.Figure()
    audited = audited_trials(view)[-most:]
    counted = [sum(findings_of(view, trial, severity) for severity in SEVERITY_COLOURS) for trial in audited]
    for severity, colour in SEVERITY_COLOURS.items():
        counts = [findings_of(view, trial, severity) for trial in audited]
        marker = {"color": colour, "line": {"width": 0}}
        figure.add_trace(go.Bar(x=[t.number for t in audited], y=counts, name=severity, marker=marker))
    style(figure, height=300)
    figure.update_layout(
        barmode="stack", bargap=0.2, legend=LEGEND,
        xaxis={"title": {"text": "trial"}, "showgrid": False, **whole_axis([t.number for t in audited])},
        yaxis={"title": {"text": "findings"}, "rangemode": "tozero", **whole_axis([0, *counted], 5)},
    )  # fmt: skip
    if audited and not any(counted):
        text = f"no findings in {len(audited)} audited trial{'s' if len(audited) > 1 else ''}"
        figure.add_annotation(text=text, xref="paper", yref="paper", x=0.5, y=0.5, showarrow=False)
    return figure


def drift_history(events: Sequence[Mapping[str, Any]], most: int = MOST_POINTS) -> go.Figure:
    """Checks since the tuning, by date: how many findings each had.

    Args:
        events: Events of a ledger, oldest first; only ``checked`` and ``drifted`` are drawn.
        most: Most checks to draw; the last ones.
    """
    figure = go.Figure()
    checks = [e for e in events if e.get("event") in ("checked", "drifted")][-most:]
    counted = [len(e.get("findings") or []) for e in checks]
    for kind in sorted({str(e.get("kind")) for e in checks}):
        mine = [e for e in checks if str(e.get("kind")) == kind]
        counts = [len(e.get("findings") or []) for e in mine]
        figure.add_trace(go.Scatter(x=[e["at"] for e in mine], y=counts, name=html.escape(kind), mode="lines+markers"))
    style(figure, height=300)
    figure.update_layout(
        legend=LEGEND, xaxis={"type": "date", "showgrid": False},
        yaxis={"title": {"text": "findings"}, "rangemode": "tozero", **whole_axis([0, *counted], 5)},
    )  # fmt: skip
    return figure


def study_figures(
    view: StudyView, measured: Measured | None = None, events: Sequence[Mapping[str, Any]] = ()
) -> dict[str, go.Figure]:
    """The figures that the dashboard shows on a study's page, by identifier, in order.

    An identifier never changes its meaning, since a stored figure can be replaced but not deleted.

    The dashboard draws them half a page wide in boxes of 450 pixels in which it cuts off what is larger, and sends all
    of them again at each poll: so each has that height, a title of its own and few points. (One figure with buttons
    would not do: each poll sets the buttons back.)

    Args:
        view: The study.
        measured: What mattered.
        events: Events of the study's ledger.
    """
    measured = measured or Measured()
    drawn: list[tuple[str, str, go.Figure]] = []
    order = view.by_tier if view.trials else ()
    for start in range(0, len(order), PANELS):
        panels = order[start : start + PANELS]
        tiers = f", tiers {panels[0].tier} to {panels[-1].tier}" if len(order) > PANELS else ""
        name = "1-zoom" if start == 0 else f"1-zoom-{start // PANELS + 1}"
        drawn.append((name, f"Zoom by parameter{tiers}", zoom_grid(view, panels, FEW_POINTS)))
    if view.trials:
        drawn.append(("2-history", "Progress by stage", history(view, FEW_POINTS)))
    if measured.has_effect:
        drawn.append(("3-importance", "Importance beside the assumed tiers", importance(view, measured)))
    pair = landscape_pair(view, measured)
    if pair is not None:
        drawn.append(("4-landscape", "Landscape, complete trials only", contour(view, *pair, cells=25)))
    if audited_trials(view):
        drawn.append(("5-audit", "BatchNorm findings", audit_history(view, FEW_POINTS)))
    if any(event.get("event") in ("checked", "drifted") for event in events):
        drawn.append(("6-drift", "Checks since the tuning", drift_history(events, FEW_POINTS)))
    for _, title, figure in drawn:
        fit_dashboard_box(figure, title)
    return {f"lightning-hp-{name}": figure for name, _, figure in drawn}
