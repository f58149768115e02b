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
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.curves import Curve, CurveReader, points
from lightning_hp.search.proposal import candidates, choose, log_expected_improvement, maximise, snap
from lightning_hp.search.space import SearchSpace
from lightning_hp.search.surrogate import Compression, GaussianProcess, Priors, compress

Array = NDArray[np.float64]
#: Fits kept: a study needs the latest, and the one before while trials finish out of order.
_FITS_KEPT = 4
#: Two positions this close are one configuration (distances from 1 are stored rounded).
_SAME = 1e-6
#: Main effects: averaged over this many points, at this many positions along each axis.
_BASE_POINTS, _GRID = 96, 12


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


class Encoder:
    """Unit positions and training fractions to the features of the surrogate.

    An ordered parameter is one feature. An unordered choice is one feature a value, scaled so that two different
    values are as far apart as the ends of a range. The training fraction is the last feature. Where there is an older
    study to learn from, the feature before it tells the two apart: its length scale says how much still holds.

    Args:
        space: The parameters.
        older: Whether there are trials of an older study.
    """

    def __init__(self, space: SearchSpace, older: bool = False) -> None:
        self._parameters = space.parameters
        self._older = older
        groups: list[int] = []
        for i, p in enumerate(space.parameters):
            groups += [i] * ((p.cardinality or 1) if p.is_categorical else 1)
        #: index of the length scale of each feature, shape (q,)
        self.groups = np.array([*groups, *([len(space)] if older else []), len(space) + older], np.intp)
        #: index of the feature of each ordered parameter, -1 for unordered ones, shape (d,)
        starts = [groups.index(i) for i in range(len(space))]
        self.columns = np.array([-1 if p.is_categorical else s for p, s in zip(space.parameters, starts, strict=True)])
        # what set an older study apart is as likely to matter little as a parameter of tier D
        self.priors = Priors.of_tiers((*(p.tier for p in space.parameters), *("D" if older else "")))
        self._plain = not any(p.is_categorical for p in space.parameters)

    def __call__(self, units: Array, fractions: Array, origins: Array | float = 0.0) -> Array:
        """Shape (m, q) from positions of shape (m, d), and fractions and origins of shape (m,)."""
        ends = [np.broadcast_to(origins, fractions.shape), fractions] if self._older else [fractions]
        if self._plain:
            return np.column_stack([units, *ends])
        blocks: list[Array] = []
        for j, p in enumerate(self._parameters):
            column = units[:, j]
            if p.is_categorical:
                n = p.cardinality or 1
                index = np.clip((column * n).astype(int), 0, n - 1)
                blocks.append(np.eye(n)[index] / math.sqrt(2.0))
            else:
                blocks.append(column[:, None])
        return np.concatenate([*blocks, *(end[:, None] for end in ends)], axis=1)


def aligned(older: Sequence[Curve], curves: Sequence[Curve]) -> list[Curve]:
    """The curves of an older study, on the level of this one.

    Where a trial repeats the older study's best, what became of its loss is what the data did to all: a ratio where
    both losses are positive, else a difference. Else the curves are as they were given.
    """
    if not older or not math.isfinite(older[0].final):
        return list(older)
    best, was = older[0].unit, older[0].final
    again = (c.final for c in curves if c.final < math.inf and np.abs(c.unit - best).max() < _SAME)
    repeated = next(again, None)
    if repeated is None:
        return list(older)
    if was > 0 and repeated > 0:
        return [replace(c, losses=c.losses * (repeated / was)) for c in older]
    return [replace(c, losses=c.losses + (repeated - was)) for c in older]


