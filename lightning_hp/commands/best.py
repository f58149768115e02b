"""``lightning-hp best``: the winner of a study that has ended."""

from __future__ import annotations

import shlex

from jsonargparse import Namespace

from lightning_hp.commands.output import output_console, write_line
from lightning_hp.report.text import show_result
from lightning_hp.study.results import read_result
from lightning_hp.study.storage import StudyError, find_study


def best_verb(options: Namespace) -> int:
    """Print the winner as a table, or ``best.yaml`` or ``result.json`` as they are.

    Raises:
        StudyError: If there is no such study, or it has not ended.
    """
    _, paths = find_study(options.study)
    result = read_result(paths)
    if result is None:
        raise StudyError(
            f"study {options.study!r} has not ended yet; see `lightning-hp report {shlex.quote(options.study)}`"
        )
    if options.yaml:
        write_line(paths.best.read_text(encoding="utf-8").rstrip())
    elif options.json:
        write_line(paths.result.read_text(encoding="utf-8").rstrip())
    else:
        show_result(result, output_console())
    return 0
