"""One HTML page of a babysat run: losses with the interventions marked, and the hyperparameters over time.

Self-contained (plotly.js inside, about 5 MB), and made from the files of the run alone, so it can be made again later.
"""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

from lightning_hp.callbacks.panda.journal import LOG, PICTURE, WINDOWS, Row, read_rows, write_text

_COLOURS = {"rule": "#c9721c", "probe": "#158570", "person": "#9650b8", "replay": "#8b93a0"}
#: a mark a window would hide the curve
_UNMARKED = ("wind_down", "probe")


def write_picture(folder: Path) -> Path:
    """Write ``panda.html`` beside the log.

    Args:
        folder: Of the run.

    Returns:
        The file.

    Raises:
        OSError: If the run has no log.
    """
    figure = figure_of(folder).update_layout(title=f"{folder.resolve().name}, a babysat training", margin_t=80)
    page = figure.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False})
    write_text(folder / PICTURE, page)
    return folder / PICTURE


def figure_of(folder: Path) -> Any:
    """Losses with the interventions marked, and below the hyperparameters that moved, over optimiser steps.

    Args:
        folder: Of the run; it may still be running.

    Returns:
        A Plotly figure.

    Raises:
        OSError: If the run has no log.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows = read_rows(folder / LOG)
    windows = read_rows(folder / WINDOWS) if (folder / WINDOWS).is_file() else []
    names = sorted({name for window in windows for name in window["values"]})
    moving = [name for name in names if len({window["values"].get(name) for window in windows}) > 1] or names[:1]
    figure = make_subplots(rows=1 + len(moving), cols=1, shared_xaxes=True, vertical_spacing=0.04)
    steps = [window["step"] for window in windows]
    levels = [window["level"] if math.isfinite(window["level"]) else None for window in windows]
    figure.add_trace(
        go.Scatter(x=steps, y=levels, mode="lines", name="training loss", line={"color": "#3d6fd9", "width": 1.5}), 1, 1
    )
    for by, marks in _marks(rows).items():
        figure.add_trace(
            go.Scatter(
                x=[step for step, _ in marks],
                y=[_level_at(steps, levels, step) for step, _ in marks],
                text=[text for _, text in marks],
                hovertemplate="step %{x}<br>%{text}<extra></extra>",
                mode="markers",
                name=by,
                marker={"color": _COLOURS.get(by, "#000000"), "size": 10, "symbol": "triangle-down"},
            ),
            1,
            1,
        )
    positive = [level for level in levels if level is not None]
    figure.update_yaxes(title_text="loss", type="log" if positive and min(positive) > 0 else "linear", row=1, col=1)
    for index, name in enumerate(moving, start=2):
        values = [window["values"].get(name) for window in windows]
        line = {"shape": "hv", "color": "#158570"}
        curve = go.Scatter(x=steps, y=values, mode="lines", name=name, line=line, showlegend=False)
        figure.add_trace(curve, index, 1)
        figure.update_yaxes(title_text=name, type="log" if name == "learning_rate" else "linear", row=index, col=1)
    figure.update_xaxes(title_text="optimiser steps", row=1 + len(moving), col=1)
    figure.update_xaxes(zeroline=False)
    figure.update_yaxes(zeroline=False, minexponent=8)
    figure.update_layout(
        template="plotly_white",
        height=300 + 150 * len(moving),
        hovermode="closest",
        margin={"l": 56, "r": 12, "t": 34, "b": 44},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return figure


def _marks(rows: list[Row]) -> dict[str, list[tuple[int, str]]]:
    """Who intervened, to the steps and the texts of the interventions; lines of one intervention are one mark."""
    grouped: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        if row.get("id") and row.get("accepted") and row.get("rule") not in _UNMARKED:
            grouped.setdefault((row["by"], row["step"], row["id"]), []).append(row)
    marks: dict[str, list[tuple[int, str]]] = {}
    for (by, step, _), lines in grouped.items():
        changes = "<br>".join(f"{row['what']}: {_short(row['from'])} to {_short(row['to'])}" for row in lines)
        text = f"<b>{html.escape(str(lines[0]['rule']))}</b>: {html.escape(str(lines[0]['why']))}<br>{changes}"
        marks.setdefault(by, []).append((step, text))
    return marks


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else html.escape(str(value))


def _level_at(steps: list[int], levels: list[float | None], step: int) -> float | None:
    """The last finite level up to a step."""
    before = [level for at, level in zip(steps, levels, strict=True) if at <= step and level is not None]
    return before[-1] if before else next((level for level in levels if level is not None), None)
