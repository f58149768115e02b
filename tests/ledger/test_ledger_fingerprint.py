"""The data fingerprint: what it says, that reading changes nothing, that it alarms when, and only when, it should."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_hp.ledger.drift import Tolerance, cdf_distance
from lightning_hp.ledger.fingerprint import compare_fingerprints, data_fingerprint, model_fingerprint, space_fingerprint
from lightning_hp.training.data import standardise


def table(n: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    x = np.stack(
        [
            generator.normal(5, 2, n),
            generator.lognormal(0, 1.5, n),
            generator.standard_t(3, n),
            (generator.random(n) < 0.02) * generator.random(n),
            generator.integers(0, 4, n),
            np.full(n, 3.0),
        ],
        axis=1,
    )
    return torch.from_numpy(x).float(), torch.from_numpy(generator.integers(0, 5, n))


def test_fingerprint_states_the_moments_quantiles_and_shares_of_all_rows() -> None:
    x, y = table(397)  # no level of the quantiles falls on a row exactly
    found = data_fingerprint(DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True))
    assert (found["rows"], found["rows_exact"], found["sampled"]) == (397, True, 397)
    assert list(found["columns"]) == ["0", "1", "2", "3", "4", "5", "target"]
    for j in range(6):
        column, numbers = found["columns"][str(j)], x[:, j].double().numpy()
        assert column["dtype"] == "float32"
        assert column["count"] == 397
        np.testing.assert_allclose(column["mean"], numbers.mean(), rtol=2e-5)
        np.testing.assert_allclose(column["sd"], numbers.std(), rtol=2e-5, atol=1e-12)
        expected = np.quantile(numbers, np.linspace(0, 1, 21), method="inverted_cdf")
        np.testing.assert_allclose(column["quantiles"], expected, rtol=2e-5)
    shares = {str(k): float((y == k).float().mean()) for k in range(5)}
    assert found["columns"]["target"]["shares"] == pytest.approx(shares, abs=1e-5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_missing_and_infinite_values_are_counted_and_left_out() -> None:
    x = torch.tensor([[1.0], [float("nan")], [3.0], [float("inf")]])
    column = data_fingerprint([x])["columns"]["0"]
    assert (column["count"], column["missing"], column["mean"]) == (2, 2, 2.0)
    assert data_fingerprint([torch.full((3, 1), float("nan"))])["columns"]["0"]["count"] == 0


@pytest.mark.parametrize("kind", ["tensor", "pair", "mapping", "nested"])
def test_columns_are_named_by_the_structure_of_the_batch(kind: str) -> None:
    x, y = table(12)
    batch, names = {
        "tensor": (x, ["0", "5"]),
        "pair": ((x, y), ["0", "target"]),
        "mapping": ({"features": x, "age": y, "note": ["a"] * 12}, ["features[0]", "age"]),
        "nested": (({"a": x[:, 0]}, (x, y), y.numpy()), ["0.a", "1.1"]),
    }[kind]
    columns = list(data_fingerprint([batch])["columns"])
    assert (columns[0], columns[-1] if kind != "nested" else columns[-2]) == tuple(names)


def test_given_names_replace_the_positions() -> None:
    x, y = table(12)
    found = data_fingerprint([(x, y)], column_names=list("abcdef"))
    assert list(found["columns"]) == [*"abcdef", "target"]


def test_small_images_are_flattened_and_large_ones_become_channel_moments_of_each_row() -> None:
    torch.manual_seed(0)
    small, large = torch.rand(40, 1, 8, 8), torch.rand(40, 3, 16, 16)
    assert list(data_fingerprint([small])["columns"]) == [str(j) for j in range(64)]
    columns = data_fingerprint([large])["columns"]
    assert list(columns) == [f"channel {c} {part}" for part in ("mean", "sd") for c in range(3)]
    per_image = large.double().flatten(2).std(dim=2, correction=0)[:, 2]
    assert columns["channel 2 sd"]["mean"] == pytest.approx(float(per_image.mean()), rel=1e-5)
    assert columns["channel 2 sd"]["sd"] == pytest.approx(float(per_image.std(correction=0)), rel=1e-4)


def test_wide_and_ragged_rows_are_summarised_by_row() -> None:
    torch.manual_seed(0)
    wide = data_fingerprint([torch.rand(20, 1000)], max_columns=10)["columns"]
    assert list(wide) == ["0", "111", "222", "333", "444", "555", "666", "777", "888", "999", "row mean", "row sd"]
    ragged = data_fingerprint([torch.ones(4, 5), torch.ones(4, 7)])["columns"]
    assert list(ragged) == ["row mean", "row sd"]
    assert ragged["row mean"]["count"] == 8


class Augmented(Dataset[torch.Tensor]):
    """Draws from all three random states for each row."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index)]) + torch.randn(1) + random.random() + float(np.random.random())


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(50.0).unsqueeze(1))


