"""The auditor inside a real trial: what it says there is what it would say in a training of its own."""

import json

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp import tune


class RandomTargets(pl.LightningDataModule):
    """Targets that have nothing to do with the features: a model can only learn the training rows by heart."""

    def _loader(self, seed: int, shuffle: bool = False) -> DataLoader:
        draw = torch.Generator().manual_seed(seed)
        rows = TensorDataset(torch.randn(64, 16, generator=draw), torch.randn(64, 1, generator=draw))
        return DataLoader(rows, batch_size=32, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self._loader(0, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(1)


class Overfits(pl.LightningModule):
    """Nothing in it regularises but BatchNorm, unless one of the arguments does."""

    def __init__(self, learning_rate: float = 0.05, decay: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        extra = [nn.Dropout(dropout)] if dropout else []
        self.net = nn.Sequential(nn.Linear(16, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), *extra, nn.Linear(64, 1))

    def _loss(self, batch: list[torch.Tensor], split: str) -> torch.Tensor:
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log(f"{split}_loss", loss, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self._loss(batch, "train")

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self._loss(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        hp = self.hparams
        return torch.optim.SGD(self.parameters(), lr=hp["learning_rate"], momentum=0.9, weight_decay=hp["decay"])


@pytest.mark.parametrize(
    ("arguments", "callbacks", "advised"),
    [
        ({}, [], True),  # TrialPruning is in every trial, and is no regulariser
        ({"decay": 1e-3}, [], False),
        ({"dropout": 0.1}, [], False),
        ({}, [EarlyStopping("val_loss", patience=100)], False),
    ],
    ids=["nothing", "weight decay", "dropout", "early stopping"],
)
def test_a_trial_is_told_that_batchnorm_is_its_only_regulariser(studies, arguments, callbacks, advised):
    def module(learning_rate: float = 0.05) -> Overfits:
        return Overfits(learning_rate, **arguments)

    tune(
        module,
        RandomTargets,
        {"learning_rate": {"low": 0.04, "high": 0.06, "default": 0.05}},
        name="toy",
        folder=studies.folder / "toy",
        trials=1,
        max_epochs=30,
        trainer={"accelerator": "cpu", "devices": 1, "callbacks": callbacks},
    )
    audit = json.loads(studies.paths().trial(0).audit.read_text())
    advice = [finding for finding in audit["findings"] if finding["topic"] == "only_regulariser"]
    assert bool(advice) == advised
    [trial] = studies.trials()
    assert trial.user_attrs["audit"]["INFO"] == len([f for f in audit["findings"] if f["severity"] == "INFO"])
    if advised:
        assert (advice[0]["id"], advice[0]["severity"]) == ("BN16", "INFO")
        last = trial.intermediate_values[max(trial.intermediate_values)]
        assert advice[0]["numbers"]["val_loss"] == pytest.approx(last, rel=1e-4)
