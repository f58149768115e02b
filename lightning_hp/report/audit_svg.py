"""The BatchNorm audit of one trial as a small picture (SVG): how far the running statistics of each layer are off.

Two bars a layer: the mean, in standard deviations, and the variance, as the size of its logarithm's error. Both are
what ``audit.json`` holds of a layer (``d`` and ``lv``). Colours are of middle lightness, for light and dark pages.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from lightning_hp.report.axes import number_text
from lightning_hp.report.style import FONT, TEXT
from lightning_hp.report.view import TIER_COLOURS, finite

#: most layers drawn: those that are off most
MOST_LAYERS = 12
_ROW, _LEFT, _WIDTH = 34, 190, 620
_MEAN, _VARIANCE = TIER_COLOURS["A"], TIER_COLOURS["B"]


def audit_picture(audit: Mapping[str, Any]) -> str | None:
    """The picture, None where the audit holds no layer with numbers.

    Args:
        audit: The content of ``audit.json``.
    """
    layers = audit.get("layers")
    rows = []
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, Mapping) and (finite(layer.get("d")) or finite(layer.get("lv"))):
            sizes = [abs(float(layer[key])) if finite(layer.get(key)) else 0.0 for key in ("d", "lv")]
            rows.append((str(layer.get("name", "")), sizes))
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: -max(row[1]))[:MOST_LAYERS]
    most = max(max(sizes) for _, sizes in rows) or 1.0
    height = _ROW * len(rows) + 42
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="{html.escape(FONT)}" font-size="12" fill="{TEXT}">',
        _key(_LEFT, _MEAN, "mean off, standard deviations"),
        _key(_LEFT + 215, _VARIANCE, "variance off, log"),
    ]
    for i, (name, sizes) in enumerate(rows):
        top = 36 + i * _ROW
        shown = name if len(name) <= 26 else "…" + name[-25:]
        parts.append(f'<text x="{_LEFT - 10}" y="{top + 16}" text-anchor="end">{html.escape(shown)}</text>')
        for line, (size, colour) in enumerate(zip(sizes, (_MEAN, _VARIANCE), strict=True)):
            length = max(1.0, size / most * (_WIDTH - _LEFT - 70))
            y = top + line * 12
            parts.append(f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="9" rx="2" fill="{colour}"/>')
            parts.append(
                f'<text x="{_LEFT + length + 6:.1f}" y="{y + 8.5}" font-size="10">{number_text(size, 2)}</text>'
            )
    return "\n".join([*parts, "</svg>"])


def _key(x: int, colour: str, text: str) -> str:
    return (
        f'<rect x="{x}" y="8" width="9" height="9" rx="2" fill="{colour}"/>'
        f'<text x="{x + 15}" y="16.5">{html.escape(text)}</text>'
    )
