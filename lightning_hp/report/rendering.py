"""Templates for pages (HTML) and notes (Markdown); whatever a template is given is escaped, unless marked as markup.

Both media escape by themselves: a template that prints a name, an error or a metric need not think of it. In HTML that
is Jinja's autoescape. In Markdown every printed value passes :func:`markdown_text`. What a macro or :class:`Markup`
holds has been escaped already.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lightning_hp.ledger import dates
from lightning_hp.report.axes import duration_text, number_text, value_text

_FILES = files(__package__) / "templates"
#: what Markdown (GitHub's, as the dashboard renders it) would read as markup
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&$@:])")
_GAP = "\N{EM SPACE}"


def template_text(name: str) -> str:
    """A file of the folder ``templates``."""
    return (_FILES / name).read_text(encoding="utf-8")


def render_html(template: str, **values: Any) -> str:
    """A page, from a template of the folder ``templates``; a name that the template needs and lacks is an error."""
    return _html().get_template(template).render(values)


def render_markdown(template: str, **values: Any) -> str:
    """A note, likewise; empty lines in a row become one."""
    return re.sub(r"\n{3,}", "\n\n", _markdown().get_template(template).render(values)).strip()


def markdown_text(value: Any) -> Markup:
    """A value from outside, so that it is text in Markdown, on one line; what is markup already stays."""
    if hasattr(value, "__html__"):
        return Markup(value)
    return Markup(_SPECIAL.sub(r"\\\1", " ".join(str(value).split())))


def table_head(align: str, *titles: Any) -> Markup:
    """The first two lines of a table in Markdown.

    Args:
        align: A letter a column, ``l`` or ``r``.
        titles: Of the columns.
    """
    rule = "|".join("--:" if letter == "r" else ":--" for letter in align)
    return Markup(f"{table_row(*titles)}\n|{rule}|")


def table_row(*cells: Any) -> Markup:
    """A line of a table in Markdown.

    The dashboard draws tables without any space between columns, so an em space ends every cell but the last.
    """
    line = f"{_GAP} | ".join(markdown_text(cell) for cell in cells)
    return Markup(f"| {line} |")


def _bold(value: Any) -> Markup:
    return Markup(f"**{markdown_text(value)}**")


def _code(value: Any) -> Markup:
    """Text as it is, within a line."""
    return Markup(f"`{str(value).replace('`', '')}`")


def _code_block(text: str) -> Markup:
    """Text as it is, in a block that it cannot end."""
    return Markup("```text\n" + text.replace("```", "'''") + "\n```")


@lru_cache(maxsize=1)
def _html() -> Environment:
    environment = _environment(None)
    environment.globals |= {"policy": Markup(_POLICY), "stylesheet": Markup(template_text("page.css"))}
    return environment


@lru_cache(maxsize=1)
def _markdown() -> Environment:
    environment = _environment(markdown_text)
    environment.filters |= {"code": _code, "code_block": _code_block, "ordinal": _ordinal}
    environment.globals |= {"head": table_head, "row": table_row, "bold": _bold}
    return environment


def _environment(finalize: Any) -> Environment:
    """Settings of both media: what is printed is escaped, what is undefined is an error, blocks leave no lines."""
    environment = Environment(
        loader=PackageLoader("lightning_hp.report"), autoescape=True, undefined=StrictUndefined, finalize=finalize,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number_text,
        "duration": duration_text,
        "percent": _percent,
        "iso": dates.to_text,
        "day": _day,
        "value_of": lambda natural, parameter: value_text(parameter, natural),
        "last_lines": _last_lines,
    }
    return environment


#: nothing is fetched; Plotly needs inline styles and draws its downloads through data and blob addresses
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; form-action 'none'; base-uri 'none'"
)


def _percent(share: float, decimals: int = 0) -> str:
    return f"{share:.{decimals}%}"


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


def _last_lines(text: str, most: int) -> str:
    return "\n".join(str(text).strip().splitlines()[-most:])


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
