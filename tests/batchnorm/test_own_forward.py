"""Layers that are not called plainly: a `forward` of their own, keywords, `functional_call`, checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_hp.batchnorm.inputs import input_hooks
from lightning_hp.batchnorm.measure import measure
from lightning_hp.batchnorm.observe import CallRecorder, Step
from lightning_hp.batchnorm.recalibrate import population_statistics, recalibrate
from lightning_hp.batchnorm.reference import InputMoments
from lightning_hp.batchnorm.rules import audit
from lightning_hp.batchnorm.statistics import find_layers
from lightning_hp.batchnorm.structure import trace

C, T = 4, 5


class TimeLast(nn.BatchNorm1d):
    """Takes rows x time x channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Square(nn.BatchNorm1d):
    """The same where time and channels have the same size, so that no shape tells them apart."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class SkipsPadding(nn.BatchNorm1d):
    """Leaves rows out whose first channel is padding (below -50)."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x[..., 0] > -50.0
        out = torch.zeros_like(x)
        out[kept] = super().forward(x[kept])
        return out


class OfLogarithm(nn.BatchNorm1d):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.abs().add(1e-3).log())


class WithActivation(nn.BatchNorm1d):
    """Calls the function itself, and holds a module."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        z = F.batch_norm(
            3.0 * x,
            running_mean=self.running_mean,
            running_var=self.running_var,
            weight=self.weight,
            bias=self.bias,
            training=self.training,
            momentum=0.1,
            eps=self.eps,
        )
        return self.act(z)


class Low(nn.BatchNorm1d):
    """Calls the operator below F.batch_norm, with a keyword of another name in front."""

    def forward(self, *, features: Tensor) -> Tensor:
        x = features - 7.0
        return torch.batch_norm(
            x, self.weight, self.bias, self.running_mean, self.running_var, self.training, 0.1, self.eps, False
        )


class HandWritten(nn.BatchNorm1d):
    """Normalises a logarithm by hand."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.abs().add(1e-3).log()
        if not self.training:
            return (x - self.running_mean) / (self.running_var + self.eps).sqrt()
        mean, var = x.mean(0), x.var(0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, 0.1)
            self.running_var.lerp_(var, 0.1)
        return (x - mean) / (var + self.eps).sqrt()


