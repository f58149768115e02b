"""Reads a CSV or Parquet file into a table whose columns stand under their own names."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["read_table"]

_PARQUET = (".parquet", ".pq")
_SURPLUS = "(beyond the header)"
_MARK = "as written: "


def read_table(path: str, separator: str = ",", decimal: str = ".", as_text: str | None = None) -> pd.DataFrame:
    """Read a CSV or Parquet file.

    Rows may end in a separator. A row with more values than the header has names is an error.

    Args:
        path: The file; ``.parquet`` or ``.pq`` is Parquet, everything else CSV (also compressed, as pandas reads it).
        separator: Between the columns of a CSV file.
        decimal: Decimal point of a CSV file.
        as_text: A column of a CSV file to keep as written ("NA" and "007" are texts, an empty cell is missing).

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
        frame = pd.read_parquet(file) if kind == "Parquet" else _read_csv(file, separator, decimal, as_text)
    except (ValueError, OSError, UnicodeError) as error:  # pandas' and pyarrow's parser errors are ValueErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"`path` must be a readable {kind} file, got {path!r}: {reason}") from error
    if frame.empty:
        raise ValueError(f"`path` must hold at least one row, got {path!r} without any")
    frame.columns = [str(column) for column in frame.columns]
    return frame


def _read_csv(file: Path, separator: str, decimal: str, as_text: str | None) -> pd.DataFrame:
    how: dict[str, Any] = {"sep": separator, "decimal": decimal, "index_col": False}
    if as_text is not None:
        how["converters"] = {as_text: _MARK.__add__}  # a text that no reader takes for a missing value
    if len(separator) > 1 and separator != r"\s+":
        how["engine"] = "python"  # which alone knows such separators, and no chunks
    else:
        how["low_memory"] = False  # one type a column, not one a chunk
    frame = _read_ragged(file, separator, how)
    empty = [c for c in frame.columns if str(c).startswith("Unnamed: ") and frame[c].isna().all()]
    frame = frame.drop(columns=empty)  # of a header that ends in a separator itself
    if as_text in frame.columns:
        frame[as_text] = frame[as_text].map(lambda text: text.removeprefix(_MARK), na_action="ignore").astype(object)
    return frame


def _read_ragged(file: Path, separator: str, how: dict[str, Any]) -> pd.DataFrame:
    """Read rows of which some have more values than the header has names: right if those values are empty."""
    try:
        frame, longer = _warned(file, **how)
    except pd.errors.ParserError as error:  # a later row is longer than the first
        if "Expected" not in str(error):
            raise
        width = len(pd.read_csv(file, **how, nrows=0).columns)

        def shorten(values: list[str]) -> list[str]:
            if any(value.strip() for value in values[width:]):
                raise ValueError(_too_long(file, separator, width))
            return values[:width]

        how = {key: value for key, value in how.items() if key != "low_memory"}
        frame, longer = _warned(file, **{**how, "engine": "python"}, on_bad_lines=shorten)
        if longer and (line := _longer_line(file, separator, width)):  # pandas 2 cuts rows itself, and never asks
            raise ValueError(line) from error
        return frame
    if not longer:
        return frame
    names = list(frame.columns)
    try:
        frame, longer = _warned(file, **how, names=[*names, _SURPLUS], header=0)
    except pd.errors.ParserError as error:
        raise ValueError(_too_long(file, separator, len(names))) from error
    if longer or any(not pd.isna(value) and str(value).strip() for value in frame[_SURPLUS].unique()):
        raise ValueError(_too_long(file, separator, len(names)))
    return frame.drop(columns=_SURPLUS)


def _warned(file: Path, **how: Any) -> tuple[pd.DataFrame, bool]:
    """Read, and say whether pandas left out values beyond the header."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = pd.read_csv(file, **how)
    return frame, any("Length of header" in str(warning.message) for warning in caught)


def _too_long(file: Path, separator: str, width: int) -> str:
    """Name the first line with values beyond the header, where the file is plain text."""
    return _longer_line(file, separator, width) or _longer_row(width)


def _longer_line(file: Path, separator: str, width: int) -> str:
    """The same; empty if there is no such line."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            reader = csv.reader(lines, delimiter=separator)
            for row in reader:
                if any(value.strip() for value in row[width:]):
                    return f"line {reader.line_num} has {len(row)} values, the header {width} names"
    except (UnicodeError, TypeError, csv.Error):
        return _longer_row(width)
    return ""


def _longer_row(width: int) -> str:
    return f"a row has more values than the header has names ({width})"
