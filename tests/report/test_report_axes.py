"""Ticks lie where their labels say; values are as short as can be told apart."""

import numpy as np
import pytest

from lightning_hp.report.axes import duration_text, ends_text, number_text, range_text, ticks, value_text
from lightning_hp.space.parameters import Choice, Float, Int
from lightning_hp.space.space import SearchSpace

RANGES = [
    Float("lr", 1e-4, 1.0, "log"),
    Float("odd", 0.000043, 12.5, "log"),
    Float("narrow", 0.02, 0.05, "log"),
    Float("hair", 0.0301, 0.0302, "log"),
    Float("momentum", 0.9, 0.999, "one_minus_log"),
    Float("beta2", 0.9, 0.9999, "one_minus_log"),
    Float("beta1", 0.8, 0.95, "one_minus_log"),
    Float("dropout", 0.0, 0.5),
    Float("shifted", -3.7, 41.2),
    Int("units", 16, 256),
    Int("layers", 1, 4),
    Int("wide", 1, 4096, "log"),
]


@pytest.mark.parametrize("parameter", RANGES, ids=lambda p: p.name)
@pytest.mark.parametrize("most", [2, 4, 6])
def test_ticks_lie_where_their_labels_say(parameter, most):
    positions, labels = ticks(parameter, most)
    assert 1 <= len(positions) == len(labels) <= most + 1
    assert positions == sorted(positions)
    assert len(set(labels)) == len(labels)
    back = parameter.unit([parameter.store(float(text)) for text in labels])
    assert back == pytest.approx(positions, abs=2e-3)


@pytest.mark.parametrize(
    ("index", "labels"),
    [
        (0, ["0.0001", "0.001", "0.01", "0.1", "1"]),
        (4, ["0.9", "0.99", "0.999"]),
        (7, ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]),
        (9, ["50", "100", "150", "200", "250"]),
        (10, ["1", "2", "3", "4"]),
    ],
)
def test_ticks_are_round(index, labels):
    assert ticks(RANGES[index])[1] == labels


def test_every_choice_or_an_even_part_of_them_is_labelled():
    assert ticks(Choice("batch", (32, 64, 128, 256)))[1] == ["32", "64", "128", "256"]
    positions, labels = ticks(Choice("many", tuple("abcdefghijkl")), 6)
    assert labels == ["a", "c", "e", "g", "i", "k"]
    assert np.allclose(np.diff(positions), 2 / 12)


def test_values_near_one_are_told_apart():
    beta = Float("beta2", 0.9, 0.99999, "one_minus_log")
    assert value_text(beta, 0.9990) == "0.999"
    assert value_text(beta, 0.99951) == "0.99951"
    assert value_text(beta, 0.999512) != value_text(beta, 0.999517) or value_text(beta, 0.999512) == "0.99951"
    assert value_text(beta, 0.9) == "0.9"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.056294, "0.05629"),
        (135, "135"),
        (2.0, "2"),
        (1e-4, "0.0001"),
        (2.4341e-6, "2.434e-6"),
        (1e-10, "1e-10"),
        (123456.7, "123457"),
        (None, "–"),
        (float("inf"), "inf"),
        (True, "True"),
        ("sgd", "sgd"),
    ],
)
def test_number_text(value, text):
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.31, "8.3 s"), (250, "4 min 10 s"), (59.99, "60.0 s"), (7500, "2 h 05 min"), (273_600, "3 d 4 h"), (None, "–")],
)
def test_duration_text(seconds, text):
    assert duration_text(seconds) == text


def test_lists_and_blocks_are_shown_by_their_labels():
    blocks = [{"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}, {"class_path": "torch.optim.Adam"}]
    parameter = SearchSpace.from_dict({"optimizer": {"choices": [*blocks, [1, 2]]}})["optimizer"]
    assert ticks(parameter) == (pytest.approx([1 / 6, 1 / 2, 5 / 6]), ["SGD(lr=0.1)", "Adam()", "[1, 2]"])
    assert value_text(parameter, blocks[0]) == "SGD(lr=0.1)"
    assert value_text(parameter, [3]) == "[3]"  # of an older study


@pytest.mark.parametrize(
    "fields",
    [
        {"low": 0.9, "high": 1 - 1e-12, "scale": "one_minus_log"},
        {"low": 5e-324, "high": 1.7e308, "scale": "log"},
        {"low": -8e307, "high": 8e307},
        {"low": 0.0, "high": 1e-300},
        {"low": -(10**12), "high": 10**12},
        {"low": 1, "high": 10**12, "scale": "log"},
    ],
)
def test_axes_of_extreme_ranges_have_ticks_inside(fields):
    parameter = SearchSpace.from_dict({"x": fields})["x"]
    positions, texts = ticks(parameter)
    assert len(positions) == len(texts) >= 2
    assert all(0 <= position <= 1 for position in positions)


def test_choices_that_are_blocks_are_shown_by_their_labels():
    sgd, adam = ({"class_path": f"torch.optim.{name}", "init_args": {"lr": 0.1}} for name in ("SGD", "Adam"))
    parameter = SearchSpace.from_dict({"optimizer": {"choices": [sgd, adam], "tier": "A"}})["optimizer"]
    assert value_text(parameter, adam) == "Adam(lr=0.1)"
    assert ticks(parameter) == ([0.25, 0.75], ["SGD(lr=0.1)", "Adam(lr=0.1)"])
    assert range_text(parameter) == "SGD(lr=0.1), Adam(lr=0.1)"
    assert ends_text(parameter, 0.0, 1.0) == "SGD(lr=0.1) to Adam(lr=0.1)"
