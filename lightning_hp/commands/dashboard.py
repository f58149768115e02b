"""``lightning-hp dashboard``: serve optuna-dashboard on studies, and the pages of babysat runs, on this machine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_hp.callbacks.panda import control
from lightning_hp.callbacks.panda.journal import LOG, STATUS, Row, read_rows
from lightning_hp.callbacks.panda.picture import figure_of
from lightning_hp.commands.nudge import read_status
from lightning_hp.dashboard.server import serve_command

_log = logging.getLogger(__name__)


class PandaFiles:
    """Reads and steers babysat runs through the files that `PandaBabysitter` writes and looks for."""

    def status(self, folder: Path) -> dict[str, Any] | None:
        """How a run stands; None where the folder holds no run, or a status that cannot be read."""
        try:
            return read_status(folder)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            _log.warning("%s cannot be read", folder / STATUS, exc_info=True)
            return None

    def events(self, folder: Path) -> list[Row]:
        """The lines of the log, oldest first."""
        return read_rows(folder / LOG)

    def figure(self, folder: Path) -> Any:
        """Losses with the interventions marked, and the hyperparameters over time."""
        return figure_of(folder)

    def request(self, folder: Path, action: str, values: dict[str, Any], why: str) -> str:
        """Leave a command beside the run; returns its id."""
        return control.request(folder, action, values, why)


def dashboard_verb(options: Namespace) -> int:
    """Serve until it is stopped."""
    return serve_command(
        options.study,
        host=options.host,
        port=options.port,
        read_only=options.read_only,
        password_file=options.password_file,
        hosts=options.hosts,
        open_browser=options.open_browser,
        run_files=PandaFiles(),
    )
