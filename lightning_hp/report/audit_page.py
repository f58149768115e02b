"""One audit as one page: findings on top, then for each layer what it remembers against what it sees, then the history.

The input is the content of audit.json; nothing else is read, and the page loads nothing from anywhere.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from lightning_hp.report.page import Page, table

__all__ = ["audit_page"]

_TONES = {"ERROR": "bad", "WARN": "warn"}
_MOST_LAYERS = 24  # pictures; all layers stay in the table
_BLUE, _ORANGE, _BAND = "#3d6fd9", "#c9721c", "rgba(61,111,217,0.18)"


def audit_page(result: Mapping[str, Any], title: str = "BatchNorm audit") -> str:
    """The whole HTML document of one audit.

    Args:
        result: content of audit.json (or of audit_shift.json).
        title: heading, plain text.

    Returns:
        Self-contained HTML.
    """
    page = Page(title)
    total = result.get("counts", {})
    said = ", ".join(f"{total.get(name, 0)} {word}" for name, word in _WORDS)
    body = f"<header><h1>{html.escape(title)}</h1></header>"
    about = [
        f"{key} {result[key]}" for key in ("checkpoint", "created_at", "epoch", "step") if result.get(key) is not None
    ]
    body += f'<p class="sub">{html.escape(said)}. {html.escape(", ".join(about))}</p>'
    body += _findings(result.get("findings", []), result.get("verdict"))
    layers = list(result.get("layers", []))
    body += _table(layers)
    flagged = {finding.get("layer") for finding in result.get("findings", []) if finding.get("severity") != "INFO"}
    shown = sorted((row for row in layers if "population_mean" in row), key=lambda row: row["name"] not in flagged)
    for row in shown[:_MOST_LAYERS]:
        body += _layer(page, row)
    if len(shown) > _MOST_LAYERS:
        body += f'<p class="sub">Pictures of {_MOST_LAYERS} of {len(shown)} layers; flagged ones first.</p>'
    body += _shift(page, result.get("shift", []))
    body += _history(page, result.get("history", []))
    return page.html(body)


_WORDS = (("ERROR", "errors"), ("WARN", "warnings"), ("INFO", "notes"))


def _section(title: str, said: str, body: str) -> str:
    lead = f'<p class="sub">{html.escape(said)}</p>' if said else ""
    return f"<section><h2>{html.escape(title)}</h2>{lead}{body}</section>"


def _findings(findings: Sequence[Mapping[str, Any]], verdict: str | None = None) -> str:
    if not findings:
        said = verdict or "the statistics of every layer fit the data"
        return _section("Findings", f"None: {said}.", "")
    rows = []
    for finding in findings:
        tone = _TONES.get(str(finding.get("severity")), "dim")
        rows.append(
            [
                f'<span class="{tone}">{html.escape(str(finding.get("severity", "")))}</span>',
                html.escape(str(finding.get("id", ""))),
                f"<code>{html.escape(str(finding.get('layer', '') or 'model'))}</code>",
                f'<td class="w">{html.escape(str(finding.get("sentence", "")))}<br>'
                f'<span class="dim small">{html.escape(str(finding.get("fix", "")))}</span></td>',
            ]
        )
    head = [("Severity", False), ("Rule", False), ("Layer", False), ("What, and what to do", False)]
    return _section("Findings", "Causes before symptoms.", table(head, rows))


def _table(layers: Sequence[Mapping[str, Any]]) -> str:
    if not layers:
        return ""
    keys = ("d", "ratio_d", "lv", "ratio_lv")
    rows = []
    for row in layers:
        cells = [f"<code>{html.escape(str(row.get('name')))}</code>", html.escape(str(row.get("kind", "")))]
        cells += [str(row.get("channels", "")), str(row.get("momentum", "")), str(row.get("updates", ""))]
        cells += ["" if row.get(key) is None else f"{row[key]:.3g}" for key in keys]
        rows.append(cells)
    head = [("Layer", False), ("Kind", False), ("Channels", True), ("Momentum", True), ("Updates", True)]
    head += [("Mean off, sd", True), ("× noise", True), ("Var off, log", True), ("× noise", True)]
    return _section(
        "Layers", "Error of the running statistics, and the same over the noise expected of them.", table(head, rows)
    )


def _ratio(row: Mapping[str, Any]) -> tuple[list[float | None], list[float | None]]:
    """Per channel: error of the mean in standard deviations, and log ratio of the variances."""
    eps = float(row.get("eps", 1e-5))
    means, variances = [], []
    for r, m, rv, v in zip(
        row["running_mean"], row["population_mean"], row["running_var"], row["population_var"], strict=True
    ):
        broken = None in (r, m, rv, v) or rv + eps <= 0 or v + eps <= 0
        means.append(None if broken else (r - m) / math.sqrt(v + eps))
        variances.append(None if broken else math.log((rv + eps) / (v + eps)))
    return means, variances


def _layer(page: Page, row: Mapping[str, Any]) -> str:
    means, variances = _ratio(row)
    name = str(row["name"])
    pictures = ""
    for values, noise, what in (
        (means, row.get("noise_mean"), "Running mean minus population mean, standard deviations"),
        (variances, row.get("noise_var"), "Log of running over population variance"),
    ):
        figure = go.Figure()
        count = len(values)
        if noise:
            band = 2.0 * float(noise)
            figure.add_shape(
                type="rect", x0=-0.5, x1=count - 0.5, y0=-band, y1=band, fillcolor=_BAND, line_width=0, layer="below"
            )
        figure.add_trace(
            go.Scatter(
                x=list(range(count)), y=values, mode="markers", marker={"size": 5, "color": _BLUE}, name="channel"
            )
        )
        figure.update_layout(height=260, margin={"l": 50, "r": 10, "t": 30, "b": 40}, showlegend=False)
        figure.update_layout(title={"text": what, "font": {"size": 13}}, xaxis={"title": {"text": "channel"}})
        alternative = f"{what}, layer {name}, {count} channels; the band is twice the noise"
        pictures += f"<section>{page.plot(figure, alternative)}</section>"
    return f'<h3 class="gap"><code>{html.escape(name)}</code></h3><div class="two">{pictures}</div>'


def _shift(page: Page, shifts: Sequence[Mapping[str, Any]]) -> str:
    if not shifts:
        return ""
    figure = go.Figure()
    names = [str(shift["layer"]) for shift in shifts]
    figure.add_trace(go.Bar(x=names, y=[shift["d"] for shift in shifts], name="mean, sd", marker={"color": _BLUE}))
    figure.add_trace(
        go.Bar(x=names, y=[shift["lv"] for shift in shifts], name="variance, log", marker={"color": _ORANGE})
    )
    figure.update_layout(height=300, barmode="group", margin={"l": 50, "r": 10, "t": 10, "b": 60})
    said = "New data against the validation data the model was judged on, layer by layer."
    return _section(
        "Shift", said, page.plot(figure, "Shift of the mean and of the variance of the input of each layer")
    )


def _history(page: Page, history: Sequence[Mapping[str, Any]]) -> str:
    if len(history) < 2:
        return ""
    figure = go.Figure()
    steps = [row.get("step") for row in history]
    for key, name, colour in (("d", "worst mean error, sd", _BLUE), ("lv", "worst variance error, log", _ORANGE)):
        values = [row.get(key) for row in history]
        figure.add_trace(go.Scatter(x=steps, y=values, name=name, mode="lines+markers", line={"color": colour}))
    figure.update_layout(height=300, margin={"l": 50, "r": 10, "t": 10, "b": 40}, xaxis={"title": {"text": "step"}})
    said = "Worst error over all layers at the data passes, after epochs 1, 2, 4, 8, … and at the end."
    return _section("Over training", said, page.plot(figure, "Worst errors of running statistics over training steps"))
