"""One HTML page: its template, its figures, and the script that draws them; no network.

A page is a string of HTML that opens from a file as well as from a server. Its Content-Security-Policy forbids every
request, so what is not in the file cannot be loaded. It follows the reader's light or dark setting, and its width.
"""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from lightning_hp.report.rendering import render_html, template_text


class Page:
    """One HTML page.

    Args:
        title: Plain text.
        refresh: Seconds after which the browser loads it again, None for never.
        has_library: Whether it holds what draws its figures (5 MB); without, another page draws them.
    """

    def __init__(self, title: str, refresh: int | None = None, has_library: bool = True) -> None:
        self.title = title
        self.refresh = refresh
        self._has_library = has_library
        self._figures: dict[str, Any] = {}

    def plot(self, figure: go.Figure, alternative: str) -> Markup:
        """The place of a figure in the page, for a template.

        Args:
            figure: What is drawn there.
            alternative: What the picture shows, for readers who do not see it. Plain text.
        """
        name = f"plot-{len(self._figures) + 1}"
        plain = figure.to_plotly_json()
        plain["layout"].pop("template", None)
        self._figures[name] = plain
        return Markup('<div id="{}" class="plot" role="img" aria-label="{}" style="height:{}px"></div>').format(
            name, alternative, plain["layout"].get("height", 340)
        )

    def render(self, template: str, **values: Any) -> str:
        """The whole document.

        Args:
            template: A file of the folder ``templates`` that extends ``page.html``.
            values: What it needs.
        """
        return render_html(template, page=self, **values)

    @property
    def scripts(self) -> Markup:
        """The figures placed so far, and what draws them in the page's own colours; empty where there are none."""
        if not self._figures:
            return Markup("")
        figures = json.dumps(
            self._figures, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_plain_list
        )
        figures = figures.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        data = f'<script type="application/json" id="figures">{figures}</script>\n'
        if not self._has_library:
            return Markup(data)
        from plotly.offline import get_plotlyjs  # 4.8 MB of text: read only where it is needed

        return Markup(f"{data}<script>{get_plotlyjs()}</script>\n<script>{template_text('page.js')}</script>\n")


def _plain_list(value: Any) -> Any:
    """Arrays and tuples that Plotly keeps, as JSON lists."""
    return value.tolist() if hasattr(value, "tolist") else list(value)
