"""A small transformer that continues an hourly series: load on an electric grid, made up.

Run: python forecast.py --config configs/base.yaml --config configs/small.yaml

Training windows are drawn without end, so a training is counted in steps. There are two validation sets: the month
after the training data, and the month after that.
"""

import math

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import MeanAbsoluteError

DAY, MONTH = 24, 24 * 30


def grid_load(hours: int, seed: int) -> torch.Tensor:
    """Days, weeks and a noise with a memory."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(hours)
    daily = torch.sin(2 * math.pi * t / DAY) + 0.4 * torch.sin(4 * math.pi * t / DAY + 1)
    weekly = torch.where(t // DAY % 7 < 5, 0.5, -0.7)
    shocks = 0.2 * torch.randn(hours, generator=generator)
    memory = torch.zeros(hours)
    for i in range(1, hours):
        memory[i] = 0.9 * memory[i - 1] + shocks[i]
    return daily + weekly + memory


class Windows(IterableDataset):
    """Windows at random places, for ever."""

    def __init__(self, series: torch.Tensor, length: int):
        self.series, self.length = series, length

    def __iter__(self):
        while True:
            start = int(torch.randint(len(self.series) - self.length, ()))
            yield self.series[start : start + self.length]


class GridLoad(pl.LightningDataModule):
    def __init__(self, past: int = 2 * DAY, future: int = 6, batch_size: int = 32, seed: int = 0):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        series = grid_load(6 * MONTH, self.hparams.seed)
        length = self.hparams.past + self.hparams.future
        self.train = Windows(series[: 4 * MONTH], length)
        near, far = series[4 * MONTH : 5 * MONTH], series[5 * MONTH :]
        self.val = [TensorDataset(part.unfold(0, length, self.hparams.future)) for part in (near, far)]

    def train_dataloader(self):
        return DataLoader(self.train, self.hparams.batch_size)

    def val_dataloader(self):
        return [DataLoader(dataset, 256) for dataset in self.val]


class Forecaster(pl.LightningModule):
    def __init__(
        self,
        past: int,
        future: int = 6,
        width: int = 16,
        heads: int = 2,
        layers: int = 1,
        dropout: float = 0.1,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup: float = 0.3,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Linear(1, width)
        self.position = nn.Parameter(0.02 * torch.randn(past, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, future)
        self.mae = nn.ModuleList([MeanAbsoluteError(), MeanAbsoluteError()])

    def forward(self, past):
        level = past[:, -1:]  # what is predicted is the change
        tokens = self.embed((past - level)[..., None]) + self.position
        return level + self.head(self.encoder(tokens)[:, -1])

    def training_step(self, window, batch_idx):
        past, future = window[:, : self.hparams.past], window[:, self.hparams.past :]
        loss = F.l1_loss(self(past), future)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        (window,) = batch
        mae = self.mae[dataloader_idx]
        past, future = window[:, : self.hparams.past], window[:, self.hparams.past :]
        mae(self(past), future.contiguous())
        self.log("val/mae", mae)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams.lr, betas=self.hparams.betas)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams.lr, total_steps=steps, pct_start=self.hparams.warmup
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class ForecastCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data.past", "model.past")
        parser.link_arguments("data.future", "model.future")


def main():
    cli = ForecastCLI(
        Forecaster,
        GridLoad,
        run=False,
        save_config_callback=None,
        trainer_defaults={"max_epochs": -1, "callbacks": [LearningRateMonitor("step")]},
    )
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    near, far = cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    print(f"next month {near['val/mae/dataloader_idx_0']:.4f}, month after {far['val/mae/dataloader_idx_1']:.4f}")


if __name__ == "__main__":
    main()
