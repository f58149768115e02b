"""Small projects in the shapes that people write around LightningCLI, for tests of trials; each trains in a moment."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl
import torch
from jsonargparse.typing import Path_fr
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

#: what hooks and functions of the projects did, in order
EVENTS: list[str] = []


@dataclass
class Noise:
    """A part of the model's arguments, as a dataclass."""

    level: float = 0.0
    kinds: list[str] = field(default_factory=lambda: ["gaussian"])


class Net(pl.LightningModule):
    """A linear layer, a nonlinearity and a linear layer, on a regression."""

    def __init__(
        self,
        lr: float = 0.1,
        width: int = 4,
        momentum: float = 0.0,
        activation: nn.Module | None = None,
        optimizer: Callable[[Iterable], torch.optim.Optimizer] | None = None,
        noise: Noise = Noise(),  # noqa: B008 - as people write it
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["activation", "optimizer", "noise"])
        self.optimizer = optimizer
        self.noise_level = noise.level
        self.net = nn.Sequential(nn.Linear(3, width), activation or nn.Tanh(), nn.Linear(width, 1))

    def loss(self, batch):
        x, y = batch
        return ((self.net(x) - y) ** 2).mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        if self.optimizer is not None:
            return self.optimizer(self.parameters())
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=self.hparams.momentum)


class Data(pl.LightningDataModule):
    """Thirty-two rows for training, sixteen for validation."""

    features = 3

    def __init__(self, batch_size: int = 8, scale: float = 1.0):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(48, 3, generator=generator) * self.hparams.scale
        y = (x.sum(1, keepdim=True)).sin()
        self.train, self.val = TensorDataset(x[:32], y[:32]), TensorDataset(x[32:], y[32:])

    def train_dataloader(self):
        return DataLoader(self.train, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 16)


class TableData(Data):
    """Data of a file, which the configuration names relative to itself."""

    def __init__(self, table: Path_fr, tables: list[Path_fr] | None = None, batch_size: int = 8):
        super().__init__(batch_size)
        self.read = [Path(str(file.absolute)).read_text() for file in (table, *(tables or ()))]


class LinkedCLI(LightningCLI):
    """The width follows the batch size."""

    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data.init_args.batch_size", "model.init_args.width")


class DataLinkedCLI(LightningCLI):
    """Something that only the data knows reaches the model."""

    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data.features", "model.init_args.width", apply_on="instantiate")


class HookedCLI(LightningCLI):
    """Everything that a project may hook into."""

    def before_instantiate_classes(self):
        self.config[self.subcommand].trainer.log_every_n_steps = 2

    def before_fit(self):
        EVENTS.append("before_fit")
        with torch.no_grad():
            self.model.net[2].weight.fill_(0.25)  # stands for pretrained weights

    def after_fit(self):
        EVENTS.append(f"after_fit at epoch {self.trainer.current_epoch}")


class OverwritingCLI(LightningCLI):
    """Sets the width by itself."""

    def before_instantiate_classes(self):
        self.config[self.subcommand].model.init_args.width = 7


class OwnOptimizerCLI(LightningCLI):
    """An optimizer with a key of its own, handed to the model; a callback with one; classes fixed."""

    def __init__(self, **options):
        super().__init__(Net, Data, **options)

    def add_arguments_to_parser(self, parser):
        parser.add_lightning_class_args(EarlyStopping, "stopping")
        parser.set_defaults({"stopping.monitor": "val_loss", "stopping.patience": 5})
        parser.add_optimizer_args(torch.optim.Adam)


def main():
    """A call with everything that a file cannot say."""
    EVENTS.append("main")
    LightningCLI(
        Net,
        Data,
        seed_everything_default=11,
        trainer_defaults={
            "max_epochs": 3,
            "gradient_clip_val": 0.5,
            "callbacks": [ModelCheckpoint(dirpath="production", filename="model", monitor="val_loss")],
        },
    )
    EVENTS.append("after the call")


def main_that_fits():
    """A call with ``run=False``, and a fit of its own."""
    cli = LightningCLI(Net, Data, run=False, trainer_defaults={"max_epochs": 3, "gradient_clip_val": 0.5})
    EVENTS.append("built")
    cli.datamodule.setup("fit")
    cli.trainer.fit(cli.model, cli.datamodule.train_dataloader(), cli.datamodule.val_dataloader())
    EVENTS.append("fitted")


class CountingTrainer(pl.Trainer):
    """A Trainer of the project's own, with an argument and a fit of its own."""

    def __init__(self, *args, note: int = 3, **kwargs):
        super().__init__(*args, **kwargs)
        self.note = note

    def fit(self, *args, **kwargs):
        EVENTS.append("own fit")
        super().fit(*args, **kwargs)


def main_with_a_trainer():
    """A Trainer class of its own."""
    LightningCLI(Net, Data, trainer_class=CountingTrainer)


def main_that_fits_with_a_trainer():
    """The same with ``run=False``."""
    cli = LightningCLI(Net, Data, trainer_class=CountingTrainer, run=False)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)


def main_with_another_trainer():
    """Trains with a Trainer that LightningCLI did not make."""
    cli = LightningCLI(Net, Data, run=False)
    pl.Trainer(max_epochs=1).fit(cli.model, datamodule=cli.datamodule)


def makes_no_cli():
    """Trains without LightningCLI."""


def leaves():
    """Prints something and leaves."""
    sys.exit(3)


def with_arguments_of_its_own():
    """Does not read the command line."""
    LightningCLI(Net, Data, args=["fit", "--trainer.max_epochs=1"])


SCRIPT = """\
from lightning.pytorch.cli import LightningCLI
from cli_projects import Data, Net

if __name__ == "__main__":
    LightningCLI(Net, Data, parser_kwargs={"parser_mode": "omegaconf"}, trainer_defaults={"gradient_clip_val": 0.5})
"""
