"""Tables as other people write them: constant columns, trailing separators, one odd cell, classes called "NA"."""

import datetime
import decimal
import logging

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch

from lightning_hp.training import BatchNormClassifier, TabularDataModule
from lightning_hp.training.data import standardise
from lightning_hp.training.tabular import _say_once

ROWS = 300


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    _say_once.cache_clear()


def frame_of(**columns):
    rng = np.random.default_rng(0)
    x = rng.normal(size=ROWS).round(3)
    return pd.DataFrame({"y": np.where(x + 0.3 * rng.normal(size=ROWS) > 0, "yes", "no"), "x": x, **columns})


def loaded(tmp_path, frame, target="y", suffix=".csv", **arguments):
    path = tmp_path / f"t{suffix}"
    if isinstance(frame, str):
        path.write_text(frame, encoding="utf-8")
    elif suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    data = TabularDataModule(str(path), target, **arguments)
    data.setup()
    return data


def features(data):
    """All rows in the order of the file, as {name: values}."""
    rows = np.concatenate(data._parts)
    x = torch.cat([s.tensors[0] for s in (data.train_set, data.val_set, data.test_set)]).numpy()
    return dict(zip(data.feature_names, x[np.argsort(rows)].T, strict=True))


# --- constant columns


CONSTANTS = [0.1, 0.2, 0.3, 0.7, 1.1, 101.325, 273.15, 1e-6, 123456.789, 1e15 + 0.5, 1e300, 1e-300, -0.1]


@pytest.mark.parametrize("value", CONSTANTS)
def test_a_constant_column_has_scale_one_and_is_told(tmp_path, caplog, value):
    column = np.full(ROWS, value)
    data = loaded(tmp_path, frame_of(c=column))
    assert data._encoder.scales[1] == 1.0
    assert (features(data)["c"] == 0).all()
    assert "constant in training, so only shifted: c" in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rounding_of_the_files_own_type_is_no_spread(tmp_path, dtype):
    column = np.full(ROWS, 0.1, dtype=dtype)
    column[::2] = np.nextafter(column[0], column.dtype.type(1.0))  # the two neighbours of 0.1
    frame = frame_of(c=column)
    if dtype == "float32":
        assert loaded(tmp_path, frame, suffix=".parquet")._encoder.scales[1] == 1.0
    (scaled,) = standardise(column[:, None])
    assert np.abs(scaled).max() < 1e-3


def test_a_spread_that_is_small_but_real_is_kept(tmp_path):
    rng = np.random.default_rng(1)
    column = 1e6 + 1e-3 * rng.normal(size=ROWS)
    data = loaded(tmp_path, frame_of(c=column))
    train = column[data._parts[0]]
    assert data._encoder.scales[1] == pytest.approx(train.std(), rel=1e-6)


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1.0, 1e30, 1e200, 1e308])
def test_scaling_does_not_depend_on_the_unit(size):
    column = np.random.default_rng(0).uniform(-1, 1, 50)[:, None]
    expected, (seen,) = (column - column.mean()) / column.std(), standardise(column * size)
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)


def test_a_constant_column_with_gaps_and_a_row_that_differs(tmp_path):
    column = np.full(ROWS, 0.1)
    data = loaded(tmp_path, frame_of(c=column))
    column[::3] = np.nan
    column[data._parts[1][0]] = 5.0  # one validation row
    data = loaded(tmp_path, frame_of(c=column))
    assert data._encoder.scales[1] == 1.0
    assert np.abs(features(data)["c"]).max() == pytest.approx(4.9)


def test_a_constant_column_leaves_the_validation_loss_alone(tmp_path):
    def loss(column):
        pl.seed_everything(0)
        data = loaded(tmp_path, frame_of(c=column), batch_size=32)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        trainer = pl.Trainer(max_epochs=3, enable_model_summary=False, **quiet)
        trainer.fit(BatchNormClassifier(hidden_units=8), data)
        return float(trainer.callback_metrics["val_loss"])

    column = np.full(ROWS, 0.1)
    plain = loss(column)
    column[loaded(tmp_path, frame_of(c=column))._parts[1][0]] = 0.3
    assert loss(column) == pytest.approx(plain, abs=0.05)


