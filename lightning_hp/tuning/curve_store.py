"""Which points of a learning curve reach storage: so many, however long the training.

A report is a write to storage and a row that is read for ever after; a study of 5,000 trials with 1,000 validations
each would have five million. Kept are the first and the last point, the best and the worst, those at which curves are
read and trials stopped (:func:`lightning_hp.search.curves.looks`), and between them points at even distances. The
trial's pruner is shown every point, and the trial's value comes from all of them.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import optuna
from optuna.trial import FrozenTrial

from lightning_hp.search.curves import looks
from lightning_hp.study.patience import StorageAwayError, impatient
from lightning_hp.study.upstream import stored_trial

#: where a re-test stops what is behind, in parts of a complete training
RETEST_LOOKS = (0.25, 0.5, 0.75)
#: points kept unless told otherwise, and the fewest that may be asked for
POINTS, FEWEST = 30, 12


#: is told of a trial's number, the step, the step of a complete training, and the value
Progress = Callable[[int, int, int | None, float], None]
_watching: ContextVar[Progress | None] = ContextVar("watching", default=None)


@contextlib.contextmanager
def watched(progress: Progress) -> Iterator[None]:
    """Tell of every point that a curve of this thread reports, for as long as the context lasts."""
    before = _watching.set(progress)
    try:
        yield
    finally:
        _watching.reset(before)


def kept_steps(max_steps: int, points: int) -> frozenset[int]:
    """The steps that are stored as they come, or the first validation after them; all where there are few.

    Args:
        max_steps: The step of a complete training.
        points: How many to keep, at least ``FEWEST``; two of them are for the best and the worst, known at the end.

    Raises:
        ValueError: If ``points`` is below ``FEWEST``.
    """
    if points < FEWEST:
        raise ValueError(f"`points` must be a whole number of at least {FEWEST}, got {points!r}")
    if max_steps <= points:
        return frozenset(range(1, max_steps + 1))
    fixed = {1, max_steps, *looks(max_steps), *(math.ceil(part * max_steps) for part in RETEST_LOOKS)}
    room = points - 2
    even = room
    while True:
        steps = fixed | {round(1 + (max_steps - 1) * i / (even - 1)) for i in range(even)} if even > 1 else fixed
        if len(steps) <= room:
            return frozenset(steps)
        even -= 1


class ThinCurve:
    """The curve of one running trial: stores some of it, shows the pruner all of it.

    Args:
        trial: The live trial; what it has of a curve, from a run that was interrupted, stays.
        max_steps: The step of a complete training, None where it is not known: then all is stored.
        points: See :func:`kept_steps`.
        prune_from: The study's pruner is asked from this step on; None for never.
        deferred: Whether points wait for :meth:`flush` before they are written.
    """

    def __init__(
        self,
        trial: optuna.Trial,
        max_steps: int | None,
        points: int = POINTS,
        *,
        prune_from: int | None = 0,
        deferred: bool = False,
    ) -> None:
        self._trial, self._deferred = trial, deferred
        self._waiting: list[int] = []
        self._stored = dict(stored_trial(trial.study, trial).intermediate_values)
        self._curve = dict(self._stored)
        self._due = None if max_steps is None else sorted(kept_steps(max_steps, points))
        self._prune_from, self._max_steps = prune_from, max_steps

    def report(self, value: float, step: int) -> None:
        """Take in the next point.

        Args:
            value: Of the metric.
            step: Later than all before.
        """
        before = max((s for s in self._curve if s < step), default=0)
        self._curve.setdefault(step, value)
        if (progress := _watching.get()) is not None:
            progress(self._trial.number, step, self._max_steps, value)
        if self._due is None or any(before < due <= step for due in self._due):
            self._store(step)

    def should_prune(self) -> bool:
        """Whether the study's pruner would stop the trial, shown the whole curve."""
        if not self.may_be_stopped:
            return False
        study = self._trial.study
        with contextlib.suppress(StorageAwayError), impatient():
            return study.pruner.prune(study, self.shown())
        return False  # while storage is away, nobody can be compared with

    @property
    def may_be_stopped(self) -> bool:
        """Whether the study's pruner may be asked about the trial at its newest point."""
        return self._prune_from is not None and max(self._curve, default=0) >= self._prune_from

    def shown(self) -> FrozenTrial:
        """The trial as storage has it, with its whole curve."""
        shown = copy.copy(stored_trial(self._trial.study, self._trial))
        shown.intermediate_values = dict(self._curve)
        return shown

    def flush(self) -> None:
        """Write the points that wait; while storage is away they wait for the next one, and the training goes on."""
        with contextlib.suppress(StorageAwayError), impatient():
            while self._waiting:
                self._trial.report(self._curve[self._waiting[0]], self._waiting[0])
                del self._waiting[0]

    def close(self) -> None:
        """Store the last, the best and the worst point."""
        if not self._curve:
            return
        by_value = sorted(self._curve, key=lambda step: (self._curve[step], step))
        for step in sorted({by_value[0], by_value[-1], max(self._curve)}):
            self._store(step)

    def unsent(self) -> dict[int, float]:
        """What could not be stored, since the storage is away."""
        return {step: self._curve[step] for step in self._waiting}

    def _store(self, step: int) -> None:
        if step not in self._stored:
            self._stored[step] = self._curve[step]
            self._waiting.append(step)
            if not self._deferred:
                self.flush()
