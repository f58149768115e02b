"""A GAN that learns two moons.

Run: python moons_gan.py fit --config config.yaml

There is no validation loop: how far generated points are from real ones is logged at the end of every epoch.
"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import make_moons
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def moons(rows: int) -> torch.Tensor:
    return torch.tensor(make_moons(rows, noise=0.05, random_state=0)[0], dtype=torch.float32)


class GAN(pl.LightningModule):
    def __init__(
        self, latent: int = 4, width: int = 32, lr_generator: float = 1e-3, lr_critic: float = 1e-3, b1: float = 0.5
    ):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, 2))
        self.critic = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))
        self.register_buffer("fixed_noise", torch.randn(256, latent))
        self.register_buffer("real", moons(256))

    def distance(self) -> torch.Tensor:
        """Between means and covariances of generated and real points."""
        with torch.no_grad():
            made = self.generator(self.fixed_noise)
        return (made.mean(0) - self.real.mean(0)).norm() + (made.T.cov() - self.real.T.cov()).norm()

    def training_step(self, batch, batch_idx):
        for_generator, for_critic = self.optimizers()
        (real,) = batch
        made = self.generator(torch.randn(len(real), self.hparams.latent))
        critic_loss = F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(made.detach())).mean()
        for_critic.zero_grad()
        self.manual_backward(critic_loss)
        for_critic.step()
        generator_loss = F.softplus(-self.critic(made)).mean()
        for_generator.zero_grad()
        self.manual_backward(generator_loss)
        for_generator.step()
        self.log_dict({"critic_loss": critic_loss, "generator_loss": generator_loss})

    def on_train_epoch_end(self):
        made = self.generator(self.fixed_noise)
        self.logger.experiment.add_histogram("generated/x", made[:, 0], self.current_epoch)
        self.log("distance", self.distance())

    def configure_optimizers(self):
        betas = (self.hparams.b1, 0.999)
        return [
            torch.optim.Adam(self.generator.parameters(), lr=self.hparams.lr_generator, betas=betas),
            torch.optim.Adam(self.critic.parameters(), lr=self.hparams.lr_critic, betas=betas),
        ], []


class Moons(pl.LightningDataModule):
    def __init__(self, batch_size: int = 64, rows: int = 512):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return DataLoader(TensorDataset(moons(self.hparams.rows)), self.hparams.batch_size, shuffle=True)


if __name__ == "__main__":
    LightningCLI(GAN, Moons, save_config_kwargs={"overwrite": True})
