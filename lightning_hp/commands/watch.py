"""``lightning-hp watch STUDY``: who works on a study, as it goes on; Ctrl-C ends the look, not the study."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import optuna
from jsonargparse import Namespace
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lightning_hp.commands.output import output_console
from lightning_hp.report.axes import number_text
from lightning_hp.study.at_work import Picture, picture
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import find_study, load_study, open_storage
from lightning_hp.study.urls import STORAGE


def watch_verb(options: Namespace) -> int:
    """Show a study until Ctrl-C, or once where nobody looks (no terminal) or ``--every 0`` asks for it.

    Raises:
        StudyError: If there is no such study.
    """
    storage = options.storage or os.environ.get(STORAGE)
    if storage is None:
        study = find_study(options.study)[0]
    else:
        opened = open_storage(storage, StudyPaths(Path("runs") / options.study), must_exist=True)
        study = load_study(options.study, opened)
    watch(study, output_console(), options.every)
    return 0


def watch(
    study: optuna.Study,
    console: Console,
    every: float,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a study again and again.

    Args:
        study: The study.
        console: Where to.
        every: Seconds between two looks; 0 to look once.
        now: The time of day, with a time zone.
        sleep: Waits for so many seconds.
    """
    if every <= 0 or not console.is_terminal:
        console.print(drawn(picture(study, now())))
        return
    with Live(drawn(picture(study, now())), console=console, auto_refresh=False) as live:
        while True:
            sleep(every)
            live.update(drawn(picture(study, now())), refresh=True)


def drawn(seen: Picture) -> RenderableType:
    """A picture as a table of workers below two lines about the study."""
    states = ", ".join(f"{number} {state}" for state, number in seen.states.items()) or "no trials yet"
    best = "none yet" if seen.best is None else f"{seen.best[1]:.6g} (trial {seen.best[0]})"
    rate = f"{number_text(seen.per_hour, 3)} trials an hour" if seen.per_hour else "too few trials lately for a rate"
    head = Text(f"{seen.study}: {states} of {seen.planned}; stage {seen.stage or '-'}; {rate}\n")
    head.append(f"best {seen.monitor} {best}")
    table = Table(box=None, pad_edge=False)
    for name in ("worker", "trial", "stage"):
        table.add_column(name)
    for name in ("running", "step", seen.monitor, "lease", "ended"):
        table.add_column(name, justify="right")
    for row in seen.workers:
        if row.trial is None:
            table.add_row(Text(row.worker), "idle", "", "", "", "", "", str(row.ended))
            continue
        steps = f"{row.step}" if seen.max_steps is None else f"{row.step}/{seen.max_steps}"
        value = "" if row.value is None else f"{row.value:.5g}"
        lease = Text(f"{_length(row.age)} ago" + (", expired" if row.expired else ""), "red" if row.expired else "")
        table.add_row(
            Text(row.worker), str(row.trial), row.stage, _length(row.running), steps, value, lease, str(row.ended)
        )
    return Group(head, table if seen.workers else Text("nobody works on it now"))


def _length(seconds: float) -> str:
    """A length of time as a person says it."""
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"
