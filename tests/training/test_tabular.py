import logging
import runpy

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from lightning_hp.training import BatchNormClassifier, BatchNormRegressor, TabularDataModule
from lightning_hp.training.encoding import MAX_CATEGORIES, TableEncoder, as_texts
from lightning_hp.training.sampling import split_rows
from lightning_hp.training.tabular import _say_once


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    _say_once.cache_clear()


def trainer(**arguments):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return pl.Trainer(**{**quiet, "enable_model_summary": False, "num_sanity_val_steps": 0, **arguments})


def table(rows=200):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": rng.normal(40, 10, rows),
            "count": rng.integers(0, 9, rows),
            "colour": rng.choice(["red", "green", "blue"], rows),
            "new": rng.random(rows) < 0.5,
        }
    )
    frame.loc[rng.choice(rows, 20, replace=False), "age"] = np.nan
    frame.loc[rng.choice(rows, 20, replace=False), "colour"] = None
    frame["price"] = 3000 + 200 * frame["count"] + 500 * (frame["colour"] == "red") + rng.normal(0, 20, rows)
    frame["kind"] = np.where(frame["price"] > 3900, "dear", "cheap")
    return frame


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "t.csv"
    table().to_csv(file, index=False)
    return str(file)


def test_the_encoding_equals_scikit_learns_fitted_on_the_training_rows(path):
    data = TabularDataModule(path, "kind", numeric=["age", "count"], categorical=["colour", "new"], split_seed=4)
    data.setup()
    frame = pd.read_csv(path)
    labels = (frame["kind"] == "dear").to_numpy().astype(np.int64)  # cheap 0, dear 1: the alphabet's order
    train, val, test = split_rows(len(frame), 0.2, 0.2, 4, labels)
    fill = SimpleImputer(strategy="median").fit(frame.loc[train, ["age", "count"]])
    scale = StandardScaler().fit(fill.transform(frame.loc[train, ["age", "count"]]))
    texts = frame[["colour", "new"]].astype("string").fillna("(missing)").astype(object)
    one_hot = OneHotEncoder(sparse_output=False).fit(texts.loc[train])
    assert data.feature_names == [
        *("age", "count", "age=(missing)"),
        *("colour=(missing)", "colour=blue", "colour=green", "colour=red", "colour=(other)"),
        *("new=False", "new=True", "new=(other)"),
    ]
    for split, rows in ((data.train_set, train), (data.val_set, val), (data.test_set, test)):
        x, y = (t.numpy() for t in split.tensors)
        np.testing.assert_allclose(
            x[:, :2], scale.transform(fill.transform(frame.loc[rows, ["age", "count"]])), atol=1e-5
        )
        np.testing.assert_array_equal(x[:, 2], frame.loc[rows, "age"].isna())
        np.testing.assert_array_equal(x[:, [3, 4, 5, 6, 8, 9]], one_hot.transform(texts.loc[rows]))
        assert not x[:, [7, 10]].any()
        np.testing.assert_array_equal(y, labels[rows])
    assert (data.num_features, data.num_classes, data.class_names) == (11, 2, ["cheap", "dear"])
    assert (data.num_targets, data.target_mean, data.target_scale) == (None, None, None)


def test_values_unseen_or_rare_in_training_are_other():
    train = pd.DataFrame({"c": ["a", "a", "b", "b", "once"]})
    encoder = TableEncoder.fit(train, [], ["c"])
    assert encoder.feature_names == ["c=a", "c=b", "c=(other)"]
    assert encoder.transform(pd.DataFrame({"c": ["b", "new", None, "once", "a"]})).tolist() == [
        [0, 1, 0],
        [0, 0, 1],
        [0, 0, 1],
        [0, 0, 1],
        [1, 0, 0],
    ]


def test_only_the_most_frequent_of_many_values_are_kept():
    values = [f"v{i:03d}" for i in range(MAX_CATEGORIES + 9) for _ in range(2 + (i < 5))]
    (kept,) = TableEncoder.fit(pd.DataFrame({"c": values}), [], ["c"]).categories
    assert len(kept) == MAX_CATEGORIES
    assert {f"v{i:03d}" for i in range(5)} <= set(kept)


