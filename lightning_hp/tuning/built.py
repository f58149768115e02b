"""The objects of one trial, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lightning.pytorch as pl

from lightning_hp.tuning.trial_outputs import close_loggers


@dataclass
class Built:
    """The objects of one trial.

    Attributes:
        model: The module.
        data: None where the module brings its own loaders.
        trainer: The Trainer, which has the callbacks of the project and of the study.
        train: Trains as the project's own command does; None for a plain ``trainer.fit``.
    """

    model: pl.LightningModule
    data: pl.LightningDataModule | None
    trainer: pl.Trainer
    train: Callable[[], object] | None = None

    def fit(self) -> None:
        """Train: what a LightningCLI does before and after the fit (``before_fit``, ``after_fit``) is part of it."""
        try:
            if self.train is not None:
                self.train()
            else:
                self.trainer.fit(self.model, datamodule=self.data)
        finally:
            self.close()

    def close(self) -> None:
        """End what outlives a training or an evaluation."""
        close_loggers(self.trainer)
