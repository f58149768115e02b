"""``lightning-hp status``: what is tuned under a folder, how old it is, what to do.

Reads ledgers only, so it starts quickly: neither torch, lightning nor optuna is loaded.
"""

from __future__ import annotations

import json as json_format
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_hp.ledger import dates, records
from lightning_hp.ledger.calendar import to_ics
from lightning_hp.ledger.schedules import cron_line, github_action
from lightning_hp.study.paths import write_text

FRESH, ERROR, STALE = 0, 1, 3
#: Which statuses end with exit code 3.
FAIL_ON = {"due": ("due", "stale", "invalid"), "stale": ("stale", "invalid")}
_COLOURS = {"fresh": "green", "due": "yellow", "stale": "red", "invalid": "red", "untuned": "dim"}
_WORST = ("invalid", "stale", "due", "untuned", "fresh")


@dataclass
class _Survey:
    """Everything found: pairs of ledger and verdict, lines about torn records, lines about unreadable ledgers."""

    verdicts: list[tuple[Path, dates.Verdict]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def status_verb(options: Namespace) -> int:
    """Print what is tuned, and how babysat runs stand; the exit code says whether something is due."""
    runs = {path: run for path in options.paths if (run := _babysat_run(path)) is not None}
    if runs:
        from lightning_hp.commands.nudge import status_line

        for run in runs.values():
            sys.stdout.write(status_line(run) + "\n")
        if len(runs) == len(options.paths):
            return FRESH
    return status_command(
        [path for path in options.paths if path not in runs],
        json=options.json,
        fail_on=options.fail_on,
        write_cron=options.write_cron,
        write_github_action=options.write_github_action,
        ics=options.ics,
    )


def _babysat_run(path: str) -> Path | None:
    """The folder of a babysat run, or the run of that name in ``runs/`` where there is no such folder or file."""
    if not Path(path).exists():
        from lightning_hp.commands.nudge import find_run

        with suppress(ValueError):
            return find_run(path)
    return Path(path) if (Path(path) / "panda.json").is_file() else None


def status_command(
    paths: Sequence[str | Path] = (),
    json: bool = False,
    fail_on: str = "due",
    write_cron: bool = False,
    write_github_action: bool = False,
    ics: str | Path | None = None,
    now: datetime | None = None,
) -> int:
    """Prints what is tuned under ``paths``: name, age, next date by tier, reason, what to do.

    Args:
        paths: Ledgers, or folders that are searched for ``ledger.jsonl``; the working folder where none is given.
        json: Print one JSON object in place of the table.
        fail_on: ``due``: exit code 3 for due, stale and invalid; ``stale``: for stale and invalid.
        write_cron: Print a crontab line for this call, and do nothing else.
        write_github_action: Print a GitHub workflow for this call, and do nothing else.
        ics: Also write the dates to this calendar file.
        now: The clock.

    Returns:
        The exit code: 0 fresh, 3 stale in the sense of ``fail_on``, 1 if a ledger cannot be read or none is found (the
        readable ones are printed all the same).

    Raises:
        ValueError: If an argument is not what it must be.
    """
    if fail_on not in FAIL_ON:
        raise ValueError(f"`fail_on` must be due or stale, got {fail_on!r}")
    texts = [str(path) for path in paths] or ["."]
    if write_cron or write_github_action:
        if write_cron:
            sys.stdout.write(cron_line(texts, os.getcwd(), fail_on, own_program()))
        if write_github_action:
            sys.stdout.write(github_action(texts, fail_on))
        return FRESH
    now = datetime.now(UTC) if now is None else dates.as_utc(now)
    survey = _survey(texts, now)
    if ics is not None:
        entries = [(str(ledger), verdict) for ledger, verdict in survey.verdicts]
        try:
            write_text(Path(ics), to_ics(entries, now))
        except OSError as error:
            raise ValueError(f"`ics` must be a file that can be written, got {ics}: {error.strerror}") from error
    if json:
        sys.stdout.write(_json(survey, now) + "\n")
    else:
        _print(survey)
    if survey.errors:
        return ERROR
    return STALE if any(verdict.status in FAIL_ON[fail_on] for _, verdict in survey.verdicts) else FRESH


def _survey(paths: Sequence[str], now: datetime) -> _Survey:
    survey = _Survey()
    seen: set[Path] = set()
    for path in paths:
        try:
            ledgers = [ledger for ledger in find_ledgers(Path(path)) if ledger.resolve() not in seen]
        except ValueError as error:
            survey.errors.append(str(error))
            continue
        for ledger in ledgers:
            seen.add(ledger.resolve())
            try:
                content = records.read(ledger)
                survey.problems += content.problems
                survey.verdicts += [
                    (ledger, _from_here(dates.verdict(content.of(name), now), ledger)) for name in content.names
                ]
                if not content.names:
                    survey.problems.append(f"{ledger}: nothing is recorded in it")
            except (ValueError, OSError) as error:
                survey.errors.append(error_line(error))
    if not survey.verdicts and not survey.errors:
        survey.errors.append(f"nothing tuned is recorded under {', '.join(paths)}")
    survey.verdicts.sort(key=lambda pair: (_WORST.index(pair[1].status), pair[1].name, str(pair[0])))
    return survey


def _from_here(verdict: dates.Verdict, ledger: Path) -> dates.Verdict:
    """The verdict with a command that works in this folder.

    A ledger names its study as it was called where it was tuned. From another folder, or after a move, that is nothing;
    but the folder of the ledger is a study of the same name, and `retune` takes either.
    """
    folder = ledger.parent
    if not (folder / "study.json").is_file() or (Path(verdict.study) / "study.json").is_file():
        return verdict
    by = "command" if verdict.refresh == dates.refresh_text(verdict.study, "command") else "python"
    refresh = dates.refresh_text(str(folder), by)
    return replace(verdict, todo=verdict.todo.replace(verdict.refresh, refresh), refresh=refresh)


def own_program() -> list[str]:
    """This very command, for a place where neither PATH nor the environment of today holds.

    The script of the interpreter that runs now, and not the first one on PATH, which may be another installation.
    """
    script = Path(sys.executable).with_name("lightning-hp")
    if script.is_file() and os.access(script, os.X_OK):
        return [str(script)]
    return [sys.executable, "-m", "lightning_hp"] if sys.executable else ["lightning-hp"]


def error_line(error: Exception) -> str:
    """An error as one line, the file first."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def find_ledgers(path: Path) -> list[Path]:
    """The ledger itself, or every ledger below a folder; hidden folders are left out.

    Raises:
        ValueError: If there is none.
    """
    if path.is_file():
        return [path]
    ledgers = sorted(_walk(path)) if path.is_dir() else []
    if not ledgers:
        why = f"no {records.FILE_NAME} below it" if path.is_dir() else "no such file or folder"
        raise ValueError(f"{path}: {why}")
    return ledgers


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if records.FILE_NAME in files:
            yield Path(root) / records.FILE_NAME


def _json(survey: _Survey, now: datetime) -> str:
    statuses = [verdict.status for _, verdict in survey.verdicts]
    content = {
        "schema": 1,
        "now": dates.to_text(now),
        "worst": next((status for status in _WORST if status in statuses), None),
        "tuned": [{**verdict.to_dict(), "ledger": str(ledger)} for ledger, verdict in survey.verdicts],
        "problems": survey.problems,
        "errors": survey.errors,
    }
    return json_format.dumps(content, indent=2, ensure_ascii=False)


def _print(survey: _Survey) -> None:
    console = Console(highlight=False)
    if survey.verdicts:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("name", overflow="fold")
        for title in ("status", "age", "next re-test"):
            table.add_column(title, overflow="fold", no_wrap=console.width >= 72)
        table.add_column("reason, and what to do", overflow="fold")
        for _, verdict in survey.verdicts:
            colour = _COLOURS[verdict.status]
            age = f"{verdict.age.days} d" if verdict.age is not None else "-"
            todo = "" if verdict.status == "fresh" else f"\n[bold]{escape(verdict.todo)}[/]"
            status, reason = f"[{colour}]{verdict.status}[/]", escape(verdict.reason) + todo
            table.add_row(escape(verdict.name), status, age, _next(verdict), reason)
        console.print(table)
    errors = Console(stderr=True, highlight=False)
    for line in (*survey.problems, *survey.errors):
        errors.print(line, markup=False, soft_wrap=True)


def _next(verdict: dates.Verdict) -> str:
    """Dates with the tiers that share them: ``2026-12-21 A, 2027-02-19 B C``."""
    by_date: dict[str, list[str]] = {}
    for tier, date in sorted(verdict.dates.items(), key=lambda pair: (pair[1], pair[0])):
        by_date.setdefault(f"{date:%Y-%m-%d}", []).append(tier)
    return "\n".join(f"{date} {' '.join(tiers)}" for date, tiers in by_date.items()) or "-"