def random_states() -> list[object]:
    return [random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("dies", [False, True])
def test_the_global_random_state_is_put_back_even_when_reading_fails(dies: bool) -> None:
    class Dying(Augmented):
        def __getitem__(self, index: int) -> torch.Tensor:
            if dies and index == 7:
                raise OSError("disk gone")
            return super().__getitem__(index)

    torch.manual_seed(3)
    before = random_states()
    if dies:
        with pytest.raises(OSError, match=r"disk gone"):
            data_fingerprint(DataLoader(Dying(), batch_size=4, shuffle=True))
    else:
        first = data_fingerprint(DataLoader(Dying(), batch_size=4, shuffle=True))
        torch.manual_seed(3)
        assert first == data_fingerprint(DataLoader(Dying(), batch_size=7))
    assert random_states() == before


def test_epochs_of_the_loader_are_what_they_would_have_been() -> None:
    x, _ = table(50)

    def orders(look: bool) -> list[float]:
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(5)
        weighted = WeightedRandomSampler(torch.ones(50), 50, generator=generator)
        loaders = [
            DataLoader(TensorDataset(x), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(4)),
            DataLoader(TensorDataset(x), batch_size=8, sampler=weighted),
        ]
        seen = []
        for loader in loaders:
            for _ in range(2):
                if look:
                    data_fingerprint(loader, max_rows=20)
                seen += [float(batch[0][0, 0]) for batch in loader]
        return seen

    assert orders(look=True) == orders(look=False)


def test_rows_are_those_that_the_sampler_draws_from() -> None:
    x = torch.arange(100.0).unsqueeze(1)
    part = SubsetRandomSampler(range(40))
    found = data_fingerprint(DataLoader(TensorDataset(x), batch_size=8, sampler=part))
    assert (found["rows"], found["rows_exact"]) == (40, True)
    assert found["columns"]["0"]["quantiles"][-1] == 39
    bulk = BatchSampler(RandomSampler(range(100)), 7, drop_last=False)
    whole = data_fingerprint(DataLoader(TensorDataset(x), sampler=bulk, batch_size=None))
    assert (whole["rows"], whole["columns"]["0"]["count"]) == (100, 100)
    rare = WeightedRandomSampler(torch.tensor([1.0] + [0.0] * 99), 200)
    assert data_fingerprint(DataLoader(TensorDataset(x), batch_size=8, sampler=rare))["columns"]["0"]["sd"] == 0


def test_a_bounded_pass_reads_no_more_rows_and_says_so() -> None:
    assert data_fingerprint(DataLoader(Stream(), batch_size=8), max_rows=20)["rows_exact"] is False
    found = data_fingerprint(DataLoader(Stream(), batch_size=8))
    assert (found["rows"], found["rows_exact"]) == (50, True)

    asked = []

    class Counting(Augmented):
        def __getitem__(self, index: int) -> torch.Tensor:
            asked.append(index)
            return torch.tensor([float(index)])

    found = data_fingerprint(DataLoader(Counting(), batch_size=8), max_rows=10)
    assert (found["rows"], found["sampled"], len(asked), len(set(asked))) == (30, 10, 10, 10)


def test_several_loaders_keep_their_columns_apart() -> None:
    x, y = table(20)
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    found = data_fingerprint({"near": loader, "far": loader})
    assert found["rows"] == 40
    assert {"near.0", "near.target", "far.5"} <= set(found["columns"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "`source` must be a DataModule"),
        ([], "at least one training row"),
        ([["text"]], "at least one tensor"),
    ],
)
def test_a_source_without_rows_is_refused(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_fingerprint(source)
    with pytest.raises(ValueError, match=r"`max_rows` must be a whole number from 2, got 1"):
        data_fingerprint(source, max_rows=1)


# --- comparing


def resample(rows: tuple[torch.Tensor, torch.Tensor], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.randint(len(rows[0]), (len(rows[0]),), generator=generator)
    return rows[0][index], rows[1][index]


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).float() / 16, torch.from_numpy(y)


@pytest.mark.parametrize("data", [pytest.param("digits", marks=pytest.mark.slow), "table", "middle", "small"])
def test_at_most_one_of_a_hundred_resamples_alarms(data: str) -> None:
    rows = {"digits": digits, "table": lambda: table(1000), "middle": lambda: table(200), "small": lambda: table(60)}[
        data
    ]()
    old = data_fingerprint([rows])
    generator = torch.Generator().manual_seed(11)
    alarms = sum(bool(compare_fingerprints(old, data_fingerprint([resample(rows, generator)]))) for _ in range(200))
    assert alarms <= 2


def test_fresh_draws_of_the_same_population_do_not_alarm_either() -> None:
    found = [data_fingerprint([table(500, seed=k)]) for k in range(400)]
    assert sum(bool(compare_fingerprints(old, new)) for old, new in zip(found[::2], found[1::2], strict=True)) <= 2


def test_a_change_of_contrast_brightness_noise_or_class_mix_is_named() -> None:
    x, y = digits()
    old = data_fingerprint([(x, y)])
    contrast = compare_fingerprints(old, data_fingerprint([(x * 0.6, y)]))
    assert len(contrast) > 30
    assert not any(drift.structural for drift in contrast)
    torch.manual_seed(0)
    noisy = compare_fingerprints(old, data_fingerprint([(x + 0.3 * torch.randn_like(x), y)]))
    assert {drift.statistic for drift in noisy} >= {"variance"} or {drift.statistic for drift in noisy} >= {"mean"}
    kept = (y >= 5) | (torch.arange(len(y)) % 3 == 0)
    mix = {drift.column: drift for drift in compare_fingerprints(old, data_fingerprint([(x[kept], y[kept])]))}
    assert "class mix moved" in mix["target"].sentence
    gone = compare_fingerprints(old, data_fingerprint([(x[y != 7], y[y != 7])]))
    assert gone[0].structural
    assert "class 7 is gone" in gone[0].sentence
    half = compare_fingerprints(old, data_fingerprint([(x[::2], y[::2])]))
    assert [drift.column for drift in half] == ["rows"]
    assert half[0].sentence == "rows: 1,797 became 899"


def test_the_sentence_gives_the_move_in_old_standard_deviations() -> None:
    x = torch.linspace(-1, 1, 1000).unsqueeze(1)
    sd = float(x.std(correction=0))
    (drift,) = compare_fingerprints(data_fingerprint([x]), data_fingerprint([x + 0.8 * sd]))
    assert drift.sentence == "column 0: mean moved by 0.8 sd"
    assert drift.moved == pytest.approx(0.8, abs=1e-3)
    assert (
        compare_fingerprints(
            data_fingerprint([x]), data_fingerprint([x + 0.8 * sd]), Tolerance(mean=0.9, distribution=0.9)
        )
        == []
    )


def test_columns_that_come_go_or_change_their_type_are_structural() -> None:
    x, y = table(100)
    old = data_fingerprint([(x, y)])
    sentences = {d.sentence: d.structural for d in compare_fingerprints(old, data_fingerprint([(x[:, :5], y.float())]))}
    assert sentences == {"column 5: gone": True, "column target: was int64, is float32": True}
    assert [d.sentence for d in compare_fingerprints(data_fingerprint([x[:, :5]]), data_fingerprint([x]))] == [
        "column 5: new"
    ]


def test_a_constant_column_that_changes_its_value_is_reported() -> None:
    old, new = data_fingerprint([torch.full((50, 1), 2.0)]), data_fingerprint([torch.full((50, 1), 2.5)])
    assert [d.sentence for d in compare_fingerprints(old, new)] == ["column 0: was 2 in every row, is 2.5"]
    torch.manual_seed(0)
    (drift,) = compare_fingerprints(old, data_fingerprint([torch.randn(50, 1) + 9]))
    assert "it was constant" in drift.sentence


def test_more_missing_values_are_reported() -> None:
    x = torch.linspace(0, 1, 500).unsqueeze(1)
    holes = x.clone()
    holes[::4] = float("nan")
    assert (
        "missing values went from 0% to 25%"
        in compare_fingerprints(data_fingerprint([x]), data_fingerprint([holes]))[0].sentence
    )


def test_the_distance_of_two_sketches_never_exceeds_the_true_one() -> None:
    generator = np.random.default_rng(0)
    for k in range(200):
        a = generator.normal(0, 1, 91) if k % 2 else generator.integers(0, 5, 91).astype(float)
        b = generator.normal(0.7, 1, 131) if k % 2 else generator.integers(0, 4, 131).astype(float)
        grid = np.concatenate([a, b])
        true = max(abs((a <= v).mean() - (b <= v).mean()) for v in grid)
        sketches = [np.quantile(v, np.linspace(0, 1, 21), method="inverted_cdf").tolist() for v in (a, b)]
        found = cdf_distance(*sketches)
        assert true - 0.11 <= found <= true + 1e-12


@pytest.mark.parametrize(("name", "value"), [("mean", 0.0), ("rows", 1.0), ("false_alarm", 1.0), ("classes", -1.0)])
def test_a_tolerance_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be"):
        Tolerance(**{name: value})


def test_something_else_than_a_fingerprint_is_refused() -> None:
    old = data_fingerprint([torch.ones(3, 1)])
    with pytest.raises(ValueError, match=r"`new` must be a data fingerprint of schema 1"):
        compare_fingerprints(old, {"schema": 2, "columns": {}})


# --- model and space

LOSS = object()


class Net:
    def __init__(self, units: int = 64, activation: type = torch.nn.ReLU, *, sizes: tuple[int, ...] = (1, 2)) -> None:
        self.units = units


def test_the_model_is_known_by_path_and_signature_not_by_its_values() -> None:
    text = f"{__name__}.Net(units=64, activation=ReLU, *, sizes=tuple(1, 2))"
    assert model_fingerprint(Net) == model_fingerprint(Net(3)) == text

    class Other(Net):
        def __init__(self, units: int = 64, depth: int = 2) -> None:
            super().__init__(units)

    assert model_fingerprint(Other).endswith("Other(units=64, depth=2)")


def test_no_address_of_an_object_enters_the_model_fingerprint() -> None:
    class Holder:
        def __init__(self, loss: object = LOSS) -> None:
            self.loss = loss

    assert "0x" not in model_fingerprint(Holder)


def test_the_space_fingerprint_ignores_order_and_sees_values() -> None:
    one = {"lr": {"low": 1e-4, "high": 1.0}, "units": {"choices": [1, 2]}}
    two = {"units": {"choices": [1, 2]}, "lr": {"high": 1.0, "low": 1e-4}}
    assert space_fingerprint(one) == space_fingerprint(two)
    assert space_fingerprint(one) != space_fingerprint({**one, "lr": {"low": 1e-5, "high": 1.0}})


def test_a_contrast_that_the_own_standardisation_undoes_is_no_drift_and_one_that_meets_constants_is() -> None:
    raw = np.random.default_rng(5).gamma(2.0, 3.0, (600, 4))

    def seen(rows: np.ndarray) -> dict[str, Any]:
        return data_fingerprint(DataLoader(TensorDataset(torch.from_numpy(rows)), batch_size=50))

    standardised = seen(standardise(raw)[0])
    assert compare_fingerprints(standardised, seen(standardise(0.5 * raw)[0])) == []
    constants = standardise(raw, 0.5 * raw)[1]  # scaled as on the day of the training
    assert {drift.column for drift in compare_fingerprints(standardised, seen(constants))} == {"0", "1", "2", "3"}


# --- counts are not classes


def counted(kind: str, n: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = {
        "poisson": lambda: rng.poisson(12, n),
        "more": lambda: rng.poisson(20, n),
        "lump at zero": lambda: np.where(rng.random(n) < 0.5, 0, rng.poisson(12, n)),
        "overdispersed": lambda: rng.negative_binomial(2, 0.1, n),
        "balance": lambda: rng.normal(0, 6, n).round().astype(np.int64),
        "balanced classes": lambda: rng.integers(0, 20, n),
        "unequal classes": lambda: rng.choice(20, n, p=np.random.default_rng(1).dirichlet(np.ones(20))),
        "long tail": lambda: rng.choice(40, n, p=np.random.default_rng(1).permutation(1 / np.arange(1, 41)) / 4.278543),
    }[kind]()
    return torch.from_numpy(np.asarray(values, dtype=np.int64))


def drifts(old: torch.Tensor, new: torch.Tensor) -> list[Any]:
    x = torch.zeros(len(old), 1)
    first, second = (data_fingerprint(DataLoader(TensorDataset(x, y), 64)) for y in (old, new))
    return [drift for drift in compare_fingerprints(first, second) if drift.column == "target"]


@pytest.mark.parametrize("kind", ["poisson", "lump at zero", "overdispersed", "balance"])
@pytest.mark.parametrize("seed", range(5))
def test_a_count_that_drifts_is_a_number_that_moved(kind: str, seed: int) -> None:
    old = counted(kind, 1500, seed)
    (drift,) = drifts(old, old + 5)
    assert not drift.structural
    assert drift.statistic in ("mean", "distribution")
    assert "class" not in drift.sentence
    assert drifts(old, counted(kind, 1500, 1000 + seed)) == []


def test_a_count_that_grows_beyond_what_it_was_is_no_new_class() -> None:
    (drift,) = drifts(counted("poisson", 1500, 0), counted("more", 1500, 0))
    assert (drift.structural, drift.statistic) == (False, "mean")


@pytest.mark.parametrize("kind", ["balanced classes", "unequal classes", "long tail"])
@pytest.mark.parametrize("seed", range(5))
def test_classes_stay_classes(kind: str, seed: int) -> None:
    old, new = counted(kind, 1500, seed), counted(kind, 1500, 1000 + seed)
    assert drifts(old, new) == []
    new[:100] = 63
    (drift,) = drifts(old, new)
    assert (drift.structural, drift.sentence) == (True, "column target: class 63 is new (7% of the rows)")