def test_numbers_as_categories_read_alike_with_and_without_missing_values():
    with_gap, without = pd.DataFrame({"c": [1.0, np.nan, 2.5]}), pd.DataFrame({"c": [1, 2]})
    assert as_texts(with_gap, "c").tolist() == ["1", "(missing)", "2.5"]
    assert as_texts(without, "c").tolist() == ["1", "2"]


def test_infinite_empty_and_constant_columns_stay_finite():
    train = pd.DataFrame({"inf": [1.0, np.inf, 3.0], "none": [np.nan] * 3, "same": [7.0] * 3})
    encoded = TableEncoder.fit(train, ["inf", "none", "same"], []).transform(train)
    assert np.isfinite(encoded).all()
    assert encoded[1].tolist() == [0, 0, 0, 1, 1]  # the median is the mean here; then the two markers


def test_parquet_gives_the_same_tensors_as_csv(path, tmp_path):
    pd.read_csv(path).to_parquet(tmp_path / "t.parquet")
    ours, theirs = TabularDataModule(path, "kind"), TabularDataModule(str(tmp_path / "t.parquet"), "kind")
    for data in (ours, theirs):
        data.setup()
    torch.testing.assert_close(ours.train_set.tensors, theirs.train_set.tensors)


def test_columns_are_chosen_by_what_they_hold_or_by_the_lists(path):
    assert TabularDataModule(path, "kind").feature_names[:3] == ["age", "count", "price"]
    assert TabularDataModule(path, "kind", categorical=["count"]).feature_names[:2] == ["age", "price"]
    assert TabularDataModule(path, "kind", numeric=["price"], categorical=[]).feature_names == ["price"]


def test_rows_without_a_target_are_dropped_and_said_once(tmp_path, caplog):
    frame = table()
    frame.loc[[3, 5, 8], "kind"] = None
    frame.to_csv(tmp_path / "t.csv", index=False)
    for _ in range(2):
        data = TabularDataModule(str(tmp_path / "t.csv"), "kind")
        data.setup()
    assert sum(len(s) for s in (data.train_set, data.val_set, data.test_set)) == 197
    assert [r.getMessage() for r in caplog.records if "left out" in r.getMessage()] == [
        f"{tmp_path / 't.csv'}: 3 of 200 rows have no 'kind' and are left out"
    ]


def test_missing_values_are_said(path, caplog):
    with caplog.at_level(logging.INFO):
        TabularDataModule(path, "kind").setup()
    assert "missing values (age 20, colour 20)" in caplog.text


def test_numeric_classes_are_numbered_by_size(tmp_path):
    pd.DataFrame({"x": range(30), "y": [10, 9, 100] * 10}).to_csv(tmp_path / "t.csv", index=False)
    assert TabularDataModule(str(tmp_path / "t.csv"), "y").class_names == ["9", "10", "100"]


def test_a_regression_is_learned_in_the_targets_unit(path):
    pl.seed_everything(0)
    data = TabularDataModule(path, "price", task="regression", numeric=["age", "count"], batch_size=16)
    model = BatchNormRegressor(hidden_units=32, learning_rate=0.05)
    t = trainer(max_epochs=25)
    t.fit(model, data)
    train = data.train_set.tensors[1].double()
    assert model.hparams["target_mean"] == pytest.approx(train.mean().item())
    assert model.hparams["target_scale"] == pytest.approx(train.std(correction=0).item())
    assert (data.num_targets, data.num_classes) == (1, None)
    assert float(t.callback_metrics["val_r2"]) > 0.8


def test_an_old_model_sees_new_data_as_it_saw_its_own(path, tmp_path):
    t = trainer(max_epochs=1)
    first = TabularDataModule(path, "kind")
    t.fit(BatchNormClassifier(), first)
    t.save_checkpoint(tmp_path / "m.ckpt")
    moved = pd.read_csv(path)
    moved["age"] += 100.0
    moved.to_csv(tmp_path / "new.csv", index=False)
    second = TabularDataModule(str(tmp_path / "new.csv"), "kind")
    second.setup()
    age = second.feature_names.index("age")
    assert abs(second.train_set.tensors[0][:, age].mean()) < 1e-5
    trainer().test(BatchNormClassifier(), second, ckpt_path=tmp_path / "m.ckpt", weights_only=True, verbose=False)
    scale = first._encoder.scales[age]
    shift = second.test_set.tensors[0][:, age] - first.test_set.tensors[0][:, age]
    seen = ~second._frames[2]["age"].isna().to_numpy()
    np.testing.assert_allclose(shift[seen], 100 / scale, rtol=1e-4)


