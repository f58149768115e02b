"""What an untried configuration would reach: a Gaussian process over (parameters, training fraction).

Every reported point of a learning curve is an observation, so a trial that was stopped early teaches as well. Pure
functions and one small class, in float64; nothing here knows Optuna.

Kernel, with M the Matern 5/2 correlation (Rasmussen and Williams 2006, section 4.2.1), x the parameters with a length
scale each, and u = log(step) / log(max_steps) the training fraction on the axis where curves change evenly::

    variance M(x, x') (SHARED + (1 - SHARED) M(u, u'))  +  TREND M(u, u')  +  noise

The first term: configurations that are alike have alike curves, and a part of what sets a configuration apart holds
from the first step to the last. The second is what all curves of a study have in common, their fall: without it a
short curve could not be read while few have been seen to the end.

Hyperparameters are the most probable ones under log-normal priors (their median and width are given by ``Priors``):
tiers say that important parameters have short length scales and unimportant ones long, the likelihood may overrule
them. With few trials the priors are what keeps seven length scales from being read off ten points.

Losses have heavy tails and matter near the best, so they are compressed before they are modelled (:func:`compress`).

Shapes: n observations, d parameters, q features (a parameter has one; an unordered choice has one a value), m queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.optimize import minimize

Array = NDArray[np.float64]

#: In units of the spread (median minus best): where a loss turns from counting linearly to logarithmically.
BEND = 1.0
#: Losses further than this many spreads above the best count as this far. A diverged trial (1e30, inf, NaN) then lies
#: log(21) / log(2) = 4.4 times as far from the best as the median does: clearly bad, and the rest is not flattened.
FAR = 20.0
#: Median length scale of the prior, in units of a parameter's whole range, by tier; the width is that of the logarithm.
LENGTH_SCALE = {"A": 0.5, "B": 0.7, "C": 0.9, "D": 2.0}
LENGTH_SCALE_WIDTH = 0.75
_FRACTION_SCALE, _FRACTION_WIDTH = 0.8, 0.7
_VARIANCE, _VARIANCE_WIDTH = 1.0, 0.7
_NOISE, _NOISE_WIDTH = 0.03, 1.0
#: Part of a configuration's deviation that does not change along its curve; variance and length scale of the fall that
#: all curves share, targets and fractions in standard units.
SHARED, TREND, TREND_SCALE = 0.2, 1.0, 0.8
#: How many prior widths a hyperparameter may lie from its median.
_REACH = 4.0
_JITTER = 1e-8
#: Losses that differ by less than this part of the best are equal; and the least spread that can be divided by.
_RELATIVE, _TINY = 1e-12, 1e-290
_ROOT_5 = math.sqrt(5.0)


@dataclass(frozen=True)
class Compression:
    """A monotone map of losses onto an axis where the good ones are spread and the bad ones are close together.

    Attributes:
        best: The lowest finite loss, mapped to 0.
        spread: The median's distance from the best, positive.
    """

    best: float
    spread: float

    def __call__(self, losses: Array | float) -> Array:
        """log(1 + (loss - best) / (BEND spread)); NaN and inf count as FAR; a loss below ``best`` goes on linearly."""
        far = self.best + FAR * self.spread
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.nan_to_num(np.asarray(losses, np.float64), nan=np.inf, posinf=np.inf, neginf=-np.inf)
            bounded = np.clip(finite, self.best - FAR * self.spread, far)
            away = (bounded - self.best) / (BEND * self.spread)
        return np.where(away >= 0, np.log1p(np.maximum(away, 0.0)), away)

    def inverse(self, compressed: Array) -> Array:
        """The losses that are mapped to these values; what lies above FAR gives FAR."""
        bounded = np.minimum(compressed, math.log1p(FAR / BEND))
        away = np.where(bounded >= 0, np.expm1(np.maximum(bounded, 0.0)), bounded)
        return self.best + BEND * self.spread * away


def compress(losses: Array) -> Compression:
    """The compression that fits a set of losses, shape (n,), lower is better; NaN and inf are bad, not missing."""
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        return Compression(0.0, 1.0)
    finite = np.clip(finite, -1e150, 1e150)  # so that differences and their squares stay finite
    best = float(finite.min())
    spread = float(np.median(finite)) - best
    floor = max(_RELATIVE * abs(best), _TINY)
    if not spread > floor:  # more than half are ties: the mean still says something
        spread = float(np.mean(finite - best))
    if not spread > floor:  # all are equal
        spread = abs(best) if abs(best) > _TINY else 1.0
    return Compression(best, spread)


@dataclass(frozen=True)
class Priors:
    """Log-normal priors of the hyperparameters, in the order of ``GaussianProcess.theta``.

    Attributes:
        median: Natural logarithms, shape (d + 3,): d length scales, the fraction's, the variance, the noise variance.
        width: Standard deviations of the logarithms, shape (d + 3,).
    """

    median: Array
    width: Array

    @classmethod
    def of_tiers(cls, tiers: Sequence[str], parts: Sequence[float] | None = None) -> Priors:
        """Priors of parameters.

        Args:
            tiers: Of d parameters.
            parts: The part of each axis that counts as the whole (:func:`.usual_part`), d of them; None for all of it.
        """
        scales = [LENGTH_SCALE[t] * part for t, part in zip(tiers, parts or [1.0] * len(tiers), strict=True)]
        median = np.log([*scales, _FRACTION_SCALE, _VARIANCE, _NOISE])
        width = np.array([*[LENGTH_SCALE_WIDTH] * len(tiers), _FRACTION_WIDTH, _VARIANCE_WIDTH, _NOISE_WIDTH])
        return cls(median, width)


def matern(distance: Array) -> Array:
    """Matern 5/2 correlation at scaled distances, any shape."""
    scaled = _ROOT_5 * distance
    return (1.0 + scaled + scaled * scaled / 3.0) * np.exp(-scaled)


class GaussianProcess:
    """The posterior over targets, given observations.

    Args:
        features: Shape (n, q), n at least 1; of order 1, as positions on the unit axes are. The last is the training
            fraction.
        targets: Shape (n,), finite.
        groups: Shape (q,), the index of the length scale that each feature is measured with, 0 to k - 1. Features of
            one group are one parameter; the training fraction is a group of its own, the last.
        priors: Of k length scales, variance and noise.
        theta: Natural logarithms of k length scales, variance and noise variance (targets in standard units), shape
            (k + 2,). None for the most probable ones.
        standard: Mean and deviation that make the targets standard, None for their own.

    Attributes:
        theta: The hyperparameters in use.
    """

    def __init__(
        self,
        features: Array,
        targets: Array,
        groups: NDArray[np.intp],
        priors: Priors,
        theta: Array | None = None,
        standard: tuple[float, float] | None = None,
    ) -> None:
        self._mean, deviation = (float(targets.mean()), float(targets.std())) if standard is None else standard
        self._unit = deviation if deviation > 1e-9 else 1.0
        standardised = (targets - self._mean) / self._unit
        self.theta = fit(features, standardised, groups, priors) if theta is None else np.asarray(theta, np.float64)
        self._inverse_scales = np.exp(-self.theta[:-2])[groups]
        self._variance, noise = (math.exp(v) for v in self.theta[-2:])
        self._scaled = features * self._inverse_scales
        covariance = self._covariance(self._scaled)
        covariance[np.diag_indices_from(covariance)] = self._variance + TREND + noise + _JITTER
        factor = np.linalg.cholesky(covariance)
        self._inverse_factor = np.tril(lapack.dtrtri(factor, lower=1)[0])
        self._weights = self._inverse_factor.T @ (self._inverse_factor @ standardised)

    @property
    def noise(self) -> float:
        """Standard deviation of an observation around the noise-free target, in the units of the targets given."""
        return self._unit * math.exp(0.5 * float(self.theta[-1]))

    @property
    def standard(self) -> tuple[float, float]:
        """Mean and deviation that make the targets standard."""
        return self._mean, self._unit

    def _covariance(self, scaled: Array) -> Array:
        """Covariance of m scaled points with the observations, without noise, shape (m, n)."""
        gap = np.abs(scaled[:, -1, None] - self._scaled[None, :, -1])
        alike = self._variance * matern(_distances(scaled[:, :-1], self._scaled[:, :-1]))
        return alike * (SHARED + (1.0 - SHARED) * matern(gap)) + self._trend(gap)

    def _trend(self, gap: Array) -> Array:
        return TREND * matern(gap / (self._inverse_scales[-1] * TREND_SCALE))

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free target.

        Args:
            features: Shape (m, q).

        Returns:
            Two arrays of shape (m,), in the units of the targets given; the deviations are positive.
        """
        across = self._covariance(features * self._inverse_scales)
        prior = self._variance + TREND
        variance = np.maximum(prior - np.square(across @ self._inverse_factor.T).sum(axis=1), 1e-10 * prior)
        return self._mean + self._unit * (across @ self._weights), self._unit * np.sqrt(variance)

    def sample(self, features: Array, normal: Array) -> Array:
        """Draws of the noise-free targets at m points together, shape (s, m).

        Args:
            features: Shape (m, q).
            normal: Independent standard normal numbers, shape (s, m).
        """
        scaled = features * self._inverse_scales
        across = self._covariance(scaled)
        gap = np.abs(scaled[:, -1, None] - scaled[None, :, -1])
        alike = self._variance * matern(_distances(scaled[:, :-1], scaled[:, :-1]))
        prior = alike * (SHARED + (1.0 - SHARED) * matern(gap)) + self._trend(gap)
        projected = self._inverse_factor @ across.T
        covariance = prior - projected.T @ projected
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        drawn: Array = self._mean + self._unit * (across @ self._weights + normal @ root.T)
        return drawn

    def gradients(self, feature: Array) -> tuple[float, float, Array, Array]:
        """Mean and deviation at one point of shape (q,), and their gradients, shape (q - 1,) each.

        The gradients are with respect to the parameters; the training fraction is held.
        """
        offset = feature * self._inverse_scales - self._scaled  # (n, q)
        gap, offset = np.abs(offset[:, -1]), offset[:, :-1]
        distance = np.sqrt(np.square(offset).sum(axis=1))
        along = self._variance * (SHARED + (1.0 - SHARED) * matern(gap))
        across = along * matern(distance) + self._trend(gap)
        slope = -along * (5.0 / 3.0) * (1.0 + _ROOT_5 * distance) * np.exp(-_ROOT_5 * distance)
        jacobian = slope[:, None] * offset * self._inverse_scales[:-1]  # (n, q - 1)
        projected = self._inverse_factor @ across
        prior = self._variance + TREND
        deviation = math.sqrt(max(prior - float(projected @ projected), 1e-10 * prior))
        mean_slope = self._unit * (self._weights @ jacobian)
        deviation_slope = -self._unit * ((self._inverse_factor.T @ projected) @ jacobian) / deviation
        mean = self._mean + self._unit * float(across @ self._weights)
        return mean, self._unit * deviation, mean_slope, deviation_slope


