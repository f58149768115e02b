import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_hp.training.sampling import BatchSampler, batch_sizes, grown_batch_size, split_rows


def sampler(rows, **arguments):
    return BatchSampler(TensorDataset(torch.zeros(rows)), **{"batch_size": 8, "training": True, **arguments})


def test_splits_are_disjoint_complete_and_stratified():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    train, val, test = split_rows(160, 0.2, 0.1, seed=3, labels=labels)
    assert sorted(np.concatenate([train, val, test])) == list(range(160))
    assert np.bincount(labels[val]).tolist() == [20, 10, 2]
    assert np.bincount(labels[test]).tolist() == [10, 5, 1]


def test_a_split_follows_its_seed():
    first, again, other = (split_rows(50, 0.2, 0.2, seed)[2].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_every_class_keeps_a_row_for_training():
    labels = np.asarray([0] * 20 + [1] * 2 + [2])
    train, _, _ = split_rows(23, 0.45, 0.45, seed=0, labels=labels)
    assert set(labels[train]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((-0.1, 0.2), "`val_fraction` must be at least 0 and below 1, got -0.1"),
        ((0.1, 1.0), "`test_fraction` must be at least 0 and below 1, got 1.0"),
        ((0.5, 0.5), r"`val_fraction` \+ `test_fraction` must be below 1, got 0.5 \+ 0.5"),
    ],
)
def test_a_wrong_fraction_is_named(fractions, message):
    with pytest.raises(ValueError, match=message):
        split_rows(10, *fractions, seed=0)


def test_the_batch_grows_by_the_factor_and_stops_at_all_rows():
    sizes = [grown_batch_size(10, 1.5, 2, epoch, most=40) for epoch in range(9)]
    assert sizes == [10, 10, 15, 15, 22, 22, 34, 34, 40]
    assert grown_batch_size(10, 2.0, 1, 100_000, most=40) == 40
    assert grown_batch_size(10, 2.0, 0, 7, most=40) == 10
    assert grown_batch_size(64, 1.0, 0, 0, most=40) == 40


@pytest.mark.parametrize("rows", range(2, 40))
@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_no_mini_batch_is_a_single_row(rows, batch_size):
    size = min(rows, batch_size)
    kept = batch_sizes(rows, size, drop_last=False)
    assert sum(kept) == rows
    assert min(kept) >= 2
    assert max(kept) <= size + 1
    dropped = batch_sizes(rows, size, drop_last=True)
    assert set(dropped) == {size}
    assert rows - sum(dropped) < size


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own():
    s = sampler(30, drop_last=False)
    first = list(s)
    assert [len(b) for b in first] == [8, 8, 8, 6]
    assert len(s) == 4
    s.set_epoch(1)
    orders = torch.cat(first).tolist(), torch.cat(list(s)).tolist()
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
    assert orders[0] != orders[1] != list(range(30))
    s.set_epoch(0)
    assert torch.cat(list(s)).tolist() == orders[0]
    assert torch.cat(list(sampler(30, seed=1))).tolist() != orders[0]


@pytest.mark.parametrize("rows", [17, 30, 31, 33])
@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_share_the_rows_and_take_equal_steps(rows, drop_last):
    for epoch in range(3):
        ranks = [sampler(rows, replicas=2, rank=rank, drop_last=drop_last, epoch=epoch) for rank in (0, 1)]
        batches = [list(s) for s in ranks]
        assert [len(b) for b in batches[0]] == [len(b) for b in batches[1]]
        assert [len(s) for s in ranks] == [len(b) for b in batches]
        seen = torch.cat([*batches[0], *batches[1]]).tolist()
        assert len(seen) == len(set(seen))
        if not drop_last:
            assert len(seen) == rows - rows % 2


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_evaluation_takes_every_row_once_and_in_order(replicas):
    seen = [torch.cat(list(sampler(20, training=False, replicas=replicas, rank=r))).tolist() for r in range(replicas)]
    assert sorted(row for rows in seen for row in rows) == list(range(20))
    assert all(rows == sorted(rows) for rows in seen)


def test_the_length_follows_the_growing_batch():
    s = sampler(64, growth=2.0, every=1)
    lengths = []
    for epoch in range(5):
        s.set_epoch(epoch)
        lengths.append((len(s), len(list(s)), s.batch_size))
    assert lengths == [(8, 8, 8), (4, 4, 16), (2, 2, 32), (1, 1, 64), (1, 1, 64)]
