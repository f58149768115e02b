"""What is said about batch normalisation, each claim against a second computation in float64."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from lightning_hp.training import BatchNormClassifier, BatchNormMLP, DigitsDataModule

N, F, H = 48, 7, 5


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def linear_and_norm(net):
    layer = net.hidden[0]
    return layer[0], layer[1]


def test_normalised_z_has_mean_0_and_variance_1(rng):
    torch.manual_seed(0)
    net = BatchNormMLP(F, 3, hidden_units=[H, H], num_layers=None).double()
    seen = []
    for layer in net.hidden:
        layer[1].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    net(torch.from_numpy(rng.normal(5, 20, (N, F))))
    assert len(seen) == 2
    for z, z_norm in seen:
        z, z_norm = z.detach().numpy(), z_norm.detach().numpy()
        var = z.var(axis=0)
        np.testing.assert_allclose(z_norm.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(z_norm.var(axis=0), var / (var + 1e-5), rtol=1e-10)
        assert var.min() > 0.01, "else epsilon would decide"


def test_gamma_sqrt_var_plus_epsilon_and_beta_mean_give_z_back(rng):
    torch.manual_seed(1)
    linear, norm = linear_and_norm(BatchNormMLP(F, 3, hidden_units=H, bn_epsilon=1e-2).double())
    z = linear(torch.from_numpy(rng.normal(2, 3, (N, F))))
    with torch.no_grad():
        norm.weight.copy_((z.var(dim=0, correction=0) + 1e-2).sqrt())
        norm.bias.copy_(z.mean(dim=0))
    torch.testing.assert_close(norm(z), z, rtol=0, atol=1e-12)


def test_a_bias_before_the_norm_changes_neither_outputs_nor_the_training_trajectory(rng):
    torch.manual_seed(2)
    without = BatchNormMLP(F, 3, hidden_units=H, num_layers=2).double()
    with_bias = BatchNormMLP(F, 3, hidden_units=H, num_layers=2).double()
    with_bias.load_state_dict(without.state_dict())
    for layer in with_bias.hidden:
        layer[0].bias = nn.Parameter(torch.from_numpy(rng.normal(0, 3, H)))
    biases = [layer[0].bias.detach().clone() for layer in with_bias.hidden]
    nets = (without, with_bias)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in nets]
    first_weight = without.hidden[0][0].weight.detach().clone()
    for _ in range(30):
        x, y = torch.from_numpy(rng.normal(0, 1, (N, F))), torch.from_numpy(rng.integers(0, 3, N))
        outputs = [net(x) for net in nets]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-9)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(output, y).backward()
            optimizer.step()
    assert (without.hidden[0][0].weight - first_weight).abs().max() > 0.01, "it did train"
    other = dict(with_bias.named_parameters())
    for name, parameter in without.named_parameters():
        torch.testing.assert_close(parameter, other[name], rtol=0, atol=1e-9)
    for layer, bias in zip(with_bias.hidden, biases, strict=True):
        torch.testing.assert_close(layer[0].bias, bias, rtol=0, atol=1e-9)  # its gradient is 0


def test_gradients_of_gamma_beta_and_z_equal_the_closed_forms(rng):
    """Ioffe and Szegedy 2015, section 3: the chain rule through mean and variance, written out."""
    epsilon = 1e-3
    norm = nn.BatchNorm1d(H, eps=epsilon).double()
    gamma, beta = rng.normal(1, 0.5, H), rng.normal(0, 1, H)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(gamma))
        norm.bias.copy_(torch.from_numpy(beta))
    z, upstream = rng.normal(3, 2, (N, H)), rng.normal(0, 1, (N, H))
    leaf = torch.from_numpy(z).requires_grad_()
    (norm(leaf) * torch.from_numpy(upstream)).sum().backward()

    mean, var = z.mean(axis=0), z.var(axis=0)
    z_norm = (z - mean) / np.sqrt(var + epsilon)
    d_norm = upstream * gamma
    d_var = (d_norm * (z - mean)).sum(axis=0) * -0.5 * (var + epsilon) ** -1.5
    d_mean = -d_norm.sum(axis=0) / np.sqrt(var + epsilon) + d_var * (-2 * (z - mean)).mean(axis=0)
    d_z = d_norm / np.sqrt(var + epsilon) + d_var * 2 * (z - mean) / N + d_mean / N
    np.testing.assert_allclose(norm.weight.grad.numpy(), (upstream * z_norm).sum(axis=0), rtol=1e-10)
    np.testing.assert_allclose(norm.bias.grad.numpy(), upstream.sum(axis=0), rtol=1e-10)
    np.testing.assert_allclose(leaf.grad.numpy(), d_z, rtol=1e-9, atol=1e-12)


def test_one_example_is_predicted_in_eval_mode_from_the_running_statistics(rng):
    torch.manual_seed(3)
    net = BatchNormMLP(F, 3, hidden_units=H, num_layers=1).double()
    for _ in range(5):
        net(torch.from_numpy(rng.normal(1, 2, (N, F))))
    x = rng.normal(1, 2, (1, F))
    linear, norm = linear_and_norm(net)
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    z = x @ linear.weight.detach().numpy().T
    z_norm = (z - norm.running_mean.numpy()) / np.sqrt(norm.running_var.numpy() + 1e-5)
    a = np.maximum(norm.weight.detach().numpy() * z_norm + norm.bias.detach().numpy(), 0)
    expected = a @ state["output.weight"].T + state["output.bias"]
    np.testing.assert_allclose(net.eval()(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-10)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        net.train()(torch.from_numpy(x))


def test_the_noise_of_the_norm_shrinks_like_one_over_the_root_of_the_batch_size():
    """A fixed row at the population mean, in 4,000 random mini-batches (one a channel).

    Its output is -mean/std of the mini-batch. For normal data its square is about u (n-1)/n / S, with u and S being
    independent chi-squared variables of 1 and n-2 degrees, and E[1/S] = 1/(n-4).
    """
    generator = torch.Generator().manual_seed(4)
    noise = {}
    for n in (32, 128, 512):
        z = torch.randn(n, 4000, generator=generator, dtype=torch.float64)
        z[0] = 0.0
        noise[n] = nn.BatchNorm1d(4000).double()(z)[0].std().item()
        assert noise[n] == pytest.approx(((n - 1) / n / (n - 4)) ** 0.5, rel=0.03)
    for n in (32, 128):
        assert noise[n] / noise[4 * n] == pytest.approx(2.0, rel=0.06)


def test_running_statistics_are_the_exponentially_weighted_average_over_training_mini_batches():
    momentum, batches = 0.07, []
    pl.seed_everything(0)
    model = BatchNormClassifier(64, 10, hidden_units=H, num_layers=1, bn_momentum=momentum)
    norm = model.net.hidden[0][1]

    def keep(module, inputs):
        if module.training:
            batches.append(inputs[0].detach().double().numpy())

    norm.register_forward_pre_hook(keep)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, DigitsDataModule())
    mean, var = np.zeros(H), np.ones(H)
    for z in batches:
        mean = (1 - momentum) * mean + momentum * z.mean(axis=0)
        var = (1 - momentum) * var + momentum * z.var(axis=0, ddof=1)
    assert len(batches) == trainer.global_step == int(norm.num_batches_tracked)
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), var, rtol=1e-4)
