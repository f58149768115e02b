"""The BatchNorm audit of one trial as a small picture (SVG): how far the running statistics of each layer are off.

Two bars a layer: the mean, in standard deviations, and the variance, as the size of its logarithm's error. Both are
what ``audit.json`` holds of a layer (``d`` and ``lv``). Colours are of middle lightness, for light and dark pages.
"""

from __future__ import annotations

from markupsafe import Markup

from lightning_hp.report.audits import Audit
from lightning_hp.report.rendering import render_html
from lightning_hp.report.style import FONT, TEXT
from lightning_hp.report.view import TIER_COLOURS, finite

#: most layers drawn: those that are off most
MOST_LAYERS = 12
_ROW, _LEFT, _WIDTH = 34, 190, 620
_MEAN, _VARIANCE = TIER_COLOURS["A"], TIER_COLOURS["B"]


def audit_picture(audit: Audit) -> Markup:
    """The picture; empty where the audit holds no layer with numbers."""
    bars = [
        (str(layer.get("name", "")), [abs(float(layer[key])) if finite(layer.get(key)) else 0.0 for key in ("d", "lv")])
        for layer in audit.layers
        if finite(layer.get("d")) or finite(layer.get("lv"))
    ]
    if not bars:
        return Markup("")
    bars = sorted(bars, key=lambda bar: -max(bar[1]))[:MOST_LAYERS]
    longest = max(max(sizes) for _, sizes in bars) or 1.0
    return Markup(
        render_html(
            "audit.svg", bars=bars, longest=longest, row=_ROW, left=_LEFT, width=_WIDTH, font=FONT, ink=TEXT,
            colours=(_MEAN, _VARIANCE),
        )
    )  # fmt: skip
