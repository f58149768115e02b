"""From a table's columns to a matrix of numbers, with everything that is learned learned from the training rows.

Numeric columns: a missing (or infinite) value becomes the training median, then the column is standardised; a column
with missing values in training also gets a 0/1 column that says where. Categorical columns: one 0/1 column for each
value that enough training rows have, a missing value being a value of its own, and one column "other" for the rest.
Shapes: n rows, F encoded features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lightning_hp.training.scaling import centre_and_scale

# A value in one training row only cannot be told from that row's noise; pooled, such rows train the column "other".
MIN_CATEGORY_ROWS = 2
# Beyond this a column is rather an identifier; the most frequent values are kept.
MAX_CATEGORIES = 64
MISSING = "(missing)"
OTHER = "(other)"


def as_numbers(frame: pd.DataFrame, column: str, name: str = "numeric") -> NDArray[np.float64]:
    """Return a column as float64, shape (n,), with NaN for missing and infinite values.

    Args:
        frame: The table.
        column: Its name.
        name: The argument to blame.

    Returns:
        The values.

    Raises:
        ValueError: If a value is no number.
    """
    values = frame[column]
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = numbers.isna() & values.notna()
    if wrong.any():
        raise ValueError(f"`{name}` column {column!r} must hold numbers, got {values[wrong].iloc[0]!r}")
    result: NDArray[np.float64] = numbers.to_numpy(dtype=np.float64, na_value=np.nan).copy()
    result[~np.isfinite(result)] = np.nan
    return result


def precision(values: pd.Series) -> float:
    """Relative rounding of a column's values: that of its own type, float64 for everything but floats."""
    dtype = values.dtype if isinstance(values.dtype, np.dtype) else getattr(values.dtype, "numpy_dtype", None)
    single = isinstance(dtype, np.dtype) and dtype.kind == "f"
    return float(np.finfo(dtype if single else np.float64).eps)


def as_texts(frame: pd.DataFrame, column: str) -> NDArray[np.str_]:
    """Return a column as texts, shape (n,): ``(missing)`` where missing, and 3.0 written like 3."""
    texts = [
        MISSING if missing else str(int(v)) if isinstance(v, float) and v.is_integer() else str(v)
        for v, missing in zip(frame[column].tolist(), frame[column].isna(), strict=True)
    ]
    return np.asarray(texts, dtype=np.str_)


@dataclass(frozen=True)
class TableEncoder:
    """What was learned from the training rows; made by `fit`.

    Attributes:
        numeric: Names of the numeric columns.
        categorical: Names of the categorical columns.
        medians: Training median of each numeric column.
        means: Training mean of each numeric column, after filling.
        scales: Training standard deviation of each numeric column, after filling; 1 for a column that is
            constant but for rounding.
        indicators: Numeric columns that had missing values in training.
        categories: Kept values of each categorical column, sorted.
    """

    numeric: list[str]
    categorical: list[str]
    medians: list[float]
    means: list[float]
    scales: list[float]
    indicators: list[str]
    categories: list[list[str]]

    @classmethod
    def fit(cls, train: pd.DataFrame, numeric: Sequence[str], categorical: Sequence[str]) -> TableEncoder:
        """Learn from the training rows.

        Args:
            train: The training rows.
            numeric: Names of the numeric columns.
            categorical: Names of the categorical columns.

        Returns:
            The encoder.

        Raises:
            ValueError: If a numeric column holds something that is no number.
        """
        medians, means, scales, indicators = [], [], [], []
        for column in numeric:
            values = as_numbers(train, column)
            missing = np.isnan(values)
            medians.append(0.0 if missing.all() else float(np.median(values[~missing])))
            mean, scale, _ = centre_and_scale(np.where(missing, medians[-1], values)[:, None], precision(train[column]))
            means.append(float(mean[0]))
            scales.append(float(scale[0]))
            if missing.any():
                indicators.append(column)
        categories = []
        for column in categorical:
            values_, counts = np.unique(as_texts(train, column), return_counts=True)
            frequent = np.argsort(-counts, kind="stable")[:MAX_CATEGORIES]
            categories.append(sorted(str(values_[i]) for i in frequent if counts[i] >= MIN_CATEGORY_ROWS))
        return cls(list(numeric), list(categorical), medians, means, scales, indicators, categories)

    def is_constant(self, train: pd.DataFrame, column: str) -> bool:
        """Whether a numeric column has one value in the training rows, gaps filled, but for rounding."""
        values = as_numbers(train, column)
        filled = np.where(np.isnan(values), self.medians[self.numeric.index(column)], values)
        return bool(centre_and_scale(filled[:, None], precision(train[column]))[2][0])

    @property
    def feature_names(self) -> list[str]:
        """Names of the F encoded features, in order."""
        names = [*self.numeric, *(f"{column}={MISSING}" for column in self.indicators)]
        for column, kept in zip(self.categorical, self.categories, strict=True):
            names += [f"{column}={value}" for value in (*kept, OTHER)]
        return names

    def transform(self, frame: pd.DataFrame) -> NDArray[np.float32]:
        """Encode rows.

        Args:
            frame: Any rows with the same columns.

        Returns:
            Features, shape (n, F), float32, in the order of `feature_names`.

        Raises:
            ValueError: If a column is missing, or a numeric column holds something that is no number.
        """
        check_columns(frame, "path", [*self.numeric, *self.categorical])
        columns: list[NDArray[Any]] = []
        indicators: list[NDArray[Any]] = []
        for column, median, mean, scale in zip(self.numeric, self.medians, self.means, self.scales, strict=True):
            values = as_numbers(frame, column)
            missing = np.isnan(values)
            columns.append((np.where(missing, median, values) - mean) / scale)
            if column in self.indicators:
                indicators.append(missing)
        columns += indicators
        for column, kept in zip(self.categorical, self.categories, strict=True):
            texts = as_texts(frame, column)
            hits = [texts == value for value in kept]
            columns += [*hits, ~np.logical_or.reduce(hits) if hits else np.ones(len(texts), dtype=bool)]
        return np.stack(columns, axis=1).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Return plain lists, texts and numbers, fit for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def check_columns(frame: pd.DataFrame, name: str, columns: Sequence[str]) -> None:
    """Raise ValueError, naming the columns there are, if one of ``columns`` is not in the table."""
    for column in columns:
        if column not in frame.columns:
            there = ", ".join(map(str, frame.columns[:20])) + (", ..." if len(frame.columns) > 20 else "")
            raise ValueError(f"`{name}` must be a column of the table ({there}), got {column!r}")
