"""The model of one study's trials: built from curves, asked for final losses; shared by the sampler and the pruner.

Nothing depends on what a process remembers. Hyperparameters are fitted when the number of finished trials passes one of
:func:`fitted_at`'s marks, from the finished trials up to that mark in the order of their numbers; workers that see the
same storage fit the same. What is kept between calls (curves of finished trials, the latest fits) only saves time.

Running trials: their reported points count like all others, and for a new point their final loss is taken to be what
the model expects (a "believer", Ginsbourger et al. 2010), so that parallel workers do not all go to the same place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.blas_threads import one_blas_thread
from lightning_hp.search.curves import Curve, CurveReader
from lightning_hp.search.model import CurveModel, Encoder, aligned
from lightning_hp.search.proposal import (
    UNIFORM,
    candidates,
    choose,
    far_candidates,
    log_expected_improvement,
    maximise,
    snap,
)
from lightning_hp.space.space import SearchSpace

Array = NDArray[np.float64]
#: Fits kept: a study needs the latest, and the one before while trials finish out of order.
_FITS_KEPT = 4
#: Gains are counted in parts of the stake: what a configuration drawn at random is expected to lose against the best.
#: Below the first nothing is left to gain, below the second little.
EXHAUSTED, LITTLE = 0.003, 0.02
#: A box is kept to where at least this part of what can be gained anywhere can be gained in it.
PART_INSIDE = 0.5
#: How many times wider the model's deviations are taken when it explores; complete trials before it does.
DOUBT, DOUBT_FROM = 3.0, 5
#: Where so many trials explored in a row and none was worth a full training, only every second one goes on.
BARREN = 16
_FAR_KEPT = 8
#: Tried positions among those at which the optimum may lie.
_TRIED_AGAIN = 20
_TOLERANCE = 1e-9
#: Of points that are proposed together: drawings of the final losses, candidates drawn at, least distance on one axis.
_DRAWINGS, _DRAWN_AT, _APART = 256, 128, 2e-3


@dataclass(frozen=True)
class Proposal:
    """A point to try.

    Attributes:
        unit: Its position, shape (d,).
        gain: The most improvement that was expected of a point, in parts of the stake.
        explores: Whether the point was taken far from what is known, since too little was left to gain.
        opens: Whether it is the first point taken where a closed parameter is open, since too little was left to gain.
    """

    unit: Array
    gain: float = math.inf
    explores: bool = False
    opens: bool = False


def inside(unit: Array, box: Array) -> bool:
    """Whether a position of shape (d,) lies in a box of shape (d, 2)."""
    return bool(np.all((unit >= box[:, 0] - _TOLERANCE) & (unit <= box[:, 1] + _TOLERANCE)))


def _barren(curves: Sequence[Curve]) -> bool:
    """Whether none of the latest BARREN trials that explored was worth a full training."""
    explored = [c for c in curves if c.explored and c.state is not TrialState.RUNNING][-BARREN:]
    return len(explored) == BARREN and all(c.state is TrialState.PRUNED for c in explored)


def fitted_at(finished: int) -> int:
    """How many finished trials the hyperparameters are fitted to: all up to 16, then every third, above 60 each 5%."""
    if finished <= 16:
        return finished
    if finished <= 60:
        return finished - (finished - 16) % 3
    mark = 60
    while (following := mark + max(3, mark // 20)) <= finished:
        mark = following
    return mark


class Engine:
    """Reads a study and answers: the model of its trials, the next point.

    Args:
        space: The parameters.
        max_steps: The step of a complete curve, None to read it off the longest complete one.
        older: Curves of an older study (``origin`` 1), its best trial first, to learn from as far as they still hold.
    """

    def __init__(self, space: SearchSpace, max_steps: int | None, older: Sequence[Curve] = ()) -> None:
        self.space, self.max_steps, self.older = space, max_steps, tuple(older)
        self._encoder = Encoder(space, bool(older))
        self._reader: tuple[object, int, bool, CurveReader] | None = None
        self._fits: dict[tuple[object, ...], Array] = {}
        self._optima: dict[tuple[object, ...], Array] = {}

    def curves(self, study: Study, trials: Sequence[FrozenTrial]) -> list[Curve]:
        """The curves of these trials of the study."""
        maximize = study.directions[0] is StudyDirection.MAXIMIZE
        reader = self._reader
        if reader is None or reader[0] is not study._storage or reader[1:3] != (study._study_id, maximize):
            reader = (study._storage, study._study_id, maximize, CurveReader(self.space, self.max_steps, maximize))
            self._reader, self._fits = reader, {}
        return reader[3].read(trials)

    @one_blas_thread
    def model(self, curves: Sequence[Curve]) -> CurveModel | None:
        """The model of these curves, None where none has a point."""
        if not any(len(c.losses) for c in curves):
            return None
        finished = [c for c in curves if c.state is not TrialState.RUNNING and len(c.losses)]
        older = aligned(self.older, curves)
        curves = [*older, *curves]
        first = [*older, *finished[: fitted_at(len(finished))]]
        if not first:
            return CurveModel(self._encoder, curves)
        key = tuple((c.number, float(c.losses[-1]), float(c.fractions[-1])) for c in first)
        fits, theta = self._fits, self._fits.get(key)
        if theta is None:
            theta = CurveModel(self._encoder, first).theta
            while len(fits) >= _FITS_KEPT:
                fits.pop(next(iter(fits)), None)
            fits[key] = theta
        return CurveModel(self._encoder, curves, theta)

    @one_blas_thread
    def optima(self, curves: Sequence[Curve], full: Array, rng: np.random.Generator) -> Array | None:
        """Positions drawn from where the model of these curves places the optimum, shape (s, d).

        The best complete trial is the first; None where none is complete.
        """
        complete = [c for c in curves if c.final < math.inf]
        if not complete:
            return None
        ends = tuple((c.number, float(c.losses[-1]), float(c.fractions[-1])) for c in curves if len(c.losses))
        key = (ends, *(float(side) for side in full.flat))
        if key not in self._optima:
            model = self.model(curves)
            assert model is not None
            again = model.promising(_TRIED_AGAIN)
            units = np.concatenate([candidates(self.space, full, model.promising(), rng), again])
            best = min(complete, key=lambda c: (c.final, c.number)).unit
            while len(self._optima) >= _FITS_KEPT:
                self._optima.pop(next(iter(self._optima)), None)
            self._optima[key] = np.concatenate([best[None], model.optima(units, rng)])
        return self._optima[key]

    def propose(
        self,
        curves: Sequence[Curve],
        full: Array,
        rng: np.random.Generator,
        failed: Sequence[Array] = (),
        box: Array | None = None,
        beyond: Array | None = None,
    ) -> Proposal | None:
        """The next point, see :meth:`propose_many`; None where nothing is known yet."""
        proposals = self.propose_many(curves, full, rng, 1, failed, box, beyond)
        return proposals[0] if proposals else None

    @one_blas_thread
    def propose_many(
        self,
        curves: Sequence[Curve],
        full: Array,
        rng: np.random.Generator,
        n: int,
        failed: Sequence[Array] = (),
        box: Array | None = None,
        beyond: Array | None = None,
    ) -> list[Proposal]:
        """The next points, to be tried at the same time; none where nothing is known yet.

        The first has the most expected improvement, in the box as long as there is something to gain there. Where
        little is left to gain, closed parameters are opened (``beyond``). Where there are none, every second point
        explores, and every point where nothing is left: then the model, which was sure of that, is doubted (see DOUBT),
        and points far from all that was tried have the most to promise. Exploring that came to nothing many times (see
        BARREN) is left to every second point; and so it is after the first point, since these are proposed before
        anything has come of it. One model serves all points, see :meth:`_beside`.

        Args:
            curves: Of the study's trials.
            full: Low and high of the whole range, shape (d, 2); low equals high where a parameter is closed, or where
                all points are to have one value.
            rng: Source of the draws.
            n: How many points, at least 1.
            failed: Positions, shape (d,) each, at which there is nothing to be learned or gained: whatever made a trial
                fail there is likely to do so again, next to it too.
            box: Low and high of the region to look in first, shape (d, 2), inside ``full``.
            beyond: As ``full``, with what may be opened next; None where nothing may.
        """
        model = self.model(curves)
        observed = None if model is None else model.best
        if model is None or observed is None:
            return []
        running = [c.unit for c in curves if c.state is TrialState.RUNNING]
        promising = model.promising()
        model.believe(np.array(failed).reshape(-1, len(self.space)))
        best = min(observed, model.believe(np.array(running).reshape(-1, len(self.space))))
        sides, start = full, candidates(self.space, full, promising, rng)
        stake = model.stake(start[:UNIFORM], best)
        ranked = self._maxima(model, full, start, best, rng)
        gain = model.gain(ranked[0], best) / stake
        if box is not None and not inside(ranked[0], box):
            start_in = np.clip(start, box[:, 0], box[:, 1])
            ranked_in = self._maxima(model, box, start_in, best, rng)
            gain_in = model.gain(ranked_in[0], best) / stake
            if gain_in >= max(EXHAUSTED, PART_INSIDE * gain):
                sides, start, ranked, gain = box, start_in, ranked_in, gain_in
        complete = sum(c.final < math.inf for c in curves)
        opens = complete >= DOUBT_FROM and gain < LITTLE and beyond is not None
        explores = [False] * n
        if complete >= DOUBT_FROM and not opens:
            odd = [(len(curves) + i) % 2 == 1 for i in range(n)]
            exhausted = gain < EXHAUSTED and not _barren(curves)
            explores = [(exhausted and i == 0) or (odd[i] and gain < LITTLE) for i in range(n)]
        if opens:
            assert beyond is not None
            sides, start = beyond, candidates(self.space, beyond, promising, rng)
            ranked = self._maxima(model, sides, start, best, rng)
        taken = [*(c.unit for c in curves), *failed]
        far: list[Array] = []
        if any(explores):
            start_far = far_candidates(self.space, full, promising, rng)
            ranked_far = self._far(model, full, start_far, best)
            far = self._beside(model, full, ranked_far, start_far, taken, best, sum(explores), rng, DOUBT)
        near = self._beside(model, sides, ranked, start, [*taken, *far], best, n - len(far), rng)
        points = [far.pop(0) if explored else near.pop(0) for explored in explores]
        return [Proposal(p, gain, e, opens and i == 0) for i, (p, e) in enumerate(zip(points, explores, strict=True))]

    def _beside(
        self,
        model: CurveModel,
        sides: Array,
        ranked: Array,
        start: Array,
        taken: Sequence[Array],
        best: float,
        n: int,
        rng: np.random.Generator,
        doubt: float = 1.0,
    ) -> list[Array]:
        """Points to try at the same time, n of shape (d,): the first of ``ranked`` that is free, and others beside it.

        Final losses are drawn at many candidates together, and each further point is the one that improves most, on
        average over the drawings, on the best of the drawing so far and of the points before it (the greedy q-EI of
        Wilson et al. 2018). Once no candidate improves on it, each is the best of a drawing.

        Args:
            model: Of the study's trials.
            sides: Low and high of the range, shape (d, 2).
            ranked: Points with the most expected improvement, the best first, shape (k, d).
            start: Candidates for the further points, shape (m, d).
            taken: Positions of trials.
            best: The best loss, compressed.
            n: How many points.
            rng: Source of the draws.
            doubt: How many times wider the model's deviations are taken.
        """
        if n == 0:
            return []
        low, high = sides[:, 0], sides[:, 1]
        first = choose(ranked, taken)
        if first is None:  # everything near is taken: no more to gain, but a point of its own
            first = np.clip(snap(self.space, start[0]), low, high)
        if n == 1:
            return [first]
        mean, deviation = model.final(start)
        order = np.argsort(-log_expected_improvement(mean, doubt * deviation, best), kind="stable")
        start = start[order[: max(_DRAWN_AT, 3 * n)]]
        units = np.concatenate([first[None], np.clip(np.stack([snap(self.space, u) for u in start]), low, high)])
        mean, _ = model.final(units)
        drawn = mean + doubt * (model.draws(units, rng, _DRAWINGS) - mean)
        lowest = np.minimum(best, drawn[:, 0])
        others = np.stack([*taken, first])
        free = np.abs(units[:, None] - others[None]).max(axis=2).min(axis=1) > _APART
        chosen = [0]
        while len(chosen) < n and free.any():
            gains = np.where(free, np.maximum(lowest[:, None] - drawn, 0.0).mean(axis=0), -1.0)
            pick = int(gains.argmax())
            if gains[pick] <= 0.0:
                pick = int(np.where(free, drawn[len(chosen) % len(drawn)], np.inf).argmin())
            chosen.append(pick)
            lowest = np.minimum(lowest, drawn[:, pick])
            free &= np.abs(units - units[pick]).max(axis=1) > _APART
        more = rng.random((n - len(chosen), len(self.space)))
        return [*units[chosen], *(low + (high - low) * more)]

    def _maxima(self, model: CurveModel, sides: Array, start: Array, best: float, rng: np.random.Generator) -> Array:
        """Local maxima of the expected improvement inside ``sides``, the best first, shape (k, d)."""
        return maximise(self.space, sides, start, lambda u: model.score(u, best), lambda u: model.slope(u, best), rng)

    def _far(self, model: CurveModel, full: Array, far: Array, best: float) -> Array:
        """Of points to explore, shape (m, d), those with the most expected improvement by a doubted model, (k, d)."""
        mean, deviation = model.final(far)
        order = np.argsort(-log_expected_improvement(mean, DOUBT * deviation, best), kind="stable")[:_FAR_KEPT]
        return np.clip(np.stack([snap(self.space, unit) for unit in far[order]]), full[:, 0], full[:, 1])
