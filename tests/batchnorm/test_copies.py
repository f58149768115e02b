"""Averages of a module beside it: they are recognised, and given the inputs of what they copy."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lightning_hp.batchnorm.copies import calls_for_copy, find_copies
from lightning_hp.batchnorm.observe import CallRecorder, Step
from lightning_hp.batchnorm.recalibrate import recalibrate


def block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body, self.spare = block(6), nn.Sequential(block(6), block(6)), block(6)
        self.mean = nn.ModuleDict({"body": copy.deepcopy(self.body)})
        for p in self.mean.parameters():
            p.data += 0.05 * torch.randn_like(p)

    def forward(self, x: Tensor, average: bool = False) -> Tensor:
        return (self.mean["body"] if average else self.body)(self.stem(x))


def recorded(net: Net) -> list[Step]:
    recorder = CallRecorder(net)
    for seed in range(10):
        with recorder.recording():
            net(torch.randn(64, 6, generator=torch.Generator().manual_seed(seed)) * 2 + 1)
    return recorder.steps


def test_the_average_is_found_and_another_block_of_the_same_shape_is_not() -> None:
    net = Net()
    assert find_copies(net, recorded(net)) == {"mean.body": "body"}


def test_a_copy_that_training_calls_is_none() -> None:
    net = Net()
    recorder = CallRecorder(net)
    with recorder.recording():
        net(torch.randn(8, 6))
        net(torch.randn(8, 6), average=True)
    assert find_copies(net, recorder.steps) == {}


def test_the_copy_gets_the_statistics_of_its_own_weights() -> None:
    net = Net()
    steps = recorded(net)
    before = net.body[0][1].running_mean.clone()
    with torch.no_grad():
        redirected = calls_for_copy(net.eval(), steps, "mean.body", "body")
        recalibrate(net, redirected, ["mean.body.0.1"])
        x = torch.cat([torch.randn(64, 6, generator=torch.Generator().manual_seed(s)) * 2 + 1 for s in range(10)])
        z = net.mean["body"][0][0](net.stem(x))
    torch.testing.assert_close(net.mean["body"][0][1].running_mean, z.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net.mean["body"][0][1].running_var, z.var(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(net.body[0][1].running_mean, before)
    assert not any(module._forward_pre_hooks for module in net.modules())