class Ghost(nn.BatchNorm1d):
    """Halves of the batch have statistics of their own in training; evaluation reads their average."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("running_mean", torch.zeros(2 * channels))
        self.register_buffer("running_var", torch.ones(2 * channels))

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape
        if not self.training:
            mean, var = (b.view(2, c).mean(0) for b in (self.running_mean, self.running_var))
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.1, self.eps)
        wide = F.batch_norm(
            x.view(n // 2, 2 * c), self.running_mean, self.running_var, self.weight.repeat(2), self.bias.repeat(2), True
        )
        return wide.view(n, c)


def rows(seed: int, shape: tuple[int, ...]) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 2.0
    return x


def padded(seed: int) -> Tensor:
    x = rows(seed, (32, T, C))
    x[:, 3:] = -100.0
    return x


class Net(nn.Module):
    """Calls its layer as `call` says."""

    def __init__(self, bn: nn.Module, call: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.bn = bn
        self.call = call or (lambda bn, x: bn(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.bn, x)


def train(net: nn.Module, batches: list[Tensor]) -> list[Step]:
    recorder = CallRecorder(net)
    net.train()
    for x in batches:
        with recorder.recording():
            net(x)
    return recorder.steps


MEASURABLE: list[tuple[nn.Module, Callable[[int], Tensor], Callable[[Tensor], Tensor]]] = [
    (TimeLast(C), lambda i: rows(i, (32, T, C)), lambda x: x.reshape(-1, C)),
    (Square(C), lambda i: rows(i, (32, C, C)), lambda x: x.reshape(-1, C)),
    (SkipsPadding(C), padded, lambda x: x[:, :3].reshape(-1, C)),
    (OfLogarithm(C), lambda i: rows(i, (64, C)), lambda x: x.abs().add(1e-3).log()),
    (WithActivation(C), lambda i: rows(i, (64, C)), lambda x: 3.0 * x),
]
IDS = [type(case[0]).__name__ for case in MEASURABLE]


@pytest.mark.parametrize(("bn", "batch", "normalised"), MEASURABLE, ids=IDS)
def test_a_layer_with_its_own_forward_is_judged_by_what_it_normalises(
    bn: nn.Module, batch: Callable[[int], Tensor], normalised: Callable[[Tensor], Tensor]
) -> None:
    net = Net(bn)
    bn.reset_running_stats()
    steps = train(net, [batch(i) for i in range(80)])
    snapshot = measure(net, steps)
    assert not [f for f in audit(snapshot) if f.id != "BN16"]
    pooled = torch.cat([normalised(batch(i)) for i in range(80 - len(steps), 80)]).double()
    torch.testing.assert_close(snapshot.data["bn"].train.mean, pooled.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(snapshot.data["bn"].train.variance(), pooled.var(0), rtol=1e-5, atol=1e-5)

    bn.running_mean.add_(5.0)
    assert "BN06" in {f.id for f in audit(measure(net, steps))}
    recalibrate(net, steps)
    torch.testing.assert_close(bn.running_mean.double(), pooled.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bn.running_var.double(), pooled.var(0), rtol=1e-5, atol=1e-5)
    assert not [f for f in audit(measure(net, steps)) if f.id != "BN16"]


@pytest.mark.parametrize("kind", [HandWritten, Ghost])
def test_what_cannot_be_measured_is_told_and_never_repaired(kind: type[nn.BatchNorm1d]) -> None:
    net = Net(kind(C))
    steps = train(net, [rows(i, (64, C)) for i in range(80)])
    net.bn.running_mean.add_(5.0)  # whether this is wrong is not known
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    snapshot = measure(net, steps)
    assert [(f.id, f.severity, f.layer, f.topic) for f in audit(snapshot)] == [("BN19", "INFO", "bn", "not_measurable")]
    assert population_statistics(net, steps) == {}
    assert recalibrate(net, steps) == {}
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_a_layer_that_keeps_its_statistics_elsewhere_is_no_error() -> None:
    class Elsewhere(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)) / x.std(0)

    net = Net(Elsewhere(C))
    assert [f.id for f in audit(measure(net, train(net, [rows(i, (64, C)) for i in range(20)])))] == ["BN19"]


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "keyword": lambda bn, x: bn(input=x),
    "forward": lambda bn, x: bn.forward(x),
    "forward keyword": lambda bn, x: bn.forward(input=x),
    "functional_call": lambda bn, x: functional_call(bn, dict(bn.named_parameters()), (x,)),
    "functional_call with buffers": lambda bn, x: functional_call(
        bn, {**dict(bn.named_parameters()), **dict(bn.named_buffers())}, (), {"input": x}
    ),
    "checkpoint": lambda bn, x: checkpoint(bn, x, use_reentrant=False),
    "checkpoint keyword": lambda bn, x: checkpoint(bn, input=x, use_reentrant=False),
    "reentrant": lambda bn, x: checkpoint(bn, x + torch.zeros(C, requires_grad=True), use_reentrant=True),
}


@pytest.mark.parametrize("way", CALLS)
def test_every_way_to_call_a_layer_gives_the_findings_of_the_plain_call(way: str) -> None:
    results = []
    for call in (None, CALLS[way]):
        torch.manual_seed(0)
        net = Net(nn.BatchNorm1d(C, momentum=0.01), call)
        steps = train(net, [rows(i, (64, C)) for i in range(30)])
        snapshot = measure(net, steps)
        results.append([(f.id, f.severity, f.sentence) for f in audit(snapshot)])
        assert snapshot.structure.order == ("bn",)
        fresh = recalibrate(net, steps)
        torch.testing.assert_close(fresh["bn"].mean, torch.cat([rows(i, (64, C)) for i in range(30)]).double().mean(0))
    assert "BN06" in [result[0] for result in results[0]]
    assert results[0] == results[1]


def test_a_keyword_of_another_name_is_seen() -> None:
    net = Net(Low(C), lambda bn, x: bn(features=x))
    steps = train(net, [rows(i, (64, C)) for i in range(80)])
    snapshot = measure(net, steps)
    assert not audit(snapshot)
    expected = torch.cat([rows(i, (64, C)) for i in range(80 - len(steps), 80)]).double().mean(0) - 7.0
    torch.testing.assert_close(snapshot.data["bn"].train.mean, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["keyword", "functional_call"])
def test_the_reference_sees_keywords(way: str) -> None:
    net = Net(nn.BatchNorm1d(C), CALLS[way]).eval()
    moments = InputMoments(find_layers(net))
    with moments.collecting(), torch.no_grad():
        net(rows(0, (64, C)))
    torch.testing.assert_close(moments.result().layers["bn"].mean, rows(0, (64, C)).double().mean(0))


def test_the_reference_of_a_layer_with_its_own_forward_is_of_what_it_normalises() -> None:
    net = Net(SkipsPadding(C)).eval()
    moments = InputMoments(find_layers(net))
    with moments.collecting(), torch.no_grad():
        net(padded(0))
    layer = moments.result().layers["bn"]
    torch.testing.assert_close(layer.mean, padded(0)[:, :3].reshape(-1, C).double().mean(0), rtol=1e-5, atol=1e-5)


def test_an_example_without_a_batch_dimension_is_measured_in_instance_norm() -> None:
    net = Net(nn.InstanceNorm1d(C, track_running_stats=True))
    x = rows(0, (T, C)).T
    steps = train(net, [x])
    fresh = population_statistics(net, steps)
    torch.testing.assert_close(fresh["bn"].mean, x.double().mean(1), rtol=1e-5, atol=1e-5)


def test_structure_is_read_at_the_normalisation() -> None:
    class Named(nn.Module):
        def __init__(self, bn: nn.Module) -> None:
            super().__init__()
            self.linear, self.bn, self.act = nn.Linear(C, C), bn, nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.bn(self.linear(x)))

    for kind, feeder in ((nn.BatchNorm1d, {"bn": "linear"}), (OfLogarithm, {}), (WithActivation, {})):
        net = Named(kind(C))
        steps = train(net, [rows(0, (64, C))])
        structure = trace(net, find_layers(net), steps)
        assert structure.order == ("bn",)
        assert structure.biased_feeder == feeder, kind  # a logarithm does not cancel a bias; times 3 is unseen


def test_forwards_come_back_after_an_exception() -> None:
    net = nn.Sequential(nn.BatchNorm1d(C), TimeLast(C))
    with pytest.raises(RuntimeError, match="boom"), input_hooks(find_layers(net), lambda name, x: None):
        raise RuntimeError("boom")
    assert all("forward" not in layer.__dict__ for layer in net)
    patched = nn.BatchNorm1d(C)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    mine = patched.forward
    with input_hooks({"a": patched}, lambda name, x: None) as seen:
        patched(rows(0, (8, C)))
    assert patched.forward is mine
    assert (seen.called, seen.measured) == ({"a"}, set())
