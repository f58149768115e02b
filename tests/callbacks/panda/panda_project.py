"""A tiny project to babysit: data in memory, and a module whose loss a test can spoil."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_hp.training.data import InMemoryDataModule

ROWS = 160


class Data(InMemoryDataModule):
    def load(self):
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(ROWS + 80, 6, generator=draw)
        y = (x[:, :1] - x[:, 1:2] + 0.1 * torch.randn(len(x), 1, generator=draw)).float()
        self.train_set = TensorDataset(x[:ROWS], y[:ROWS])
        self.val_set, self.test_set = TensorDataset(x[ROWS:], y[ROWS:]), None


def data(batch_size=16):
    return Data(batch_size=batch_size, val_fraction=0.3, test_fraction=0.0)


class Module(pl.LightningModule):
    """``spoil_at`` multiplies the weights by 1e30 after that many training batches, once."""

    def __init__(self, rate=0.05, optimizer=None, schedule=None, spoil_at=None, dropout=0.0):
        super().__init__()
        torch.manual_seed(3)
        layers = [nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1)]
        self.net = nn.Sequential(*layers)
        self.rate, self.build, self.schedule, self.spoil_at = rate, optimizer, schedule, spoil_at
        self.batches = 0

    def training_step(self, batch, index):
        self.batches += 1
        if self.batches == self.spoil_at:
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.mul_(1e30)
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        if self.build is None:
            optimizer = torch.optim.SGD(self.parameters(), self.rate, momentum=0.9)
        else:
            optimizer = self.build(self)
        return (
            optimizer if self.schedule is None else {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}
        )


class Script:
    """A policy of a test: step to intervention; keeps ``good`` at the steps that are named."""

    def __init__(self, todo, keep=(), settings=None):
        from lightning_hp.callbacks.panda.settings import Settings

        self.todo, self.kept, self.settings = dict(todo), set(keep), settings or Settings()

    def decide(self, history):
        return self.todo.get(history.step)

    def keep(self, history):
        return ("good",) if history.step in self.kept else ()

    def window(self, history, usual, step):
        return usual


def trainer(folder, callbacks, epochs=4, **options):
    given = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "devices": 1, **options}
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **given,
    )


def state_of(module, optimizer):
    """Everything that a rollback must bring back, cloned: parameters, buffers, optimizer state."""
    tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}
    for index, parameter in enumerate(module.parameters()):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer {index} {key}"] = value.detach().clone()
    return tensors


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0, equal_nan=True, msg=name)
