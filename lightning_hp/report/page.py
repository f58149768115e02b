"""The look of every page of ours: one style sheet, one script, no network.

A page is a string of HTML that opens from a file as well as from a server. Its Content-Security-Policy forbids every
request, so what is not in the file cannot be loaded. It follows the reader's light or dark setting, and its width.
"""

from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go

#: nothing is fetched; Plotly needs inline styles and draws its downloads through data and blob addresses
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; form-action 'none'; base-uri 'none'"
)

_FILES = files(__package__)
STYLE = _FILES.joinpath("page.css").read_text(encoding="utf-8")
#: draws every figure of the page in the page's own colours, and again when the reader's setting changes
SCRIPT = _FILES.joinpath("page.js").read_text(encoding="utf-8")


class Page:
    """One HTML page that is being put together.

    Args:
        title: Plain text.
        refresh: Seconds after which the browser loads it again, None for never.
    """

    def __init__(self, title: str, refresh: int | None = None) -> None:
        self.title = title
        self.refresh = refresh
        self._figures: dict[str, Any] = {}

    def plot(self, figure: go.Figure, alternative: str) -> str:
        """The place of a figure in the page.

        Args:
            figure: What is drawn there.
            alternative: What the picture shows, for readers who do not see it. Plain text.
        """
        name = f"plot-{len(self._figures) + 1}"
        plain = figure.to_plotly_json()
        plain["layout"].pop("template", None)
        height = plain["layout"].get("height", 340)
        self._figures[name] = plain
        return (
            f'<div id="{name}" class="plot" role="img" aria-label="{html.escape(alternative)}" '
            f'style="height:{height:d}px"></div>'
        )

    def html(self, body: str) -> str:
        """The whole document.

        Args:
            body: HTML, escaped where it holds text from outside.
        """
        scripts = ""
        if self._figures:
            from plotly.offline import get_plotlyjs  # 4.8 MB of text: read only where it is needed

            data = json.dumps(self._figures, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_plain)
            data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
            scripts = (
                f'<script type="application/json" id="figures">{data}</script>\n'
                f"<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>\n"
            )
        again = f'<meta http-equiv="refresh" content="{self.refresh:d}">\n' if self.refresh else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"{again}<title>{html.escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
            f"{scripts}</body>\n</html>\n"
        )


def _plain(value: Any) -> Any:
    """Arrays and tuples that Plotly keeps, as JSON lists."""
    return value.tolist() if hasattr(value, "tolist") else list(value)


def chip(tier: str) -> str:
    """A tier as a small coloured letter."""
    kind = tier if tier in "ABCD" else ""
    return f'<span class="chip {kind}">{html.escape(tier)}</span>'


def table(head: list[tuple[str, bool]], rows: list[list[str]]) -> str:
    """A table that scrolls sideways where it does not fit.

    Args:
        head: Column titles (plain text) and whether the column holds numbers.
        rows: Cells as HTML; a cell that starts with ``<td`` is taken as it is.
    """
    titles = "".join(f"<th{' class=n' if numeric else ''}>{html.escape(title)}</th>" for title, numeric in head)
    lines = []
    for row in rows:
        cells = [
            cell if cell.startswith("<td") else f"<td{' class=n' if numeric else ''}>{cell}</td>"
            for cell, (_, numeric) in zip(row, head, strict=True)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
