"""The zoom funnel: one parameter over the study, trials running downwards, boxes narrowing around what is good."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from lightning_hp.report.axes import ticks
from lightning_hp.report.outcomes import outcome_text
from lightning_hp.report.style import (
    BOX,
    GOOD_SHARE,
    GRID,
    MOST_POINTS,
    natural_text,
    ring,
    style,
    thinned,
    whole_axis,
)
from lightning_hp.report.view import NEUTRAL, StudyView, faded
from lightning_hp.space.parameters import Parameter

#: most funnels in one figure
PANELS = 8


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
    last = _last_number(view)
    style(figure, height=240)
    figure.update_layout(
        shapes=funnel_boxes(view, parameter),
        showlegend=False,
        margin={"l": 36, "r": 12, "t": 6, "b": 30},
        xaxis={"range": [-0.03, 1.03], "tickvals": positions, "ticktext": [html.escape(v) for v in labels]},
        yaxis={"range": [last + 0.8, -0.8], "showgrid": False, **whole_axis([0, last], 5)},
    )
    return figure


def zoom_grid(view: StudyView, parameters: Sequence[Parameter], most: int = MOST_POINTS) -> go.Figure:
    """Several funnels in one figure, two a row, for places that take one figure only.

    Args:
        view: The study.
        parameters: At most ``PANELS`` of its space.
        most: Most points to draw in one panel.
    """
    figure = go.Figure()
    style(figure, height=BOX)
    rows = -(-len(parameters) // 2)
    pitch = 1 / max(1, rows)
    last = _last_number(view)
    axes: dict[str, Any] = {}
    # added at once: a figure checks all that it has whenever something is added
    traces: list[go.Scatter] = []
    shapes: list[dict[str, Any]] = []
    names: list[dict[str, Any]] = []
    for i, parameter in enumerate(parameters):
        row, column = divmod(i, 2)
        key = "" if i == 0 else str(i + 1)
        left, top = column * 0.54, 1 - row * pitch
        positions, labels = ticks(parameter, 4)
        small = {"gridcolor": GRID, "zeroline": False, "ticks": "", "tickfont": {"size": 9.5}}
        axes[f"xaxis{key}"] = {
            **small, "domain": [left, left + 0.46], "anchor": f"y{key}", "range": [-0.03, 1.03],
            "tickvals": positions, "ticktext": [html.escape(v) for v in labels],
        }  # fmt: skip
        axes[f"yaxis{key}"] = {
            **small, "domain": [top - pitch * 0.72, top - 0.02], "anchor": f"x{key}", "range": [last + 0.8, -0.8],
            "showgrid": False, **whole_axis([0, last], 4),
        }  # fmt: skip
        names.append({
            "text": f"{html.escape(parameter.name)}  <b>{parameter.tier}</b>", "xref": "paper", "yref": "paper",
            "x": left, "y": top - 0.015, "xanchor": "left", "yanchor": "bottom", "showarrow": False,
            "font": {"size": 11},
        })  # fmt: skip
        for trace in funnel_traces(view, parameter, most):
            trace.update(xaxis=f"x{key}", yaxis=f"y{key}", showlegend=False, customdata=None, hovertemplate=None)
            trace.update(hoverinfo="skip", x=[round(v, 3) for v in trace.x])
            trace.marker.size = 10 if trace.name == "best" else max(3, trace.marker.size - 2)
            traces.append(trace)
        shapes += funnel_boxes(view, parameter, f"x{key}", f"y{key}")
    figure.add_traces(traces)
    figure.update_layout(showlegend=False, annotations=names, shapes=shapes, **axes)
    return figure


def _last_number(view: StudyView) -> int:
    return max([view.trials[-1].number if view.trials else 0, *(s.last for s in view.reached)], default=0)


def funnel_boxes(view: StudyView, parameter: Parameter, xref: str = "x", yref: str = "y") -> list[dict[str, Any]]:
    """The boxes of the stages that search a parameter, as Plotly shapes."""
    boxes = []
    for stage in view.reached:
        if stage.tiers and parameter.tier not in stage.tiers:
            continue
        low, high = stage.interval(parameter.stored_name)
        boxes.append(
            {
                "type": "rect", "layer": "below", "xref": xref, "yref": yref,
                "x0": round(low, 4), "x1": round(high, 4), "y0": stage.first - 0.5, "y1": stage.last + 0.5,
                "fillcolor": faded(stage.colour, 0.13), "line": {"width": 1, "color": faded(stage.colour, 0.45)},
            }
        )  # fmt: skip
    return boxes


def funnel_traces(view: StudyView, parameter: Parameter, most: int = MOST_POINTS) -> list[go.Scatter]:
    """The trials of a funnel as traces, two a stage: the good ones and the others."""
    metric, name = html.escape(view.description.monitor), html.escape(parameter.name)
    finished = [t for t in view.trials if t.state.is_finished()]
    trials, units = view.positions(thinned(view, finished, most))
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
            style: dict[str, Any] = {"size": 7, "opacity": 0.95} if strong else {"size": 5, "opacity": 0.55}
            traces.append(
                go.Scatter(
                    x=[round(float(positions[i]), 4) for i in rows],
                    y=[trials[i].number for i in rows],
                    customdata=[[natural_text(parameter, trials[i]), outcome_text(trials[i])] for i in rows],
                    hovertemplate=hover,
                    mode="markers",
                    name=html.escape(stage.name),
                    marker={**style, "color": NEUTRAL if closed else stage.colour, "line": {"width": 0}},
                )
            )
    if best is not None and best in trials:
        here = round(float(positions[trials.index(best)]), 4)
        traces.append(ring([here], [best.number]))
    return traces


def _jitter(parameter: Parameter, numbers: Sequence[int]) -> NDArray[np.float64]:
    """Sideways spread of values that many trials share, within their interval; the same trial always lies the same."""
    cardinality = parameter.cardinality
    if cardinality is None or cardinality > 16 or parameter.scale == "log":
        return np.zeros(len(numbers))
    golden = np.mod(np.asarray(numbers) * 0.6180339887498949, 1.0)
    return (golden - 0.5) * 0.5 / cardinality
