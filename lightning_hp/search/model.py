"""Final losses as one study's trials tell of them: the surrogate, given curves, asked for the end of the training.

Early losses depend on fewer parameters, and more smoothly, than final ones, and where trials are stopped they outnumber
them. A model whose length scales are read off all points believes the final losses to be too smooth, and is too sure of
them; so its hyperparameters are fitted to late points as soon as there are enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from lightning_hp.search.curves import SHORTEST, Curve, fraction, points
from lightning_hp.search.proposal import log_expected_improvement
from lightning_hp.search.surrogate import Compression, GaussianProcess, Priors, compress
from lightning_hp.space.parameters import usual_part
from lightning_hp.space.space import SearchSpace

Array = NDArray[np.float64]
#: Hyperparameters are fitted to the points past this part of the training, if there are at least as many as parameters
#: and ENOUGH more.
NEAR_END, ENOUGH = 0.2, 3
#: Two positions this close are one configuration (distances from 1 are stored rounded).
_SAME = 1e-6
#: Main effects: averaged over this many points, at this many positions along each axis.
_BASE_POINTS, _GRID = 96, 12
#: A stake is at least this part of the spread.
_LEAST_STAKE = 0.01


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
        self.priors = Priors.of_tiers(
            [*(p.tier for p in space.parameters), *("D" if older else "")],
            [*(usual_part(p) for p in space.parameters), *([1.0] if older else [])],
        )
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
        if theta is None:
            late = fractions > fraction(NEAR_END * SHORTEST, int(SHORTEST))
            used = late if late.sum() >= len(encoder.columns) + ENOUGH else np.ones_like(late)
            theta = GaussianProcess(self._features[used], self._targets[used], encoder.groups, encoder.priors).theta
        self._process = GaussianProcess(self._features, self._targets, encoder.groups, encoder.priors, theta)

    @property
    def theta(self) -> Array:
        """The hyperparameters in use."""
        return self._process.theta

    @property
    def best(self) -> float | None:
        """The lowest final loss of a complete trial, compressed; None where no trial is complete.

        A configuration that was trained several times (on several seeds) counts with the mean of its trainings.
        """
        finals: dict[bytes, list[float]] = {}
        for c in self._curves:
            if c.final < math.inf and not c.origin:
                finals.setdefault(np.round(c.unit, 6).tobytes(), []).append(c.final)
        return float(self.compression(min(sum(f) / len(f) for f in finals.values()))) if finals else None

    @property
    def noise(self) -> float:
        """Standard deviation of one training's final loss around its expectation, compressed."""
        return self._process.noise

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
            self._process = GaussianProcess(
                self._features, self._targets, encoder.groups, encoder.priors, self.theta, self._process.standard
            )
        return lowest

    def stake(self, units: Array, best: float) -> float:
        """What a configuration drawn at random is expected to lose against the best, in units of the loss.

        Args:
            units: Positions drawn uniformly, shape (m, d).
            best: The best loss, compressed.
        """
        mean, _ = self.final(units)
        ends = self.compression.inverse(np.array([float(np.median(mean)), best]))
        return max(float(ends[0] - ends[1]), _LEAST_STAKE * self.compression.spread)

    def gain(self, unit: Array, best: float) -> float:
        """The expected improvement over ``best`` (compressed) at one position of shape (d,), in units of the loss."""
        improved = best - math.exp(float(self.score(unit[None], best)[0]))
        ends = self.compression.inverse(np.array([improved, best]))
        return float(ends[1] - ends[0])

    def draws(self, units: Array, rng: np.random.Generator, n: int) -> Array:
        """Drawings of the compressed losses at full training at m positions of shape (m, d) together, shape (n, m)."""
        return self._process.sample(self._encoder(units, np.ones(len(units))), rng.standard_normal((n, len(units))))

    def optima(self, units: Array, rng: np.random.Generator, draws: int = 96) -> Array:
        """Where the optimum lies, as the model believes: positions drawn from its distribution, shape (draws, d).

        Each is the best of ``units``, shape (m, d), for one drawing of all their final losses together (Thompson 1933).
        """
        best: Array = units[self.draws(units, rng, draws).argmin(axis=1)]
        return best

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
        shifted = math.exp(min(float(log_ndtr(z)) - value, 700.0))
        gradient = np.zeros(len(unit))
        ordered = self._encoder.columns >= 0
        columns = self._encoder.columns[ordered]
        gradient[ordered] = pulled * deviation_slope[columns] - shifted * mean_slope[columns]
        return value, gradient
