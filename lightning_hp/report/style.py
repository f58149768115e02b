"""What all figures share: fonts, greys, axes, and how a trial is drawn and described.

Backgrounds are transparent and text is mid-grey, so that a figure can be put on a light or a dark page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from lightning_hp.report.axes import log_ticks, number_text, value_text
from lightning_hp.report.view import StudyView, finite
from lightning_hp.space.parameters import Parameter

FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TEXT = "#7d8590"
GRID = "rgba(128,134,145,0.18)"
LINE = "rgba(128,134,145,0.75)"
BAD = "#d1453b"
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
#: height that the dashboard gives a figure, pixels
BOX = 450
#: a value axis is logarithmic when all values are positive and the largest is this many times the smallest
LOG_FROM = 15.0
#: share of finished trials drawn strongly in a funnel: the quarter that the zoom is made from
GOOD_SHARE = 0.25
#: most trials drawn as points in one panel; the best and an even share of the others
MOST_POINTS = 1000


def value_axis(values: Sequence[float]) -> dict[str, Any]:
    """The axis for values of a metric: logarithmic when they are positive and span more than ``LOG_FROM`` times."""
    counted = [v for v in values if finite(v)]
    if counted and min(counted) > 0 and max(counted) / min(counted) > LOG_FROM:
        marks = log_ticks(min(counted), max(counted), 7)
        return {"type": "log", "tickvals": marks, "ticktext": [number_text(v) for v in marks]}
    return {"type": "linear"}


def whole_axis(values: Sequence[int], ticks: int = 0) -> dict[str, Any]:
    """The ticks of an axis of whole numbers: at each of them where they are few, so that none is written twice.

    Args:
        values: What is drawn.
        ticks: Most ticks where they are many; 0 leaves it to Plotly.
    """
    few = max(values, default=0) - min(values, default=0) < 6
    return {"tickformat": "d"} | ({"dtick": 1} if few else {"nticks": ticks})


def natural_text(parameter: Parameter, trial: FrozenTrial) -> str:
    """The value that a trial used, as escaped text; the trial must hold the parameter."""
    return html.escape(value_text(parameter, parameter.natural(trial.params[parameter.stored_name])))


def ring(x: Sequence[float], y: Sequence[float]) -> go.Scatter:
    """The mark of the best trial."""
    return go.Scatter(
        x=list(x), y=list(y), mode="markers", name="best", hoverinfo="skip", showlegend=False,
        marker={"size": 15, "symbol": "circle-open", "color": TEXT, "line": {"width": 2}},
    )  # fmt: skip


def thinned(view: StudyView, trials: Sequence[FrozenTrial], most: int = MOST_POINTS) -> Sequence[FrozenTrial]:
    """At most about ``most`` trials: the best fifth of them by rank, and an even share of the others."""
    if len(trials) <= most:
        return trials
    kept = {t.number for t in view.ranked[: most // 5]}
    every = math.ceil(len(trials) / (most - most // 5))
    return [t for i, t in enumerate(trials) if i % every == 0 or t.number in kept]


def style(figure: go.Figure, height: int) -> None:
    """Give a figure the common look; ``height`` in pixels."""
    axis = {"gridcolor": GRID, "zeroline": False, "ticks": "", "linecolor": GRID, "automargin": True}
    figure.update_layout(
        template="none", height=height, autosize=True, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12, "color": TEXT}, margin={"l": 56, "r": 12, "t": 8, "b": 40},
        hoverlabel={"font": {"family": FONT, "size": 12}}, xaxis=axis, yaxis=axis, showlegend=True,
    )  # fmt: skip


def fit_dashboard_box(figure: go.Figure, title: str) -> None:
    """Fit a figure into the dashboard's box and give it a title, plain text."""
    legend = len(figure.data) > 1 and bool(figure.layout.showlegend)
    figure.update_layout(
        height=BOX,
        margin={"l": 56, "r": 16, "t": 96 if legend else 60, "b": 44},
        title={"text": html.escape(title), "x": 0.02, "y": 0.975, "yanchor": "top", "font": {"size": 16}},
        font={"size": 11},
    )
