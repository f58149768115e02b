"""What mkdocs does beside rendering: pages made from the code and from files elsewhere, and the site for machines.

Pages that are made: the commands, the keys of ``tune.yaml``, performance; those that are files of the repository:
benchmarks, example projects, changes. After a build every page also stands there as Markdown (``start.md`` beside
``start/``), and ``llms.txt`` lists them (llmstxt.org).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from performance import performance_page
from python_text import python_as_markdown, without_roles
from reference import commands_page, configuration_page

#: page -> the file of the repository that it is
COPIED = {
    "benchmarks.md": "benchmarks/README.md",
    "examples.md": "examples/projects/README.md",
    "changes.md": "CHANGELOG.md",
}
#: folders of the repository that pages link into -> the page that tells of them
FOLDERS = {"benchmarks": "benchmarks.md", "examples": "examples.md"}
MADE = {
    "reference/commands.md": commands_page,
    "reference/configuration.md": configuration_page,
    "performance.md": performance_page,
}
PYTHON = "reference/python.md"
_texts: dict[str, tuple[str, str]] = {}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    for page, source in COPIED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page, make in MADE.items():
        files.append(File.generated(config, page, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links to files of the repository at their pages; keep the text for the site's Markdown."""
    source = page.file.src_uri
    if source.endswith(".md") and source not in COPIED:
        markdown = re.sub(r"\[([^\]]*)\]\(((?:\.\./)+)(\w+)(?:/[^)#]*)?(#[^)]*)?\)", _repointed(source), markdown)
    if source in COPIED:
        markdown = re.sub(r"\]\((?:\.\./)*docs/", "](", markdown)
        markdown = re.sub(r"\[([^\]]*)\]\((?!https?:|#)[^)]*\.(?:py|yaml|csv|html)\)", r"\1", markdown)  # no pages
    _texts[source] = (page.title or source, markdown)
    return markdown


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Leave out what Sphinx alone would understand in a docstring."""
    return without_roles(html)


def _repointed(source: str) -> Callable[[re.Match[str]], str]:
    """Replaces links that lead out of the documentation, into a folder of the repository."""
    deep = source.count("/")

    def replace(match: re.Match[str]) -> str:
        text, up, folder, anchor = match.groups(default="")
        if up.count("../") != deep + 1 or folder not in FOLDERS:
            return match[0]
        readme = match[0].removesuffix(")").split("#")[0].endswith("README.md")
        return f"[{text}]({'../' * deep}{FOLDERS[folder]}{anchor if readme else ''})"

    return replace


def on_post_build(config: Any) -> None:
    """Write every page as Markdown, and ``llms.txt``."""
    site = Path(config["site_dir"])
    lines = [f"# {config['site_name']}", "", f"> {config['site_description']}", "", "## Pages", ""]
    for source, (title, text) in _texts.items():
        target = site / source
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(python_as_markdown(text) if source == PYTHON else text, encoding="utf-8")
        lines.append(f"- [{title}]({source}): {_first_sentence(text)}")
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _first_sentence(text: str) -> str:
    paragraphs = re.split(r"\n\s*\n", re.sub(r"<!--.*?-->|```.*?```", "", text, flags=re.DOTALL))
    prose = [p for p in paragraphs if p.strip() and not re.match(r"\s*(#|!|\||-|<|\d\.|:::)", p)]
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(prose[0].split())) if prose else ""
    return words.partition(". ")[0].rstrip(".:") + "." if words else ""
