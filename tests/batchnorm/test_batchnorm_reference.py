"""Reference moments and shift tests, against direct computation and known shifts."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor, nn

from lightning_hp.batchnorm.buffer_moments import recovered_snapshot
from lightning_hp.batchnorm.observe import call_of
from lightning_hp.batchnorm.reference import InputMoments, Reference, absorption, layer_shifts, shift_findings
from lightning_hp.batchnorm.statistics import find_layers
from lightning_hp.batchnorm.watch import TrainingWatch


def trained(conv: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    head: list[nn.Module] = [nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8)]
    if conv:
        head = [nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Flatten()]
    net = nn.Sequential(
        *head, nn.ReLU(), nn.Linear(128 if conv else 8, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 3)
    )
    for seed in range(60):
        net(rows(64, seed))
    return net.eval()


def rows(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 16, generator=generator) + torch.randn(count, 1, generator=generator)


@torch.no_grad()
def seen(net: nn.Module, x: Tensor, size: int = 50) -> Reference:
    moments = InputMoments(find_layers(net))
    with moments.collecting():
        for part in x.split(size):
            net(part)
    return moments.result()


def test_moments_are_those_of_all_rows_and_survive_json() -> None:
    net, x = trained(), rows(330, 100)
    reference = seen(net, x)
    with torch.no_grad():
        first = net[0](x).double()
    torch.testing.assert_close(reference.layers["1"].mean, first.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(reference.layers["1"].var, first.var(0), rtol=1e-5, atol=1e-6)
    assert reference.layers["1"].rows == 330
    again = Reference.from_dict(json.loads(json.dumps(reference.to_dict())))
    shifts = layer_shifts(reference, again)
    assert max(max(s.d, s.lv) for s in shifts) < 1e-6
    assert reference.layers["1"].mean_spread == pytest.approx(1.0, abs=0.01)
    assert reference.layers["1"].var_spread == pytest.approx(2.0, rel=0.25)  # Gaussian inputs: kurtosis - 1


def test_reference_without_a_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`reference` layer 'a' must hold \['var'\]"):
        Reference.from_dict({"a": {"rows": 1, "mean": [0.0], "mean_spread": 1.0, "var_spread": 2.0}})
    with pytest.raises(ValueError, match="`max_rows` must be at least 1, got 0"):
        InputMoments({}, 0)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("count", [64, 256, 1024])
def test_ratio_to_noise_is_one_for_new_rows_of_the_same_kind(conv: bool, count: int) -> None:
    net = trained(conv)
    reference = seen(net, rows(1000, 100))
    shifts = [s for seed in range(12) for s in layer_shifts(reference, seen(net, rows(count, 200 + seed)))]
    for name, layer in itertools.product(("ratio_d", "ratio_lv"), find_layers(net)):
        ratios = [getattr(s, name) for s in shifts if s.layer == layer]
        assert 0.5 < math.sqrt(sum(r * r for r in ratios) / len(ratios)) < 1.5
    assert not any(shift_findings(layer_shifts(reference, seen(net, rows(count, 300 + seed)))) for seed in range(12))


@pytest.mark.parametrize("conv", [False, True])
def test_shift_names_the_first_layer_hit(conv: bool) -> None:
    net = trained(conv)
    reference = seen(net, rows(1000, 100))
    first = next(iter(find_layers(net)))
    found = shift_findings(layer_shifts(reference, seen(net, rows(256, 7) + 2.0)))
    assert [(f.id, f.layer) for f in found] == [("DR01", first)]
    found = shift_findings(layer_shifts(reference, seen(net, rows(256, 7) * 3.0)), disagreement=0.2)
    assert [(f.id, f.layer) for f in found] == [("DR01", first), ("DR02", first)]
    # a shift that only the second layer sees
    with torch.no_grad():
        changed = seen(net, rows(256, 7))
    later = list(find_layers(net))[1]
    layer = changed.layers[later]
    moved = Reference({**changed.layers, later: type(layer)(layer.rows, layer.mean + 5, layer.var, 1.0, 2.0)})
    assert shift_findings(layer_shifts(reference, moved))[0].layer == later


def test_few_rows_never_alarm() -> None:
    net = trained()
    reference = seen(net, rows(1000, 100))
    assert shift_findings(layer_shifts(reference, seen(net, rows(8, 7) + 5.0))) == []


def test_absorption_is_zero_on_the_same_data_and_large_on_a_shift_that_statistics_explain() -> None:
    net = trained()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    same = absorption(net, [[call_of("", (rows(512, 5),))]])
    moved = absorption(net, [[call_of("", (rows(512, 5) * 4 + 3,))]])
    assert same < 0.05 < 0.2 < moved
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert absorption(net, []) == 0.0


def test_recovered_moments_see_a_wrong_variance_without_any_forward() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8))
    watch = TrainingWatch(net, every_n_steps=1, hooks=False)
    for index in range(300):
        watch.before_batch(index, None, last_epoch=False)
        net(rows(64, index))
        watch.after_batch(index)
    assert watch.steps == []
    assert len(watch.recovered["1"]) == 19
    good = recovered_snapshot(net, watch.recovered, watch.facts())
    d, _, lv, _ = good.errors("1")  # type: ignore[misc]
    assert d < 0.1
    assert lv < 0.15
    net[1].running_var.mul_(2.0)
    assert recovered_snapshot(net, watch.recovered, watch.facts()).errors("1")[2] == pytest.approx(math.log(2), abs=0.1)  # type: ignore[index]


def test_watch_counts_updates_and_finds_the_step_of_a_nan() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8))
    watch = TrainingWatch(net, every_n_steps=2)
    for index in range(40):
        watch.before_batch(index, 40, last_epoch=True)
        net(rows(64, index))
        net(rows(64, 1000 + index))
        if index == 20:
            net(torch.full((4, 16), float("inf")))
        assert watch.after_batch(index) is (index == 21)
    facts = watch.facts()
    assert facts.nonfinite == {"1": 21}
    assert facts.updates_per_step["1"] == pytest.approx(81 / 40)
    assert facts.trained_steps == 40
    with pytest.raises(ValueError, match="`every_n_steps` must be at least 1, got 0"):
        TrainingWatch(net, 0)
