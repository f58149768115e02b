"""Commands that are printed can be pasted: what stands in them is quoted for the shell."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import lightning_hp
from lightning_hp.report.text import show_result

ROOT = Path(lightning_hp.__file__).parent
_COMMAND = re.compile(r"lightning-hp [a-z]+[^`\n]*$")


def printed(source: str) -> list[tuple[int, str]]:
    """Line and expression of everything that an f-string puts into a command."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            before = ""
            for part in node.values:
                if isinstance(part, ast.Constant):
                    before += str(part.value)
                elif isinstance(part, ast.FormattedValue) and _COMMAND.search(before):
                    found.append((node.lineno, ast.unparse(part.value)))
    return found


def test_every_command_in_the_source_quotes_what_it_is_given() -> None:
    seen = 0
    for file in ROOT.rglob("*.py"):
        for line, expression in printed(file.read_text(encoding="utf-8")):
            seen += 1
            assert "quote" in expression, f"{file.relative_to(ROOT)}:{line}: {expression}"
    assert seen >= 3  # fewer would mean that the search finds nothing


def test_the_search_itself_finds_an_unquoted_folder() -> None:
    assert printed("f'see `lightning-hp fit {path}` and {other}'") == [(1, "path")]
    assert printed("f'nothing {path}'") == []


@pytest.mark.parametrize("folder", ["runs/my study", "runs/it's"])
def test_the_result_names_a_command_that_a_shell_splits_rightly(folder: str) -> None:
    file = f"{folder}/best.yaml"
    found: dict[str, Any] = {
        "study": "s", "trials": {"complete": 1}, "seconds": 1.0, "monitor": "m", "value": 1.0, "trial": 0,
        "by_tier": {}, "validation": {}, "test": {}, "checkpoint": "c", "best_yaml": file,
    }  # fmt: skip
    console = Console(record=True, width=200)
    show_result(found, console)
    command = re.search(r"\((lightning-hp fit .*)\)", console.export_text())
    assert command is not None
    assert shlex.split(command[1]) == ["lightning-hp", "fit", file]
