"""Where to look next: starting points around the defaults, then the point with the most expected improvement.

Starting points: half quasi-random over the whole box, half drawn around the defaults, as far as a tier trusts its
default (the idea of PriorBand, Mallik et al. 2023). Later points: the maximum of the logarithm of expected
improvement at full training (Jones et al. 1998; in logarithms, since it underflows: Ament et al. 2023), searched from
uniform points, from the best points known, and from points around the defaults, then refined.

All functions are pure; positions are on the unit axes. Shapes: d parameters, m points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import erfcx, ndtr, ndtri

from lightning_hp.space.parameters import usual_part
from lightning_hp.space.space import SearchSpace

Array = NDArray[np.float64]
#: Standard deviation of starting points around the default, in parts of the whole range, by tier: the more important a
#: parameter, the more its best value differs from one task to the next.
AROUND_DEFAULT = {"A": 0.25, "B": 0.25, "C": 0.2, "D": 0.1}
#: Candidates: drawn uniformly (the first of them), around the best points, around the defaults.
UNIFORM, _AROUND_BEST, _AROUND_DEFAULT = 256, 40, 32
_WIDTHS = (0.05, 0.15, 0.3)
_STARTS, _REFINED, _SHRINKING = 4, 24, (0.1, 0.05, 0.025, 0.0125)


def log_expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Logarithm of E[max(best - y, 0)] for y ~ N(mean, deviation^2), any shape; exact far into the tail."""
    z = (best - mean) / deviation
    near = z > -1.0
    inside = np.where(near, z, 0.0)
    direct = np.log(np.exp(-0.5 * inside * inside) / math.sqrt(2.0 * math.pi) + inside * ndtr(inside))
    below = np.minimum(z, -1.0)
    # h(z) = phi(z) (1 + z Phi(z) / phi(z)), and Phi / phi is a scaled error function
    ratio = 1.0 + below * math.sqrt(math.pi / 2.0) * erfcx(-below / math.sqrt(2.0))
    ratio = np.where(below < -1e3, 1.0 / (below * below), np.maximum(ratio, 1e-300))
    tail = -0.5 * below * below - 0.5 * math.log(2.0 * math.pi) + np.log(ratio)
    return np.log(deviation) + np.where(near, direct, tail)


def starting_point(space: SearchSpace, sides: Array, cube: Array, near_default: bool) -> Array:
    """A starting point, shape (d,).

    Args:
        space: The parameters.
        sides: Low and high of the box, shape (d, 2).
        cube: A quasi-random point of the unit cube, shape (d,).
        near_default: Whether to draw around the defaults, reflected at the sides, instead of uniformly in the box (on
            an axis of very many decades: in the part of the box around the default that :func:`.usual_part` says).
    """
    low, high = sides[:, 0], sides[:, 1]
    centre = space.unit([space.defaults()])[0]
    if not near_default:  # on a very long axis: near enough to the default to learn at all
        usual = np.array([usual_part(p) for p in space.parameters]) * (high - low)
        start: Array = np.clip(centre - usual / 2, low, high - usual)
        return start + cube * usual
    width = _around_default(space)
    moved = centre + width * ndtri(np.clip(cube, 1e-6, 1.0 - 1e-6))
    moved = np.where(moved < low, 2.0 * low - moved, moved)
    moved = np.where(moved > high, 2.0 * high - moved, moved)
    categorical = np.array([p.is_categorical for p in space.parameters])  # no neighbours: the default or any other
    stay = np.abs(cube - 0.5) < 0.25
    moved = np.where(categorical, np.where(stay, centre, (cube * 2.0) % 1.0), moved)
    return np.clip(moved, low, high)


def _around_default(space: SearchSpace) -> Array:
    """Standard deviations of draws around the defaults, in parts of the whole ranges, shape (d,).

    On a very long axis they are narrower for the tiers that matter most: where these are decades off, nothing is
    learned. The defaults of the others often mean "off" (a weight decay of 1e-8), and lie decades from what is good.
    """
    narrower = [usual_part(p) if p.tier in ("A", "B") else 1.0 for p in space.parameters]
    widths: Array = np.array([AROUND_DEFAULT[p.tier] for p in space.parameters]) * np.array(narrower)
    return widths


def candidates(
    space: SearchSpace, sides: Array, best: Array, rng: np.random.Generator, uniform: int = UNIFORM
) -> Array:
    """Points to start the search for the maximum from, shape (m, d), all in the box.

    Args:
        space: The parameters.
        sides: Low and high of the box, shape (d, 2).
        best: The points that are predicted best, shape (k, d).
        rng: Source of the draws.
        uniform: How many uniform points.
    """
    d = len(space)
    low, high = sides[:, 0], sides[:, 1]
    centre = space.unit([space.defaults()])[0]
    trust = _around_default(space)
    drawn = [low + (high - low) * rng.random((uniform, d))]
    for point in best:
        for width in _WIDTHS:
            step = width * rng.standard_normal((_AROUND_BEST, d)) * (rng.random((_AROUND_BEST, d)) < 0.6)
            drawn.append(_hop(space, point + step, rng))
    drawn.append(centre + trust * rng.standard_normal((_AROUND_DEFAULT, d)))
    return np.clip(np.concatenate(drawn), low, high)


