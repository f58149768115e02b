"""Snapshots and values: exactness, groups, and what is left alone."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from panda_project import assert_equal, state_of
from torch import nn

from lightning_hp.callbacks.panda import snapshot
from lightning_hp.callbacks.panda.values import read_values, sets_its_own_rate, write_values

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "adam_tensor_rate": lambda p: torch.optim.Adam(p, torch.tensor(0.01)),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01, decoupled_weight_decay=True),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "asgd": lambda p: torch.optim.ASGD(p, 0.1),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))


def train(module, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()


def as_trainer(optimizer, schedulers=()):
    precision = SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)
    configs = [SimpleNamespace(scheduler=one) for one in schedulers]
    return SimpleNamespace(
        optimizers=[optimizer], lr_scheduler_configs=configs, precision_plugin=precision, callbacks=[]
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3])
def test_a_restore_brings_back_every_bit_and_training_repeats_itself(name, before):
    module = net()
    optimizer = OPTIMIZERS[name](module.parameters())
    trainer = as_trainer(optimizer)
    train(module, optimizer, before)
    kept = snapshot.take(trainer, module, before)
    then = state_of(module, optimizer)
    train(module, optimizer, 4)  # the random numbers of data and dropout are drawn on the way
    first = state_of(module, optimizer)
    assert any(not torch.equal(first[key], value) for key, value in then.items())
    for _ in range(2):  # a snapshot can be used again
        snapshot.restore(trainer, module, kept)
        assert_equal(state_of(module, optimizer), then)
        train(module, optimizer, 4)
        assert_equal(state_of(module, optimizer), first)


def test_a_snapshot_shares_no_memory_with_the_training():
    module = net()
    optimizer = OPTIMIZERS["adam"](module.parameters())
    train(module, optimizer, 1)
    kept = snapshot.take(as_trainer(optimizer), module, 1)
    weight = kept["tensors"]["0.weight"].clone()
    moment = kept["optimizers"][0]["state"][0]["exp_avg"].clone()
    train(module, optimizer, 1)
    assert torch.equal(kept["tensors"]["0.weight"], weight)
    assert torch.equal(kept["optimizers"][0]["state"][0]["exp_avg"], moment)


def test_a_snapshot_survives_a_checkpoint_with_weights_only(tmp_path):
    module = net()
    optimizer = OPTIMIZERS["adam"](module.parameters())
    trainer = as_trainer(optimizer)
    train(module, optimizer, 2)
    torch.save(snapshot.take(trainer, module, 2), tmp_path / "s.pt")
    then = state_of(module, optimizer)
    train(module, optimizer, 2)
    first = state_of(module, optimizer)
    snapshot.restore(trainer, module, torch.load(tmp_path / "s.pt", weights_only=True))
    assert_equal(state_of(module, optimizer), then)
    train(module, optimizer, 2)
    assert_equal(state_of(module, optimizer), first)


def test_random_states_of_python_numpy_and_torch_come_back():
    states = snapshot.random_states()
    drawn = (random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1), np.random.randn())
    snapshot.set_random_states(states)
    assert (random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1), np.random.randn()) == drawn


def test_a_scheduler_is_turned_back_only_where_the_groups_are():
    module = net()
    optimizer = OPTIMIZERS["sgd"](module.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    trainer = as_trainer(optimizer, [scheduler])
    kept = snapshot.take(trainer, module, 0)
    train(module, optimizer, 1)
    scheduler.step()
    snapshot.restore(trainer, module, kept, groups=False)
    assert (optimizer.param_groups[0]["lr"], scheduler.last_epoch) == (0.05, 1)
    snapshot.restore(trainer, module, kept)
    assert (optimizer.param_groups[0]["lr"], scheduler.last_epoch) == (0.1, 0)


def test_the_distance_is_relative_to_the_norm_of_the_snapshot():
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    kept = snapshot.take(as_trainer(optimizer), module, 0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.25)
    assert snapshot.distance(module, kept) == pytest.approx(0.25, rel=1e-6)


# --- values in the groups ---


def groups_of(module):
    weights = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim < 2]
    return [
        {"params": weights, "lr": 0.1, "weight_decay": 0.01, "momentum": 0.9},
        {"params": rest, "lr": 0.02, "weight_decay": 0.0, "momentum": 0.8},
    ]


def test_groups_keep_their_ratios():
    optimizer = torch.optim.SGD(groups_of(net()), 0.1)
    assert read_values(optimizer) == {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    write_values(optimizer, {"learning_rate": 0.3, "momentum": 0.95, "weight_decay": 0.1})
    first, second = optimizer.param_groups
    assert (first["lr"], first["momentum"], first["weight_decay"]) == (0.3, 0.95, 0.1)
    assert second["lr"] == pytest.approx(0.06)
    assert second["momentum"] == pytest.approx(0.9)  # 1 - 0.2 * 0.05 / 0.1
    assert second["weight_decay"] == 0.0


def test_a_weight_decay_that_was_nowhere_spares_biases_and_norms():
    optimizer = torch.optim.SGD([{**group, "weight_decay": 0.0} for group in groups_of(net())], 0.1)
    write_values(optimizer, {"weight_decay": 0.01})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_a_frozen_group_stays_frozen():
    first, second = groups_of(net())
    optimizer = torch.optim.SGD([{**second, "lr": 0.0}, first], 0.1)
    write_values(optimizer, {"learning_rate": 0.3})
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.3]


def test_betas_and_a_tensor_rate_are_set_in_place():
    optimizer = OPTIMIZERS["adam_tensor_rate"](net().parameters())
    rate = optimizer.param_groups[0]["lr"]
    write_values(optimizer, {"learning_rate": 0.5, "beta1": 0.8, "epsilon": 1e-6})
    group = optimizer.param_groups[0]
    assert group["lr"] is rate
    assert (rate.item(), group["betas"], group["eps"]) == (0.5, (0.8, 0.999), 1e-6)


def test_a_name_that_the_optimizer_has_not_is_refused():
    optimizer = torch.optim.Adagrad(net().parameters())
    with pytest.raises(ValueError, match=r"`hyperparameter` must be one of epsilon, learning_rate, .*, got 'momentum'"):
        write_values(optimizer, {"momentum": 0.9})


def test_the_batch_size_lives_in_the_datamodule():
    optimizer, datamodule = torch.optim.SGD(net().parameters(), 0.1), SimpleNamespace(batch_size=32)
    assert read_values(optimizer, datamodule)["batch_size"] == 32
    write_values(optimizer, {"batch_size": 64.0}, datamodule)
    assert datamodule.batch_size == 64
    assert isinstance(datamodule.batch_size, int)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ordinary_optimizers_do_not_set_their_own_rate(name):
    assert not sets_its_own_rate(OPTIMIZERS[name](net().parameters()))


def test_prodigy_and_schedule_free_do():
    prodigyopt, schedulefree = pytest.importorskip("prodigyopt"), pytest.importorskip("schedulefree")
    assert sets_its_own_rate(prodigyopt.Prodigy(net().parameters()))
    assert sets_its_own_rate(schedulefree.AdamWScheduleFree(net().parameters()))
    assert sets_its_own_rate(schedulefree.SGDScheduleFree(net().parameters(), 0.1))
