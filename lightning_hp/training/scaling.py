"""Mean and spread of columns, as inputs are standardised with: exact for constant columns, safe for any magnitude.

A mean is rounded, so the standard deviation of a constant column comes out as about 1e-16 of its value instead of 0.
Divided by that, one row that differs becomes 1e16. Shapes: n rows, F columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# In units of the last place of the largest value: sums of a few terms differ by less (0.1 + 0.2 against 0.3: 1 unit).
_ROUNDING = 8.0


def centre_and_scale(
    values: NDArray[np.floating], precision: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """What to subtract from each column and what to divide it by.

    Args:
        values: Finite numbers, shape (n, F), n at least 1.
        precision: Relative rounding of the values; None takes that of their type (2.2e-16 for float64).

    Returns:
        Means (F,), standard deviations (F,) and which columns are constant (F,). A column counts as constant when its
        values differ by no more than rounding; its mean is then one of its values and its scale is 1.
    """
    eps = float(np.finfo(values.dtype).eps) if precision is None else precision
    work = values.astype(np.float64)
    low, high = work.min(axis=0), work.max(axis=0)
    size = np.maximum(np.abs(low), np.abs(high))
    unit = np.where(size > 0, size, 1.0)
    constant = high / unit - low / unit <= _ROUNDING * eps  # a difference of huge values could overflow
    mean = (work / unit).mean(axis=0) * unit
    mean = np.where(constant, low, np.clip(mean, low, high))
    away = work / unit - mean / unit
    spread = np.abs(away).max(axis=0)
    spread = np.where(constant | (spread == 0), 1.0, spread)  # squares of tiny or huge values would leave the range
    scale = np.sqrt(np.square(away / spread).mean(axis=0)) * spread * unit
    return mean, np.where(constant | (scale == 0), 1.0, scale), constant
