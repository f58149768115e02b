"""The three forms of a value (natural, stored, unit) and the way between them."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hp.space.conditions import Condition
from lightning_hp.space.fields import number_or_text
from lightning_hp.space.parameters import Choice, Float, Int

LR = Float("lr", 1e-4, 1.0, "log", "A", 1e-2)
MOMENTUM = Float("momentum", 0.9, 0.999, "one_minus_log", "B", 0.9)
UNITS = Int("units", 16, 256, "linear", "B", 64)
WIDTH = Int("width", 1, 100, "log", "B", 10)
BATCH = Choice("batch_size", (32, 64, 128, 256), "B", 64)
KIND = Choice("kind", ("relu", "tanh", "gelu"), "B", "relu")
ALL = [LR, MOMENTUM, UNITS, WIDTH, BATCH, KIND]


@pytest.mark.parametrize("parameter", ALL, ids=lambda p: p.name)
def test_every_unit_point_is_stored_within_the_distribution_and_comes_back(parameter):
    for unit in np.linspace(0, 1, 201):
        stored = parameter.at(float(unit))
        assert parameter.distribution._contains(parameter.distribution.to_internal_repr(stored))
        assert (
            parameter.store(parameter.natural(stored)) == pytest.approx(stored, rel=1e-9)
            if isinstance(stored, float)
            else parameter.store(parameter.natural(stored)) == stored
        )
        back = float(parameter.unit([stored])[0])
        assert parameter.at(back) == pytest.approx(stored, rel=1e-9) if isinstance(stored, float) else stored
        if isinstance(parameter, Float):
            assert back == pytest.approx(unit, abs=1e-9)


def test_what_optuna_stores():
    assert LR.distribution == FloatDistribution(1e-4, 1.0, log=True)
    assert MOMENTUM.distribution == FloatDistribution(0.001, 0.1, log=True)
    assert MOMENTUM.stored_name == "one_minus_momentum"
    assert MOMENTUM.store(0.93) == 0.07
    assert MOMENTUM.natural(0.07) == 0.93
    assert UNITS.distribution == IntDistribution(16, 256)
    assert WIDTH.distribution == IntDistribution(1, 100, log=True)
    assert BATCH.distribution == CategoricalDistribution((32, 64, 128, 256))


def test_unit_axes_rise_with_the_natural_value():
    for parameter in (LR, MOMENTUM, UNITS, WIDTH):
        natural = [parameter.natural(parameter.at(u)) for u in np.linspace(0, 1, 30)]
        assert natural == sorted(natural)


@pytest.mark.parametrize("parameter", [UNITS, BATCH, KIND, Int("layers", 1, 4, "linear", "C", 2)], ids=lambda p: p.name)
def test_discrete_values_own_equal_parts_of_the_axis(parameter):
    units = (np.arange(parameter.cardinality * 50) + 0.5) / (parameter.cardinality * 50)
    _, counts = np.unique([str(parameter.at(float(u))) for u in units], return_counts=True)
    assert set(counts) == {50}


def test_whole_numbers_on_log_own_their_part_of_the_log_axis():
    units = (np.arange(20_000) + 0.5) / 20_000
    share = np.mean([WIDTH.at(float(u)) == 1 for u in units])
    assert share == pytest.approx(np.log(1.5 / 0.5) / np.log(100.5 / 0.5), abs=1e-3)


def test_natural_values_outside_are_clipped():
    assert LR.store(5.0) == 1.0
    assert MOMENTUM.store(0.5) == 0.1
    assert UNITS.store(1000) == 256
    assert KIND.store("sine") == "relu"


@pytest.mark.parametrize(
    ("choices", "categorical"),
    [
        ((32, 64, 128), False),
        ((0.1, 0.2), False),
        ((64, 32), True),
        (("a", "b"), True),
        ((True, False), True),
        ((1, "a"), True),
    ],
)
def test_rising_numbers_are_ordered(choices, categorical):
    assert Choice("c", choices, default=choices[0]).is_categorical is categorical


@pytest.mark.parametrize(
    ("text", "operator", "value"),
    [
        (">= 3", ">=", 3),
        ("<3.5", "<", 3.5),
        ("!= relu", "!=", "relu"),
        ("==2", "==", 2),
        ("relu", "==", "relu"),
        (4, "==", 4),
        ("> 1e-4", ">", 1e-4),
        ("<=7", "<=", 7),
    ],
)
def test_conditions_are_read(text, operator, value):
    assert Condition.parse("layers", text, "w") == Condition("layers", operator, value)


def test_conditions_hold():
    values = {"layers": 3}
    table = {">=": True, "<=": True, "!=": False, "==": True, ">": False, "<": False}
    for operator, holds in table.items():
        assert Condition("layers", operator, 3).holds(values) is holds
    with pytest.raises(ValueError, match="`w` must be an operator and a value such as '>= 3', got '>='"):
        Condition.parse("layers", ">=", "w")


def test_yaml_numbers_that_arrive_as_text():
    assert number_or_text("1e-4") == 1e-4
    assert number_or_text("3") == 3
    assert number_or_text("relu") == "relu"
    assert number_or_text(None) is None


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        (Float("lr", 0.1, 1.0, "log", "A", 2.0), r"`p\.default` must be within \[0\.1, 1\.0\], got 2\.0"),
        (Int("n", 1, 4, "linear", "A", 9), r"`p\.default` must be a whole number within \[1, 4\], got 9"),
        (Int("n", 1, 4, "linear", "A", 2.5), r"`p\.default` must be a whole number within \[1, 4\], got 2\.5"),
        (Int("n", 1, 4, "one_minus_log", "A", 2), r"`p\.scale` must be linear or log for whole numbers"),
        (Int("n", 0, 4, "log", "A", 2), r"`p` must have low > 0 on the log scale, got low=0"),
        (Choice("c", (), "A", None), r"`p\.choices` must have at least one value, got \[\]"),
        (
            Choice("c", ((1, 2),), "A", (1, 2)),
            r"`p\.choices` must be numbers, texts, booleans or null, or .*, got \(1, 2\)",
        ),
        (Choice("c", (1, 1), "A", 1), r"`p\.choices` must be different from each other, got \[1, 1\]"),
        (Choice("c", (1, True), "A", 1), r"`p\.choices` must be different from each other, got \[1, True\]"),
        (Choice("c", (1, 2), "A", 3), r"`p\.default` must be one of \[1, 2\], got 3"),
    ],
)
def test_bad_parameters_are_named(parameter, said):
    with pytest.raises(ValueError, match="^" + said):
        parameter.check("p")
