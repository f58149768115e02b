"""A small GAN whose discriminator sees real and fake batches one after the other through the same BatchNorm layers.

    python examples/011_audit_gan.py

Two optimizers, manual optimisation. The auditor says which layers mix two domains (BN04): in train mode each batch is
normalised by itself, but the running statistics fit neither real nor fake images, so the discriminator must not be used
in eval mode.
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.callbacks import BatchNormAuditor


class LitGAN(pl.LightningModule):
    def __init__(self, latent: int = 16, lr: float = 2e-3) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.latent, self.lr = latent, lr
        self.generator = nn.Sequential(
            nn.Linear(latent, 64, bias=False),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.Sigmoid(),
        )
        self.discriminator = nn.Sequential(
            nn.Linear(64, 64, bias=False),
            nn.BatchNorm1d(64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, 32, bias=False),
            nn.BatchNorm1d(32),
            nn.LeakyReLU(0.2),
            nn.Linear(32, 1),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (real,) = batch
        opt_g, opt_d = self.optimizers()
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)

        fake = self.generator(torch.randn(len(real), self.latent))
        d_loss = F.binary_cross_entropy_with_logits(self.discriminator(real), ones)
        d_loss = d_loss + F.binary_cross_entropy_with_logits(self.discriminator(fake.detach()), zeros)
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()

        g_loss = F.binary_cross_entropy_with_logits(self.discriminator(fake), ones)
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        self.log_dict({"d_loss": d_loss, "g_loss": g_loss})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        betas = (0.5, 0.999)
        return [
            torch.optim.Adam(self.generator.parameters(), lr=self.lr, betas=betas),
            torch.optim.Adam(self.discriminator.parameters(), lr=self.lr, betas=betas),
        ]


def main(epochs: int = 8) -> BatchNormAuditor:
    pl.seed_everything(1, verbose=False)
    x = torch.tensor(load_digits().data, dtype=torch.float32) / 16.0
    loader = DataLoader(TensorDataset(x), batch_size=64, shuffle=True, drop_last=True)
    auditor = BatchNormAuditor(on_finding="log", dirpath="runs/audit_gan")
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[auditor], logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    trainer.fit(LitGAN(), loader)
    for finding in auditor.result()["findings"]:
        print(finding["severity"], finding["id"], finding["layer"], "-", finding["sentence"])
    return auditor


if __name__ == "__main__":
    main()
