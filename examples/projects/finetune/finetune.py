"""Digits 5 to 9 from few examples, with a backbone that learned 0 to 4.

Run: python pretrain.py
     python finetune.py fit --config finetune.yaml
"""

from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.cli import LightningCLI, OptimizerCallable
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


def backbone() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 32),
        nn.ReLU(),
    )


class Digits(pl.LightningDataModule):
    def __init__(self, digits: Sequence[int] = range(5, 10), examples: int = 400, batch_size: int = 20):
        super().__init__()
        self.digits, self.examples, self.batch_size = list(digits), examples, batch_size

    def setup(self, stage):
        images, labels = load_digits(return_X_y=True)
        wanted = [label in self.digits for label in labels]
        x = torch.tensor(images[wanted] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        y = torch.tensor(labels[wanted]) - min(self.digits)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        x, y = x[order], y[order]
        self.train = TensorDataset(x[: self.examples], y[: self.examples])
        self.val, self.test = TensorDataset(x[400:650], y[400:650]), TensorDataset(x[650:], y[650:])

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 125)

    def test_dataloader(self):
        return DataLoader(self.test, 125)


class Classifier(pl.LightningModule):
    def __init__(self, optimizer: OptimizerCallable = torch.optim.Adam, dropout: float = 0.0, smoothing: float = 0.0):
        super().__init__()
        self.backbone = backbone()
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(32, 5))
        self.loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.accuracy = MulticlassAccuracy(num_classes=5)
        self.make_optimizer = optimizer

    def forward(self, x):
        return self.head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.accuracy(self(x), y)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.accuracy(self(x), y)
        self.log("test_accuracy", self.accuracy)

    def configure_optimizers(self):
        return self.make_optimizer(p for p in self.parameters() if p.requires_grad)


class FinetuneCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_argument("--pretrained", type=Path, default=Path("backbone.pt"))
        parser.add_lightning_class_args(BackboneFinetuning, "unfreeze")
        parser.set_defaults({"unfreeze.unfreeze_backbone_at_epoch": 2})

    def before_fit(self):
        weights = torch.load(self.config.fit.pretrained, weights_only=True)
        self.model.backbone.load_state_dict(weights)


if __name__ == "__main__":
    FinetuneCLI(save_config_kwargs={"overwrite": True})
