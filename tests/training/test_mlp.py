import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_hp.training import BatchNormMLP
from lightning_hp.training.mlp import layer_widths


def kinds(net):
    return [[type(part).__name__ for part in layer] for layer in net.hidden]


@pytest.mark.parametrize(
    ("norm", "expected", "bias"),
    [
        ("z", ["Linear", "BatchNorm1d", "ReLU", "Dropout"], False),
        ("a", ["Linear", "ReLU", "BatchNorm1d", "Dropout"], True),
        ("none", ["Linear", "ReLU", "Dropout"], True),
    ],
)
def test_the_norm_sits_before_or_after_the_activation(norm, expected, bias):
    net = BatchNormMLP(6, 2, hidden_units=[5, 4, 3], num_layers=3, norm=norm, dropout=0.2)
    assert kinds(net) == [expected] * 3
    assert [(layer[0].bias is not None) for layer in net.hidden] == [bias] * 3
    assert net.output.bias is not None


@pytest.mark.parametrize("norm", ["z", "a", "none"])
def test_the_forward_pass_is_the_formula(norm):
    torch.manual_seed(0)
    net = BatchNormMLP(6, 2, hidden_units=[5, 4], num_layers=None, norm=norm, activation="tanh").double()
    x = torch.randn(9, 6, dtype=torch.float64)
    h = x
    for layer in net.hidden:
        h = functional.linear(h, layer[0].weight, layer[0].bias)
        if norm == "a":
            h = h.tanh()
        if norm != "none":
            h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()
        if norm != "a":
            h = h.tanh()
    torch.testing.assert_close(net(x), functional.linear(h, net.output.weight, net.output.bias))


def test_one_width_serves_all_layers_and_a_list_gives_one_each():
    assert layer_widths(8, 3) == (8, 8, 8)
    assert layer_widths(8, 0) == ()
    assert layer_widths([8, 4], None) == layer_widths((8, 4), 2) == (8, 4)


def test_the_number_of_parameters_is_weights_gammas_betas_and_the_output_bias():
    net = BatchNormMLP(64, 10, hidden_units=[128, 32], num_layers=2)
    assert sum(p.numel() for p in net.parameters()) == 64 * 128 + 2 * 128 + 128 * 32 + 2 * 32 + 32 * 10 + 10


def test_no_hidden_layer_is_a_linear_model():
    net = BatchNormMLP(4, 2, num_layers=0)
    x = torch.randn(3, 4)
    torch.testing.assert_close(net(x), functional.linear(x, net.output.weight, net.output.bias))


def test_epsilon_momentum_and_dropout_reach_the_layers():
    net = BatchNormMLP(4, 2, bn_epsilon=1e-3, bn_momentum=0.3, dropout=0.25)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d)]
    assert [(m.eps, m.momentum) for m in norms] == [(1e-3, 0.3)] * 2
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.25] * 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"hidden_units": [8, 4], "num_layers": 3},
            ValueError,
            r"`num_layers` must be the length .* \(2\) or None, got 3",
        ),
        ({"hidden_units": 8, "num_layers": None}, ValueError, "`num_layers` must be an integer .* got None"),
        ({"num_layers": -1}, ValueError, "`num_layers` must be 0 or more, got -1"),
        ({"hidden_units": 0}, ValueError, "`hidden_units` must be 1 or more in every layer, got 0"),
        ({"hidden_units": 8.5}, TypeError, "`hidden_units` must be an integer or a list of integers, got 8.5"),
        ({"hidden_units": [8, "4"]}, TypeError, r"`hidden_units` must be an integer .* got \[8, '4'\]"),
        ({"hidden_units": "128"}, TypeError, "`hidden_units` must be an integer .* got '128'"),
        ({"activation": "rel"}, ValueError, "`activation` must be one of relu, .* got 'rel'"),
        ({"norm": "b"}, ValueError, "`norm` must be one of z, a, none, got 'b'"),
        ({"bn_epsilon": 0.0}, ValueError, "`bn_epsilon` must be above 0, got 0.0"),
        ({"bn_epsilon": float("nan")}, ValueError, "`bn_epsilon` must be above 0, got nan"),
        ({"bn_momentum": 0.0}, ValueError, "`bn_momentum` must be above 0 and at most 1, got 0.0"),
        ({"dropout": 1.0}, ValueError, "`dropout` must be at least 0 and below 1, got 1.0"),
        ({"num_features": 0}, ValueError, "`num_features` must be 1 or more, got 0"),
        ({"num_outputs": -2}, ValueError, "`num_outputs` must be 1 or more, got -2"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        BatchNormMLP(**{"num_features": 4, "num_outputs": 2, **arguments})