class CurveModel:
    """Final losses as the surrogate sees them, on the compressed axis.

    Args:
        encoder: Of the study's space.
        curves: Of the trials, at least one with a point.
        theta: Hyperparameters of the surrogate, None to fit them to these curves.
    """

    def __init__(self, encoder: Encoder, curves: Sequence[Curve], theta: Array | None = None) -> None:
        self._encoder, self._curves = encoder, curves
        which, where = points(curves)
        losses = np.array([curves[i].losses[j] for i, j in zip(which, where, strict=True)])
        units = np.stack([curves[i].unit for i in which])
        fractions = np.array([curves[i].fractions[j] for i, j in zip(which, where, strict=True)])
        self.compression: Compression = compress(losses)
        origins = np.array([curves[i].origin for i in which])
        self._features, self._targets = encoder(units, fractions, origins), self.compression(losses)
        self._process = GaussianProcess(self._features, self._targets, encoder.groups, encoder.priors, theta)

    @property
    def theta(self) -> Array:
        """The hyperparameters in use."""
        return self._process.theta

    @property
    def best(self) -> float | None:
        """The lowest final loss of a complete trial, compressed; None where no trial is complete."""
        finals = [c.final for c in self._curves if c.final < math.inf and not c.origin]
        return float(self.compression(min(finals))) if finals else None

    def final(self, units: Array) -> tuple[Array, Array]:
        """Mean and deviation of the compressed loss at full training, shape (m,) each, at positions (m, d)."""
        return self._process.predict(self._encoder(units, np.ones(len(units))))

    def believe(self, units: Array) -> float:
        """Take the expected final losses at these positions, shape (m, d), for observed; the lowest, inf if m is 0."""
        lowest = math.inf
        if len(units):
            mean, _ = self.final(units)
            lowest = float(mean.min())
            self._features = np.concatenate([self._features, self._encoder(units, np.ones(len(units)))])
            self._targets = np.concatenate([self._targets, mean])
            encoder = self._encoder
            self._process = GaussianProcess(self._features, self._targets, encoder.groups, encoder.priors, self.theta)
        return lowest

    def promising(self, n: int = 2) -> Array:
        """The n tried positions with the lowest expected final loss, shape (n, d)."""
        tried = np.stack([c.unit for c in self._curves if len(c.losses)])
        mean, _ = self.final(tried)
        return tried[np.argsort(mean, kind="stable")[:n]]

    def main_effects(self, searched: NDArray[np.bool_]) -> Array:
        """Variance of the expected final loss along each parameter, averaged over the others, shape (d,).

        Args:
            searched: Which parameters vary, shape (d,); the others stay where the best trial has them, and have 0.
        """
        d = len(searched)
        base = np.random.default_rng(0).random((_BASE_POINTS, d))
        base = np.where(searched, base, self.promising(1)[0])
        grid = (np.arange(_GRID) + 0.5) / _GRID
        effects = np.zeros(d)
        for j in np.flatnonzero(searched):
            units = np.repeat(base[None], _GRID, axis=0)
            units[:, :, j] = grid[:, None]
            mean, _ = self.final(units.reshape(-1, d))
            effects[j] = mean.reshape(_GRID, _BASE_POINTS).mean(axis=1).var()
        return effects

    def score(self, units: Array, best: float) -> Array:
        """Log expected improvement over ``best`` at full training, shape (m,)."""
        return log_expected_improvement(*self.final(units), best)

    def slope(self, unit: Array, best: float) -> tuple[float, Array]:
        """Log expected improvement at one position of shape (d,), and its gradient (0 for unordered choices)."""
        feature = self._encoder(unit[None], np.ones(1))[0]
        mean, deviation, mean_slope, deviation_slope = self._process.gradients(feature)
        value = float(log_expected_improvement(np.array([mean]), np.array([deviation]), best)[0])
        z = (best - mean) / deviation
        # d EI = phi(z) d deviation - Phi(z) d mean, each divided by EI, in logarithms
        log_phi = -0.5 * z * z - 0.5 * math.log(2.0 * math.pi) - value
        pulled = math.exp(min(log_phi, 700.0))
        shifted = math.exp(min(_log_ndtr(z) - value, 700.0))
        gradient = np.zeros(len(unit))
        ordered = self._encoder.columns >= 0
        columns = self._encoder.columns[ordered]
        gradient[ordered] = pulled * deviation_slope[columns] - shifted * mean_slope[columns]
        return value, gradient


def _log_ndtr(z: float) -> float:
    from scipy.special import log_ndtr

    return float(log_ndtr(z))


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

    def curves(self, study: Study, trials: Sequence[FrozenTrial]) -> list[Curve]:
        """The curves of these trials of the study."""
        maximize = study.directions[0] is StudyDirection.MAXIMIZE
        reader = self._reader
        if reader is None or reader[0] is not study._storage or reader[1:3] != (study._study_id, maximize):
            reader = (study._storage, study._study_id, maximize, CurveReader(self.space, self.max_steps, maximize))
            self._reader, self._fits = reader, {}
        return reader[3].read(trials)

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

    def propose(
        self, curves: Sequence[Curve], sides: Array, rng: np.random.Generator, failed: Sequence[Array] = ()
    ) -> Array | None:
        """The next point, shape (d,), inside the box ``sides`` of shape (d, 2); None where nothing is known yet.

        At the positions ``failed``, shape (d,) each, there is nothing to be learned or gained: whatever made a trial
        fail there is likely to do so again, next to it too.
        """
        model = self.model(curves)
        observed = None if model is None else model.best
        if model is None or observed is None:
            return None
        running = [c.unit for c in curves if c.state is TrialState.RUNNING]
        promising = model.promising()
        model.believe(np.array(failed).reshape(-1, len(self.space)))
        best = min(observed, model.believe(np.array(running).reshape(-1, len(self.space))))
        start = candidates(self.space, sides, promising, rng)
        ranked = maximise(self.space, sides, start, lambda u: model.score(u, best), lambda u: model.slope(u, best), rng)
        point = choose(ranked, [*(c.unit for c in curves), *failed])
        if point is None:  # everything near is taken: no more to gain, but a point of its own
            point = np.clip(snap(self.space, start[0]), sides[:, 0], sides[:, 1])
        return point