def test_a_constant_target_has_scale_one_and_is_told(tmp_path, caplog):
    frame = frame_of(t=np.full(ROWS, 0.1)).drop(columns="y")
    data = loaded(tmp_path, frame, target="t", task="regression")
    assert (data.target_mean, data.target_scale) == (0.1, 1.0)
    assert "the target 't' is 0.1 in all training rows" in caplog.text


def test_a_target_that_float32_cannot_tell_apart_is_refused(tmp_path):
    frame = frame_of(t=1.7e9 + np.arange(ROWS) / 3).drop(columns="y")  # seconds since 1970
    with pytest.raises(ValueError, match="`target` column 't' must be numbers that float32 can tell apart"):
        loaded(tmp_path, frame, target="t", task="regression")


def test_standardise_keeps_a_constant_column_at_scale_one():
    train, other = np.full((50, 1), 0.1), np.asarray([[0.3]])
    for seen, expected in zip(standardise(train, other), ([[0.0]] * 50, [[0.2]]), strict=True):
        np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert standardise(train, other, least_scale=0.5)[1][0, 0] == pytest.approx(0.4)


# --- separators


def lines(ending="", one=None, text=None):
    rows = [f"{'yes' if i % 2 else 'no'},{'red' if i % 3 else 'blue'},{i / 10}" for i in range(ROWS)]
    rows = [row + ending for row in rows]
    if one is not None:
        rows[one] += text
    return "y,colour,x\n" + "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    "content",
    [
        lines(ending=","),
        lines(one=0, text=","),
        lines(one=150, text=","),
        lines(one=299, text=","),
        lines(ending=",").replace("y,colour,x", "y,colour,x,"),
        lines(ending=", "),
        lines(one=0, text=",,"),
        lines(one=150, text=",,"),
    ],
    ids=["all", "first", "middle", "last", "header too", "with a blank", "two in the first", "two in the middle"],
)
def test_a_trailing_separator_moves_no_column(tmp_path, content):
    plain = loaded(tmp_path, lines())
    seen = loaded(tmp_path, content)
    assert seen.feature_names == plain.feature_names
    for name, values in features(plain).items():
        np.testing.assert_array_equal(features(seen)[name], values)


@pytest.mark.parametrize("separator", ["::", " ", "\t", r"\s+", ";"])
@pytest.mark.parametrize("ending", ["", "with"])
def test_other_separators_may_end_a_row_too(tmp_path, separator, ending):
    written = " " if separator == r"\s+" else separator
    content = lines(ending=written if ending else "").replace(",", written)
    plain, seen = loaded(tmp_path, lines()), loaded(tmp_path, content, separator=separator)
    for name, values in features(plain).items():
        np.testing.assert_array_equal(features(seen)[name], values)


@pytest.mark.parametrize("one", [0, 150])
@pytest.mark.parametrize(("text", "fields"), [(",7", 4), (",,7", 5)])
def test_a_row_longer_than_the_header_is_named(tmp_path, one, text, fields):
    with pytest.raises(ValueError, match=f"line {one + 2} has {fields} values, the header 3 names"):
        loaded(tmp_path, lines(one=one, text=text))


def test_the_row_numbers_of_to_csv_are_no_feature(tmp_path, caplog):
    frame_of().to_csv(tmp_path / "t.csv")
    data = TabularDataModule(str(tmp_path / "t.csv"), "y")
    with caplog.at_level(logging.INFO):
        assert data.feature_names == ["x"]
    assert "the column without a name counts the rows and is left out" in caplog.text


# --- one odd cell


def with_cell(cell, rows=(7,)):
    column = [f"{v:.3f}" for v in np.random.default_rng(3).normal(size=ROWS)]
    for row in rows:
        column[row] = cell
    return np.asarray(column, dtype=object)


