"""What a person sees while a study runs: a live table on a terminal, one plain line a trial elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

#: rows of the live table
SHOWN = 8
#: characters of a running trial's bar
_BAR = 10


class StudyDisplay:
    """Shows a study as it runs: a :class:`.StudyListener` and a context manager.

    Args:
        name: Study name.
        n_trials: Planned total of trials.
        monitor: Name of the metric.
        mode: ``min`` or ``max``.
        workers: Trials that run at once, for the time left.
        console: Where to; None for standard error.
    """

    def __init__(
        self,
        name: str,
        n_trials: int,
        monitor: str,
        mode: str,
        workers: int = 1,
        console: Console | None = None,
    ) -> None:
        self.name, self.n_trials, self.monitor, self.mode, self.workers = name, n_trials, monitor, mode, workers
        self.console = console or Console(stderr=True)
        self.trials: list[FrozenTrial] = []
        self.done = 0
        self.best: FrozenTrial | None = None
        self.running: dict[int, FrozenTrial] = {}
        self.points: dict[int, tuple[int, int | None, float]] = {}
        self.began = time.monotonic()
        self.note = ""
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
        )
        self._task = self._bar.add_task(name, total=n_trials, completed=self.done, left="")
        self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> StudyDisplay:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    # --- StudyListener ---

    def study_planned(self, n_trials: int) -> None:
        """Begin to count anew."""
        self.n_trials, self.done, self.best = n_trials, 0, None
        self.trials.clear()
        self._bar.update(self._task, total=self.n_trials, completed=0, left="")

    def trial_known(self, trial: FrozenTrial) -> None:
        """Count a trial that is no news."""
        self.done += 1
        self.running.pop(trial.number, None)
        self._is_best(trial)
        self._bar.update(self._task, completed=self.done, left=self._left())

    def trial_started(self, trial: FrozenTrial) -> None:
        """Show a trial as running."""
        self.running[trial.number] = trial

    def trial_resumed(self, trial: FrozenTrial) -> None:
        """Show a trial as running again."""
        self.running[trial.number] = trial
        self._line(f"trial {trial.number} was interrupted: running it again with the same values")

    def trial_progressed(self, number: int, step: int, steps: int | None, value: float) -> None:
        """Show where a running trial is, and its newest value."""
        self.points[number] = (step, steps, value)

    def trial_finished(self, trial: FrozenTrial) -> None:
        """Show how a trial ended."""
        self.running.pop(trial.number, None)
        self.points.pop(trial.number, None)
        self.trials.append(trial)
        self.done += 1
        new = self._is_best(trial)
        self._bar.update(self._task, completed=self.done, left=self._left())
        cells = _cells(trial)
        width = len(str(self.n_trials))
        best = "" if self.best is None else f"best {self.best.value:.5g} (trial {self.best.number})"
        self._line(
            f"[{self.done:>{width}}/{self.n_trials}] trial {trial.number:<{width}} {cells['stage']:<12} "
            f"{self.monitor} {cells['value']:<10} {cells['state']:<9} {cells['seconds']:>6}  "
            f"{best}{' *' if new else ''}{'  ' + cells['why'] if cells['why'] else ''}"
        )

    def message(self, text: str) -> None:
        """Show one line."""
        self.note = text
        self._line(text)

    def _is_best(self, trial: FrozenTrial) -> bool:
        if trial.state is not TrialState.COMPLETE or trial.value is None or trial.user_attrs.get("diverged"):
            return False
        sign = 1.0 if self.mode == "min" else -1.0
        if self.best is None or sign * trial.value < sign * (self.best.value or 0.0):
            self.best = trial
            return True
        return False

    def _left(self) -> str:
        seconds = (time.monotonic() - self.began) / max(1, len(self.trials)) * max(0, self.n_trials - self.done)
        return f"about {_duration(seconds)} left" if self.done < self.n_trials else ""

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column, align in (
            ("trial", "right"),
            ("stage", "left"),
            (escape(self.monitor), "right"),
            ("", "left"),
            ("s", "right"),
        ):
            table.add_column(column, justify="right" if align == "right" else "left")
        for trial in self.trials[-SHOWN:]:
            cells = _cells(trial)
            style = "bold green" if self.best is not None and trial.number == self.best.number else ""
            table.add_row(
                str(trial.number),
                cells["stage"],
                cells["value"],
                Text(cells["why"] or cells["state"]),
                cells["seconds"],
                style=style,
            )
        for trial in list(self.running.values()):
            point = self.points.get(trial.number)
            newest = "" if point is None else f"{point[2]:.5g}"
            how_far = "running" if point is None else _bar_of(*point[:2])
            table.add_row(str(trial.number), str(trial.user_attrs.get("stage", "")), newest, how_far, "", style="dim")
        best = Text("no complete trial yet")
        if self.best is not None:
            value = (f"{self.best.value:.5g}", "bold green")
            best = Text.assemble(f"best {self.monitor} ", value, f" in trial {self.best.number}")
        parts: list[Any] = [self._bar, best, table]
        if self.note:
            parts.append(Text(self.note, "dim"))
        return Group(*parts)


def _bar_of(step: int, steps: int | None) -> str:
    """How much of a training is done, such as ``━━━━━╌╌╌╌╌ 14/27``."""
    if steps is None:
        return f"running, step {step}"
    done = min(_BAR, round(_BAR * step / steps))
    return f"{'━' * done}{'╌' * (_BAR - done)} {step}/{steps}"


def _cells(trial: FrozenTrial) -> dict[str, str]:
    attributes = trial.user_attrs
    state = "diverged" if attributes.get("diverged") else trial.state.name.lower()
    value = trial.value if trial.value is not None else _last(trial)
    return {
        "stage": str(attributes.get("stage", "")),
        "value": "-" if value is None else f"{value:.5g}",
        "state": state,
        "seconds": f"{attributes['seconds']:.1f} s" if "seconds" in attributes else "",
        "why": str(attributes.get("failure", ""))[:160],
    }


def _last(trial: FrozenTrial) -> float | None:
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
