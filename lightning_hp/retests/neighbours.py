"""Settings beside the recorded best: moved in every searched parameter, in the direction that is expected to pay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_hp.space.space import SearchSpace

#: Neighbours lie this far from the recorded best, in turn: standard deviations in parts of a parameter's range. The
#: near ones show whether it is still the top of its hill, the far ones whether there is another hill.
NEIGHBOUR_DISTANCES = (0.1, 0.25)
#: A neighbour is the most promising of so many moves, where an older study can say which that is.
MOVES_TRIED = 32


def neighbours(
    space: SearchSpace,
    best: Mapping[str, Any],
    k: int,
    seed: int,
    expected: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    same_structure: bool = False,
) -> list[dict[str, Any]]:
    """Stored values of k points around a point, every searched parameter moved; different from it and each other.

    Args:
        space: The parameters.
        best: Stored values.
        k: How many.
        seed: Of the moves.
        expected: What is known of unit positions, shape (m, d): the expected loss, shape (m,). None for blind moves.
        same_structure: Whether whole numbers stay as they are, so that all points can be trained as one stack.
    """
    rng = np.random.default_rng(seed)
    centre = space.unit([best])[0]
    keep = np.array([p.is_categorical or (same_structure and p.cardinality is not None) for p in space.parameters])
    points: list[dict[str, Any]] = []
    for _ in range(100 * max(k, 1)):
        if len(points) == k:
            break
        distance = NEIGHBOUR_DISTANCES[len(points) % len(NEIGHBOUR_DISTANCES)]
        moved = centre + distance * rng.standard_normal((1 if expected is None else MOVES_TRIED, len(space)))
        moved = np.where((moved < 0) | (moved > 1), 2 * centre - moved, moved)  # reflect what would leave the range
        moved = np.where(keep, centre, np.clip(moved, 0.0, 1.0))
        point = space.at(moved[0 if expected is None else int(np.argmin(expected(moved)))])
        if point != best and point not in points:
            points.append(point)
    return points
