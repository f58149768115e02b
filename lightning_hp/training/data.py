"""Data in memory: how splits become mini-batches, and scikit-learn's handwritten digits.

Every split is a ``TensorDataset``; a mini-batch is one indexing of its tensors. Inputs are standardised with the mean
and standard deviation of the training split only. Shapes: N rows of a mini-batch, F features.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.training.sampling import BatchSampler, check_split_arguments, split_rows
from lightning_hp.training.scaling import centre_and_scale

# Evaluation has no gradients to keep: large mini-batches save time and change no result.
EVAL_BATCH_SIZE = 4096


def standardise(
    train: NDArray[np.float64], *others: NDArray[np.float64], least_scale: float = 0.0
) -> list[NDArray[np.float32]]:
    """Subtract the training mean and divide by the training standard deviation, column by column.

    Args:
        train: Training rows, shape (n, F).
        others: Further splits, shape (any, F).
        least_scale: A smaller standard deviation counts as this one, in the unit of the columns.

    Returns:
        All splits, scaled, in the order given. A column that is constant in training, but for rounding, is only
        shifted (or divided by ``least_scale``, if that is above 0).
    """
    mean, scale, constant = centre_and_scale(train)
    scale = np.where(constant & (least_scale == 0), 1.0, np.maximum(np.where(constant, 0.0, scale), least_scale))
    return [((part - mean) / scale).astype(np.float32) for part in (train, *others)]


def _pass_on(batch: Any) -> Any:
    """Collate nothing: the data set has already returned a whole mini-batch."""
    return batch


class InMemoryDataModule(pl.LightningDataModule):
    """Mini-batches from tensors in memory, with mini-batches that may grow during training.

    A subclass fills ``train_set``, ``val_set`` and ``test_set`` in ``load``. The order of training rows follows the
    global seed (``seed_everything``, else 0) and the epoch, so a resumed fit sees the mini-batches it would have seen.
    Under distributed training each process takes its own rows.

    A last training mini-batch that is smaller than the others is left out (``drop_last=True``, other rows in every
    epoch) or kept; a single left-over row, which BatchNorm cannot normalise, joins the mini-batch before it.

    Attributes:
        train_set: Training rows: features (n, F) and targets.
        val_set: Validation rows.
        test_set: Test rows.
    """

    train_set: TensorDataset | None = None
    val_set: TensorDataset | None = None
    test_set: TensorDataset | None = None

    def __init__(
        self,
        batch_size: int = 64,
        batch_growth: float = 1.0,
        batch_growth_every: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        num_workers: int = 0,
        drop_last: bool = True,
    ) -> None:
        """Check and keep the arguments; nothing is read yet.

        Args:
            batch_size: Rows in a mini-batch of one process, at least 2; more than there are means all.
            batch_growth: Factor on the batch size, at least 1.
            batch_growth_every: Epochs between two enlargements; 0 for none.
            val_fraction: Share of the rows for validation.
            test_fraction: Share of the rows for the test.
            split_seed: Of the split.
            num_workers: Loader processes; 0 is fastest for data in memory.
            drop_last: Leave out an incomplete last training mini-batch.

        Raises:
            ValueError: If an argument is out of range.
        """
        super().__init__()
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 2:
            raise ValueError(f"`batch_size` must be an integer of 2 or more, got {batch_size!r}")
        if not 1 <= batch_growth < float("inf"):
            raise ValueError(f"`batch_growth` must be at least 1 and finite, got {batch_growth!r}")
        for name, value in (("batch_growth_every", batch_growth_every), ("num_workers", num_workers)):
            if value < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {value!r}")
        check_split_arguments(val_fraction, test_fraction)
        self.save_hyperparameters()
        self.batch_size, self.num_workers, self.drop_last = batch_size, num_workers, drop_last
        self.batch_growth, self.batch_growth_every = batch_growth, batch_growth_every
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        self._reload_every: int | None = None

    def load(self) -> None:
        """Read the data and fill the three sets; called once, by the first ``setup``."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Load once; with growing mini-batches, have Lightning count the mini-batches anew in every epoch.

        Lightning counts the mini-batches of the first epoch and validates after that many. Fewer, larger ones would
        never reach the count, so validation would silently stop: reloading the (cheap) loader renews it.
        """
        if self.train_set is None:
            self.load()
            self._check_sizes()
        trainer = self.trainer
        if stage == "fit" and trainer is not None and self.batch_growth > 1 and self.batch_growth_every:
            self._reload_every = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
            trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]

    def teardown(self, stage: str | None = None) -> None:
        """Give the Trainer back the reload interval it came with."""
        if stage == "fit" and self._reload_every is not None and self.trainer is not None:
            self.trainer.reload_dataloaders_every_n_epochs = self._reload_every  # type: ignore[attr-defined]
            self._reload_every = None

    def _check_sizes(self) -> None:
        for name, split, fraction, least in (
            ("training", self.train_set, 1.0, 2),
            ("validation", self.val_set, self.val_fraction, 2),
            ("test", self.test_set, self.test_fraction, 2),
        ):
            rows = 0 if split is None else len(split)
            if fraction > 0 and rows < least:
                raise ValueError(f"The {name} split must have at least {least} rows, got {rows}: more data is needed")

    def _loader(self, split: TensorDataset | None, training: bool) -> Any:
        if split is None:
            raise RuntimeError("The data must be set up first: call `setup()`")
        if not len(split):
            return []
        trainer = self.trainer
        replicas = 1 if trainer is None else trainer.world_size
        if training and len(split) < 2 * replicas:
            raise ValueError(
                f"The training split must have at least 2 rows for each of {replicas} processes, got {len(split)}"
            )
        if trainer is not None and trainer.overfit_batches:  # type: ignore[attr-defined]
            # Lightning then puts a sequential sampler of single rows in the place of ours
            return DataLoader(split, batch_size=min(self.batch_size, len(split)), shuffle=False)
        sampler = BatchSampler(
            split,
            batch_size=self.batch_size if training else EVAL_BATCH_SIZE,
            training=training,
            drop_last=training and self.drop_last,
            growth=self.batch_growth if training else 1.0,
            every=self.batch_growth_every if training else 0,
            seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),
            replicas=replicas,
            rank=0 if trainer is None else trainer.global_rank,
            epoch=0 if trainer is None else trainer.current_epoch,
        )
        return DataLoader(split, sampler=sampler, batch_size=None, collate_fn=_pass_on, num_workers=self.num_workers)

    def train_dataloader(self) -> Any:
        """Return shuffled mini-batches: features (N, F) and targets."""
        return self._loader(self.train_set, training=True)

    def val_dataloader(self) -> Any:
        """Return the validation rows in order; an empty list without any."""
        return self._loader(self.val_set, training=False)

    def test_dataloader(self) -> Any:
        """Return the test rows in order; an empty list without any."""
        return self._loader(self.test_set, training=False)

    def predict_dataloader(self) -> Any:
        """Return the test rows in order."""
        return self.test_dataloader()


@functools.lru_cache(maxsize=8)
def _digits_splits(val_fraction: float, test_fraction: float, split_seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Read, split and scale the digits; kept, because a study asks for the same split in every trial."""
    from sklearn.datasets import load_digits  # scikit-learn takes seconds to import

    x, y = load_digits(return_X_y=True)
    rows = split_rows(len(y), val_fraction, test_fraction, split_seed, labels=y)
    # Border pixels are lit in a few images only: divided by their own deviation, one grey level would become dozens.
    features = standardise(*(x[part] for part in rows), least_scale=1.0)
    return tuple((torch.from_numpy(a), torch.from_numpy(y[part])) for a, part in zip(features, rows, strict=True))


class DigitsDataModule(InMemoryDataModule):
    """scikit-learn's bundled handwritten digits: 1,797 images of 8x8 pixels, ten classes, no download.

    Split by class (stratified) into training, validation and test rows. Pixels (0 to 16) are standardised on the
    training split, with a standard deviation of at least one grey level.
    Mini-batches are features (N, 64) float32 and classes (N,) int64.

    Args:
        batch_size: Rows in a mini-batch of one process, at least 2; more than there are means all.
        batch_growth: Factor on the batch size, at least 1.
        batch_growth_every: Epochs between two enlargements; 0 for none.
        val_fraction: Share of the rows for validation.
        test_fraction: Share of the rows for the test.
        split_seed: Of the split.
        num_workers: Loader processes; 0 is fastest for data in memory.
        drop_last: Leave out an incomplete last training mini-batch.

    Raises:
        ValueError: If an argument is out of its range.
    """

    num_features = 64
    num_classes = 10
    class_names: Sequence[str] = tuple("0123456789")

    def load(self) -> None:
        """Fill the three sets."""
        splits = _digits_splits(self.val_fraction, self.test_fraction, self.split_seed)
        self.train_set, self.val_set, self.test_set = (TensorDataset(*split) for split in splits)
