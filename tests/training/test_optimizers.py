import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_hp.training import BatchNormMLP, build_optimizer, build_schedule, parameter_groups
from lightning_hp.training.optimizers import learning_rate_factor


class HouseRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


class Everything(nn.Module):
    """Layers of most kinds, a weight that two layers share, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9)
        self.head.weight = self.embedding.weight
        self.conv = nn.Conv2d(1, 2, 3)
        self.lstm = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norms = nn.ModuleList(
            [nn.LayerNorm(4), nn.GroupNorm(1, 4), nn.BatchNorm2d(4), nn.InstanceNorm1d(4, affine=True), HouseRMSNorm()]
        )
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def names_in(module, group):
    name_of = {id(p): name for name, p in module.named_parameters()}
    return {name_of[id(p)] for p in group["params"]}


def test_weights_decay_and_norms_and_biases_do_not_in_any_module():
    module = Everything()
    decayed, exempt = parameter_groups(module, 0.3)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.3, 0.0)
    assert names_in(module, decayed) == {
        "embedding.weight",
        "conv.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert names_in(module, exempt) == trained - names_in(module, decayed)
    assert len(decayed["params"]) + len(exempt["params"]) == len(trained), "the shared weight appears once"


def test_a_parameter_shared_with_a_norm_is_exempt():
    module = nn.ModuleList([HouseRMSNorm(), nn.Module()])
    module[1].weight = module[0].scale
    assert [g["weight_decay"] for g in parameter_groups(module, 0.1)] == [0.0]


def test_the_switch_decays_everything():
    (only,) = parameter_groups(BatchNormMLP(4, 2), 0.1, decay_norm_and_bias=True)
    assert only["weight_decay"] == 0.1
    assert len(only["params"]) == len(list(BatchNormMLP(4, 2).parameters()))


def test_sparse_gradients_are_taken():
    module = nn.Embedding(9, 4, sparse=True)
    module(torch.tensor([2])).sum().backward()
    before = module.weight.detach().clone()
    build_optimizer(module, momentum=0.0, learning_rate=0.5).step()
    assert (module.weight - before)[2].tolist() == pytest.approx([-0.5] * 4)


def test_nothing_to_train_is_said():
    with pytest.raises(ValueError, match="`module` must have a parameter that requires a gradient, got none"):
        parameter_groups(nn.ReLU(), 0.1)


def steps_of(kind, w, gradients, *, lr, wd, momentum, nesterov, beta1, beta2, epsilon):
    """The update rules of SGD (Sutskever 2013), Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019)."""
    v, m, s = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        if kind == "adamw":
            w = w - lr * wd * w
        else:
            g = g + wd * w
        if kind == "sgd":
            v = momentum * v + g
            w = w - lr * (g + momentum * v if nesterov else v)
        else:
            m, s = beta1 * m + (1 - beta1) * g, beta2 * s + (1 - beta2) * g**2
            w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(s / (1 - beta2**t)) + epsilon)
    return w


@pytest.mark.parametrize(("kind", "nesterov"), [("sgd", False), ("sgd", True), ("adam", False), ("adamw", False)])
def test_four_steps_equal_the_update_rule_with_decay_on_the_weight_only(kind, nesterov):
    rng = np.random.default_rng(0)
    rule = {"momentum": 0.8, "nesterov": nesterov, "beta1": 0.7, "beta2": 0.95, "epsilon": 1e-3}
    layer = nn.Linear(3, 2).double()
    optimizer = build_optimizer(layer, kind, learning_rate=0.05, weight_decay=0.4, **rule)
    start = {name: p.detach().numpy().copy() for name, p in layer.named_parameters()}
    gradients = {name: [rng.normal(size=value.shape) for _ in range(4)] for name, value in start.items()}
    for step in range(4):
        for name, p in layer.named_parameters():
            p.grad = torch.from_numpy(gradients[name][step].copy())
        optimizer.step()
    for name, p in layer.named_parameters():
        expected = steps_of(kind, start[name], gradients[name], lr=0.05, wd=0.4 * (name == "weight"), **rule)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "SGD"}, "`optimizer` must be one of sgd, adam, adamw, got 'SGD'"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0 and finite, got 0.0"),
        ({"learning_rate": math.nan}, "`learning_rate` must be above 0 and finite, got nan"),
        ({"momentum": 1.0}, "`momentum` must be at least 0 and below 1, got 1.0"),
        ({"beta1": -0.1}, "`beta1` must be at least 0 and below 1, got -0.1"),
        ({"beta2": 1.0}, "`beta2` must be at least 0 and below 1, got 1.0"),
        ({"epsilon": 0.0}, "`epsilon` must be above 0 and finite, got 0.0"),
        ({"weight_decay": -1.0}, "`weight_decay` must be at least 0 and finite, got -1.0"),
        ({"nesterov": True, "momentum": 0}, "`momentum` must be above 0 with `nesterov`, got 0"),
    ],
)
def test_a_wrong_optimizer_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(nn.Linear(2, 2), **arguments)


def rates(make, epochs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler, seen = make(optimizer), []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("exponential", lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.7)),
        ("step", lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.7)),
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12, eta_min=0.5 * 0.7)),
    ],
)
def test_schedules_equal_those_of_torch(schedule, theirs):
    ours = rates(lambda o: build_schedule(o, schedule, 0.3, step_every=4, max_epochs=12), 13)
    assert ours == pytest.approx(rates(theirs, 13), rel=1e-9)


def test_inverse_time_divides_by_one_plus_decay_times_epoch():
    ours = rates(lambda o: build_schedule(o, "inverse_time", 0.5), 4)
    assert ours == pytest.approx([0.5, 0.5 / 1.5, 0.25, 0.2])


def test_cosine_with_decay_1_ends_at_zero_and_stays():
    factor = learning_rate_factor("cosine", 1.0, max_epochs=10)
    assert [factor(0), factor(5), factor(10), factor(15)] == pytest.approx([1, 0.5, 0, 0], abs=1e-12)


@pytest.mark.parametrize("schedule", ["none", "exponential", "cosine", "step", "inverse_time"])
def test_no_decay_is_no_schedule(schedule):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    assert build_schedule(optimizer, schedule, 0.0) is None
    assert [learning_rate_factor(schedule, 0.0)(t) for t in (0, 3, 50)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linear", 0.1), "`schedule` must be one of none, .* got 'linear'"),
        (("exponential", -0.1), "`learning_rate_decay` must be at least 0 and finite, got -0.1"),
        (("exponential", 1.0), "`learning_rate_decay` must be below 1 with schedule 'exponential', got 1.0"),
        (("step", 1.0), "`learning_rate_decay` must be below 1 with schedule 'step', got 1.0"),
        (("cosine", 1.5), "`learning_rate_decay` must be at most 1 with schedule 'cosine', got 1.5"),
        (("step", 0.5, 0), "`step_every` must be 1 or more epochs, got 0"),
        (("cosine", 0.5), "`max_epochs` must be 1 or more with schedule 'cosine', got None"),
    ],
)
def test_a_wrong_schedule_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        learning_rate_factor(*arguments)
