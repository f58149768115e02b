"""The pictures of a study, as Plotly figures; the report and the dashboard share them.

Every figure has a transparent background and mid-grey text, so that it can be put on a light or a dark page; a page may
set its own text colour. Text from outside (names of parameters, stages, metrics) is escaped, since Plotly reads some
HTML. Positions are in units of a parameter's scale, values in the units of the metric, steps are validations.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.dashboard.axes import number_text, ticks, value_text
from lightning_hp.dashboard.view import NEUTRAL, StudyView, curve_of, faded, finite, value_of
from lightning_hp.search.parameters import Parameter

FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TEXT = "#7d8590"
GRID = "rgba(128,134,145,0.18)"
LINE = "rgba(128,134,145,0.75)"
BAD = "#d1453b"
#: a value axis is logarithmic when all values are positive and the largest is this many times the smallest
LOG_FROM = 15.0
#: share of finished trials drawn strongly in a funnel: the quarter that the zoom is made from
GOOD_SHARE = 0.25
#: most trials drawn as points in one panel; the best and an even share of the others
MOST_POINTS = 1000


def history(view: StudyView) -> go.Figure:
    """Value by trial number: coloured by stage, with the best so far, pruned, diverged and failed trials marked.

    Failed trials have no value and stand at the lower edge; pruned ones at the last value they reported.
    """
    figure = go.Figure()
    metric = html.escape(view.description.monitor)
    shown = {t.number for t in _thinned(view, view.complete)}
    values = [value_of(t) for t in view.complete]
    for stage in view.stages:
        mine = [t for t in view.complete if view.stage_of(t) is stage and t.number in shown]
        figure.add_trace(
            _points([t for t in mine if not t.user_attrs.get("diverged")], stage.name, stage.colour, metric)
        )
    figure.add_trace(_marks(view, view.diverged, "diverged", "diamond-open", metric))
    figure.add_trace(_marks(view, _thinned(view, view.pruned), "pruned", "triangle-down-open", metric))
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
            customdata=[short_reason(t) for t in failed], hovertemplate="trial %{x}: %{customdata}<extra></extra>",
        )
    )  # fmt: skip
    _ring(figure, view, [view.best.number] if view.best else [], [value_of(view.best)] if view.best else [])
    figure.data = tuple(t for t in figure.data if len(t.x or ()))
    _style(figure, height=360)
    figure.update_layout(
        xaxis={"title": {"text": "trial"}, "showgrid": False, "rangemode": "nonnegative"},
        yaxis={"title": {"text": metric}, **value_axis(values)},
        yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
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


def zoom_funnel(view: StudyView, parameter: Parameter, most: int = MOST_POINTS) -> go.Figure:
    """One parameter over the study: trials run downwards, the boxes of the stages narrow around the good region.

    Strong points are the best quarter of the finished trials. Where the parameter's tier is closed, no box is drawn and
    the points, at the default, are grey.

    Args:
        view: The study.
        parameter: One of its space.
        most: Most points to draw.
    """
    figure = go.Figure()
    for trace in funnel_traces(view, parameter, most):
        figure.add_trace(trace)
    positions, labels = ticks(parameter, 5)
    last = max([view.trials[-1].number if view.trials else 0, *(s.last for s in reached(view))], default=0)
    _style(figure, height=240)
    figure.update_layout(
        shapes=funnel_boxes(view, parameter),
        showlegend=False,
        margin={"l": 36, "r": 12, "t": 6, "b": 30},
        xaxis={"range": [-0.03, 1.03], "tickvals": positions, "ticktext": [html.escape(v) for v in labels]},
        yaxis={"range": [last + 0.8, -0.8], "nticks": 5, "showgrid": False, "tickformat": "d"},
    )
    return figure


def funnel_boxes(view: StudyView, parameter: Parameter, xref: str = "x", yref: str = "y") -> list[dict[str, Any]]:
    """The boxes of the stages that search a parameter, as Plotly shapes."""
    boxes = []
    for stage in reached(view):
        if stage.tiers and parameter.tier not in stage.tiers:
            continue
        low, high = stage.interval(parameter.stored_name)
        boxes.append(
            {
                "type": "rect", "layer": "below", "xref": xref, "yref": yref,
                "x0": round(low, 4), "x1": round(high, 4), "y0": stage.first - 0.5, "y1": stage.last + 0.5,
                "fillcolor": faded(stage.colour, 0.16), "line": {"width": 1, "color": faded(stage.colour, 0.45)},
            }
        )  # fmt: skip
    return boxes


def reached(view: StudyView) -> list[Any]:
    """The stages that have trials."""
    last = view.trials[-1].number if view.trials else -1
    return [s for s in view.stages if s.first <= last]


def funnel_traces(view: StudyView, parameter: Parameter, most: int = MOST_POINTS) -> list[go.Scatter]:
    """The trials of a funnel as traces, two a stage: the good ones and the others."""
    metric, name = html.escape(view.description.monitor), html.escape(parameter.name)
    finished = [t for t in view.trials if t.state.is_finished()]
    trials, units = view.placed(_thinned(view, finished, most))
    column = [p.name for p in view.space.parameters].index(parameter.name)
    positions = units[:, column] + _jitter(parameter, [t.number for t in trials]) if trials else np.empty(0)
    best = view.best
    good = {t.number for t in view.ranked[: max(1, math.ceil(GOOD_SHARE * len(view.ranked)))]}
    hover = f"trial %{{y}}<br>{name} %{{customdata[0]}}<br>{metric} %{{customdata[1]}}<extra></extra>"
    traces = []
    for stage in view.stages:
        closed = bool(stage.tiers) and parameter.tier not in stage.tiers
        for strong in (False, True):
            rows = [i for i, t in enumerate(trials) if view.stage_of(t) is stage and (t.number in good) == strong]
            if not rows:
                continue
            style: dict[str, Any] = {"size": 7, "opacity": 0.95} if strong else {"size": 5, "opacity": 0.4}
            traces.append(
                go.Scatter(
                    x=[round(float(positions[i]), 4) for i in rows],
                    y=[trials[i].number for i in rows],
                    customdata=[[_natural(parameter, trials[i]), _outcome(trials[i])] for i in rows],
                    hovertemplate=hover,
                    mode="markers",
                    name=html.escape(stage.name),
                    marker={**style, "color": NEUTRAL if closed else stage.colour, "line": {"width": 0}},
                )
            )
    if best is not None and best in trials:
        here = round(float(positions[trials.index(best)]), 4)
        traces.append(_ring_trace([here], [best.number]))
    return traces


def curves(view: StudyView, most: int = 3) -> go.Figure:
    """Learning curves of the best trials, with the median trial and the middle half of all complete ones behind them.

    Args:
        view: The study.
        most: How many of the best are drawn.
    """
    figure = go.Figure()
    metric = html.escape(view.description.monitor)
    ranked = [t for t in view.ranked if curve_of(t)]
    steps, low, middle, high = quartiles([curve_of(t) for t in ranked])
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
        points = curve_of(trial)
        line = {"width": 2.6 if place == 0 else 1.2, "color": view.colour_of(trial)}
        figure.add_trace(
            go.Scatter(
                x=[s for s, _ in points], y=[v for _, v in points], line=line, opacity=1 if place == 0 else 0.6,
                mode="lines+markers" if len(points) == 1 else "lines",
                name=f"trial {trial.number}" + (" (best)" if place == 0 else ""),
                hovertemplate=f"trial {trial.number}, step %{{x}}: %{{y:.4~g}}<extra></extra>",
            )
        )  # fmt: skip
    _style(figure, height=340)
    values = [v for t in ranked[:most] for _, v in curve_of(t)] + list(middle)
    figure.update_layout(
        xaxis={"title": {"text": "validation"}, "showgrid": False, "rangemode": "tozero"},
        yaxis={"title": {"text": metric}, **value_axis(values)},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "reversed"},
    )
    return figure


def quartiles(
    found: Sequence[Sequence[tuple[int, float]]],
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Lower quartile, median and upper quartile of curves at each step that at least four of them reach."""
    by_step: dict[int, list[float]] = {}
    for curve in found:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    steps = sorted(s for s, values in by_step.items() if len(values) >= 4)
    table = np.array([np.quantile(by_step[s], (0.25, 0.5, 0.75)) for s in steps]).reshape(-1, 3)
    return steps, table[:, 0].tolist(), table[:, 1].tolist(), table[:, 2].tolist()


