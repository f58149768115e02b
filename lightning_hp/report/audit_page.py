"""One audit as one page: findings on top, then for each layer what it remembers against what it sees, then the history.

The input is the content of audit.json; nothing else is read, and the page loads nothing from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from lightning_hp.report.audits import Audit
from lightning_hp.report.page import Page

__all__ = ["audit_page"]

_MOST_LAYERS = 24  # pictures; all layers stay in the table
_BLUE, _ORANGE, _BAND = "#3d6fd9", "#c9721c", "rgba(61,111,217,0.18)"
_WORDS = (("ERROR", "errors"), ("WARN", "warnings"), ("INFO", "notes"))
#: columns of the table of layers: key in audit.json and title
_ERRORS = (("d", "Mean off, sd"), ("ratio_d", "× noise"), ("lv", "Var off, log"), ("ratio_lv", "× noise"))


def audit_page(result: Mapping[str, Any], title: str = "BatchNorm audit") -> str:
    """The whole HTML document of one audit.

    Args:
        result: content of audit.json (or of audit_shift.json).
        title: heading, plain text.

    Returns:
        Self-contained HTML.
    """
    audit = Audit.read(result)
    flagged = {finding.layer for finding in audit.findings if finding.severity != "INFO"}
    pictured = sorted(
        (layer for layer in audit.layers if "population_mean" in layer),
        key=lambda layer: layer.get("name") not in flagged,
    )
    shifts, history = result.get("shift", []), result.get("history", [])
    return Page(title).render(
        "audit.html",
        audit=audit,
        total=", ".join(f"{audit.counts[severity]} {word}" for severity, word in _WORDS),
        verdict=result.get("verdict") or "the statistics of every layer fit the data",
        about=[
            f"{key} {result[key]}"
            for key in ("checkpoint", "created_at", "epoch", "step")
            if result.get(key) is not None
        ],
        errors=_ERRORS,
        pictured=[(str(layer.get("name", "")), _layer_figures(layer)) for layer in pictured[:_MOST_LAYERS]],
        n_pictures=len(pictured),
        shift=_shift_figure(shifts) if shifts else None,
        history=_history_figure(history) if len(history) > 1 else None,
    )


def _errors_by_channel(layer: Mapping[str, Any]) -> tuple[list[float | None], list[float | None]]:
    """Per channel: error of the mean in standard deviations, and log ratio of the variances."""
    eps = float(layer.get("eps", 1e-5))
    means: list[float | None] = []
    variances: list[float | None] = []
    for running_mean, mean, running_variance, variance in zip(
        layer["running_mean"], layer["population_mean"], layer["running_var"], layer["population_var"], strict=True
    ):
        if None in (running_mean, mean, running_variance, variance) or min(running_variance, variance) + eps <= 0:
            means.append(None)
            variances.append(None)
        else:
            means.append((running_mean - mean) / math.sqrt(variance + eps))
            variances.append(math.log((running_variance + eps) / (variance + eps)))
    return means, variances


def _layer_figures(layer: Mapping[str, Any]) -> list[tuple[go.Figure, str]]:
    """Mean and variance of each channel, with what each picture shows."""
    means, variances = _errors_by_channel(layer)
    figures = []
    for values, noise, what in (
        (means, layer.get("noise_mean"), "Running mean minus population mean, standard deviations"),
        (variances, layer.get("noise_var"), "Log of running over population variance"),
    ):
        figure = go.Figure()
        count = len(values)
        if noise:
            band = 2.0 * float(noise)
            figure.add_shape(
                type="rect", x0=-0.5, x1=count - 0.5, y0=-band, y1=band, fillcolor=_BAND, line_width=0, layer="below"
            )
        marker = {"size": 5, "color": _BLUE}
        figure.add_trace(go.Scatter(x=list(range(count)), y=values, mode="markers", marker=marker, name="channel"))
        figure.update_layout(height=260, margin={"l": 50, "r": 10, "t": 30, "b": 40}, showlegend=False)
        figure.update_layout(title={"text": what, "font": {"size": 13}}, xaxis={"title": {"text": "channel"}})
        figures.append(
            (figure, f"{what}, layer {layer.get('name', '')}, {count} channels; the band is twice the noise")
        )
    return figures


def _shift_figure(shifts: Sequence[Mapping[str, Any]]) -> go.Figure:
    figure = go.Figure()
    layers = [str(shift["layer"]) for shift in shifts]
    for key, name, colour in (("d", "mean, sd", _BLUE), ("lv", "variance, log", _ORANGE)):
        figure.add_trace(go.Bar(x=layers, y=[shift[key] for shift in shifts], name=name, marker={"color": colour}))
    figure.update_layout(height=300, barmode="group", margin={"l": 50, "r": 10, "t": 10, "b": 60})
    return figure


def _history_figure(history: Sequence[Mapping[str, Any]]) -> go.Figure:
    figure = go.Figure()
    steps = [row.get("step") for row in history]
    for key, name, colour in (("d", "worst mean error, sd", _BLUE), ("lv", "worst variance error, log", _ORANGE)):
        values = [row.get(key) for row in history]
        figure.add_trace(go.Scatter(x=steps, y=values, name=name, mode="lines+markers", line={"color": colour}))
    figure.update_layout(height=300, margin={"l": 50, "r": 10, "t": 10, "b": 40}, xaxis={"title": {"text": "step"}})
    return figure
