"""The drawn pictures of the documentation: ``scales.svg`` and ``engines.svg``.

Run:  python docs/make/pictures.py            writes both to docs/images; a test compares them with what is there

Each picture follows the reader's light or dark setting, and is also told in words on its page. It has a ground of its
own, since a page can be switched to dark where the reader's setting is light.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np

from lightning_hp.space.scales import sample

IMAGES = Path(__file__).parents[1] / "images"
_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #222 } .dim { fill: #666; font-size: 12px } .bar { fill: #4a7ebb }
.axis, .arrow { stroke: #888; fill: none } .box { fill: #eef3fa; stroke: #4a7ebb } .end { fill: #eef7ee; stroke: #4d9a5a }
.code { font-family: ui-monospace, monospace } .paper { fill: #fff }
@media (prefers-color-scheme: dark) { .paper { fill: #1e2129 } text { fill: #ddd } .dim { fill: #aaa } .bar { fill: #7aa7dd }
.box { fill: #22303f; stroke: #7aa7dd } .end { fill: #22352a; stroke: #76c083 } }
</style>"""
DRAWS = 10_000
#: title, bounds, scale of the draws, number of bars, ticks; bars are counted on an axis of their own
ROWS: tuple[tuple[str, float, float, str, Callable[[np.ndarray], np.ndarray], tuple[float, ...]], ...] = (
    ("learning rate, linear", 1e-4, 1.0, "linear", np.log10, (1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
    ("learning rate, log: 10^r", 1e-4, 1.0, "log", np.log10, (1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
    ("momentum, log", 0.9, 0.999, "log", lambda m: -np.log10(1 - m), (0.9, 0.99, 0.999)),
    ("momentum, one_minus_log: 1 - 10^r", 0.9, 0.999, "one_minus_log", lambda m: -np.log10(1 - m), (0.9, 0.99, 0.999)),
)


def scales_picture() -> str:
    """Four rows of bars: how many of 10,000 draws fall into equal parts of the axis that matters."""
    width, row, bars = 640, 110, 24
    parts = [_open(width, row * len(ROWS) + 10, "The same draws on four axes")]
    for number, (title, low, high, scale, axis, ticks) in enumerate(ROWS):
        top = number * row + 10
        ends = axis(np.array([low, high]))
        counts, _ = np.histogram(axis(sample(low, high, DRAWS, scale, 0)), bars, (ends[0], ends[1]))
        parts.append(f'<text x="20" y="{top + 14}">{escape(title)}</text>')
        step = (width - 40) / bars
        for i, count in enumerate(counts):
            height = 50 * count / counts.max()
            x, y = 20 + i * step, top + 72 - height
            parts.append(f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{step - 2:.1f}" height="{height:.1f}"/>')
        parts.append(f'<path class="axis" d="M20 {top + 72} H{width - 20}"/>')
        for tick in ticks:
            place = 20 + (width - 40) * float((axis(np.array([tick]))[0] - ends[0]) / (ends[1] - ends[0]))
            anchor = "start" if place < 30 else "end" if place > width - 30 else "middle"
            parts.append(f'<text class="dim" x="{place:.0f}" y="{top + 88}" text-anchor="{anchor}">{tick:g}</text>')
    return "\n".join([*parts, "</svg>\n"])


#: box: column, row, lines, class
_BOXES = (
    (0, 1, ("How big is", "one training?"), "box"),
    (1, 0, ("small network:", "a step well under 10 ms"), "box"),
    (1, 1, ("anything else,", "one machine"), "box"),
    (1, 2, ("several machines",), "box"),
    (2, 0, ("engine: auto", "(the default)", "storage: journal"), "end code"),
    (2, 1, ("engine: auto, or", "local with workers: N", "storage: journal"), "end code"),
    (2, 2, ("the same command on each", "storage: postgresql://..."), "end code"),
)
_ARROWS = ((0, 1, 1, 0), (0, 1, 1, 1), (0, 1, 1, 2), (1, 0, 2, 0), (1, 1, 2, 1), (1, 2, 2, 2))


def engines_picture() -> str:
    """From the situation on the left to engine and storage on the right."""
    lefts, wides, high = (10, 200, 420), (150, 180, 210), 62
    parts = [_open(640, 270, "Which engine and which storage for which situation")]
    for column, row, to_column, to_row in _ARROWS:
        x, y = lefts[column] + wides[column], 15 + row * 85 + high / 2
        to_x, to_y = lefts[to_column], 15 + to_row * 85 + high / 2
        parts.append(f'<path class="arrow" d="M{x} {y} C{x + 25} {y} {to_x - 25} {to_y} {to_x - 3} {to_y}"/>')
        parts.append(f'<path class="arrow" d="M{to_x - 9} {to_y - 4} L{to_x - 3} {to_y} L{to_x - 9} {to_y + 4}"/>')
    for column, row, lines, kind in _BOXES:
        x, y = lefts[column], 15 + row * 85
        shape, _, font = kind.partition(" ")
        parts.append(f'<rect class="{shape}" x="{x}" y="{y}" width="{wides[column]}" height="{high}" rx="6"/>')
        for i, line in enumerate(lines):
            at = y + high / 2 + 5 + (i - (len(lines) - 1) / 2) * 17
            middle = x + wides[column] / 2
            parts.append(f'<text class="{font}" x="{middle}" y="{at}" text-anchor="middle">{escape(line)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _open(width: int, height: int, title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"><title>{title}</title>'
    return f'{head}{_STYLE}<rect class="paper" width="{width}" height="{height}"/>'


PICTURES = {"scales.svg": scales_picture, "engines.svg": engines_picture}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")
