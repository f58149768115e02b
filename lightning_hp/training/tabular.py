"""A table in a CSV or Parquet file as splits and mini-batches: which columns are used, and which rows cannot be.

Shapes: N rows of a mini-batch, F encoded features. What a column holds: see `lightning_hp.training.columns`. Encoding:
see `lightning_hp.training.encoding`.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_hp.training.columns import LISTED, MOSTLY, Column, as_days, class_names, read_column
from lightning_hp.training.data import InMemoryDataModule
from lightning_hp.training.encoding import OTHER, TableEncoder, check_columns
from lightning_hp.training.reading import read_table
from lightning_hp.training.sampling import split_rows
from lightning_hp.training.scaling import centre_and_scale

_log = logging.getLogger(__name__)
TASKS = ("classification", "regression")


@functools.lru_cache(maxsize=256)
@rank_zero_only
def _say_once(level: int, message: str) -> None:
    """Log a line once for each message: a study builds the same data set in every trial."""
    _log.log(level, message)


class TabularDataModule(InMemoryDataModule):
    """A CSV or Parquet file for classification or regression.

    The splits are made by ``split_seed``, by class in classification. Everything learned from the data (medians, means,
    standard deviations, categories) is learned from the training split, saved in checkpoints, and taken from there when
    one is restored, so that an old model sees new data as it saw its own.
    Rows without a target are dropped, and said in one log line.

    Mini-batches are features (N, F) float32, with classes (N,) int64 or targets (N, 1) float32.

    Attributes:
        num_features: F.
        num_classes: Number of classes; None in regression.
        class_names: The classes in the order of their numbers; None in regression.
        num_targets: 1 in regression, else None.
        target_mean: Mean of the training targets; None in classification.
        target_scale: Their standard deviation; None in classification.
        feature_names: Names of the F features.
    """

    def __init__(
        self,
        path: str,
        target: str,
        task: str = "classification",
        numeric: list[str] | None = None,
        categorical: list[str] | None = None,
        separator: str = ",",
        decimal: str = ".",
        thousands: str | None = None,
        batch_size: int = 64,
        batch_growth: float = 1.0,
        batch_growth_every: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        num_workers: int = 0,
        drop_last: bool = True,
    ) -> None:
        """Check and keep the arguments; the file is read by the first ``setup``.

        Args:
            path: A ``.csv`` or ``.parquet`` file, relative to the working directory.
            target: Name of the column to predict.
            task: "classification" or "regression".
            numeric: Columns to use as numbers (dates: as days since 1970). None: every column that holds numbers (nine
                values of ten; the others count as missing) and is not in ``categorical``.
            categorical: Columns to use as categories. None: every other column. To leave columns out, give both lists.
            separator: Between the columns of a CSV file.
            decimal: Decimal point of a file's texts, "." or ",".
            thousands: Separator of thousands in a file's texts, besides spaces, apostrophes and underscores.
            batch_size: Rows in a mini-batch of one process, at least 2; more than there are means all.
            batch_growth: Factor on the batch size, at least 1.
            batch_growth_every: Epochs between two enlargements; 0 for none.
            val_fraction: Share of the rows for validation.
            test_fraction: Share of the rows for the test.
            split_seed: Of the split.
            num_workers: Loader processes; 0 is fastest for data in memory.
            drop_last: Leave out an incomplete last training mini-batch.

        Raises:
            ValueError: If an argument is out of range.
        """
        super().__init__(
            batch_size,
            batch_growth,
            batch_growth_every,
            val_fraction,
            test_fraction,
            split_seed,
            num_workers,
            drop_last,
        )
        if task not in TASKS:
            raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {task!r}")
        if decimal not in (".", ","):
            raise ValueError(f"`decimal` must be '.' or ',', got {decimal!r}")
        if thousands is not None and (len(thousands) != 1 or thousands.isalnum() or thousands in (decimal, "-", "+")):
            raise ValueError(f"`thousands` must be one sign other than `decimal`, got {thousands!r}")
        self.path, self.target, self.task, self.separator = path, target, task, separator
        self.decimal, self.thousands = decimal, thousands
        self._wanted = (numeric, categorical)
        self._encoder: TableEncoder | None = None
        self._classes: list[str] | None = None
        self._target_moments: tuple[float, float] | None = None

    def load(self) -> None:
        """Read the file, drop rows without a target, split, learn the encoding from the training rows, encode."""
        as_text = self.target if self.task == "classification" else None
        frame = read_table(self.path, self.separator, self.decimal, as_text)
        check_columns(frame, "target", [self.target])
        numeric, categorical = self._choose_columns(frame)
        frame[self.target] = self._read_target(frame)
        missing = frame[self.target].isna()
        if missing.any():
            _say_once(
                logging.WARNING,
                f"{self.path}: {int(missing.sum())} of {len(frame)} rows have no {self.target!r} and are left out",
            )
            frame = frame[~missing].reset_index(drop=True)
        labels = self._read_classes(frame) if self.task == "classification" else None
        self._table = frame
        self._parts = split_rows(len(frame), self.val_fraction, self.test_fraction, self.split_seed, labels)
        self._split(numeric)
        self._encoder = TableEncoder.fit(self._frames[0], numeric, categorical)
        if labels is None:
            self._target_moments = self._learn_target()
        self._say_missing()
        self._encode()
        self._say_useless()

    def _split(self, numeric: list[str]) -> None:
        """Cut the table into its splits, with these columns as numbers."""
        typed = self._table.copy(deep=False)
        for column in numeric:
            typed[column] = self._numbers(typed, column)
        self._frames = [typed.iloc[part] for part in self._parts]

    def _numbers(self, frame: pd.DataFrame, column: str, name: str = "numeric") -> pd.Series:
        """A column that has to be numbers, as numbers."""
        reading = self._read(frame, column, LISTED)
        if reading.kind == "dates" and name == "numeric":
            return pd.Series(as_days(frame[column], column), index=frame.index)
        if reading.numbers is None:
            got = "dates" if reading.kind == "dates" else repr(reading.example or frame[column].dropna().iloc[0])
            raise ValueError(f"`{name}` column {column!r} must hold numbers, got {got}")
        if reading.strays:
            _say_once(
                logging.WARNING,
                f"{self.path}: {column!r} holds numbers, but in {reading.strays} of {len(frame)} rows something else"
                f" ({reading.example!r}): these values count as missing. To keep them, list it in `categorical`",
            )
        elif reading.marks:
            _say_once(
                logging.INFO,
                f"{self.path}: {column!r} holds numbers, and {reading.example!r} in {reading.marks} of {len(frame)}"
                " rows counts as missing",
            )
        return frame[column] if pd.api.types.is_float_dtype(frame[column]) else pd.Series(reading.numbers, frame.index)

    def _read(self, frame: pd.DataFrame, column: str, mostly: float = MOSTLY) -> Column:
        return read_column(frame[column], self.decimal, self.thousands, mostly, column)

    def _choose_columns(self, frame: pd.DataFrame) -> tuple[list[str], list[str]]:
        numeric, categorical = self._wanted
        self._check_lists(frame, numeric or [], categorical or [])
        rest = [c for c in frame.columns if c != self.target and c not in (numeric or []) + (categorical or [])]
        rest = [c for c in rest if not self._is_row_number(frame, c)]
        kinds = {c: self._read(frame, c) for c in rest} if numeric is None else {}
        if categorical is None:
            categorical = [c for c in rest if c not in kinds or kinds[c].kind != "numbers"]
            for column in categorical:
                self._check_category(column, kinds.get(column) or self._read_kind(frame, column))
        if numeric is None:
            numeric = [c for c in rest if kinds[c].kind == "numbers"]
        if not numeric and not categorical:
            raise ValueError(f"`path` must have a column beside the target {self.target!r}, got none to use")
        return numeric, categorical

    def _check_lists(self, frame: pd.DataFrame, numeric: list[str], categorical: list[str]) -> None:
        """Check the two lists of columns against the file, the target and each other."""
        for name, columns in (("numeric", numeric), ("categorical", categorical)):
            check_columns(frame, name, columns)
            if self.target in columns:
                raise ValueError(f"`{name}` must not contain the target, got {self.target!r}")
        both = sorted(set(numeric) & set(categorical))
        if both:
            raise ValueError(f"`numeric` and `categorical` must have no column in common, got {both[0]!r}")

    def _check_category(self, column: str, reading: Column) -> None:
        """Refuse dates as categories nobody asked for; warn of a column that is mostly numbers."""
        if reading.kind == "dates":
            raise ValueError(
                f"Column {column!r} must hold numbers or categories, got dates: give `numeric` and"
                " `categorical` (in `numeric` a date is a number of days)"
            )
        if reading.share >= LISTED:
            _say_once(
                logging.WARNING,
                f"{self.path}: {column!r} is used as a category: {reading.share:.0%} of its values are numbers,"
                f" but others are not ({reading.example!r}). List it in `numeric` to count those as missing",
            )

    def _read_kind(self, frame: pd.DataFrame, column: str) -> Column:
        """What a column holds that is a category because `numeric` leaves it out: only dates matter then."""
        try:
            return Column(self._read(frame, column).kind)
        except ValueError:  # commas in numbers: a category is as written
            return Column("texts")

    def _is_row_number(self, frame: pd.DataFrame, column: str) -> bool:
        """Whether a column without a name only counts the rows, as `DataFrame.to_csv` writes it."""
        if not column.startswith("Unnamed: ") or not pd.api.types.is_integer_dtype(frame[column]):
            return False
        counts = frame[column].to_numpy()
        if not np.array_equal(counts - counts[0], np.arange(len(counts))) or len(counts) < 3:
            return False
        _say_once(logging.INFO, f"{self.path}: the column without a name counts the rows and is left out")
        return True

    def _read_target(self, frame: pd.DataFrame) -> pd.Series:
        if self.task == "regression":
            return self._numbers(frame, self.target, "target").mask(lambda y: ~np.isfinite(y.to_numpy(np.float64)))
        names, marks = class_names(frame[self.target])
        for mark in marks:
            _say_once(
                logging.WARNING,
                f"{self.path}: {mark!r} is a class of {self.target!r} ({int((names == mark).sum())} rows);"
                " a row without a class has an empty cell",
            )
        return names

    def _learn_target(self) -> tuple[float, float]:
        values = self._frames[0][[self.target]].to_numpy()
        mean, scale, constant = centre_and_scale(values)
        if constant[0]:
            _say_once(
                logging.WARNING,
                f"{self.path}: the target {self.target!r} is {mean[0]:.6g} in all training rows: scale 1 is used",
            )
        elif scale[0] < 8 * np.finfo(np.float32).eps * abs(mean[0]) or max(abs(mean[0]), scale[0]) > 1e37:
            raise ValueError(
                f"`target` column {self.target!r} must be numbers that float32 can tell apart, got mean {mean[0]:.6g}"
                f" and standard deviation {scale[0]:.2g}: subtract a constant, or divide by one, in the file"
            )
        return float(mean[0]), float(scale[0])

    def _read_classes(self, frame: pd.DataFrame) -> NDArray[np.int64]:
        """Number the classes, in order of size for numbers and of the alphabet for texts."""
        names = sorted(frame[self.target].unique())
        if len(names) < 2:
            raise ValueError(f"`target` column {self.target!r} must have at least 2 classes, got {len(names)}")
        numbers = read_column(pd.Series(names, dtype=object), mostly=1.0).numbers
        if numbers is not None and not np.isnan(numbers).any():
            if len(names) > 20 and any("." in name for name in names):
                raise ValueError(
                    f"`task` must be 'regression' for a column of fractions, got 'classification' for {self.target!r}"
                    f" with {len(names)} distinct values"
                )
            names = [names[i] for i in np.argsort(numbers, kind="stable")]
        self._classes = names
        return self._class_numbers(frame)

    def _class_numbers(self, frame: pd.DataFrame) -> NDArray[np.int64]:
        assert self._classes is not None
        numbers = {name: number for number, name in enumerate(self._classes)}
        codes, distinct = pd.factorize(frame[self.target])
        for name in distinct:
            if name not in numbers:
                raise ValueError(f"`target` must be one of the classes {', '.join(numbers)}, got {name!r}")
        of_classes: NDArray[np.int64] = np.asarray([numbers[name] for name in distinct], dtype=np.int64)
        of_rows: NDArray[np.int64] = of_classes[codes]
        return of_rows

    def _encode(self) -> None:
        assert self._encoder is not None
        sets = []
        for frame in self._frames:
            if self.task == "classification":
                y: Tensor = torch.from_numpy(self._class_numbers(frame))
            else:
                y = torch.from_numpy(frame[[self.target]].to_numpy(dtype=np.float32, copy=True))
            sets.append(TensorDataset(torch.from_numpy(self._encoder.transform(frame)), y))
        self.train_set, self.val_set, self.test_set = sets

    def _say_missing(self) -> None:
        assert self._encoder is not None
        columns = [*self._encoder.numeric, *self._encoder.categorical]
        counts = sum(frame[columns].isna().sum() for frame in self._frames)
        if counts.any():
            text = ", ".join(f"{column} {count}" for column, count in counts[counts > 0].items())
            _say_once(
                logging.INFO,
                f"{self.path}: missing values ({text}): numbers get the training median and a marker column,"
                " categories a value of their own",
            )

    def _say_useless(self) -> None:
        """Say which columns carry next to nothing: constant ones, and categories that are mostly "other"."""
        assert self._encoder is not None
        assert self.train_set is not None
        constant = [c for c in self._encoder.numeric if self._encoder.is_constant(self._frames[0], c)]
        if constant:
            _say_once(
                logging.WARNING,
                f"{self.path}: constant in training, so only shifted: {', '.join(constant)}",
            )
        share = self.train_set.tensors[0].mean(0)
        others = {
            column: float(share[self.feature_names.index(f"{column}={OTHER}")]) for column in self._encoder.categorical
        }
        for column, value in others.items():
            if value > 0.5:
                _say_once(
                    logging.WARNING,
                    f"{self.path}: the category {column!r} says little: {value:.0%} of the training rows hold a value"
                    " that is too rare to learn from. Give `numeric` and `categorical` to leave it out",
                )

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned from the training rows, for the checkpoint."""
        if self._encoder is None:
            return {}
        return {"encoder": self._encoder.state(), "classes": self._classes, "target_moments": self._target_moments}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Encode with what a checkpoint learned, instead of what this file's training rows say."""
        self.setup()
        encoder = TableEncoder(**state_dict["encoder"])
        check_columns(self._table, "path", [*encoder.numeric, *encoder.categorical])
        self._split(encoder.numeric)
        self._encoder = encoder
        self._classes, self._target_moments = state_dict["classes"], state_dict["target_moments"]
        self._encode()

    def _ready(self) -> TableEncoder:
        self.setup()
        assert self._encoder is not None
        return self._encoder

    @property
    def feature_names(self) -> list[str]:
        """Names of the F features; reads the file if need be, as all attributes here do."""
        return self._ready().feature_names

    @property
    def num_features(self) -> int:
        """F."""
        return len(self.feature_names)

    @property
    def class_names(self) -> list[str] | None:
        """Classes in the order of their numbers."""
        self._ready()
        return self._classes

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None in regression."""
        names = self.class_names
        return None if names is None else len(names)

    @property
    def num_targets(self) -> int | None:
        """1 in regression, else None."""
        return 1 if self.task == "regression" else None

    @property
    def target_mean(self) -> float | None:
        """Mean of the training targets; None in classification."""
        self._ready()
        return None if self._target_moments is None else self._target_moments[0]

    @property
    def target_scale(self) -> float | None:
        """Standard deviation of the training targets; None in classification."""
        self._ready()
        return None if self._target_moments is None else self._target_moments[1]
