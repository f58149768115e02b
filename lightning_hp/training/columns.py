"""What a column of a table holds: numbers, dates or texts, whoever wrote the file and however.

A column is numbers when nearly all of its values are; the others count as missing. What cannot be read in one way only
(a comma that may be a decimal point or a separator of thousands, a date) is refused with the option that decides it.
The same values give the same answer from a CSV file (texts) and from a Parquet file (Decimal, date, timedelta).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

__all__ = ["Column", "as_days", "class_names", "read_column"]

#: Share of the values that must be numbers for a column to be read as numbers without being asked to.
MOSTLY = 0.9
#: The same for a column that the user calls numeric.
LISTED = 0.5
#: What files write for "no value", in lower case. Beside numbers only: among texts each is a value of its own.
MARKS = frozenset(
    [
        *("", "?", "-", "--", "---", ".", "..", "*", "n/a", "na", "nan", "none", "null", "nil", "missing", "unknown"),
        *("<na>", "#n/a", "#na", "#value!", "#div/0!", "#ref!", "#num!", "#null!", "#name?", "not available"),
    ]
)
_GROUPS = "[ \u00a0\u2009\u202f'\u2019_]"  # separate thousands and mean nothing else
_DATES = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ]\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?)?\s?(Z|UTC|[+-]\d{2}:?\d{2})?"
    r"|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})([T ]\d{1,2}:\d{2}(:\d{2})?( ?[AaPp][Mm])?)?"
    r"|\d{1,2}[- ][A-Za-z]{3,9}[- ](\d{4}|\d{2})|[A-Za-z]{3,9} \d{1,2},? \d{4}"
)
_DURATIONS = re.compile(r"-?\d+ days?( [+-]?\d{1,2}:\d{2}:\d{2}(\.\d+)?)?|-?\d{1,3}:\d{2}:\d{2}(\.\d+)?")
_COMMAS = re.compile(r"[+-]?(\d+,\d+|\d{1,3}(,\d{3})+(\.\d*)?|\d{1,3}(\.\d{3}){2,}|\d{1,3}(\.\d{3})+,\d*)")


@dataclass(frozen=True)
class Column:
    """How a column is read.

    Attributes:
        kind: "numbers", "dates" or "texts".
        numbers: The values, shape (n,), NaN where there is none; None for the other kinds.
        strays: Rows whose value is neither a number nor a mark of a missing one.
        marks: Rows with such a mark.
        example: One stray or mark as written; "" without any.
        share: Share of the values that are numbers.
    """

    kind: str
    numbers: NDArray[np.float64] | None = None
    strays: int = 0
    marks: int = 0
    example: str = ""
    share: float = 0.0


def _number_reader(decimal: str, thousands: str | None) -> Callable[[str], float | None]:
    point = re.escape(decimal)
    tail = rf"({point}\d*)?"
    plain = re.compile(rf"[+-]?(\d+{tail}|{point}\d+)([eE][+-]?\d+)?")
    groups = _GROUPS if thousands is None else f"(?:{_GROUPS}|{re.escape(thousands)})"
    grouped = re.compile(rf"[+-]?\d{{1,3}}({groups}\d{{3}})+{tail}")
    separators = re.compile(groups)

    def read(text: str) -> float | None:
        if grouped.fullmatch(text):  # before `plain`: with thousands ".", "1.234" is 1234
            return float(separators.sub("", text).replace(decimal, "."))
        if plain.fullmatch(text):
            return float(text.replace(decimal, "."))
        return np.inf if text.lower().lstrip("+-") in ("inf", "infinity") else None

    return read


def read_column(
    values: pd.Series, decimal: str = ".", thousands: str | None = None, mostly: float = MOSTLY, name: str = ""
) -> Column:
    """Say what a column holds, and read it if it is numbers.

    Args:
        values: The column.
        decimal: Decimal point of texts.
        thousands: Separator of thousands of texts, besides spaces, apostrophes and underscores.
        mostly: Least share of numbers among the values, from 0 to 1.
        name: Of the column, for errors.

    Returns:
        The kind, and for numbers the values; infinite ones are NaN, durations are seconds, "5%" is 0.05.

    Raises:
        ValueError: If numbers hold commas that can be read in two ways.
    """
    if types.is_datetime64_any_dtype(values) or isinstance(values.dtype, pd.PeriodDtype):
        return Column("dates")
    if types.is_timedelta64_dtype(values):
        return Column("numbers", values.dt.total_seconds().to_numpy(np.float64), share=1.0)
    if types.is_numeric_dtype(values) and not types.is_bool_dtype(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan).copy()
        numbers[~np.isfinite(numbers)] = np.nan
        return Column("numbers", numbers, share=1.0)
    if types.is_bool_dtype(values) or isinstance(values.dtype, pd.CategoricalDtype):
        return Column("texts")
    present = values.notna().to_numpy()
    objects = values[present].tolist()
    if any(isinstance(v, (datetime.date, datetime.time)) for v in objects):
        return Column("dates")
    texts = np.asarray([str(v).strip().replace("\u2212", "-") for v in objects], dtype=object)
    numbers = np.full(len(values), np.nan)
    if not len(texts):
        return Column("numbers", numbers, share=1.0)
    codes, distinct = pd.factorize(texts)
    return _read_texts(distinct, codes, present, numbers, (decimal, thousands, mostly, name))


def _read_texts(
    distinct: NDArray[np.object_],
    codes: NDArray[np.int64],
    present: NDArray[np.bool_],
    numbers: NDArray[np.float64],
    how: tuple[str, str | None, float, str],
) -> Column:
    decimal, thousands, mostly, name = how
    read = _number_reader(decimal, thousands)
    counts = np.bincount(codes, minlength=len(distinct))
    marked = np.asarray([text.lower() in MARKS for text in distinct])
    total = int(counts[~marked].sum())

    def share(chosen: NDArray[np.bool_]) -> float:
        return float(counts[chosen].sum()) / total if total else 0.0

    values = np.asarray([np.nan if (number := read(text)) is None else number for text in distinct])
    if share(~np.isnan(values) & ~marked) < mostly:
        for reader in (_percent(read), _seconds):
            others = np.asarray([np.nan if (number := reader(text)) is None else number for text in distinct])
            if total and share(~np.isnan(others)) >= max(mostly, MOSTLY):
                values = others
                break
        else:
            if share(np.asarray([bool(_DATES.fullmatch(text)) for text in distinct])) >= MOSTLY:
                return Column("dates")
    is_number = ~np.isnan(values) & ~marked
    commas = np.asarray([bool(_COMMAS.fullmatch(text)) for text in distinct]) & ~is_number
    if total and commas.any() and share(is_number | commas) >= mostly and (decimal, thousands) == (".", None):
        raise ValueError(
            f"Column {name!r} must hold numbers that can be read in one way, got {distinct[commas][0]!r}: set `decimal`"
            " (',' for 1,5) or `thousands` (',' for 1,234), or list the column in `categorical`"
        )
    if total and share(is_number) < mostly:
        stray = distinct[~is_number & ~marked]
        return Column("texts", example=str(stray[0]) if len(stray) else "", share=share(is_number))
    values = np.where(is_number & np.isfinite(values), values, np.nan)
    numbers[present] = values[codes]
    odd = ~is_number & ~marked
    shown = distinct[odd] if odd.any() else distinct[marked]
    return Column(
        "numbers",
        numbers,
        int(counts[odd].sum()),
        int(counts[marked].sum()),
        str(shown[0]) if len(shown) else "",
        share(is_number),
    )


def _percent(read: Callable[[str], float | None]) -> Callable[[str], float | None]:
    def percent(text: str) -> float | None:
        number = read(text.removesuffix("%").rstrip()) if text.endswith("%") else None
        return None if number is None else number / 100.0

    return percent


def _seconds(text: str) -> float | None:
    return float(pd.Timedelta(text).total_seconds()) if _DURATIONS.fullmatch(text) else None


def as_days(values: pd.Series, name: str) -> NDArray[np.float64]:
    """Dates as days since 1970-01-01, shape (n,), NaN where there is none.

    Raises:
        ValueError: If a text is no ISO 8601 date.
    """
    try:
        dates = pd.to_datetime(values, utc=True, format=None if types.is_datetime64_any_dtype(values) else "ISO8601")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`numeric` column {name!r} must hold dates written YYYY-MM-DD, got {values.dropna().iloc[0]!r}"
        ) from error
    days = (dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds() / 86_400.0
    return np.asarray(days.to_numpy(np.float64, na_value=np.nan))


def class_names(values: pd.Series) -> tuple[pd.Series, list[str]]:
    """Names of the classes of all rows, kept as written; None where there is no class.

    Beside numbers, "NA" or "?" marks a missing class, and 3.0 is written like 3. Among texts both are names.

    Args:
        values: Classes as texts (from CSV, "" where missing) or of any type (from Parquet).

    Returns:
        The names, and those of them that elsewhere mark a missing value.
    """
    codes, distinct = pd.factorize(values.astype(object))  # -1 where missing
    written = [str(value) for value in distinct]
    present = sorted({name for name in written if name.strip()})
    marks = [name for name in present if name.strip().lower() in MARKS]
    others = [name for name in present if name not in marks]
    chosen = {name: name for name in present}
    read = _number_reader(".", None)
    if others and all(read(name.strip()) is not None for name in others):
        whole = re.compile(r"([+-]?\d+)\.0*")
        chosen = {name: (m[1] if (m := whole.fullmatch(name.strip())) else name.strip()) for name in others}
        marks = []
    table = np.asarray([*(chosen.get(name) for name in written), None], dtype=object)
    return pd.Series(table[codes], index=values.index, dtype=object), marks
