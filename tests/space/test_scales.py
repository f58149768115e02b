"""Scales against closed forms: equal mass per decade, inverses, bounds."""

import math

import numpy as np
import pytest
from scipy.stats import kstest

from lightning_hp.space.scales import check_bounds, from_unit, one_minus, sample, to_unit

RANGES = [
    (0.000043, 12.5, "log"),
    (1e-10, 1e-3, "log"),
    (0.9, 0.999, "one_minus_log"),
    (0.9, 0.9999, "one_minus_log"),
    (0.0, 0.99, "one_minus_log"),
    (-3.0, 0.5, "one_minus_log"),
    (-2.0, 7.0, "linear"),
    (0.0, 0.5, "linear"),
]


def distribution_function(x: float, low: float, high: float, scale: str) -> float:
    """Written out from the definition: r uniform, value = low + r (high - low), 10^r or 1 - 10^r."""
    if scale == "linear":
        return (x - low) / (high - low)
    if scale == "log":
        return math.log10(x / low) / math.log10(high / low)
    return math.log10((1 - low) / (1 - x)) / math.log10((1 - low) / (1 - high))


@pytest.mark.parametrize(("low", "high", "scale"), RANGES)
def test_draws_follow_the_closed_form(low, high, scale):
    draws = sample(low, high, 4000, scale, rng=1)
    assert draws.shape == (4000,)
    assert draws.min() >= low
    assert draws.max() <= high
    cdf = np.vectorize(lambda x: distribution_function(x, low, high, scale))
    assert kstest(draws, cdf).pvalue > 0.01


@pytest.mark.parametrize(("low", "high", "scale"), RANGES)
def test_to_unit_is_the_distribution_function_and_from_unit_its_inverse(low, high, scale):
    unit = np.linspace(0, 1, 41)
    values = from_unit(unit, low, high, scale)
    assert values[0] == pytest.approx(low, rel=1e-12, abs=1e-15)
    assert values[-1] == pytest.approx(high, rel=1e-12)
    assert np.all(np.diff(values) > 0)
    np.testing.assert_allclose(to_unit(values, low, high, scale), unit, atol=1e-12)
    inner = [distribution_function(x, low, high, scale) for x in values[1:-1]]
    np.testing.assert_allclose(inner, unit[1:-1], atol=1e-9)


def test_one_minus_log_gives_each_decade_the_same_mass():
    draws = sample(0.9, 0.999, 20_000, "one_minus_log", rng=0)
    assert np.mean(draws < 0.99) == pytest.approx(0.5, abs=0.012)
    draws = sample(0.9, 0.9999, 30_000, "one_minus_log", rng=0)
    shares = np.histogram(draws, [0.9, 0.99, 0.999, 0.9999])[0] / 30_000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.012)


def test_log_gives_each_decade_the_same_mass():
    decades = np.histogram(sample(1e-4, 1, 40_000, "log", rng=0), 10.0 ** np.arange(-4, 1))[0] / 40_000
    np.testing.assert_allclose(decades, 0.25, atol=0.012)


def test_plain_log_of_a_momentum_range_is_almost_uniform():
    draws = sample(0.9, 0.999, 20_000, "log", rng=0)
    below = math.log(0.99 / 0.9) / math.log(0.999 / 0.9)  # closed form
    assert below == pytest.approx(0.913, abs=1e-3)
    assert np.mean(draws < 0.99) == pytest.approx(below, abs=0.01)
    # furthest that its distribution function ever is from the uniform one
    grid = np.linspace(0.9, 0.999, 1001)
    gap = np.abs(np.log(grid / 0.9) / np.log(0.999 / 0.9) - (grid - 0.9) / 0.099)
    assert gap.max() < 0.02


def test_values_outside_are_clipped():
    np.testing.assert_array_equal(to_unit([-1.0, 20.0], 0.1, 10.0, "log"), [0.0, 1.0])
    np.testing.assert_array_equal(to_unit([1.0, 0.1], 0.9, 0.999, "one_minus_log"), [1.0, 0.0])


def test_a_seed_repeats_and_a_generator_moves_on():
    assert np.array_equal(sample(1, 2, 5, "log", rng=3), sample(1, 2, 5, "log", rng=3))
    generator = np.random.default_rng(3)
    first, second = sample(1, 2, 5, "log", rng=generator), sample(1, 2, 5, "log", rng=generator)
    assert not np.array_equal(first, second)
    assert sample(1, 2, 0, "log").shape == (0,)


def test_one_minus_keeps_twelve_decimals_and_goes_back():
    assert one_minus(0.999) == 0.001
    for value in (0.9, 0.99, 0.999, 0.9999, 0.123456789):
        assert one_minus(one_minus(value)) == value


@pytest.mark.parametrize(
    ("low", "high", "scale", "said"),
    [
        (1.0, 1.0, "log", "`lr` must have low < high, got low=1.0, high=1.0"),
        (2.0, 1.0, "linear", "`lr` must have low < high, got low=2.0, high=1.0"),
        (0.0, 1.0, "log", "`lr` must have low > 0 on the log scale, got low=0.0"),
        (-1.0, 1.0, "log", "`lr` must have low > 0 on the log scale, got low=-1.0"),
        (0.9, 1.0, "one_minus_log", "`lr` must have high < 1 on the one_minus_log scale, got high=1.0"),
        (0.9, math.inf, "linear", "`lr` must have finite bounds, got low=0.9, high=inf"),
        (math.nan, 1.0, "linear", "`lr` must have finite bounds, got low=nan, high=1.0"),
        (0.9, 1.0, "sqrt", "`lr.scale` must be one of linear, log, one_minus_log, got 'sqrt'"),
    ],
)
def test_bad_bounds_are_named(low, high, scale, said):
    with pytest.raises(ValueError, match="^" + said.replace("(", r"\(").replace(".", r"\.") + "$"):
        check_bounds(low, high, scale, "lr")


def test_sample_checks_its_arguments():
    with pytest.raises(ValueError, match=r"must have low > 0 on the log scale, got low=0"):
        sample(0, 1, 3)
    with pytest.raises(ValueError, match="`n` must be at least 0, got -1"):
        sample(1, 2, -1)
