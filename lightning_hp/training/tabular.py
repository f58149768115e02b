"""A table in a CSV or Parquet file as splits and mini-batches: which columns are used, and which rows cannot be.

Shapes: N rows of a mini-batch, F encoded features. Encoding: see `lightning_hp.training.encoding`.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from pandas.api import types
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_hp.training.data import InMemoryDataModule
from lightning_hp.training.encoding import TableEncoder, as_numbers, as_texts, check_columns
from lightning_hp.training.sampling import split_rows

_log = logging.getLogger(__name__)
_PARQUET = (".parquet", ".pq")
TASKS = ("classification", "regression")


@functools.lru_cache(maxsize=256)
@rank_zero_only
def _say_once(level: int, message: str) -> None:
    """Log a line once for each message: a study builds the same data set in every trial."""
    _log.log(level, message)


def read_table(path: str, separator: str = ",") -> pd.DataFrame:
    """Read a CSV or Parquet file.

    Args:
        path: The file; ``.parquet`` or ``.pq`` is Parquet, everything else CSV (also compressed, as pandas reads it).
        separator: Between the columns of a CSV file.

    Returns:
        The table, with at least one row.

    Raises:
        ValueError: If the file is missing, cannot be read, or is empty.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"`path` must be an existing CSV or Parquet file, got {path!r} (looked for {file.absolute()})")
    kind = "Parquet" if file.suffix.lower() in _PARQUET else "CSV"
    try:
        frame = pd.read_parquet(file) if kind == "Parquet" else pd.read_csv(file, sep=separator, low_memory=False)
    except (ValueError, OSError, UnicodeError) as error:  # pandas' and pyarrow's parser errors are ValueErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"`path` must be a readable {kind} file, got {path!r}: {reason}") from error
    if frame.empty:
        raise ValueError(f"`path` must hold at least one row, got {path!r} without any")
    frame.columns = [str(column) for column in frame.columns]
    return frame


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
            numeric: Columns to use as numbers. None: every column of numbers that is not in ``categorical``.
            categorical: Columns to use as categories. None: every other column. To leave columns out, give both lists.
            separator: Between the columns of a CSV file.
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
        self.path, self.target, self.task, self.separator = path, target, task, separator
        self._wanted = (numeric, categorical)
        self._encoder: TableEncoder | None = None
        self._classes: list[str] | None = None
        self._target_moments: tuple[float, float] | None = None

    def load(self) -> None:
        """Read the file, drop rows without a target, split, learn the encoding from the training rows, encode."""
        frame = read_table(self.path, self.separator)
        check_columns(frame, "target", [self.target])
        numeric, categorical = self._choose_columns(frame)
        missing = frame[self.target].isna()
        if self.task == "regression":
            missing |= np.isnan(as_numbers(frame, self.target, "target"))
        if missing.any():
            _say_once(
                logging.WARNING,
                f"{self.path}: {int(missing.sum())} of {len(frame)} rows have no {self.target!r} and are left out",
            )
            frame = frame[~missing].reset_index(drop=True)
        labels = self._read_classes(frame) if self.task == "classification" else None
        parts = split_rows(len(frame), self.val_fraction, self.test_fraction, self.split_seed, labels)
        self._frames = [frame.iloc[part] for part in parts]
        self._encoder = TableEncoder.fit(self._frames[0], numeric, categorical)
        if labels is None:
            targets = as_numbers(self._frames[0], self.target, "target")
            self._target_moments = (float(targets.mean()), float(targets.std()) or 1.0)
        self._say_missing(frame)
        self._encode()

    def _choose_columns(self, frame: pd.DataFrame) -> tuple[list[str], list[str]]:
        numeric, categorical = self._wanted
        for name, columns in (("numeric", numeric), ("categorical", categorical)):
            check_columns(frame, name, columns or [])
            if self.target in (columns or []):
                raise ValueError(f"`{name}` must not contain the target, got {self.target!r}")
        both = set(numeric or []) & set(categorical or [])
        if both:
            raise ValueError(f"`numeric` and `categorical` must have no column in common, got {sorted(both)[0]!r}")
        rest = [c for c in frame.columns if c != self.target and c not in (numeric or []) + (categorical or [])]
        numbers = [c for c in rest if types.is_numeric_dtype(frame[c]) and not types.is_bool_dtype(frame[c])]
        if numeric is None:
            numeric = numbers
        if categorical is None:
            categorical = [c for c in rest if c not in numbers]
        for column in categorical:
            if types.is_datetime64_any_dtype(frame[column]):
                raise ValueError(
                    f"Column {column!r} must hold numbers or categories, got dates: give `numeric` and `categorical`"
                )
        if not numeric and not categorical:
            raise ValueError(f"`path` must have a column beside the target {self.target!r}, got none to use")
        return numeric, categorical

    def _read_classes(self, frame: pd.DataFrame) -> NDArray[np.int64]:
        """Number the classes, in order of size for numbers and of the alphabet for texts."""
        texts = as_texts(frame, self.target)
        values = frame[self.target]
        names = [str(name) for name in np.unique(texts)]
        if len(names) < 2:
            raise ValueError(f"`target` column {self.target!r} must have at least 2 classes, got {len(names)}")
        if types.is_float_dtype(values) and len(names) > 20 and any("." in name for name in names):
            raise ValueError(
                f"`task` must be 'regression' for a column of fractions, got 'classification' for {self.target!r}"
                f" with {len(names)} distinct values"
            )
        if types.is_numeric_dtype(values) and not types.is_bool_dtype(values):
            names.sort(key=float)
        self._classes = names
        return self._class_numbers(frame)

    def _class_numbers(self, frame: pd.DataFrame) -> NDArray[np.int64]:
        assert self._classes is not None
        numbers = {name: number for number, name in enumerate(self._classes)}
        texts = as_texts(frame, self.target)
        for text in texts:
            if text not in numbers:
                raise ValueError(f"`target` must be one of the classes {', '.join(numbers)}, got {str(text)!r}")
        return np.asarray([numbers[text] for text in texts], dtype=np.int64)

    def _encode(self) -> None:
        assert self._encoder is not None
        sets = []
        for frame in self._frames:
            if self.task == "classification":
                y: Tensor = torch.from_numpy(self._class_numbers(frame))
            else:
                y = torch.from_numpy(as_numbers(frame, self.target, "target")[:, None].astype(np.float32))
            sets.append(TensorDataset(torch.from_numpy(self._encoder.transform(frame)), y))
        self.train_set, self.val_set, self.test_set = sets

    def _say_missing(self, frame: pd.DataFrame) -> None:
        assert self._encoder is not None
        counts = frame[[*self._encoder.numeric, *self._encoder.categorical]].isna().sum()
        if counts.any():
            text = ", ".join(f"{column} {count}" for column, count in counts[counts > 0].items())
            _say_once(
                logging.INFO,
                f"{self.path}: missing values ({text}): numbers get the training median and a marker column,"
                " categories a value of their own",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned from the training rows, for the checkpoint."""
        if self._encoder is None:
            return {}
        return {"encoder": self._encoder.state(), "classes": self._classes, "target_moments": self._target_moments}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Encode with what a checkpoint learned, instead of what this file's training rows say."""
        self.setup()
        self._encoder = TableEncoder(**state_dict["encoder"])
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
