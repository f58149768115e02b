"""How commands write: results to standard output, and tables as wide as a pipe may be."""

from __future__ import annotations

import sys

from rich.console import Console

#: columns of what is printed to a file or a pipe
PLAIN_WIDTH = 200


def write_line(text: str) -> None:
    """Write one line to standard output."""
    sys.stdout.write(text + "\n")


def output_console() -> Console:
    """Standard output as a console; if it is no terminal, lines are as long as a table needs and do not wrap."""
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
