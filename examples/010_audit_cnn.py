"""An ordinary image classifier, and the one line that audits its BatchNorm layers.

    python examples/010_audit_cnn.py                    # healthy: no finding
    python examples/010_audit_cnn.py --momentum 0.001   # a momentum too small for the length of the training

The model is what people write who have never heard of lightning_hp. Data: sklearn's 8x8 digits.
"""

from __future__ import annotations

import argparse

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_hp.callbacks import BatchNormAuditor


class LitDigits(pl.LightningModule):
    def __init__(self, lr: float = 1e-3, momentum: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16, momentum=momentum)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32, momentum=momentum)
        self.fc = nn.Linear(32 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.flatten(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


def data() -> tuple[DataLoader, DataLoader]:
    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16.0
    full = TensorDataset(x, torch.tensor(raw.target))
    train, val = random_split(full, [1400, 397], generator=torch.Generator().manual_seed(0))
    return DataLoader(train, batch_size=64, shuffle=True, drop_last=True), DataLoader(val, batch_size=128)


def main(momentum: float = 0.1, epochs: int = 6) -> BatchNormAuditor:
    pl.seed_everything(1, verbose=False)
    auditor = BatchNormAuditor(dirpath="runs/audit_cnn")  # <- the one line
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[auditor], logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    trainer.fit(LitDigits(momentum=momentum), *data())
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
    print("findings:", auditor.counts(), "- details in runs/audit_cnn/audit.md")
    return auditor


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--momentum", type=float, default=0.1)
    main(parser.parse_args().momentum)