@pytest.mark.parametrize("cell", ["?", "-", "n/a", "missing", "#DIV/0!", "about 3", "5%", "12:30", "2026-01-01"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_one_odd_cell_leaves_a_column_of_numbers_one_of_numbers(tmp_path, caplog, cell, suffix):
    caplog.set_level(logging.INFO)
    gap = loaded(tmp_path, frame_of(c=with_cell("").astype(object)), suffix=".csv")
    seen = loaded(tmp_path, frame_of(c=with_cell(cell)), suffix=suffix)
    assert "c" in seen._encoder.numeric
    np.testing.assert_allclose(features(seen)["c"], features(gap)["c"], rtol=1e-6)
    told = [r.getMessage() for r in caplog.records if repr(cell) in r.getMessage()]
    assert len(told) == 1 or cell == "n/a"  # pandas itself takes "n/a" for missing; then it is among the gaps
    assert "missing values (c 1)" in caplog.text


@pytest.mark.parametrize(
    ("cells", "options", "value"),
    [
        (["1,5", "0,25"], {"decimal": ","}, [1.5, 0.25]),
        (["1,234", "12"], {"thousands": ","}, [1234.0, 12.0]),
        (["1,234.5", "12"], {"thousands": ","}, [1234.5, 12.0]),
        (["1.234,5", "12"], {"thousands": ".", "decimal": ","}, [1234.5, 12.0]),
        (["1.234", "12"], {"thousands": ".", "decimal": ","}, [1234.0, 12.0]),
        (["1 234", "12"], {}, [1234.0, 12.0]),
        (["1\u202f234,5", "12"], {"decimal": ","}, [1234.5, 12.0]),
        (["1'234.5", "12"], {}, [1234.5, 12.0]),
        (["5%", "12 %"], {}, [0.05, 0.12]),
        (["\u22125", "12"], {}, [-5.0, 12.0]),
        ([" 5 ", "1e3"], {}, [5.0, 1000.0]),
        (["99999999999999999999999", "12"], {}, [1e23, 12.0]),
        (["0 days 00:01:30", "1 days 00:00:00"], {}, [90.0, 86400.0]),
        (["00:01:30", "02:00:00"], {}, [90.0, 7200.0]),
    ],
)
def test_numbers_are_read_as_they_are_written_elsewhere(tmp_path, cells, options, value):
    data = loaded(tmp_path, frame_of(c=cells * (ROWS // 2)), **options)
    seen = data._frames[0]["c"].to_numpy()
    assert sorted(set(seen)) == pytest.approx(sorted(value))


@pytest.mark.parametrize("cell", ["1,5", "1,234", "1,234.5", "1.234,5", "1.234.567"])
@pytest.mark.parametrize("rows", [(7,), range(ROWS)])
def test_a_comma_that_can_be_read_in_two_ways_is_refused_with_the_option(tmp_path, cell, rows):
    with pytest.raises(ValueError, match=r"Column 'c' must hold numbers .*got '.*set `decimal` .*or `thousands`"):
        loaded(tmp_path, frame_of(c=with_cell(cell, rows)))
    assert "c=(other)" in loaded(tmp_path, frame_of(c=with_cell(cell, rows)), categorical=["c"]).feature_names


def test_a_column_that_is_half_numbers_is_a_category_and_told(tmp_path, caplog):
    column = ["A", "2", "3"] * (ROWS // 3)
    data = loaded(tmp_path, frame_of(c=column))
    assert {"c=2", "c=A"} <= set(data.feature_names)
    assert "'c' is used as a category: 67% of its values are numbers" in caplog.text
    listed = loaded(tmp_path, frame_of(c=column), numeric=["c", "x"])
    assert listed.feature_names == ["c", "x", "c=(missing)"]


def test_an_old_model_meets_a_file_with_an_odd_cell(tmp_path):
    first = loaded(tmp_path, frame_of(c=with_cell("")))
    second = loaded(tmp_path, frame_of(c=with_cell("?", range(0, ROWS, 3))))
    second.load_state_dict(first.state_dict())
    assert second.feature_names == first.feature_names
    assert features(second)["c=(missing)"].sum() == ROWS / 3


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ([decimal.Decimal("1.5"), None], [1.5]),
        ([datetime.timedelta(minutes=2), None], [120.0]),
        ([2**63 + 5, 2**64 - 5], [float(2**63), float(2**64)]),
    ],
    ids=["Decimal", "timedelta", "uint64"],
)
def test_numbers_of_parquet_are_numbers(tmp_path, column, value):
    data = loaded(tmp_path, frame_of(c=column * (ROWS // 2)), suffix=".parquet")
    assert "c" in data._encoder.numeric
    assert sorted(data._frames[0]["c"].dropna().unique()) == pytest.approx(value)


DATES = [datetime.datetime(2026, 1, 1, 12) + datetime.timedelta(hours=7 * i) for i in range(ROWS)]


@pytest.mark.parametrize(
    ("column", "suffix"),
    [
        (DATES, ".csv"),
        (DATES, ".parquet"),
        ([d.date() for d in DATES], ".csv"),
        ([d.date() for d in DATES], ".parquet"),
        ([d.isoformat() + "Z" for d in DATES], ".csv"),
        ([d.isoformat() for d in DATES], ".parquet"),
        ([f"{d:%d/%m/%Y}" for d in DATES], ".csv"),
        ([f"{d:%d.%m.%Y %H:%M}" for d in DATES], ".csv"),
        ([d.time() for d in DATES], ".parquet"),
    ],
)
def test_dates_are_refused_alike_in_csv_and_parquet(tmp_path, column, suffix):
    with pytest.raises(ValueError, match="Column 'c' must hold numbers or categories, got dates"):
        loaded(tmp_path, frame_of(c=column), suffix=suffix)
    assert "c=(other)" in loaded(tmp_path, frame_of(c=column), suffix=suffix, categorical=["c"]).feature_names


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("column", [DATES, [d.date() for d in DATES]])
def test_a_date_in_numeric_is_a_number_of_days(tmp_path, suffix, column):
    data = loaded(tmp_path, frame_of(c=column), suffix=suffix, numeric=["c", "x"])
    days = (pd.to_datetime(pd.Series(column)) - pd.Timestamp("1970-01-01")) / pd.Timedelta("1D")
    np.testing.assert_allclose(data._frames[0]["c"], days[data._parts[0]], rtol=1e-12)


def test_a_category_that_says_nothing_is_told(tmp_path, caplog):
    loaded(tmp_path, frame_of(c=[f"€{i}.50" for i in range(ROWS)]))
    assert "the category 'c' says little: 100% of the training rows" in caplog.text


# --- class names


@pytest.mark.parametrize("name", ["None", "NA", "nan", "null", "N/A", "NaN", "?", "-"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_class_keeps_its_name(tmp_path, caplog, name, suffix):
    frame = frame_of()
    frame["y"] = frame["y"].replace("no", name)
    data = loaded(tmp_path, frame, suffix=suffix)
    assert data.class_names == sorted([name, "yes"])
    assert sum(len(s) for s in (data.train_set, data.val_set, data.test_set)) == ROWS
    assert f"{name!r} is a class of 'y'" in caplog.text


def test_a_mark_among_numbers_is_no_class_and_an_empty_cell_never_is(tmp_path, caplog):
    rows = "".join(f"{y},{i}\n" for i, y in enumerate(["0", "1", "2.0"] * 20 + ["NA", ""]))
    data = loaded(tmp_path, "y,x\n" + rows)
    assert data.class_names == ["0", "1", "2"]
    assert "2 of 62 rows have no 'y'" in caplog.text
    rows = "".join(f"{y},{i}\n" for i, y in enumerate(["a", "NA"] * 20 + ["", " "]))
    assert loaded(tmp_path, "y,x\n" + rows).class_names == ["NA", "a"]


def test_leading_zeros_and_long_numbers_are_kept_in_class_names(tmp_path):
    names = ["007", "08", "9007199254740993", "9007199254740992"]
    rows = "".join(f"{y},{i}\n" for i, y in enumerate(names * 15))
    assert sorted(loaded(tmp_path, "y,x\n" + rows).class_names) == sorted(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decimal": ";"}, "`decimal` must be '.' or ',', got ';'"),
        ({"thousands": "."}, "`thousands` must be one sign other than `decimal`, got '.'"),
        ({"thousands": ""}, "`thousands` must be one sign other than `decimal`, got ''"),
    ],
)
def test_a_wrong_option_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        TabularDataModule("t.csv", "y", **arguments)
