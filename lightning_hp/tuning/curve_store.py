"""Which points of a learning curve reach storage: so many, however long the training.

A report is a write to storage and a row that is read for ever after; a study of 5,000 trials with 1,000 validations
each would have five million. Kept are the first and the last point, the best and the worst, those at which curves are
read and trials stopped (:func:`lightning_hp.search.curves.looks`), and between them points at even distances. The
trial's pruner is shown every point, and the trial's value comes from all of them.
"""

from __future__ import annotations

import copy
import math

import optuna

from lightning_hp.search.curves import looks

#: where a re-test stops what is behind, in parts of a complete training
RETEST_LOOKS = (0.25, 0.5, 0.75)
#: points kept unless told otherwise, and the fewest that may be asked for
POINTS, FEWEST = 30, 12


def kept_steps(max_steps: int, points: int) -> frozenset[int]:
    """The steps that are stored as they come; all where there are no more than ``points``.

    Args:
        max_steps: Number of validations in a complete training.
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
        max_steps: Number of validations in a complete training, None where it is not known: then all is stored.
        points: See :func:`kept_steps`.
    """

    def __init__(self, trial: optuna.Trial, max_steps: int | None, points: int = POINTS) -> None:
        self._trial = trial
        self._stored = dict(trial.study._storage.get_trial(trial._trial_id).intermediate_values)
        self._curve = dict(self._stored)
        self._max_steps = max_steps
        self._kept = frozenset() if max_steps is None else kept_steps(max_steps, points)
        self._points = points

    def report(self, value: float, step: int) -> None:
        """Take in the next point."""
        self._curve.setdefault(step, value)
        if self._is_kept(step):
            self._store(step)

    def _is_kept(self, step: int) -> bool:
        if self._max_steps is None or step in self._kept:
            return True
        if step <= self._max_steps:
            return False
        # several validations an epoch: twice as far apart whenever the curve has grown twice as long
        doubled = ((step - 1) // self._max_steps).bit_length()
        return step % (math.ceil(self._max_steps / self._points) * 2**doubled) == 0

    def should_prune(self) -> bool:
        """Whether the study's pruner would stop the trial, shown the whole curve."""
        if len(self._curve) == len(self._stored):
            return self._trial.should_prune()
        study = self._trial.study
        shown = copy.copy(study._storage.get_trial(self._trial._trial_id))
        shown.intermediate_values = dict(self._curve)
        return study.pruner.prune(study, shown)

    def close(self) -> None:
        """Store the last, the best and the worst point."""
        if not self._curve:
            return
        by_value = sorted(self._curve, key=lambda step: (self._curve[step], step))
        for step in sorted({by_value[0], by_value[-1], max(self._curve)}):
            self._store(step)

    def _store(self, step: int) -> None:
        if step not in self._stored:
            self._stored[step] = self._curve[step]
            self._trial.report(self._curve[step], step)
