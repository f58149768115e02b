"""How diabetes progresses in a year, from ten measurements: a regression, trained by a plain script.

Run: python train.py --lr 0.01 --width 32
"""

import argparse

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import MetricCollection
from torchmetrics.regression import MeanAbsoluteError, R2Score


class Diabetes(pl.LightningDataModule):
    def __init__(self, batch_size=32):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage=None):
        x, y = (torch.tensor(a, dtype=torch.float32) for a in load_diabetes(return_X_y=True))
        x, y = (x - x.mean(0)) / x.std(0), y[:, None] / 100
        generator = torch.Generator().manual_seed(0)
        self.train, self.val, self.test = random_split(TensorDataset(x, y), [262, 90, 90], generator)

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.val, 90)

    def test_dataloader(self):
        return DataLoader(self.test, 90)


class Progression(pl.LightningModule):
    def __init__(self, lr=0.01, weight_decay=0.0, width=32, dropout=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(10, width), nn.BatchNorm1d(width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )
        metrics = MetricCollection({"mae": MeanAbsoluteError(), "r2": R2Score()})
        self.val_metrics, self.test_metrics = metrics.clone("val_"), metrics.clone("test_")

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log_dict(self.val_metrics(self.net(x), y))

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log_dict(self.test_metrics(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.hparams.lr, weight_decay=self.hparams.weight_decay)


def settings():
    """Of the Trainer."""
    return {
        "max_epochs": 12,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "gradient_clip_val": 1.0,
        "logger": CSVLogger("logs"),
        "callbacks": [
            EarlyStopping("val_mae", patience=6),
            ModelCheckpoint("models", "diabetes", monitor="val_mae", enable_version_counter=False),
        ],
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--weight_decay", type=float, default=0.0)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    pl.seed_everything(args.seed, workers=True)
    data = Diabetes(args.batch_size)
    model = Progression(args.lr, args.weight_decay, args.width, args.dropout)
    trainer = pl.Trainer(**settings() | {"gradient_clip_val": args.clip, "max_epochs": args.epochs})
    trainer.fit(model, data)
    print(f"best {trainer.checkpoint_callback.best_model_score:.6f}")
    trainer.test(model, data, ckpt_path="best", weights_only=True)


if __name__ == "__main__":
    main()
