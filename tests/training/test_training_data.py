import logging

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from torch.utils.data import TensorDataset

from lightning_hp.training import BatchNormClassifier, DigitsDataModule
from lightning_hp.training.data import InMemoryDataModule, standardise
from lightning_hp.training.sampling import split_rows


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def trainer(**arguments):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return pl.Trainer(**{**quiet, "enable_model_summary": False, "num_sanity_val_steps": 0, **arguments})


class Recorder(pl.Callback):
    """The rows (first feature) of every training mini-batch, by epoch, and the epochs that were validated."""

    def __init__(self):
        self.batches, self.validated = {}, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.setdefault(trainer.current_epoch, []).append(batch[0][:, 0].tolist())

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.current_epoch)


class Rows(InMemoryDataModule):
    """Row i has i in its first feature; as many training rows as asked for, and four to validate."""

    num_features, num_classes = 3, 2

    def __init__(self, rows, **arguments):
        super().__init__(**arguments)
        self.rows = rows

    def load(self):
        x = torch.randn(self.rows + 4, 3, generator=torch.Generator().manual_seed(0))
        x[:, 0] = torch.arange(self.rows + 4)
        data = x, torch.arange(self.rows + 4) % 2
        self.train_set = TensorDataset(*(t[: self.rows] for t in data))
        self.val_set = self.test_set = TensorDataset(*(t[self.rows :] for t in data))


def test_digits_are_scaled_on_the_training_split_and_stratified():
    data = DigitsDataModule(split_seed=5)
    data.setup()
    x, y = load_digits(return_X_y=True)
    train, val, test = split_rows(len(y), 0.2, 0.2, 5, labels=y)
    scaler = StandardScaler().fit(x[train])
    for split, rows in ((data.train_set, train), (data.val_set, val), (data.test_set, test)):
        features, targets = split.tensors
        np.testing.assert_allclose(features.numpy(), (x[rows] - scaler.mean_) / np.maximum(scaler.scale_, 1), atol=1e-5)
        np.testing.assert_array_equal(targets.numpy(), y[rows])
    counts = [np.bincount(y[rows]) / len(rows) for rows in (train, val, test)]
    assert np.ptp(counts, axis=0).max() < 0.01
    assert (len(train), len(val), len(test)) == (1078, 360, 359)


def test_a_constant_column_is_only_shifted():
    train, other = standardise(np.full((4, 1), 3.0), np.full((2, 1), 5.0))
    assert train.ravel().tolist() == [0, 0, 0, 0]
    assert other.ravel().tolist() == [2, 2]


def test_loaders_give_the_rows_of_the_sets():
    data = DigitsDataModule(batch_size=100)
    data.setup()
    batches = list(data.train_dataloader())
    assert [len(x) for x, _ in batches] == [100] * 10
    position = {tuple(row): i for i, row in enumerate(data.train_set.tensors[0].tolist())}
    for x, y in batches:
        rows = [position[tuple(row)] for row in x.tolist()]
        assert y.tolist() == data.train_set.tensors[1][rows].tolist()
    ((x, y),) = list(data.val_dataloader())
    torch.testing.assert_close((x, y), data.val_set.tensors)


def test_loader_processes_give_the_same_mini_batches():
    alone, helped = DigitsDataModule(), DigitsDataModule(num_workers=1)
    for data in (alone, helped):
        data.setup()
    for ours, theirs in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_lone_last_row_does_not_stop_training(drop_last):
    seen = Recorder()
    trainer(max_epochs=2, callbacks=[seen]).fit(BatchNormClassifier(), Rows(17, batch_size=8, drop_last=drop_last))
    sizes = [[len(rows) for rows in batches] for batches in seen.batches.values()]
    assert sizes == [[8, 8] if drop_last else [8, 9]] * 2


def test_the_batch_grows_and_every_epoch_is_still_validated():
    seen = Recorder()
    data = Rows(64, batch_size=8, batch_growth=2.0, batch_growth_every=2, drop_last=False)
    t = trainer(max_epochs=7, callbacks=[seen])
    t.fit(BatchNormClassifier(), data)
    assert [[len(rows) for rows in seen.batches[e]] for e in range(7)] == [
        *[[8] * 8] * 2,
        *[[16] * 4] * 2,
        *[[32] * 2] * 2,
        [64],
    ]
    assert seen.validated == list(range(7))
    assert t.reload_dataloaders_every_n_epochs == 0, "the Trainer gets its own setting back"


def test_a_resumed_fit_sees_the_mini_batches_it_would_have_seen(tmp_path):
    def fit(epochs, **arguments):
        pl.seed_everything(3)
        seen = Recorder()
        t = trainer(max_epochs=epochs, callbacks=[seen])
        model = BatchNormClassifier(schedule="exponential", learning_rate_decay=0.1)
        t.fit(model, Rows(64, batch_size=8, batch_growth=2.0, batch_growth_every=2), weights_only=True, **arguments)
        return t, seen, model

    whole, all_batches, straight = fit(5)
    half, _, _ = fit(3)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, later, continued = fit(5, ckpt_path=tmp_path / "half.ckpt")
    assert later.batches == {epoch: all_batches.batches[epoch] for epoch in (3, 4)}
    assert resumed.global_step == whole.global_step
    torch.testing.assert_close(straight.state_dict(), continued.state_dict(), rtol=0, atol=0)


def test_the_order_follows_the_global_seed():
    orders = []
    for seed in (0, 0, 1):
        pl.seed_everything(seed)
        data = Rows(64)
        data.setup()
        orders.append([x[:, 0].tolist() for x, _ in data.train_dataloader()])
    assert orders[0] == orders[1] != orders[2]


def test_overfitting_on_a_few_mini_batches_works():
    seen = Recorder()
    trainer(max_epochs=2, overfit_batches=2, callbacks=[seen]).fit(BatchNormClassifier(), Rows(64, batch_size=8))
    assert seen.batches[0] == seen.batches[1] == [list(range(8)), list(range(8, 16))]


def test_splits_may_be_left_out():
    data = DigitsDataModule(val_fraction=0.0, test_fraction=0.0)
    t = trainer(max_epochs=1)
    with pytest.warns(UserWarning, match="has zero length|Total length|no `val_dataloader`"):
        t.fit(BatchNormClassifier(), data)
    assert len(data.train_set) == 1797
    assert data.val_dataloader() == data.test_dataloader() == []
    assert t.callback_metrics.keys() == {"train_loss"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 1}, "`batch_size` must be an integer of 2 or more, got 1"),
        ({"batch_size": 32.0}, "`batch_size` must be an integer of 2 or more, got 32.0"),
        ({"batch_growth": 0.5}, "`batch_growth` must be at least 1 and finite, got 0.5"),
        ({"batch_growth_every": -1}, "`batch_growth_every` must be 0 or more, got -1"),
        ({"num_workers": -1}, "`num_workers` must be 0 or more, got -1"),
        ({"val_fraction": 1.2}, "`val_fraction` must be at least 0 and below 1, got 1.2"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**arguments)


def test_too_few_rows_are_said_before_training():
    with pytest.raises(ValueError, match="The training split must have at least 2 rows, got 1"):
        Rows(1).setup()
    with pytest.raises(RuntimeError, match=r"must be set up first: call `setup\(\)`"):
        Rows(8).train_dataloader()
