"""``lightning-hp postpone``: move a re-test to a later date, with the person and the reason.

Reads and writes a ledger only, so it starts quickly: neither torch, lightning nor optuna is loaded.
"""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from lightning_hp.commands.status import error_line, find_ledgers
from lightning_hp.ledger import dates, records


def postpone_verb(options: Namespace) -> int:
    """Enter the postponement and print what holds now."""
    return postpone_command(options.name, until=options.until, why=options.why, ledger=options.ledger, by=options.by)


def postpone_command(
    name: str,
    until: str,
    why: str,
    ledger: str | Path = ".",
    by: str | None = None,
    now: datetime | None = None,
) -> int:
    """Moves the re-test of ``name`` to a later date, with the person and the reason.

    Args:
        name: A name of the ledger.
        until: The new date, ISO 8601 (a date means midnight UTC).
        why: The reason.
        ledger: The ledger, or a folder in which one ledger holds the name.
        by: The person; the user of this account where it is not given.
        now: The clock.

    Returns:
        The exit code 0.

    Raises:
        ValueError: If there is no such name, several ledgers hold it, or the date is not after ``now``.
    """
    try:
        ledgers = [records.read(path) for path in find_ledgers(Path(ledger))]
    except OSError as error:
        raise ValueError(error_line(error)) from error
    holding = [one for one in ledgers if one.latest(name) is not None]
    if not holding:
        names = ", ".join(dict.fromkeys(tuned for one in ledgers for tuned in one.names)) or "nothing"
        raise ValueError(f"`name` must be a name tuned under {ledger} ({names}), got {name!r}")
    if len(holding) > 1:
        several = ", ".join(str(one.path) for one in holding)
        raise ValueError(f"`ledger` must be one of those that hold {name!r} ({several}), got {str(ledger)!r}")
    moment = datetime.now(UTC) if now is None else dates.as_utc(now)
    event = records.postponed(name=name, until=until, why=why, by=by or _user(), now=moment)
    # a clock in the past is found before anything is written
    verdict = dates.verdict([*holding[0].of(name), event], moment)
    try:
        records.append(holding[0].path, event)
    except OSError as error:
        raise ValueError(error_line(error)) from error
    status = verdict.reason if verdict.reason.startswith(verdict.status) else f"{verdict.status}; {verdict.reason}"
    Console(highlight=False).print(f"{name}: {status}", markup=False, soft_wrap=True)
    return 0


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        return None
