"""What the surrogate learns from: which points of which learning curves, and where they lie.

Every trial with a value or a report teaches: complete, pruned, running and diverged ones. A complete trial's value
stands at training fraction 1, whatever it last reported. A curve is read at its *looks*, the steps nearest above
1/16, 1/8, 1/4 and 1/2 of the longest training, and at its last report. These are also the steps where the pruner
decides. Failed trials, and those that lack a parameter, are left out.

Where a complete curve ends is given (``max_steps``), or read off the longest curve that a complete trial reported; as
long as no complete trial reported any, only the values of complete trials count. Steps may run from 1 or from 0: a
trial that reported a step 0 counts from 0, so that its step s is its training step s + 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.boxes import EXPLORED
from lightning_hp.space.space import SearchSpace

Array = NDArray[np.float64]
#: Looks are at these parts of the longest training: later ones only (1/2 alone) stop too late, earlier ones than 1/16
#: stop what would have caught up.
LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
#: A part of the longest training of one in so many stands at 0 on the axis of the training fraction.
SHORTEST = 64.0
#: At most this many observations are modelled: time grows with their cube.
MOST_POINTS = 220
#: Of these at most this part are last points of trials; the rest shows how curves go on.
_LAST_PART = 0.7
_USED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


@dataclass(frozen=True)
class Curve:
    """One trial as the surrogate sees it.

    Attributes:
        number: Trial number.
        unit: Position on the unit axes, shape (d,); inactive parameters at their default.
        fractions: Training fraction of each point on the log axis, within [0, 1], increasing, shape (k,).
        losses: Loss of each point, lower is better, NaN and inf where it diverged, shape (k,).
        state: Complete, pruned or running.
        origin: 0 for a trial of this study, 1 for one of the study before it.
        explored: Whether the trial was proposed to explore.
    """

    number: int
    unit: Array
    fractions: Array
    losses: Array
    state: TrialState
    origin: float = 0.0
    explored: bool = False

    @property
    def final(self) -> float:
        """The final loss of a complete trial, inf for the others and for what diverged."""
        good = self.state is TrialState.COMPLETE and len(self.losses) and math.isfinite(self.losses[-1])
        return float(self.losses[-1]) if good else math.inf


def looks(max_steps: int | None) -> tuple[int, ...]:
    """The training steps at which curves are read and trials may be stopped; empty where no length is known."""
    if max_steps is None:
        return ()
    steps = {math.floor(max_steps * part + 0.5) for part in LOOKS}
    return tuple(sorted(s for s in steps if 1 <= s < max_steps))


def fraction(step: float, max_steps: int) -> float:
    """Where a step stands on the axis of the training fraction: 1 at the end, one unit for six halvings, at least 0."""
    part = min(max(step, 1), max_steps) / max_steps
    return max(1.0 + math.log(part) / math.log(SHORTEST), 0.0)


def from_one(reported: Mapping[int, float]) -> dict[int, float]:
    """A trial's reports by training step, the first being 1: a trial that reported a step 0 counts from 0."""
    return {step + 1: value for step, value in reported.items()} if 0 in reported else dict(reported)


def curve_length(trials: Iterable[FrozenTrial], max_steps: int | None = None) -> int | None:
    """The training step at which a complete curve ends; None where nobody knows yet.

    Args:
        trials: Trials of one study, of any state.
        max_steps: The length, if it is given; None to read it off the longest curve of a complete trial.
    """
    if max_steps is not None:
        return max_steps
    complete = (t.intermediate_values for t in trials if t.state is TrialState.COMPLETE)
    return max((max(values) + (0 in values) for values in complete if values), default=None)


def steps_read(reported: Mapping[int, float], at: Sequence[int]) -> list[int]:
    """The reported steps that are read: for each look the first one at or after it, and the last."""
    if not reported:
        return []
    steps = sorted(reported)
    chosen = {steps[-1]}
    position = 0
    for look in at:
        while position < len(steps) and steps[position] < look:
            position += 1
        if position == len(steps):
            break
        chosen.add(steps[position])
    return sorted(chosen)


