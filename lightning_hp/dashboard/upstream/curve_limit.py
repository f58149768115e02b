"""Which learning curves the dashboard's pages are given: of a big study those of the best and of the last trials.

The pages draw a line a trial, each with its entry in a legend. A browser needs about 10 ms for each, at every redraw
of a page that is open beside a study that trains; all curves of 5,000 trials take a minute, and long before that they
are too many to tell apart. Storage keeps all of them; our own figures read storage.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

#: a study with more trials than this is big, and then the curves of so many best and so many last trials are shown
MANY, CURVES = 60, 25


def numbers_with_curve(trials: Sequence[FrozenTrial], direction: StudyDirection) -> set[int] | None:
    """The numbers of the finished trials that are shown with their curves; None for all.

    Args:
        trials: All trials of a study, by number.
        direction: Of the first objective.
    """
    if len(trials) <= MANY:
        return None
    sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
    complete = TrialState.COMPLETE
    valued = ((sign * values[0], t.number) for t in trials if t.state is complete and (values := t.values))
    best = heapq.nsmallest(CURVES, valued)
    return {number for _, number in best} | {t.number for t in trials[-CURVES:]}


def with_few_curves(trials: list[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """The trials; of a big study those that are neither among the best nor the last, nor running, without curves.

    Args:
        trials: All trials of a study, by number; they are not changed.
        direction: Of the first objective.
    """
    kept = numbers_with_curve(trials, direction)
    if kept is None:
        return trials
    return [t if t.number in kept or not t.state.is_finished() else without_curve(t) for t in trials]


def without_curve(trial: FrozenTrial) -> FrozenTrial:
    """The trial without its curve; the trial given is not changed."""
    if not trial.intermediate_values:
        return trial
    without = copy.copy(trial)
    without.intermediate_values = {}
    return without
