"""A regression of waves: the module and its data."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Regressor(pl.LightningModule):
    def __init__(
        self,
        width: int = 16,
        activation: nn.Module = nn.ReLU(),  # noqa: B008
        frequencies: tuple[float, float] = (1.0, 2.0),
    ):
        super().__init__()
        self.frequencies = frequencies
        self.net = nn.Sequential(nn.Linear(4, width), activation, nn.Linear(width, 1))

    def loss(self, batch):
        x, y = batch
        waves = torch.cat([wave(x * f) for f in self.frequencies for wave in (torch.sin, torch.cos)], 1)
        return ((self.net(waves) - y) ** 2).mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))


class Waves(pl.LightningDataModule):
    def __init__(self, batch_size: int = 32, noise: float = 0.1, seed: int = 0):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        generator = torch.Generator().manual_seed(self.hparams.seed)
        x = torch.rand(300, 1, generator=generator) * 6
        y = torch.sin(3 * x) + self.hparams.noise * torch.randn(300, 1, generator=generator)
        self.train, self.val = TensorDataset(x[:200], y[:200]), TensorDataset(x[200:], y[200:])

    def train_dataloader(self):
        return DataLoader(self.train, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 100)