class CurveReader:
    """Turns trials into curves; finished trials do not change, so what was read of them is kept.

    Args:
        space: The parameters.
        max_steps: The step of a complete curve, None to read it off the longest complete one.
        maximize: Whether higher values are better.
    """

    def __init__(self, space: SearchSpace, max_steps: int | None, maximize: bool) -> None:
        self._space, self._max_steps, self._sign = space, max_steps, -1.0 if maximize else 1.0
        self._default = space.unit([space.defaults()])[0]
        self._conditional = any(p.active_if for p in space.parameters)
        self._length = max_steps
        self._kept: dict[int, Curve | None] = {}

    def read(self, trials: Iterable[FrozenTrial]) -> list[Curve]:
        """The curves of those trials that teach something, ordered by trial number; those without points included."""
        trials = [t for t in trials if t.state in _USED]
        length = curve_length(trials, self._max_steps)
        if length != self._length:
            self._length = length
            self._kept.clear()
        curves = []
        for trial in sorted(trials, key=lambda t: t.number):
            if trial.state is TrialState.RUNNING:
                curve = self._curve(trial, length)
            elif trial._trial_id in self._kept:
                curve = self._kept[trial._trial_id]
            else:
                curve = self._kept[trial._trial_id] = self._curve(trial, length)
            if curve is not None:
                curves.append(curve)
        return curves

    def _curve(self, trial: FrozenTrial, length: int | None) -> Curve | None:
        unit = position(self._space, trial, self._default, self._conditional)
        if unit is None:
            return None
        fractions: list[float] = []
        losses: list[float] = []
        if length is not None:
            reported = from_one(trial.intermediate_values)
            for step in steps_read(reported, looks(length)):
                fractions.append(fraction(step, length))
                losses.append(self._sign * float(reported[step]))
        if trial.state is TrialState.COMPLETE and trial.value is not None:
            while fractions and fractions[-1] >= 1.0:
                fractions.pop()
                losses.pop()
            fractions.append(1.0)
            losses.append(self._sign * float(trial.value))
        return Curve(
            trial.number,
            unit,
            np.array(fractions),
            np.array(losses),
            trial.state,
            explored=EXPLORED in trial.user_attrs,
        )


def curves_to_dicts(curves: Sequence[Curve], most: int = 60) -> list[dict[str, list[float]]]:
    """Curves as plain JSON types, to be kept with a later study: the best complete one first, then by last loss.

    Args:
        curves: Of one study.
        most: At most so many.
    """
    ended = [c for c in curves if len(c.losses) and math.isfinite(c.losses[-1]) and c.state is not TrialState.RUNNING]
    ordered = sorted(ended, key=lambda c: (not math.isfinite(c.final), c.losses[-1], c.number))
    return [
        {"unit": c.unit.tolist(), "fractions": c.fractions.tolist(), "losses": c.losses.tolist()}
        for c in ordered[:most]
    ]


def older_curve(fields: Mapping[str, Sequence[float]]) -> Curve:
    """A curve of an older study, from what :func:`curves_to_dicts` gave."""
    unit, fractions, losses = (np.array(fields[name], np.float64) for name in ("unit", "fractions", "losses"))
    state = TrialState.COMPLETE if len(fractions) and fractions[-1] >= 1.0 else TrialState.PRUNED
    return Curve(-1, unit, fractions, losses, state, origin=1.0)


def position(space: SearchSpace, trial: FrozenTrial, default: Array, conditional: bool) -> Array | None:
    """Where a trial lies on the unit axes, shape (d,); None where it lacks a parameter or holds one of another kind.

    An inactive parameter is put at its default: points that differ only in what has no effect are then one point.
    """
    params = trial.params
    try:
        unit = np.array([float(p.unit([params[p.stored_name]])[0]) for p in space.parameters])
    except (KeyError, TypeError, ValueError):  # not asked for, or a value of another kind
        return None
    if not np.all(np.isfinite(unit)):
        return None
    return np.where(space.active(params), unit, default) if conditional else unit


def points(curves: Sequence[Curve], most: int = MOST_POINTS) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which points are modelled, at most ``most`` of them.

    All where they fit. Else first the last point of every trial; where these alone fill 0.7 of the room, those of
    running trials, of the best third (by last loss), and an even sample over the trial numbers of the others. Then the
    earlier points of their curves, running trials first, then the latest trials.

    Args:
        curves: Ordered by trial number.
        most: The bound.

    Returns:
        Index of the curve and index of the point in it, shape (n,) each, ordered by curve.
    """
    sizes = [len(c.losses) for c in curves]
    if sum(sizes) <= most:
        pairs = [(i, j) for i, size in enumerate(sizes) for j in range(size)]
    else:
        with_points = [i for i, size in enumerate(sizes) if size]
        room = int(_LAST_PART * most)
        kept = _spread(curves, with_points, room) if len(with_points) > room else with_points
        pairs = [(i, sizes[i] - 1) for i in kept]
        newest = sorted(kept, key=lambda i: (curves[i].state is TrialState.RUNNING, curves[i].number), reverse=True)
        earlier = [(i, j) for i in newest for j in range(sizes[i] - 2, -1, -1)]
        pairs = sorted(pairs + earlier[: most - len(pairs)])
    chosen = np.array(pairs, np.intp).reshape(-1, 2)
    return chosen[:, 0], chosen[:, 1]


def _spread(curves: Sequence[Curve], which: list[int], room: int) -> list[int]:
    running = [i for i in which if curves[i].state is TrialState.RUNNING][-room:]
    others = [i for i in which if curves[i].state is not TrialState.RUNNING]
    last = np.array([curves[i].losses[-1] for i in others])
    order = np.argsort(np.where(np.isfinite(last), last, np.inf), kind="stable")
    left = room - len(running)
    best = {others[i] for i in order[: left // 3 + 1]} if left else set()
    rest = [i for i in others if i not in best]
    picked: Sequence[int] | NDArray[np.intp] = (
        np.unique(np.linspace(0, len(rest) - 1, max(left - len(best), 0)).astype(int)) if rest else []
    )
    return sorted({*running, *best, *(rest[int(i)] for i in picked)})
