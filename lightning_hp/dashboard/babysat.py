"""Babysat runs on pages of their own: how a run stands, what was done to it and why, and buttons that steer it.

A button leaves the same command file beside the run as ``lightning-hp nudge`` does; the run answers at its next check,
and the page shows the answer. Requests come through the guard like all others, so a read-only dashboard has no buttons
that work, and there is no way to the run but its folder. The files' format is the callback's: it is handed in.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import plotly.graph_objects as go
from markupsafe import Markup

from lightning_hp.report.page import Page
from lightning_hp.report.rendering import template_text

#: of the log, newest first, on the page
EVENTS_SHOWN = 40
#: the page asks its own server for news, and nobody else for anything
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; connect-src 'self'; form-action 'none'; base-uri 'none'"
)
#: what is written at every window rather than decided
_ROUTINE = ("wind_down", "probe")
_LIVING = ("running", "paused")


class RunFiles(Protocol):
    """Reads and steers a babysat run through the files in its folder."""

    def status(self, folder: Path) -> dict[str, Any] | None:
        """How the run stands; None where the folder holds no run."""

    def events(self, folder: Path) -> list[dict[str, Any]]:
        """The lines of the log, oldest first."""

    def figure(self, folder: Path) -> go.Figure:
        """Losses with the interventions marked, and the hyperparameters over time."""

    def request(self, folder: Path, action: str, values: dict[str, Any], why: str) -> str:
        """Leave a command beside the run; returns its id, which the answer in the log carries."""


@dataclass(frozen=True)
class BabysatRun:
    """One run in short.

    Attributes:
        name: Its folder's name.
        status: What its status file says: ``state``, ``step``, ``planned``, ``values``, ``loss``, ``interventions``,
            ``updated``.
    """

    name: str
    status: dict[str, Any]

    @property
    def is_living(self) -> bool:
        """Whether it trains, as far as it has said."""
        return self.status.get("state") in _LIVING

    @property
    def tone(self) -> str:
        """``good`` while it trains, ``warn`` while it is paused, else ``dim``."""
        return {"running": "good", "paused": "warn"}.get(str(self.status.get("state")), "dim")

    @property
    def share(self) -> float:
        """Done part of the planned steps, 0 to 1; 1 where none are planned."""
        planned = self.status.get("planned")
        return min(1.0, self.status["step"] / planned) if planned else 1.0

    @property
    def updated(self) -> datetime:
        """When it last wrote its status."""
        return datetime.fromisoformat(self.status["updated"]).astimezone(UTC)


class BabysatRuns:
    """The babysat runs of a folder.

    Attributes:
        folder: A run's folder, or a folder of such.

    Args:
        folder: See above.
        files: Reads and steers them.
    """

    def __init__(self, folder: Path, files: RunFiles) -> None:
        self.folder = folder
        self._files = files

    def runs(self) -> list[BabysatRun]:
        """All runs, those that train first, then by the time of their last word."""
        runs = [run for folder in self._folders() if (run := self._run(folder)) is not None]
        return sorted(runs, key=lambda run: (run.is_living, run.updated), reverse=True)

    def page(self, name: str, read_only: bool = False, is_news: bool = False) -> str:
        """The page of a run, as HTML.

        Args:
            name: Of the run.
            read_only: Whether it says that nothing can be changed.
            is_news: For an open page that draws the new figures itself.

        Raises:
            KeyError: If there is no such run.
        """
        folder = self._folder_of(name)
        run, events = self._run(folder), self._files.events(folder)
        if run is None:
            raise KeyError(name)
        decided = [row for row in events if row.get("rule") not in _ROUTINE]
        page = Page(f"{name} – babysat", has_library=not is_news)
        return page.render(
            "babysat.html",
            policy=Markup(_POLICY),
            run=run,
            events=decided[: -EVENTS_SHOWN - 1 : -1],
            n_older=max(0, len(decided) - EVENTS_SHOWN),
            figure=self._files.figure(folder),
            read_only=read_only,
            text=value_text,
            steer_script=Markup(template_text("babysat.js")),
        )

    def command(self, name: str, body: bytes) -> dict[str, str]:
        """Leave a person's command beside a run.

        Args:
            name: Of the run.
            body: JSON with ``action``, and if wished ``values`` (name to number) and ``why``.

        Returns:
            ``id`` of the command.

        Raises:
            KeyError: If there is no such run.
            ValueError: If the body is no such JSON, the action is unknown, or the run has ended.
        """
        folder = self._folder_of(name)
        try:
            content = json.loads(body)
            action, values, why = str(content["action"]), dict(content.get("values", {})), str(content.get("why", ""))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"a command must be JSON with `action`, `values` and `why`, got {body[:80]!r}") from error
        run = self._run(folder)
        if run is None or not run.is_living:
            raise ValueError(f"`run` must be running, got {name!r}, which is {run.status['state'] if run else 'gone'}")
        return {"id": self._files.request(folder, action, values, why)}

    def _folders(self) -> list[Path]:
        children = [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
        return [self.folder, *children]

    def _folder_of(self, name: str) -> Path:
        for folder in self._folders():
            if _name_of(folder) == name and self._run(folder) is not None:
                return folder
        raise KeyError(name)

    def _run(self, folder: Path) -> BabysatRun | None:
        status = self._files.status(folder)
        return BabysatRun(_name_of(folder), status) if status is not None else None


def _name_of(folder: Path) -> str:
    return folder.resolve().name


def value_text(value: Any) -> str:
    """A value of the log in few digits: ``0.003``, ``1.2e-07``, ``–`` for nothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    return f"{value:.4g}" if math.isfinite(value) else str(value)