def importance(view: StudyView, measured: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Measured importance per stage, a group of bars a parameter, in the order of the assumed tiers.

    Args:
        view: The study.
        measured: Stage name to parameter name to a share in [0, 1].
    """
    figure = go.Figure()
    known = [p for p in view.space.parameters if any(p.name in shares for shares in measured.values())]
    rows = sorted(known, key=lambda p: (p.tier, -max(s.get(p.name, 0.0) for s in measured.values())), reverse=True)
    names = [f"{html.escape(p.name)}  <b>{p.tier}</b>" for p in rows]
    colours = {s.name: s.colour for s in view.stages}
    for stage in reversed(list(measured)):
        shares = [measured[stage].get(p.name) for p in rows]
        figure.add_trace(
            go.Bar(
                y=names, x=[None if s is None else round(s, 4) for s in shares], orientation="h",
                name=html.escape(stage), marker={"color": colours.get(stage, NEUTRAL)},
                hovertemplate="%{y}: %{x:.0%}<extra>" + html.escape(stage) + "</extra>",
            )
        )  # fmt: skip
    _style(figure, height=110 + len(rows) * (14 + 11 * max(1, len(measured))))
    figure.update_layout(
        barmode="group", bargap=0.35, bargroupgap=0.1,
        xaxis={"tickformat": ".0%", "rangemode": "tozero", "nticks": 5}, yaxis={"showgrid": False, "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "reversed"},
    )  # fmt: skip
    return figure


def contour(view: StudyView, across: Parameter, up: Parameter, cells: int = 41) -> go.Figure:
    """The value over two parameters, from complete trials only; blank where no trial is near.

    Args:
        view: The study.
        across: Parameter of the horizontal axis.
        up: Parameter of the vertical axis.
        cells: Grid points along each axis.
    """
    names = [p.name for p in view.space.parameters]
    trials, units = view.placed([t for t in view.complete if not t.user_attrs.get("diverged")])
    points = units[:, [names.index(across.name), names.index(up.name)]]
    values = np.array([value_of(t) for t in trials])
    log = value_axis(values.tolist()).get("type") == "log"
    height = np.log10(values) if log else values
    grid = np.linspace(0, 1, cells)
    metric = html.escape(view.description.monitor)
    figure = go.Figure()
    if len(trials):
        levels = np.linspace(height.min(), height.max(), 5)
        figure.add_trace(
            go.Contour(
                x=grid.round(4).tolist(), y=grid.round(4).tolist(), z=_plain(surface(points, height, grid)),
                zmin=levels[0], zmax=levels[-1], ncontours=12, connectgaps=False, line={"width": 0.4, "color": GRID},
                colorscale=[[0, "rgba(61,111,217,0.9)"], [0.5, "rgba(61,111,217,0.3)"], [1, "rgba(61,111,217,0.04)"]],
                reversescale=not view.minimises, hoverinfo="skip",
                colorbar={
                    "title": {"text": metric, "side": "right"}, "thickness": 10, "outlinewidth": 0,
                    "tickvals": levels.tolist(),
                    "ticktext": [number_text(float(v), 3) for v in (10**levels if log else levels)],
                },
            )
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=points[:, 0].round(4).tolist(), y=points[:, 1].round(4).tolist(), mode="markers", showlegend=False,
                marker={"size": 4, "color": [view.colour_of(t) for t in trials], "opacity": 0.8},
                customdata=[
                    [t.number, _natural(across, t), _natural(up, t), number_text(value_of(t))] for t in trials
                ],
                hovertemplate=f"trial %{{customdata[0]}}<br>{html.escape(across.name)} %{{customdata[1]}}"
                f"<br>{html.escape(up.name)} %{{customdata[2]}}<br>{metric} %{{customdata[3]}}<extra></extra>",
            )
        )  # fmt: skip
        if view.best in trials:
            here = points[trials.index(view.best)]
            figure.add_trace(_ring_trace([round(float(here[0]), 4)], [round(float(here[1]), 4)]))
    _style(figure, height=380)
    for axis, parameter in (("xaxis", across), ("yaxis", up)):
        positions, labels = ticks(parameter)
        figure.update_layout(
            {
                axis: {
                    "title": {"text": html.escape(parameter.name)}, "range": [-0.03, 1.03], "tickvals": positions,
                    "ticktext": [html.escape(v) for v in labels], "showgrid": False,
                }
            }
        )  # fmt: skip
    return figure


def surface(points: NDArray[np.float64], values: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values over a square by a Gaussian kernel average (Nadaraya-Watson), NaN where no trial is within 2.5 widths.

    Args:
        points: Positions of n trials, shape (n, 2), within [0, 1].
        values: Shape (n,).
        grid: Shape (g,), the same for both axes.

    Returns:
        Shape (g, g), rows along the second axis of ``points``.
    """
    width = float(np.clip(0.35 * len(points) ** (-1 / 6), 0.07, 0.2))  # Scott's rate in two dimensions
    across = (grid[None, :] - points[:, 0:1]) / width  # n x g
    up = (grid[None, :] - points[:, 1:2]) / width
    squared = up[:, :, None] ** 2 + across[:, None, :] ** 2  # n x g x g
    nearest = squared.min(axis=0)
    weight = np.exp(-0.5 * (squared - nearest))  # the shift keeps the weights of the nearest trial at 1
    averaged = (weight * values[:, None, None]).sum(axis=0) / weight.sum(axis=0)
    return np.where(nearest <= 2.5**2, averaged, np.nan)


def value_axis(values: Sequence[float]) -> dict[str, Any]:
    """Axis type for values of a metric: logarithmic when they are positive and span more than ``LOG_FROM`` times."""
    counted = [v for v in values if finite(v)]
    if counted and min(counted) > 0 and max(counted) / min(counted) > LOG_FROM:
        return {"type": "log", "dtick": "D2" if max(counted) / min(counted) < 1e3 else 1}
    return {"type": "linear"}


def short_reason(trial: FrozenTrial) -> str:
    """Why a trial failed, in a few words."""
    reason = trial.user_attrs.get("failure") or trial.system_attrs.get("fail_reason")
    if not reason and trial.state == TrialState.COMPLETE:
        reason = "value is not finite"
    return html.escape(str(reason or "no reason recorded"))


def _outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.PRUNED:
        return f"pruned at {number_text(trial.value)}" if finite(trial.value) else "pruned"
    return number_text(trial.value) if finite(trial.value) else "failed"


def _natural(parameter: Parameter, trial: FrozenTrial) -> str:
    return html.escape(value_text(parameter, parameter.natural(trial.params[parameter.stored_name])))


def _points(trials: Sequence[FrozenTrial], name: str, colour: str, metric: str) -> go.Scatter:
    return go.Scatter(
        x=[t.number for t in trials], y=[value_of(t) for t in trials], mode="markers", name=html.escape(name),
        marker={"size": 8, "color": colour, "line": {"width": 0}},
        hovertemplate=f"trial %{{x}}: {metric} %{{y:.4~g}}<extra>{html.escape(name)}</extra>",
    )  # fmt: skip


def _marks(view: StudyView, trials: Sequence[FrozenTrial], name: str, symbol: str, metric: str) -> go.Scatter:
    seen = [(t, [t.value] if finite(t.value) else [v for _, v in curve_of(t)[-1:]]) for t in trials]
    valued = [(t, v) for t, values in seen for v in values]
    return go.Scatter(
        x=[t.number for t, _ in valued], y=[v for _, v in valued], mode="markers", name=name,
        marker={"size": 7, "symbol": symbol, "color": [view.colour_of(t) for t, _ in valued], "opacity": 0.75},
        hovertemplate=f"trial %{{x}}: {name} at {metric} %{{y:.4~g}}<extra></extra>",
    )  # fmt: skip


def _ring_trace(x: Sequence[float], y: Sequence[float]) -> go.Scatter:
    return go.Scatter(
        x=list(x), y=list(y), mode="markers", name="best", hoverinfo="skip", showlegend=False,
        marker={"size": 15, "symbol": "circle-open", "color": TEXT, "line": {"width": 2}},
    )  # fmt: skip


def _ring(figure: go.Figure, view: StudyView, x: Sequence[float], y: Sequence[float]) -> None:
    if x:
        figure.add_trace(_ring_trace(x, y))


def _thinned(view: StudyView, trials: Sequence[FrozenTrial], most: int = MOST_POINTS) -> Sequence[FrozenTrial]:
    """At most about ``most`` trials: the best fifth of them by rank, and an even share of the others."""
    if len(trials) <= most:
        return trials
    kept = {t.number for t in view.ranked[: most // 5]}
    every = math.ceil(len(trials) / (most - most // 5))
    return [t for i, t in enumerate(trials) if i % every == 0 or t.number in kept]


def _jitter(parameter: Parameter, numbers: Sequence[int]) -> NDArray[np.float64]:
    """Sideways spread of values that many trials share, within their interval; the same trial always lies the same."""
    cardinality = parameter.cardinality
    if cardinality is None or cardinality > 16 or parameter.scale == "log":
        return np.zeros(len(numbers))
    golden = np.mod(np.asarray(numbers) * 0.6180339887498949, 1.0)
    return (golden - 0.5) * 0.5 / cardinality


def _plain(table: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if math.isnan(v) else round(float(v), 4) for v in row] for row in table]


def _style(figure: go.Figure, height: int) -> None:
    axis = {"gridcolor": GRID, "zeroline": False, "ticks": "", "linecolor": GRID, "automargin": True}
    figure.update_layout(
        template="none", height=height, autosize=True, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12, "color": TEXT}, margin={"l": 56, "r": 12, "t": 8, "b": 40},
        hoverlabel={"font": {"family": FONT, "size": 12}}, xaxis=axis, yaxis=axis, showlegend=True,
    )  # fmt: skip
