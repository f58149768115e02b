"""A small stack has one thread, whatever torch is allowed; numbers and the process's setting stay as they are."""

from functools import partial

import pytest
import torch
from stacked_runs import build, difference

from lightning_hp.training import BatchNormClassifier, DigitsDataModule
from lightning_hp.training.stacked import stack, threads, train_stacked
from lightning_hp.training.stacked.cost import step_seconds
from lightning_hp.training.stacked.threads import BYTES_A_THREAD, threads_for, threads_of_stack


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("size", "wanted"), [(0, 1), (1, 1), (BYTES_A_THREAD, 1), (2 * BYTES_A_THREAD, 2), (1 << 60, 3)]
)
def test_a_thread_for_each_so_many_bytes_and_never_more_than_torch_has(size, wanted):
    assert threads_for(size, 3) == wanted
    with threads_of_stack(size, torch.device("cpu")):
        assert torch.get_num_threads() == wanted
    with threads_of_stack(size, torch.device("cuda")):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 3


def trained(seen):
    module, data = partial(BatchNormClassifier, hidden_units=8), partial(DigitsDataModule, batch_size=256)

    def should_stop(reports):
        seen.append(torch.get_num_threads())
        return [False] * len(reports)

    return train_stacked([build(seed, module, data, max_epochs=1) for seed in range(2)], should_stop)


def test_a_small_stack_trains_with_one_thread_and_a_large_one_with_all(monkeypatch):
    seen = []
    small = trained(seen)
    monkeypatch.setattr(threads, "BYTES_A_THREAD", 1)
    large = trained(seen)
    assert seen == [1, 3]
    assert torch.get_num_threads() == 3
    for one, other in zip(small, large, strict=True):
        assert difference(one.member.module, other.member.module) < 1e-10


def test_the_threads_are_given_back_where_training_fails():
    def fail(reports):
        raise RuntimeError("the caller's own")

    members = [build(0, partial(BatchNormClassifier, hidden_units=8), DigitsDataModule, max_epochs=1)]
    with pytest.raises(RuntimeError, match="the caller's own"):
        train_stacked(members, fail)
    assert torch.get_num_threads() == 3


def test_what_a_step_costs_is_measured_with_the_threads_that_it_will_have(monkeypatch):
    seen = []
    together = stack([build(0, partial(BatchNormClassifier, hidden_units=8), DigitsDataModule)])
    step = together.train_batch
    monkeypatch.setattr(together, "train_batch", lambda *of: seen.append(torch.get_num_threads()) or step(*of))
    step_seconds(together)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3
