"""The landscape: the value over two parameters, from complete trials only.

Optuna's dashboard pairs the parameters of all trials with the values of the complete ones by position, so that one
failed trial shifts the picture; here every value keeps its own trial.
"""

from __future__ import annotations

import html
import math

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from lightning_hp.report.axes import number_text, ticks
from lightning_hp.report.style import GRID, natural_text, ring, style, value_axis
from lightning_hp.report.view import StudyView, value_of
from lightning_hp.space.parameters import Parameter

#: of the values, this share (the better ones) gets colours of its own; the rest has the colour of the worst of them
SHOWN_SHARE = 0.8
#: the surface is blank further than this many kernel widths from every trial
REACH = 1.6


def contour(view: StudyView, across: Parameter, up: Parameter, cells: int = 41) -> go.Figure:
    """The value over two parameters, from complete trials only; blank where no trial is near.

    Args:
        view: The study.
        across: Parameter of the horizontal axis.
        up: Parameter of the vertical axis.
        cells: Grid points along each axis.
    """
    names = [p.name for p in view.space.parameters]
    trials, units = view.positions([t for t in view.complete if not t.user_attrs.get("diverged")])
    points = units[:, [names.index(across.name), names.index(up.name)]]
    values = np.array([value_of(t) for t in trials])
    log = value_axis(values.tolist()).get("type") == "log"
    height = np.log10(values) if log else values
    grid = np.linspace(0, 1, cells)
    metric = html.escape(view.description.monitor)
    figure = go.Figure()
    if len(trials):
        better = np.quantile(height, (0, SHOWN_SHARE) if view.minimises else (1 - SHOWN_SHARE, 1))
        levels = np.linspace(better[0], better[1], 5)
        figure.add_trace(
            go.Contour(
                x=grid.round(4).tolist(), y=grid.round(4).tolist(), z=_plain(surface(points, height, grid)),
                zmin=levels[0], zmax=levels[-1], ncontours=12, connectgaps=False, line={"width": 0.4, "color": GRID},
                colorscale="Viridis", reversescale=view.minimises, hoverinfo="skip",
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
                    (t.number, natural_text(across, t), natural_text(up, t), number_text(value_of(t))) for t in trials
                ],
                hovertemplate=f"trial %{{customdata[0]}}<br>{html.escape(across.name)} %{{customdata[1]}}"
                f"<br>{html.escape(up.name)} %{{customdata[2]}}<br>{metric} %{{customdata[3]}}<extra></extra>",
            )
        )  # fmt: skip
        if view.best in trials:
            here = points[trials.index(view.best)]
            figure.add_trace(ring([round(float(here[0]), 4)], [round(float(here[1]), 4)]))
    style(figure, height=380)
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
    """Values over a square by a Gaussian kernel average (Nadaraya-Watson); NaN further than ``REACH`` from any trial.

    Args:
        points: Positions of n trials, shape (n, 2), within [0, 1].
        values: Shape (n,).
        grid: Shape (g,), the same for both axes.

    Returns:
        Shape (g, g), rows along the second axis of ``points``.
    """
    width = float(np.clip(0.25 * len(points) ** (-1 / 6), 0.06, 0.13))  # Scott's rate in two dimensions
    across = (grid[None, :] - points[:, 0:1]) / width  # n x g
    up = (grid[None, :] - points[:, 1:2]) / width
    squared = up[:, :, None] ** 2 + across[:, None, :] ** 2  # n x g x g
    nearest = squared.min(axis=0)
    weight = np.exp(-0.5 * (squared - nearest))  # the shift keeps the weights of the nearest trial at 1
    averaged = (weight * values[:, None, None]).sum(axis=0) / weight.sum(axis=0)
    return np.where(nearest <= REACH**2, averaged, np.nan)


def _plain(table: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if math.isnan(v) else round(float(v), 4) for v in row] for row in table]
