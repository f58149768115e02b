"""Sixty-four settings of your own LightningModule in one pass: no change to the module.

    python examples/003_stacked.py

Each member is built as usual, with its own seed, learning rate and dropout, and is trained as its own Trainer would.
"""

import logging
import time

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_hp.training import DigitsDataModule
from lightning_hp.training.stacked import Member, train_stacked


class MyModule(pl.LightningModule):
    def __init__(self, lr: float, dropout: float):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 10)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", functional.cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


class MyData(DigitsDataModule):
    def train_dataloader(self):
        return DataLoader(self.train_set, self.batch_size, shuffle=True)


def build(seed: int) -> Member:
    pl.seed_everything(seed, verbose=False)
    lr, dropout = 10 ** float(torch.empty(()).uniform_(-4, -1)), float(torch.empty(()).uniform_(0, 0.6))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Member(MyModule(lr, dropout), pl.Trainer(max_epochs=10, **quiet), MyData())


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    members = [build(seed) for seed in range(64)]
    began = time.perf_counter()
    outcomes = train_stacked(members)
    print(f"{len(outcomes)} models in {time.perf_counter() - began:.1f} s, {outcomes[0].way}")
    for outcome in sorted(outcomes, key=lambda o: o.metrics["val_loss"])[:5]:
        hp = outcome.member.module.hparams
        print(f"val_loss {outcome.metrics['val_loss']:.4f}  lr {hp['lr']:.2g}  dropout {hp['dropout']:.2f}")


if __name__ == "__main__":
    main()
