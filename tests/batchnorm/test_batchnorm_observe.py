"""Recording and replaying calls; everything that is changed for a while comes back, also after an exception."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_hp.batchnorm.inputs import input_hooks
from lightning_hp.batchnorm.observe import CallRecorder, preserved, replay
from lightning_hp.batchnorm.recalibrate import temporary_statistics
from lightning_hp.batchnorm.statistics import Moments, find_layers


class Boom(RuntimeError):
    """The exception that comes in the middle. The blocks that raise it hold what must be undone (hence PT012)."""


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 3))


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


class Pair(nn.Module):
    """Two networks that are called separately, one of them twice and by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.plain = net(), net(), nn.Linear(4, 4)

    def step(self, x: Tensor) -> Tensor:
        x = self.plain(x)
        self.first(input=x)
        self.second(x)
        return self.first(-x)


def test_recorder_keeps_outermost_calls_in_order_with_arguments() -> None:
    model, x = Pair(), torch.randn(5, 4)
    recorder = CallRecorder(model)
    with recorder.recording():
        model.step(x)
    (step,) = recorder.steps
    assert [call.module for call in step] == ["first", "second", "first"]
    assert [call.rows for call in step] == [5, 5, 5]
    assert torch.equal(step[0].kwargs["input"], -step[2].args[0])
    assert not step[1].args[0].requires_grad
    assert hook_count(model) == 0


def test_recorded_arguments_do_not_follow_later_changes() -> None:
    model, x = net(), torch.randn(5, 4)
    recorder = CallRecorder(model)
    with recorder.recording():
        model(x)
    before = x.clone()
    x.zero_()
    assert torch.equal(recorder.steps[0][0].args[0], before)


def test_recorder_does_not_count_recomputation_in_backward_as_a_call() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def step(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, x, use_reentrant=False).sum()

    model = Checkpointed()
    recorder = CallRecorder(model)
    with recorder.recording():
        model.step(torch.randn(5, 4, requires_grad=True)).backward()
    assert [len(step) for step in recorder.steps] == [1]
    assert int(model.body[1].num_batches_tracked) == 2  # the fault that rule BN04 is about


def test_recorder_drops_old_steps_by_rows_and_by_bytes() -> None:
    model = net()
    by_rows = CallRecorder(model, max_rows=100)
    by_bytes = CallRecorder(model, max_bytes=3 * 10 * 4 * 4)
    for _ in range(30):
        for recorder in (by_rows, by_bytes):
            with recorder.recording():
                model(torch.randn(10, 4))
    assert by_rows.count == 16  # never fewer: the spread between batches is estimated from them
    assert by_rows.rows == 160
    assert by_bytes.count == 3


@pytest.mark.parametrize("name", ["max_steps", "max_rows", "max_bytes"])
def test_recorder_rejects_limits_that_keep_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        CallRecorder(net(), **{name: 0})


def test_recording_takes_hooks_off_and_keeps_nothing_when_the_step_raises() -> None:
    model = net()
    recorder = CallRecorder(model)
    with pytest.raises(Boom, match="in the middle"), recorder.recording():  # noqa: PT012
        model(torch.randn(5, 4))
        raise Boom("in the middle")
    assert recorder.count == 0
    assert hook_count(model) == 0
    with recorder.recording():  # and it works again
        model(torch.randn(5, 4))
    assert recorder.count == 1


def test_replay_gives_the_outputs_again_and_moves_no_argument() -> None:
    model, x = net().eval(), torch.randn(5, 4)
    recorder = CallRecorder(model)
    with recorder.recording():
        expected = model(x)
    outputs: list[Tensor] = []
    for _ in range(2):  # the in-place ReLU must not reach the recorded input
        replay(model, recorder.steps, on_output=lambda i, j, out: outputs.append(out))
    assert torch.equal(outputs[0], expected)
    assert torch.equal(outputs[1], expected)
    assert not outputs[0].requires_grad


def test_preserved_restores_everything_after_an_exception() -> None:
    model = net()
    model[3].eval()
    before, modes = state(model), [m.training for m in model.modules()]
    buffer = model[1].running_mean
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.get_rng_state().clone(), random.getstate()
    with pytest.raises(Boom, match="in the middle"), preserved(model):  # noqa: PT012
        model.eval()
        model[1].train()
        model[1].momentum = None
        model[1].track_running_stats = False
        model[1].running_var.mul_(7.0)
        model[1].running_mean = torch.ones(6)  # a rebound buffer
        torch.rand(3)
        random.random()
        raise Boom("in the middle")
    assert_same_state(model, before)
    assert [m.training for m in model.modules()] == modes
    assert model[1].running_mean is buffer
    assert model[1].momentum == 0.1
    assert model[1].track_running_stats
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert random.getstate() == expected[1]


def test_input_hooks_see_inputs_and_come_off_after_an_exception() -> None:
    model, seen = net(), []
    with (  # noqa: PT012
        pytest.raises(Boom, match="in the middle"),
        input_hooks(find_layers(model), lambda name, x: seen.append((name, x.shape))),
    ):
        model(torch.randn(5, 4))
        raise Boom("in the middle")
    assert seen == [("1", (5, 6))]
    assert hook_count(model) == 0


def test_temporary_statistics_come_back_after_an_exception() -> None:
    model = net()
    before = state(model)
    fresh = {"1": Moments.of(torch.randn(50, 6) * 3 + 1)}
    with pytest.raises(Boom, match="in the middle"), temporary_statistics(model, fresh):  # noqa: PT012
        torch.testing.assert_close(model[1].running_mean.double(), fresh["1"].mean, rtol=1e-6, atol=1e-6)
        raise Boom("in the middle")
    assert_same_state(model, before)


def test_calls_inside_a_compiled_module_are_seen_from_outside_only() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.compile(net(), backend="eager")

    model = Holder()
    plain = copy.deepcopy(model.net._orig_mod)
    recorder = CallRecorder(model)
    with recorder.recording():
        model.net(torch.randn(5, 4))
    assert [call.module for call in recorder.steps[0]] == ["net"]
    assert not CallRecorder(torch.compile(plain, backend="eager")._orig_mod, max_steps=1).steps
    inputs = []
    with input_hooks(find_layers(model), lambda name, x: inputs.append(name)):
        replay(model, recorder.steps)
    assert inputs == ["net._orig_mod.1"]