#: Points to explore: drawn uniformly; and points whose coordinates are each kept from a good one or drawn anew.
_FAR_UNIFORM, _FAR_CROSSED = 256, 256


def far_candidates(space: SearchSpace, sides: Array, best: Array, rng: np.random.Generator) -> Array:
    """Points to explore, shape (m, d), all in the box: drawn, not optimised.

    The deviation of a model is greatest in the corners of the box, of which there are 2^d, and a maximiser goes there.

    Args:
        space: The parameters.
        sides: Low and high of the box, shape (d, 2).
        best: The points that are predicted best, shape (k, d).
        rng: Source of the draws.
    """
    d = len(space)
    low, high = sides[:, 0], sides[:, 1]
    drawn = low + (high - low) * rng.random((_FAR_UNIFORM + _FAR_CROSSED, d))
    kept = rng.random((_FAR_CROSSED, d)) < rng.random((_FAR_CROSSED, 1))
    parents = best[rng.integers(len(best), size=_FAR_CROSSED)]
    drawn[_FAR_UNIFORM:] = np.where(kept, parents, drawn[_FAR_UNIFORM:])
    return np.clip(drawn, low, high)


def maximise(
    space: SearchSpace,
    sides: Array,
    start: Array,
    score: Callable[[Array], Array],
    slope: Callable[[Array], tuple[float, Array]],
    rng: np.random.Generator,
) -> Array:
    """Local maxima of a score, the best first, shape (k, d), at values that the parameters can take.

    Random steps of shrinking width, then L-BFGS-B along the continuous axes, then each point snapped.

    Args:
        space: The parameters.
        sides: Low and high of the box, shape (d, 2).
        start: Points, shape (m, d).
        score: Points of shape (m, d) to scores of shape (m,).
        slope: One point of shape (d,) to its score and gradient.
        rng: Source of the draws.
    """
    low, high = sides[:, 0], sides[:, 1]
    d = len(space)
    scores = score(start)
    order = np.argsort(-scores, kind="stable")[:_STARTS]
    points, scores = start[order], scores[order]
    for width in _SHRINKING:
        step = width * rng.standard_normal((len(points), _REFINED, d))
        step *= rng.random(step.shape) < 0.5
        around = np.clip(_hop(space, points[:, None] + step, rng, 0.05), low, high)
        found = score(around.reshape(-1, d)).reshape(len(points), _REFINED)
        pick = found.argmax(axis=1)
        better = found.max(axis=1) > scores
        points = np.where(better[:, None], around[np.arange(len(points)), pick], points)
        scores = np.where(better, found.max(axis=1), scores)
    free = np.array([p.cardinality is None for p in space.parameters]) & (high > low)
    if free.any():
        best = points[int(scores.argmax())].copy()
        polished = _polish(best, free, low, high, slope)
        points = np.concatenate([polished[None], points])
    points = np.clip(np.stack([snap(space, p) for p in points]), low, high)
    return points[np.argsort(-score(points), kind="stable")]


def _polish(
    point: Array, free: NDArray[np.bool_], low: Array, high: Array, slope: Callable[[Array], tuple[float, Array]]
) -> Array:
    moved = point.copy()

    def negative(values: Array) -> tuple[float, Array]:
        moved[free] = values
        value, gradient = slope(moved)
        return -value, -gradient[free]

    bounds = list(zip(low[free], high[free], strict=True))
    found = minimize(
        negative, point[free], jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 15, "maxfun": 25}
    )
    polished = point.copy()
    if np.all(np.isfinite(found.x)):
        polished[free] = np.clip(found.x, low[free], high[free])
    return polished


def snap(space: SearchSpace, unit: Array) -> Array:
    """The nearest position that stands for values the parameters can take, shape (d,)."""
    snapped: Array = space.unit([space.at(unit)])[0]
    return snapped


def _hop(space: SearchSpace, points: Array, rng: np.random.Generator, part: float = 0.15) -> Array:
    """Replace some unordered choices by others: they have no neighbours to step to."""
    for j, parameter in enumerate(space.parameters):
        if parameter.is_categorical:
            others = rng.random(points.shape[:-1])
            points[..., j] = np.where(rng.random(points.shape[:-1]) < part, others, points[..., j])
    return points


def choose(ranked: Array, taken: Sequence[Array], tolerance: float = 2e-3) -> Array | None:
    """The first point that no taken one is closer to than the tolerance on every axis, shape (d,); None without."""
    point: Array
    others = np.stack(list(taken)) if len(taken) else np.empty((0, ranked.shape[1]))
    for point in ranked:
        if np.abs(others - point).max(axis=1).min(initial=np.inf) > tolerance:
            return point
    return None
