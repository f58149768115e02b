"""Repair against full-batch statistics computed another way, and against validation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_hp.batchnorm.observe import CallRecorder, Step, call_of
from lightning_hp.batchnorm.recalibrate import (
    constant_momentum,
    debias,
    population_statistics,
    recalibrate,
    recalibrate_if_better,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 9),
        nn.BatchNorm1d(9),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(9, 7),
        nn.BatchNorm1d(7),
        nn.Linear(7, 2),
    )


def data(rows: int = 480) -> Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(3)) * 3 + 1


def steps_of(x: Tensor, size: int) -> list[Step]:
    return [[call_of("", (part,))] for part in x.split(size)]


@torch.no_grad()
def exact(model: nn.Sequential, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of both layers' inputs in eval mode, by hand, layer by layer."""
    first = model[0](x)
    hidden = (first - first.mean(0)) / (first.var(0) + model[1].eps).sqrt() * model[1].weight + model[1].bias
    second = model[4](hidden.relu())
    return [(first.mean(0), first.var(0)), (second.mean(0), second.var(0))]


@pytest.mark.parametrize("size", [2, 8, 63, 480])
def test_sequential_statistics_are_those_of_the_whole_data_at_any_batch_size(size: int) -> None:
    model, x = net(), data()
    got = population_statistics(model, steps_of(x, size), method="sequential")
    assert list(got) == ["1", "5"]
    for moments, (mean, var) in zip(got.values(), exact(model, x), strict=True):
        torch.testing.assert_close(moments.mean, mean.double(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(moments.variance(), var.double(), rtol=1e-3, atol=1e-4)


def test_pooled_statistics_need_large_batches_for_later_layers() -> None:
    model, x = net(), data()
    for size, low, high in ((2, 0.3, 0.85), (160, 0.97, 1.01)):
        got = population_statistics(model, steps_of(x, size), method="pooled")
        ratio = float((got["5"].variance() / exact(model, x)[1][1]).mean())
        assert low < ratio < high
        torch.testing.assert_close(got["1"].variance(), exact(model, x)[0][1].double(), rtol=1e-4, atol=1e-4)


def test_recalibrate_writes_into_the_same_buffers_and_only_into_those_named() -> None:
    model, x = net(), data()
    buffers = [model[1].running_mean, model[5].running_mean]
    untouched = model[5].running_var.clone()
    recalibrate(model, steps_of(x, 60), layers=["1"])
    assert model[1].running_mean is buffers[0]
    assert model[5].running_mean is buffers[1]
    torch.testing.assert_close(model[1].running_mean, exact(model, x)[0][0], rtol=1e-4, atol=1e-4)
    assert torch.equal(model[5].running_var, untouched)
    assert all(m.training for m in model.modules())


def test_recalibrate_keeps_old_statistics_where_new_ones_are_not_finite() -> None:
    model, x = net(), data()
    before = model[1].running_var.clone()
    x[0, 0] = float("nan")
    assert recalibrate(model, steps_of(x, 60)) == {}
    assert torch.equal(model[1].running_var, before)


def test_population_statistics_leave_no_trace_when_the_model_raises() -> None:
    model, x = net(), data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = [*steps_of(x, 60), [call_of("", (torch.randn(4, 6),))]]  # the last call has the wrong width
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        population_statistics(model, steps)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == 0


def test_population_statistics_refuse_what_they_cannot_do() -> None:
    model, steps = net(), steps_of(data(), 60)
    with pytest.raises(ValueError, match="`steps` must hold at least one"):
        population_statistics(model, [])
    with pytest.raises(ValueError, match=r"`method` must be one of .* got 'best'"):
        population_statistics(model, steps, method="best")
    with pytest.raises(ValueError, match=r"`layers` must name tracked layers .* got \['2'\]"):
        population_statistics(model, steps, layers=["2"])


def test_instance_norm_gets_the_mean_of_the_moments_of_each_example() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True, momentum=1.0))
    x = torch.randn(40, 3, 11) * 2 + torch.randn(40, 3, 1)
    recalibrate(model, [[call_of("", (x,))]])
    mean, var = model[0].running_mean.clone(), model[0].running_var.clone()
    model(x)  # torch's own definition, at momentum 1
    torch.testing.assert_close(mean, model[0].running_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(var, model[0].running_var, rtol=1e-4, atol=1e-5)


def test_repair_is_kept_only_if_the_loss_does_not_rise() -> None:
    model, x = net(), data()
    losses = iter([1.0, 2.0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = recalibrate_if_better(model, steps_of(x, 60), lambda: next(losses))
    assert (done.kept, done.before, done.after) == (False, 1.0, 2.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    losses = iter([float("nan"), 2.0])  # broken before: anything finite is better
    done = recalibrate_if_better(model, steps_of(x, 60), lambda: next(losses))
    assert done.kept
    torch.testing.assert_close(model[1].running_mean, exact(model, x)[0][0], rtol=1e-4, atol=1e-4)


def test_repair_is_undone_when_validation_raises() -> None:
    model, calls = net(), []

    def evaluate() -> float:
        calls.append(model[1].running_mean.clone())
        if len(calls) == 2:
            raise RuntimeError("validation failed")
        return 1.0

    before = model[1].running_mean.clone()
    with pytest.raises(RuntimeError, match="validation failed"):
        recalibrate_if_better(model, steps_of(data(), 60), evaluate)
    assert not torch.equal(calls[1], before)
    assert torch.equal(model[1].running_mean, before)


def test_debias_brings_a_short_run_to_the_data() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(5, momentum=0.01)
    x = data(4096)
    recorder = CallRecorder(layer)
    for part in x.split(256):
        with recorder.recording():
            layer(part)
    assert debias(layer, constant_momentum(layer)) == ("",)
    torch.testing.assert_close(layer.running_mean, x.mean(0), rtol=0.0, atol=0.05)
    torch.testing.assert_close(layer.running_var, x.var(0), rtol=0.03, atol=0.0)


def test_debias_leaves_alone_what_it_cannot_help() -> None:
    fresh, cumulative, full = nn.BatchNorm1d(2), nn.BatchNorm1d(2, momentum=None), nn.BatchNorm1d(2, momentum=1.0)
    for layer in (cumulative, full):
        layer(torch.randn(8, 2))
    net = nn.Sequential(fresh, cumulative, full)
    assert debias(net, constant_momentum(net)) == ()
    assert debias(net, {}) == ()


def test_debias_starts_from_where_training_started() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(5, momentum=0.05)
    layer.running_mean.fill_(30.0)
    layer.num_batches_tracked.fill_(100)
    start = {"": (layer.running_mean.clone(), layer.running_var.clone(), 100)}
    x = data(4096)
    for part in x.split(256):
        layer(part)
    debias(layer, constant_momentum(layer, start), start)
    torch.testing.assert_close(layer.running_mean, x.mean(0), rtol=0.0, atol=0.1)
