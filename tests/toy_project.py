"""A project as small as can be, for tests of tuning: a parabola in log10 of the learning rate, and faults on order.

``val_loss`` is known in closed form up to a small part that comes from the seed. Each fault happens in the trial whose
number it names: ``faults="1:nan 4:crash"``.
"""

import math
import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader, TensorDataset

SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A", "default": 0.5},
    "momentum": {"low": 0.5, "high": 0.99, "scale": "one_minus_log", "tier": "B", "default": 0.9},
    "batch_size": {"choices": [2, 4, 8], "tier": "B", "default": 4},
}


class ToyData(pl.LightningDataModule):
    """Eight rows of zeros in every split."""

    num_features = 3

    def __init__(self, batch_size: int = 4):
        super().__init__()
        self.batch_size = batch_size

    def _loader(self):
        return DataLoader(TensorDataset(torch.zeros(8, 3)), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = _loader


class Toy(pl.LightningModule):
    """Logs ``val_loss``: (log10(learning_rate) + 2)^2 + (momentum - 0.8)^2 + 1 / (epoch + 1) + a draw of the seed."""

    def __init__(
        self,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        faults: str = "",
        monitor: str = "val_loss",
        epochs: int = 0,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate, self.momentum, self.monitor, self.fault_epoch = learning_rate, momentum, monitor, epochs
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.noise = float(torch.rand(())) * 1e-3
        self.faults = dict(fault.split(":") for fault in faults.split())

    def loss(self) -> float:
        parabola = (math.log10(self.learning_rate) + 2) ** 2 + (self.momentum - 0.8) ** 2
        return parabola + 1 / (self.current_epoch + 1) + self.noise

    def training_step(self, batch, batch_idx):
        self.fault(batch_idx)
        return ((self.weight - 1) ** 2).sum() + batch[0].sum()

    def validation_step(self, batch, batch_idx):
        self.log(self.monitor, math.nan if self.ordered() == "nan" else self.loss())

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def ordered(self) -> str:
        """The fault of this trial, from its folder."""
        name = Path(self.trainer.default_root_dir).name
        number = name.lstrip("0") or "0"
        fault = self.faults.get(number, self.faults.get("all", "") if name.isdigit() else "")
        if fault == "nan_later":
            return "nan" if self.current_epoch else ""
        return fault

    def fault(self, batch_idx: int) -> None:
        kind = self.ordered()
        if batch_idx or self.current_epoch != self.fault_epoch:
            return
        if kind == "crash":
            raise RuntimeError("the toy broke")
        if kind == "crash_unlike":
            raise RuntimeError(f"the toy broke in {Path(self.trainer.default_root_dir).name}")
        if kind == "brackets":
            raise RuntimeError("shape [/3, 4] [red]")
        if kind == "oom_torch":
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        if kind == "oom_cuda":
            raise RuntimeError("CUDA error: CUDA out of memory. Tried to allocate 2.00 GiB")
        if kind == "oom_host":
            raise MemoryError
        if kind == "disk_full":
            raise OSError(28, "No space left on device")
        if kind == "sigint":
            os.kill(os.getpid(), signal.SIGINT)
        if kind == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        if kind == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "twice":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


class DyingOnce(Toy):
    """The first process that comes to trial 3 dies there."""

    def training_step(self, batch, batch_idx):
        folder = Path(self.trainer.default_root_dir)
        if folder.name == "0003" and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


class ExtraToy(Toy):
    """Takes a mapping, which it knows by heart."""

    def __init__(self, extra: dict, learning_rate: float = 0.1, momentum: float = 0.9):
        super().__init__(learning_rate, momentum)
        if extra not in ({"pull": [0.5, 1]}, {"pull": [0.25, 2]}):
            raise ValueError(f"`extra` must be a mapping, got {extra!r}")


class LinkedToy(Toy):
    """Needs a size that only the data knows."""

    def __init__(self, num_features: int, learning_rate: float = 0.1, momentum: float = 0.9):
        super().__init__(learning_rate, momentum)
        if num_features != 3:
            raise ValueError(f"`num_features` must be 3, got {num_features!r}")


class LinkedCLI(LightningCLI):
    """A project's own command line: it fixes the classes and links the data's size to the model."""

    def __init__(self, **options):
        super().__init__(LinkedToy, ToyData, **options)

    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data.num_features", "model.num_features", apply_on="instantiate")


TRAIN_YAML = """\
seed_everything: 3
model:
  class_path: toy_project.Toy
  init_args: {learning_rate: 0.1}
data:
  class_path: toy_project.ToyData
trainer: {accelerator: cpu, devices: 1,
  max_epochs: 2, num_sanity_val_steps: 0, logger: false, enable_checkpointing: false}
"""

TUNE_YAML = """\
name: toy
config: train.yaml
budget: {trials: 3, max_epochs: 2}
prune: false
space:
  model.init_args.learning_rate: {low: 1.0e-4, high: 1.0, scale: log, tier: A, default: 0.5}
  model.init_args.momentum: {low: 0.5, high: 0.99, scale: one_minus_log, tier: B, default: 0.9}
  data.init_args.batch_size: {choices: [2, 4, 8], tier: B, default: 4}
"""
