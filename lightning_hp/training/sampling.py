"""Which rows make a training, validation or test split, and which rows make a mini-batch, in which epoch and process.

The data sets here are tensors in memory, so a sampler that yields whole mini-batches of row numbers, given to
``DataLoader(TensorDataset(...), sampler=..., batch_size=None)``, replaces fetching and collating row by row.

Units: rows, epochs (0 first). ``replicas`` is the number of processes of a distributed run; a batch size is that of one
process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler


def split_rows(
    rows: int, val_fraction: float, test_fraction: float, seed: int, labels: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Split row numbers into training, validation and test rows, at random and by class.

    Each class gives the rounded share of its rows to the test and to the validation split, and keeps at least one row
    for training. Without labels all rows are one class.

    Args:
        rows: Number of rows.
        val_fraction: Share of all rows for validation, from 0.
        test_fraction: Share of all rows for the test, from 0; the sum of both is below 1.
        seed: Of the split.
        labels: Class of each row, shape (rows,), or None.

    Returns:
        Sorted row numbers of the training, validation and test split; disjoint, and together all rows.

    Raises:
        ValueError: If a fraction is out of range.
    """
    check_split_arguments(val_fraction, test_fraction)
    order = np.random.default_rng(seed).permutation(rows)
    classes = np.zeros(rows, dtype=np.int64) if labels is None else labels
    train, val, test = [], [], []
    for value in np.unique(classes):
        members = order[classes[order] == value]
        held_out = min(round(len(members) * (val_fraction + test_fraction)), len(members) - 1)
        num_test = min(round(len(members) * test_fraction), held_out)
        test.append(members[:num_test])
        val.append(members[num_test:held_out])
        train.append(members[held_out:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val)), np.sort(np.concatenate(test))


def check_split_arguments(val_fraction: float, test_fraction: float) -> None:
    """Raise ValueError, naming the argument, if the fractions leave nothing to train on."""
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise ValueError(f"`{name}` must be at least 0 and below 1, got {value!r}")
    if val_fraction + test_fraction >= 1:
        raise ValueError(f"`val_fraction` + `test_fraction` must be below 1, got {val_fraction!r} + {test_fraction!r}")


def grown_batch_size(batch_size: int, growth: float, every: int, epoch: int, most: int) -> int:
    """Return the batch size of an epoch: ``batch_size * growth ** (epoch // every)``, rounded, at most ``most``.

    Args:
        batch_size: Rows in the first epoch.
        growth: Factor, at least 1.
        every: Epochs between two enlargements; 0 for none.
        epoch: The epoch, 0 first.
        most: Upper limit in rows.

    Returns:
        Rows in a mini-batch.
    """
    times = epoch // every if every else 0
    # in logarithms first: growth ** times overflows a float in long runs
    if math.log(batch_size) + times * math.log(growth) >= math.log(most):
        return most
    return min(round(batch_size * growth**times), most)


def batch_sizes(rows: int, batch_size: int, drop_last: bool) -> list[int]:
    """Return the sizes of consecutive mini-batches of an epoch, none of them a single row unless ``rows`` is 1.

    BatchNorm cannot normalise one row, so a last mini-batch of one row is merged into the one before it.

    Args:
        rows: Rows to share out, at least 1.
        batch_size: Rows in a full mini-batch, at most ``rows``.
        drop_last: Leave out an incomplete last mini-batch.

    Returns:
        Sizes in order.
    """
    sizes = [batch_size] * (rows // batch_size)
    rest = rows % batch_size
    if rest == 1 and not drop_last:
        sizes[-1] += 1
    elif rest and not drop_last:
        sizes.append(rest)
    return sizes


class BatchSampler(DistributedSampler[Tensor]):
    """Yields the row numbers of whole mini-batches.

    The order is a function of (seed, epoch) only, so it is the same in a resumed run, and the same in every process:
    each takes its own rows, none is repeated, and all take the same number of steps. Lightning tells the epoch through
    ``set_epoch``. Being a ``DistributedSampler`` that knows its processes, it is not replaced by Lightning (which would
    put single rows in the place of mini-batches).

    In training, rows that cannot be shared out equally (fewer than ``replicas``) rest for that epoch; in evaluation
    every row is used once.
    """

    def __init__(
        self,
        dataset: Dataset[tuple[Tensor, ...]],
        batch_size: int,
        training: bool,
        drop_last: bool = False,
        growth: float = 1.0,
        every: int = 0,
        seed: int = 0,
        replicas: int = 1,
        rank: int = 0,
        epoch: int = 0,
    ) -> None:
        """Keep the plan; nothing is drawn before iteration.

        Args:
            dataset: Its length is the number of rows.
            batch_size: Rows in a mini-batch of one process, in epoch 0; more than there are means all.
            training: Shuffle, and give every process the same number of rows.
            drop_last: Leave out an incomplete last mini-batch.
            growth: Factor on the batch size, at least 1.
            every: Epochs between two enlargements; 0 for none.
            seed: Of the order.
            replicas: Number of processes.
            rank: Of this process.
            epoch: To start with.
        """
        super().__init__(dataset, num_replicas=replicas, rank=rank, shuffle=training, seed=seed, drop_last=drop_last)
        self._rows = len(dataset)  # type: ignore[arg-type]
        self._training = training
        self._batch_size, self._growth, self._every = batch_size, growth, every
        self.epoch = epoch

    @property
    def batch_size(self) -> int:
        """Rows of a full mini-batch of one process in the current epoch."""
        return grown_batch_size(self._batch_size, self._growth, self._every, self.epoch, self._share)

    @property
    def plan_key(self) -> tuple[float, ...]:
        """What decides the sizes of the mini-batches in every epoch."""
        return self._batch_size, self._growth, self._every, self.drop_last

    @property
    def _share(self) -> int:
        """Rows of one process; in evaluation the first ranks take one row more."""
        extra = 0 if self._training else int(self.rank < self._rows % self.num_replicas)
        return self._rows // self.num_replicas + extra

    def _sizes(self) -> list[int]:
        if not self._share:
            return []
        return batch_sizes(self._share, self.batch_size, self.drop_last)

    def __len__(self) -> int:
        """Return the number of mini-batches of one process in the current epoch."""
        return len(self._sizes())

    def plan(self) -> tuple[Tensor, list[int]]:
        """Return the row numbers of the current epoch in order, int64 of shape (L,), and the mini-batches' sizes."""
        if self._training:
            generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
            order = torch.randperm(self._rows, generator=generator)
        else:
            order = torch.arange(self._rows)
        sizes = self._sizes()
        return order[self.rank :: self.num_replicas][: sum(sizes)], sizes

    def __iter__(self) -> Iterator[Tensor]:
        """Yield row numbers, one int64 tensor of shape (N,) for each mini-batch."""
        order, sizes = self.plan()
        yield from order.split(sizes) if sizes else ()
