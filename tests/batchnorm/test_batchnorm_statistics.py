"""Moments, noise and debiasing against closed forms and a second computation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_hp.batchnorm.statistics import (
    Moments,
    debiased,
    effective_rows,
    find_layers,
    mean_error,
    noise_factor,
    recover_batch_moments,
    variance_error,
)


class Custom(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a subclass."""


def test_find_layers_knows_every_kind_and_leaves_out_what_keeps_nothing() -> None:
    model = nn.ModuleDict(
        {
            "bn": nn.BatchNorm1d(3),
            "sub": Custom(3),
            "sync": nn.SyncBatchNorm(3),
            "in_on": nn.InstanceNorm2d(3, track_running_stats=True),
            "in_off": nn.InstanceNorm2d(3),
            "off": nn.BatchNorm2d(3, track_running_stats=False),
            "ln": nn.LayerNorm(3),
            "lazy": nn.LazyBatchNorm1d(),
        }
    )
    assert list(find_layers(model)) == ["bn", "sub", "sync", "in_on"]
    model["lazy"](torch.randn(4, 5))
    assert list(find_layers(model)) == ["bn", "sub", "sync", "in_on", "lazy"]


def test_find_layers_lists_a_shared_layer_once() -> None:
    layer = nn.BatchNorm1d(2)
    assert list(find_layers(nn.Sequential(layer, nn.ReLU(), layer))) == ["0"]


@pytest.mark.parametrize("centre", [0.0, 1e4])
@pytest.mark.parametrize("shape", [(257, 3), (64, 3, 5), (32, 3, 4, 6)])
def test_merged_moments_equal_those_of_all_values_at_once(centre: float, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + centre
    total = Moments.empty(3)
    for part in x.split([1, 2, 7, x.shape[0] - 10]):
        total = total.merge(Moments.of(part))
    flat = x.double().transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(total.mean, flat.mean(1), rtol=1e-6, atol=1e-6)
    # float32 input at mean 1e4 carries 1e-3 of rounding per value; the variance must not be off by more than that
    # explains
    torch.testing.assert_close(total.variance(), flat.var(1), rtol=2e-3 if centre else 1e-5, atol=0.0)
    assert total.n == flat.shape[1]


def test_moments_weigh_by_rows_not_by_batches() -> None:
    small, large = torch.full((2, 1), 100.0), torch.zeros(98, 1)
    merged = Moments.of(small).merge(Moments.of(large))
    assert float(merged.mean) == pytest.approx(2.0)


def test_moments_of_nothing_and_of_a_vector() -> None:
    assert Moments.of(torch.empty(0, 3)).n == 0
    with pytest.raises(ValueError, match="at least two dimensions"):
        Moments.of(torch.randn(5))


@pytest.mark.parametrize("momentum", [0.01, 0.1, 1.0])
def test_batch_moments_are_recovered_from_the_buffers(momentum: float) -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(4, momentum=momentum)
    x = 3.0 * torch.randn(50, 4) + 5.0
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    layer(x)
    torch.testing.assert_close(
        recover_batch_moments(mean, layer.running_mean, momentum), x.double().mean(0), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        recover_batch_moments(var, layer.running_var, momentum), x.double().var(0), rtol=1e-4, atol=1e-4
    )


def test_recover_rejects_a_momentum_that_mixes_nothing_in() -> None:
    with pytest.raises(ValueError, match=r"`momentum` must be in \(0, 1\], got 0.0"):
        recover_batch_moments(torch.zeros(1), torch.zeros(1), 0.0)


@pytest.mark.parametrize(("momentum", "updates"), [(0.1, 5), (0.1, 200), (0.3, 3), (1.0, 7), (None, 12)])
def test_noise_factor_equals_the_spread_of_simulated_running_averages(momentum: float | None, updates: int) -> None:
    generator = torch.Generator().manual_seed(1)
    averages = torch.zeros(40_000, dtype=torch.float64)
    for t in range(1, updates + 1):
        weight = 1.0 / t if momentum is None else momentum
        averages = (1 - weight) * averages + weight * torch.randn(40_000, generator=generator, dtype=torch.float64)
    assert noise_factor(momentum, updates) == pytest.approx(float(averages.var()), rel=0.03)


def test_noise_factor_without_updates_and_in_the_long_run() -> None:
    assert noise_factor(0.1, 0) == 0.0
    assert noise_factor(0.0, 50) == 0.0
    assert effective_rows(32, 0.1, 10**6) == pytest.approx(32 * 1.9 / 0.1)
    assert effective_rows(32, 0.0, 5) == math.inf


@pytest.mark.parametrize("updates", [1, 4, 60])
def test_debiased_average_of_a_constant_is_the_constant(updates: int) -> None:
    layer = nn.BatchNorm1d(3, momentum=0.05)
    x = torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]])
    for _ in range(updates):
        layer(x)
    mean = debiased(layer.running_mean, 0.0, 0.05, updates)
    var = debiased(layer.running_var, 1.0, 0.05, updates)
    torch.testing.assert_close(mean, x.double().mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(var, x.double().var(0), rtol=1e-3, atol=1e-3)


def test_debiased_needs_an_update_and_a_momentum() -> None:
    with pytest.raises(ValueError, match="`updates` must be at least 1, got 0"):
        debiased(torch.zeros(1), 0.0, 0.1, 0)
    with pytest.raises(ValueError, match="`momentum` must be in"):
        debiased(torch.zeros(1), 0.0, 1.5, 3)


def test_errors_are_in_standard_deviations_and_log_ratios() -> None:
    variance = torch.tensor([4.0, 9.0], dtype=torch.float64)
    mean = torch.zeros(2, dtype=torch.float64)
    assert mean_error(torch.tensor([1.0, 1.5]), mean, variance, 0.0) == pytest.approx(0.5)
    assert variance_error(2.0 * variance, variance, 0.0) == pytest.approx(math.log(2.0))
    assert variance_error(0.5 * variance, variance, 0.0) == pytest.approx(math.log(2.0))
