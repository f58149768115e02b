"""The Python reference as Markdown, for readers that are machines: signatures and docstrings in place of ``::: NAME``."""

from __future__ import annotations

import re
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[2]
PACKAGE = "lightning_hp"


def without_roles(text: str) -> str:
    """Names without Sphinx's roles: ``:class:`.Net``` is ```Net```, in Markdown and in HTML."""
    return re.sub(r":(?:class|func|meth|attr|mod|data):(`|<code[^>]*>)~?\.?", r"\1", text)


def python_as_markdown(page: str) -> str:
    """A page of ``::: NAME`` lines with what stands in the code of each name.

    Raises:
        KeyError: If there is no such name.
    """
    package = griffe.load(PACKAGE, search_paths=[str(ROOT)])

    def documented(match: re.Match[str]) -> str:
        thing = package[match[1].removeprefix(f"{PACKAGE}.")]
        parts = [_entry(thing, "###")]
        if thing.is_class:
            public = (m for name, m in thing.members.items() if not name.startswith("_") and m.is_function)
            parts += [_entry(member, "####") for member in public if member.docstring is not None]
        return "\n\n".join(parts)

    return re.sub(r"^::: (\S+)$", documented, page, flags=re.MULTILINE)


def _entry(thing: griffe.Object | griffe.Alias, heading: str) -> str:
    docstring = thing.docstring.value if thing.docstring is not None else ""
    docstring = without_roles(docstring).replace("``", "`")
    signature = thing.signature()  # nothing for an exception without arguments
    call = f"```python\n{signature}\n```\n\n" if signature else ""
    return f"{heading} {thing.name}\n\n{call}{docstring}".rstrip() + "\n"
