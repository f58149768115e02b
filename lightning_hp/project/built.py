"""The objects of one trial, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import lightning.pytorch as pl

from lightning_hp.project.trial_outputs import close_loggers
from lightning_hp.project.yaml_file import ConfigError

_LENGTH = "every trial trains for as long, see `budget`, and its value is that of its best epoch"
#: keys that the study gives every trial, and how to say them
_OF_THE_STUDY = {
    "seed_everything": "each trial has a seed that follows from `seed`",
    "trainer.max_epochs": _LENGTH,
    "trainer.max_steps": _LENGTH,
    "trainer.default_root_dir": "each trial has a folder of its own",
    "trainer.enable_checkpointing": "each trial keeps its best epoch",
    "trainer.enable_progress_bar": "trials draw nothing",
    "trainer.enable_model_summary": "trials draw nothing",
}


def refuse_keys_of_the_study(keys: Iterable[str]) -> None:
    """Refuse to tune what the study itself gives every trial.

    Raises:
        ConfigError: Naming the key, and why it is not tuned.
    """
    for key in keys:
        if key in _OF_THE_STUDY:
            raise ConfigError(f"`space.{key}` must be left out: {_OF_THE_STUDY[key]}")


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
