"""Handwritten digits by a small convolutional network.

Run: python digits_cli.py fit --config config.yaml
"""

from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Network:
    channels: int = 8
    hidden: list[int] = field(default_factory=lambda: [32])
    dropout: float = 0.1


@dataclass
class Optimizer:
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4


class Digits(pl.LightningDataModule):
    def __init__(self, batch_size: int = 64, image_size: int = 8):
        super().__init__()
        self.batch_size, self.image_size = batch_size, image_size
        self.num_classes = 10

    def setup(self, stage):
        images, labels = load_digits(return_X_y=True)
        x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        x = F.interpolate(x, size=(self.image_size, self.image_size))
        y = torch.tensor(labels)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        x, y = x[order], y[order]
        self.train = TensorDataset(x[:600], y[:600])
        self.val = TensorDataset(x[600:900], y[600:900])

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 300)


class ConvNet(pl.LightningModule):
    def __init__(
        self,
        num_classes: int,
        image_size: int,
        network: Network = Network(),  # noqa: B008
        optimizer: Optimizer = Optimizer(),  # noqa: B008
    ):
        super().__init__()
        self.save_hyperparameters()
        self.optimizer_settings = optimizer
        layers = [nn.Conv2d(1, network.channels, 3, padding=1), nn.BatchNorm2d(network.channels), nn.ReLU()]
        layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(network.dropout)]
        size = network.channels * (image_size // 2) ** 2
        for width in network.hidden:
            layers += [nn.Linear(size, width), nn.ReLU()]
            size = width
        self.net = nn.Sequential(*layers, nn.Linear(size, num_classes))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        scores = self.net(batch[0])
        self.log("val/loss", F.cross_entropy(scores, batch[1]))
        self.log("val/accuracy", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        settings = self.optimizer_settings
        optimizer = torch.optim.SGD(
            self.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class DigitsCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data.image_size", "model.image_size")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.add_lightning_class_args(EarlyStopping, "stopping")
        parser.set_defaults({"stopping.monitor": "val/loss", "stopping.patience": 4})
        parser.add_argument("--pretrained", type=Path | None, default=None, help="weights to start from")

    def before_fit(self):
        # the first layer starts as an edge detector
        with torch.no_grad():
            weight = self.model.net[0].weight
            weight[:, :, 1] = weight[:, :, 1].abs()
        if pretrained := self.config[self.subcommand].pretrained:
            self.model.load_state_dict(torch.load(pretrained, weights_only=True))


def main():
    DigitsCLI(ConvNet, Digits, trainer_defaults={"accelerator": "cpu", "gradient_clip_val": 1.0})


if __name__ == "__main__":
    main()
