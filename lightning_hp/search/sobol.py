"""Points of a stage: quasi-random ones to explore with, and the stored values of any point, kept inside the box."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_hp.search.boxes import TOUCH
from lightning_hp.search.stages import Stage
from lightning_hp.space.space import SearchSpace

_SOBOL_BLOCK = 64
_sobol_lock = threading.Lock()  # scipy's Sobol engines share their direction numbers among threads


def sobol_point(space: SearchSpace, stage: Stage, number: int, seed: int) -> NDArray[np.float64]:
    """The unit point of a coarse trial, shape (d,), inside the stage's box: scrambled Sobol (Owen 1998).

    A function of its arguments only, so workers agree without talking. Each stage has a scrambling of its own, from its
    first point on; no two points of one stage share a coordinate.

    Args:
        space: The parameters.
        stage: A stage with its box.
        number: Number of the trial.
        seed: Seed of the study.
    """
    assert stage.box is not None
    block, row = divmod(number - stage.first, _SOBOL_BLOCK)
    cube = _sobol(seed, stage.index, len(space), block)[row]
    sides = np.array([stage.box[p.stored_name] for p in space.parameters])
    point: NDArray[np.float64] = sides[:, 0] + cube * (sides[:, 1] - sides[:, 0])
    return point


@lru_cache(maxsize=64)
def _sobol(seed: int, stage: int, d: int, block: int) -> NDArray[np.float64]:
    from scipy.stats import qmc  # a slow import, not needed to plan

    with _sobol_lock:
        engine = qmc.Sobol(d, scramble=True, bits=53, seed=np.random.default_rng([seed, stage]))
        for _ in range(block):  # scipy's fast_forward fails with more than 32 bits
            engine.random(_SOBOL_BLOCK)
        points: NDArray[np.float64] = engine.random(_SOBOL_BLOCK)
    return points


def to_stored_values(space: SearchSpace, stage: Stage, unit: Sequence[float] | NDArray[np.float64]) -> dict[str, Any]:
    """The stored values of a unit point in a stage: kept inside the box, closed parameters at their default.

    Args:
        space: The parameters.
        stage: A stage with its box.
        unit: Position on each parameter's full-range unit axis, shape (d,).
    """
    assert stage.box is not None
    values: dict[str, Any] = {}
    for parameter, position in zip(space.parameters, unit, strict=True):
        if parameter.tier not in stage.tiers:
            values[parameter.stored_name] = parameter.store(parameter.default)
            continue
        low, high = stage.box[parameter.stored_name]
        inset = TOUCH if parameter.cardinality is not None else 0.0
        values[parameter.stored_name] = parameter.at(min(max(float(position), low + inset), high - inset))
    return values
