"""Self-supervised learning with two views of every image, passed through the encoder one after the other.

    python examples/012_audit_two_views.py              # both views augmented alike: a note (BN04, INFO)
    python examples/012_audit_two_views.py --uneven     # strong and weak view: the layers mix two domains (BN04, WARN)

The running statistics are updated twice a batch. With like views they only forget faster than the momentum says. With
uneven views they belong to neither, and features for a downstream task, taken in eval mode from clean images, suffer.
"""

from __future__ import annotations

import argparse

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.callbacks import BatchNormAuditor


class LitTwoViews(pl.LightningModule):
    def __init__(self, uneven: bool = False, temperature: float = 0.2, lr: float = 1e-3) -> None:
        super().__init__()
        self.uneven, self.temperature, self.lr = uneven, temperature, lr
        self.encoder = nn.Sequential(
            nn.Linear(64, 128, bias=False),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.Linear(128, 64, bias=False),
            nn.BatchNorm1d(64),
        )
        self.projector = nn.Sequential(nn.ReLU(), nn.Linear(64, 32))

    def augment(self, x: Tensor, strong: bool) -> Tensor:
        # Each image moves by itself. One shift for the whole batch would make batches unlike each other (BN14).
        images = x.view(-1, 8, 8)
        moved = torch.stack([images.roll(shift, dims=2) for shift in (-1, 0, 1)])
        x = moved[torch.randint(3, (len(x),)), torch.arange(len(x))].view(-1, 64)
        x = x * (torch.rand_like(x) > 0.1)
        return 1.0 - x if strong else x

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        z1 = F.normalize(self.projector(self.encoder(self.augment(x, strong=False))), dim=1)
        z2 = F.normalize(self.projector(self.encoder(self.augment(x, strong=self.uneven))), dim=1)
        logits = z1 @ z2.T / self.temperature
        loss = F.cross_entropy(logits, torch.arange(len(x)))
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def main(uneven: bool = False, epochs: int = 6) -> BatchNormAuditor:
    pl.seed_everything(1, verbose=False)
    x = torch.tensor(load_digits().data, dtype=torch.float32) / 16.0
    loader = DataLoader(TensorDataset(x), batch_size=128, shuffle=True, drop_last=True)
    auditor = BatchNormAuditor(on_finding="log", dirpath="runs/audit_two_views")
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[auditor], logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    trainer.fit(LitTwoViews(uneven), loader)
    for finding in auditor.result()["findings"]:
        print(finding["severity"], finding["id"], finding["layer"], "-", finding["sentence"])
    return auditor


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--uneven", action="store_true")
    main(parser.parse_args().uneven)