def fit(features: Array, targets: Array, groups: NDArray[np.intp], priors: Priors, steps: int = 30) -> Array:
    """The most probable hyperparameters, starting from the medians of their priors.

    A function of its arguments only, so that workers agree.

    Args:
        features: Shape (n, q).
        targets: Shape (n,), standardised.
        groups: Shape (q,).
        priors: Of k length scales, variance and noise.
        steps: Iterations of L-BFGS-B.

    Returns:
        Natural logarithms, shape (k + 2,).
    """
    squares = _squares(features, groups, len(priors.median) - 2)
    reach = _REACH * priors.width
    bounds = list(zip(priors.median - reach, priors.median + reach, strict=True))
    found = minimize(
        negative_log_posterior,
        priors.median,
        args=(squares, targets, priors),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": steps},
    )
    return np.asarray(found.x, np.float64) if np.all(np.isfinite(found.x)) else priors.median


def negative_log_posterior(theta: Array, squares: Array, targets: Array, priors: Priors) -> tuple[float, Array]:
    """What :func:`fit` minimises, up to a constant, and its gradient (Rasmussen and Williams 2006, eq. 5.8 and 5.9).

    Args:
        theta: Natural logarithms, shape (k + 2,).
        squares: Squared distances on each axis, shape (k, n, n).
        targets: Shape (n,).
        priors: Of k length scales, variance and noise.
    """
    k, n = squares.shape[:2]
    weights = np.exp(-2.0 * theta[:k])
    variance, noise = math.exp(theta[k]), math.exp(theta[k + 1])
    flat = squares[:-1].reshape(k - 1, n * n)
    alike, alike_slope = _matern_and_slope((weights[:-1] @ flat).reshape(n, n))
    along, along_slope = _matern_and_slope(weights[-1] * squares[-1])
    along = SHARED + (1.0 - SHARED) * along
    covariance = variance * alike * along + TREND * matern(np.sqrt(squares[-1]) / TREND_SCALE)
    covariance[np.diag_indices(n)] += noise + _JITTER
    factor, failed = lapack.dpotrf(covariance, lower=1, overwrite_a=1)
    if failed:
        return 1e10, np.zeros_like(theta)
    solved = lapack.dpotrs(factor, targets, lower=1)[0]
    half = np.log(np.diag(factor)).sum()
    inverse = np.tril(lapack.dpotri(factor, lower=1, overwrite_c=1)[0])
    inverse = inverse + inverse.T
    inverse[np.diag_indices(n)] /= 2.0
    sensitivity = 0.5 * (inverse - np.outer(solved, solved))
    gradient = np.empty_like(theta)
    gradient[: k - 1] = variance * weights[:-1] * (flat @ (sensitivity * alike_slope * along).ravel())
    drift = weights[-1] * squares[-1] * along_slope
    gradient[k - 1] = variance * (1.0 - SHARED) * float(np.vdot(sensitivity * alike, drift))
    gradient[k] = variance * float(np.vdot(sensitivity * alike, along))
    gradient[k + 1] = noise * float(np.trace(sensitivity))
    away = (theta - priors.median) / priors.width
    value = 0.5 * float(targets @ solved) + float(half) + 0.5 * float(away @ away)
    return value, gradient + away / priors.width


def _matern_and_slope(squared: Array) -> tuple[Array, Array]:
    """Matern 5/2 at squared scaled distances, and what the gradient for a log length scale is made of."""
    scaled = _ROOT_5 * np.sqrt(squared)
    decay = np.exp(-scaled)
    return (1.0 + scaled + scaled * scaled / 3.0) * decay, (5.0 / 3.0) * (1.0 + scaled) * decay


def _distances(a: Array, b: Array) -> Array:
    """Euclidean distances, shape (len(a), len(b))."""
    squared = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    distances: Array = np.sqrt(np.maximum(squared, 0.0))
    return distances


def _squares(features: Array, groups: NDArray[np.intp], k: int) -> Array:
    """Squared distances on each of k axes, shape (k, n, n); an axis of several features sums theirs."""
    n = len(features)
    squares = np.zeros((k, n, n))
    for j, group in enumerate(groups):
        squares[group] += np.square(features[:, j, None] - features[None, :, j])
    return squares
