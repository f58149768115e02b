"""The surrogate against scikit-learn, finite differences, and data that breaks careless code."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from lightning_hp.search.surrogate import (
    FAR,
    LENGTH_SCALE,
    SHARED,
    TREND,
    TREND_SCALE,
    GaussianProcess,
    Priors,
    _squares,
    compress,
    fit,
    negative_log_posterior,
)

TIERS = ("A", "B", "C", "D")
GROUPS = np.arange(5)  # four parameters and the training fraction


def _data(n=40, seed=0, noise=0.01):
    rng = np.random.default_rng(seed)
    features = rng.random((n, 5))
    return features, np.sin(6 * features[:, 0]) + 0.5 * features[:, 1] + noise * rng.standard_normal(n)


FLAT = 1e9  # a length scale on which nothing changes


def _matern(*scales):
    return Matern(scales, "fixed", nu=2.5)


def _constant(value):
    return ConstantKernel(value, "fixed")


def _theta():
    return np.log([0.4, 0.8, 1.1, 1.7, 0.9, 1.3, 0.02])


def test_prediction_equals_scikit_learn_at_fixed_hyperparameters():
    features, targets = _data()
    ours = GaussianProcess(features, targets, GROUPS, Priors.of_tiers(TIERS), _theta())
    kernel = _matern(0.4, 0.8, 1.1, 1.7, FLAT) * (_constant(SHARED) + _constant(1 - SHARED) * _matern(*[FLAT] * 4, 0.9))
    kernel = _constant(1.3) * kernel + _constant(TREND) * _matern(*[FLAT] * 4, TREND_SCALE)
    unit = targets.std()
    theirs = GaussianProcessRegressor(kernel, alpha=0.02 + 1e-8, optimizer=None)
    theirs.fit(features, (targets - targets.mean()) / unit)
    queries = np.random.default_rng(1).random((30, 5))
    mean, deviation = theirs.predict(queries, return_std=True)
    found = ours.predict(queries)
    np.testing.assert_allclose(found[0], targets.mean() + unit * mean, atol=1e-6)
    np.testing.assert_allclose(found[1], unit * deviation, atol=1e-6)


def test_features_of_one_group_share_a_length_scale():
    features, targets = _data()
    shared = GaussianProcess(features, targets, np.array([0, 1, 2, 2, 3]), Priors.of_tiers(TIERS[:3]), _theta()[1:])
    scales = np.exp(_theta()[1:5])[[0, 1, 2, 2, 3]]
    apart = np.log([*scales, 1.3, 0.02])
    alone = GaussianProcess(features, targets, GROUPS, Priors.of_tiers(TIERS), apart)
    np.testing.assert_allclose(shared.predict(features)[0], alone.predict(features)[0], rtol=1e-12)


def test_likelihood_gradient_equals_finite_differences():
    features, targets = _data(25)
    targets = (targets - targets.mean()) / targets.std()
    priors, squares = Priors.of_tiers(TIERS), _squares(features, GROUPS, 5)
    numeric = approx_fprime(_theta(), lambda t: negative_log_posterior(t, squares, targets, priors)[0], 1e-6)
    np.testing.assert_allclose(negative_log_posterior(_theta(), squares, targets, priors)[1], numeric, rtol=1e-4)


def test_prediction_gradients_equal_finite_differences():
    process = GaussianProcess(*_data(), GROUPS, Priors.of_tiers(TIERS), _theta())
    for point in np.random.default_rng(2).random((5, 5)):
        mean, deviation, mean_slope, deviation_slope = process.gradients(point)
        assert (mean, deviation) == pytest.approx([v[0] for v in process.predict(point[None])], rel=1e-9)
        for slope, which in ((mean_slope, 0), (deviation_slope, 1)):
            numeric = [
                (process.predict(point[None] + s)[which][0] - process.predict(point[None] - s)[which][0]) / 2e-5
                for s in 1e-5 * np.eye(5)[:4]
            ]
            np.testing.assert_allclose(slope, numeric, atol=1e-6)


def test_fitting_finds_a_better_posterior_than_its_start_and_a_stationary_one():
    features, targets = _data(60, noise=0.1)
    targets = (targets - targets.mean()) / targets.std()
    priors, squares = Priors.of_tiers(TIERS), _squares(features, GROUPS, 5)
    theta = fit(features, targets, GROUPS, priors, steps=200)
    value, gradient = negative_log_posterior(theta, squares, targets, priors)
    assert value < negative_log_posterior(priors.median, squares, targets, priors)[0] - 5
    assert np.abs(gradient).max() < 1e-2


def test_length_scales_follow_the_tiers_until_data_says_otherwise():
    features, targets = _data(2)
    few = np.exp(GaussianProcess(features, targets, GROUPS, Priors.of_tiers(TIERS)).theta[:4])
    assert list(few) == sorted(few)
    assert few == pytest.approx([LENGTH_SCALE[t] for t in TIERS], rel=0.3)
    rng = np.random.default_rng(3)
    features = rng.random((80, 5))
    many = np.exp(GaussianProcess(features, np.sin(9 * features[:, 3]), GROUPS, Priors.of_tiers(TIERS)).theta[:4])
    assert many.argmin() == 3, "only the parameter of tier D has an effect"


def test_compression_is_monotone_and_puts_the_best_at_zero():
    losses = np.sort(np.random.default_rng(0).lognormal(size=50))
    mapped = compress(losses)(losses)
    assert mapped[0] == 0
    inside = losses < losses[0] + FAR * (np.median(losses) - losses[0])
    assert np.all(np.diff(mapped[inside]) > 0)
    assert compress(losses)(np.array([losses[0] - 1.0]))[0] < 0, "better than all that was known"


@pytest.mark.parametrize("scale", [1e-280, 1e-14, 1.0, 1e14, 1e140])
def test_compression_does_not_depend_on_the_unit_of_the_loss(scale):
    losses = np.random.default_rng(0).lognormal(size=20)
    np.testing.assert_allclose(compress(scale * losses)(scale * losses), compress(losses)(losses), rtol=1e-12)
    tied = np.full(5, scale)
    assert np.all(compress(tied)(tied) == 0)
    assert compress(tied)(2.0 * scale) > 0.5, "a worse one is seen as worse"


@pytest.mark.parametrize("bad", [1e9, 1e300, np.inf, np.nan])
def test_one_diverged_trial_among_thirty_does_not_flatten_the_rest(bad):
    rng = np.random.default_rng(0)
    features = rng.random((31, 5))
    losses = 0.3 + (features[:, 0] - 0.3) ** 2
    losses[30] = bad
    queries = np.column_stack([np.linspace(0.05, 0.95, 19), np.full((19, 4), 0.5)])
    targets = compress(losses)(losses)
    mean, _ = GaussianProcess(features, targets, GROUPS, Priors.of_tiers(TIERS)).predict(queries)
    good = losses[:30]
    expected, _ = GaussianProcess(features[:30], compress(good)(good), GROUPS, Priors.of_tiers(TIERS)).predict(queries)
    assert abs(queries[mean.argmin(), 0] - 0.3) <= 0.15
    assert np.corrcoef(mean, expected)[0, 1] > 0.95
    assert np.ptp(mean) > 0.5 * np.ptp(expected)


@pytest.mark.parametrize(
    "losses",
    [
        [0.5],
        [0.5, 0.5],
        [0.5] * 12,
        [0.5] * 11 + [0.4],
        [1e300, -1e300, 0.0],
        [np.inf, np.nan, np.inf],
        [-np.inf, 0.0, 1.0],
        [1e-320, 2e-320, 0.0],
        list(np.linspace(0, 1e-9, 9)),
    ],
    ids=str,
)
@pytest.mark.parametrize("duplicated", [False, True])
def test_nothing_breaks_on_ties_duplicates_and_huge_values(losses, duplicated):
    losses = np.array(losses, np.float64)
    n = len(losses)
    features = np.full((n, 5), 0.5) if duplicated else np.random.default_rng(n).random((n, 5))
    targets = compress(losses)(losses)
    assert np.all(np.isfinite(targets))
    process = GaussianProcess(features, targets, GROUPS, Priors.of_tiers(TIERS))
    mean, deviation = process.predict(np.random.default_rng(1).random((7, 5)))
    assert np.all(np.isfinite(mean))
    assert np.all(deviation > 0)
    assert all(np.all(np.isfinite(v)) for v in process.gradients(features[0]))