def test_the_pumps_file_is_what_its_script_makes_and_can_be_learned(request, monkeypatch):
    folder = request.config.rootpath / "configs" / "tabular"
    made = runpy.run_path(str(folder / "make_pumps.py"))["make_csv"]()
    assert (folder / "pumps.csv").read_text(encoding="utf-8") == made
    pl.seed_everything(0)
    data = TabularDataModule(str(folder / "pumps.csv"), "fault", batch_size=32)
    t = trainer(max_epochs=12)
    model = BatchNormClassifier(hidden_units=32, weight_decay=1e-2)
    t.fit(model, data)
    majority = np.bincount(data.test_set.tensors[1]).max() / len(data.test_set)
    assert t.test(model, data, verbose=False)[0]["test_accuracy"] > majority + 0.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "absent.csv"}, r"`path` must be an existing CSV or Parquet file, got 'absent\.csv' \(looked for /"),
        (
            {"target": "prize"},
            r"`target` must be a column of the table \(age, count, colour, new, price, kind\), got 'prize'",
        ),
        ({"numeric": ["aeg"]}, r"`numeric` must be a column of the table \(age, .*\), got 'aeg'"),
        ({"numeric": ["colour"]}, "`numeric` column 'colour' must hold numbers, got '(red|green|blue)'"),
        ({"numeric": ["age", "kind"]}, "`numeric` must not contain the target, got 'kind'"),
        (
            {"numeric": ["age"], "categorical": ["age"]},
            "`numeric` and `categorical` must have no column in common, got 'age'",
        ),
        ({"numeric": [], "categorical": []}, "`path` must have a column beside the target 'kind', got none to use"),
        ({"task": "regression"}, "`target` column 'kind' must hold numbers, got 'cheap'|got 'dear'"),
        (
            {"target": "price"},
            r"`task` must be 'regression' for a column of fractions, .* 'price' with 200 distinct values",
        ),
        ({"separator": ";"}, r"`target` must be a column of the table \(age,count,.*\), got 'kind'"),
        ({"task": "ranking"}, "`task` must be one of classification, regression, got 'ranking'"),
    ],
)
def test_a_user_error_is_one_line(path, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        TabularDataModule(**{"path": path, "target": "kind", **arguments}).setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "`path` must be a readable CSV file, got .*: No columns to parse from file"),
        ("t.csv", b"a,b\n", "`path` must hold at least one row, got .* without any"),
        ("t.csv", b'a,b\n1,2\n"3,4,5\n6', "`path` must be a readable CSV file, got .*: .*EOF"),
        ("t.csv", b"\xff\xfe\x00a,b\n\x80", "`path` must be a readable CSV file, got .*: .*codec"),
        ("t.csv", b"a,kind\n1,x\n2,x\n", "`target` column 'kind' must have at least 2 classes, got 1"),
        ("t.csv", b"a,kind\n1,\n2,\n", "`target` column 'kind' must have at least 2 classes, got 0"),
        ("t.csv", b"a,kind\n1,x\n2,y\n", "The validation split must have at least 2 rows, got 0"),
        ("t.parquet", b"no parquet", "`path` must be a readable Parquet file, got .*: "),
    ],
)
def test_a_bad_file_is_said_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        TabularDataModule(str(tmp_path / name), "kind").setup()
    assert "\n" not in str(caught.value)


def test_dates_are_refused_by_name(tmp_path):
    frame = table()
    frame["when"] = pd.Timestamp("2026-01-01")
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="Column 'when' must hold numbers or categories, got dates"):
        TabularDataModule(str(tmp_path / "t.parquet"), "kind").setup()
