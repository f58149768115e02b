"""What a running average remembers when its momentum was changed, its counter reset, or little was seen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_hp.batchnorm.findings import times
from lightning_hp.batchnorm.measure import measure
from lightning_hp.batchnorm.recalibrate import constant_momentum, debias
from lightning_hp.batchnorm.rules import audit
from lightning_hp.batchnorm.statistics import Averaging, noise_factor
from lightning_hp.batchnorm.watch import TrainingWatch

Schedule = list[float | None]


def weights_of(schedule: Schedule, counted: int = 0) -> tuple[float, list[float]]:
    """Weight of the start value and of each batch, update by update."""
    left, batches = 1.0, []
    for index, momentum in enumerate(schedule):
        m = 1.0 / (counted + index + 1) if momentum is None else momentum
        left *= 1.0 - m
        batches = [weight * (1.0 - m) for weight in batches] + [m]
    return left, batches


SCHEDULES: dict[str, Schedule] = {
    "constant": [0.1] * 40,
    "falling": [0.5] * 10 + [0.1] * 10 + [0.01] * 30,
    "rising": [0.01] * 30 + [0.5] * 3,
    "cumulative": [None] * 25,
    "late cumulative": [0.1] * 20 + [None] * 15,
    "frozen": [0.1] * 10 + [0.0] * 10,
    "full": [0.1] * 10 + [1.0] + [0.2] * 5,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_averaging_in_pieces_equals_the_weights_of_every_update(name: str) -> None:
    schedule = SCHEDULES[name]
    averaging, done = Averaging(), 0
    while done < len(schedule):
        piece = 1
        while done + piece < len(schedule) and piece < 7 and schedule[done + piece] == schedule[done]:
            piece += 1
        averaging = averaging.after(piece, schedule[done], done)
        done += piece
    left, batches = weights_of(schedule)
    assert averaging.left == pytest.approx(left, abs=1e-12)
    assert averaging.noise == pytest.approx(sum(w * w for w in batches), rel=1e-9)


def test_one_momentum_gives_the_known_factor() -> None:
    assert Averaging().after(30, 0.1).noise == pytest.approx(noise_factor(0.1, 30))
    assert Averaging().after(0, 0.1) == Averaging()


def run(
    schedule: Schedule, reset_at: int | None = None, **options: int
) -> tuple[nn.Module, TrainingWatch, list[Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(8))
    watch = TrainingWatch(net, **options)
    batches = [torch.randn(64, 8) * 2 + 3 for _ in schedule]
    for index, (momentum, x) in enumerate(zip(schedule, batches, strict=True)):
        if index == reset_at:
            net[0].reset_running_stats()
        net[0].momentum = momentum
        watch.before_batch(index, len(schedule), last_epoch=False)
        net(x)
        watch.after_batch(index)
    return net, watch, batches


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "full"])
@pytest.mark.parametrize("every", [1, 7, 100])
def test_the_watch_follows_a_schedule(name: str, every: int) -> None:
    schedule = SCHEDULES[name]
    _, watch, _ = run(schedule, every_n_steps=every)
    left, batches = weights_of(schedule)
    averaging = watch.facts().averaging["0"]
    assert averaging.left == pytest.approx(left, abs=1e-12)
    assert averaging.noise == pytest.approx(sum(w * w for w in batches), rel=1e-9)


@pytest.mark.parametrize("name", ["falling", "rising", "constant", "late cumulative"])
def test_debias_takes_out_what_is_left_of_the_start_and_no_more(name: str) -> None:
    schedule = SCHEDULES[name]
    net, watch, batches = run(schedule)
    left, weights = weights_of(schedule)
    means = torch.stack([x.mean(0) for x in batches]).double()
    expected = (torch.tensor(weights, dtype=torch.float64)[:, None] * means).sum(0) / (1.0 - left)
    debias(net, watch.facts().averaging)
    torch.testing.assert_close(net[0].running_mean.double(), expected, rtol=1e-5, atol=1e-5)


def test_right_means_stay_where_they_are() -> None:
    net, watch, _ = run([0.5] * 40 + [0.01] * 40)
    before = net[0].running_mean.clone()
    debias(net, watch.facts().averaging)
    torch.testing.assert_close(net[0].running_mean, before, rtol=1e-5, atol=0.0)
    assert constant_momentum(net)["0"].left == pytest.approx(0.99**80)  # what it would have been taken for


@pytest.mark.parametrize("momentum", [None, 0.2])
def test_statistics_that_were_reset_start_anew(momentum: float | None) -> None:
    net, watch, batches = run([0.01] * 60 + [momentum] * 10, reset_at=60)
    facts = watch.facts()
    left, weights = weights_of([momentum] * 10)
    assert facts.averaging["0"].left == pytest.approx(left, abs=1e-12)
    assert facts.averaging["0"].noise == pytest.approx(sum(w * w for w in weights), rel=1e-9)
    assert facts.updates_per_step["0"] == pytest.approx(1.0)
    assert facts.initial["0"][2] == 0
    debias(net, facts.averaging, facts.initial)
    means = torch.stack([x.mean(0) for x in batches[60:]])
    expected = (torch.tensor(weights)[:, None] * means).sum(0) / (1.0 - left)
    torch.testing.assert_close(net[0].running_mean, expected, rtol=1e-5, atol=1e-5)


def test_a_falling_schedule_that_has_warmed_up_is_no_finding() -> None:
    net, watch, _ = run([0.5] * 20 + [0.01] * 20)
    assert [f for f in audit(measure(net, watch.steps, watch.facts())) if f.id in ("BN06", "BN07", "BN10")] == []


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_few_batches_give_a_ratio_that_means_something(batches: int) -> None:
    net, watch, _ = run([0.1] * batches)
    d, ratio, lv, ratio_lv = measure(net, watch.steps, watch.facts()).errors("0")  # type: ignore[misc]
    noise = 64**-0.5 * math.sqrt(noise_factor(0.1, batches) + 1 / batches)  # of 64 independent rows
    assert d / ratio >= 0.8 * noise
    assert lv / ratio_lv >= 0.8 * math.sqrt(2) * noise
    assert max(ratio, ratio_lv) < 100


def test_the_same_batch_again_and_again_gets_no_absurd_number() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(8))
    watch = TrainingWatch(net)
    x = torch.randn(64, 8) * 2 + 3
    for index in range(20):
        watch.before_batch(index, 20, last_epoch=True)
        net(x)
        watch.after_batch(index)
    sentences = [f.sentence for f in audit(measure(net, watch.steps, watch.facts()))]
    assert any("more than 1,000 times the expected noise" in sentence for sentence in sentences)
    assert (times(12.34), times(999.94)) == ("12.3 times", "999.9 times")
