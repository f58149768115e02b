"""A callback that a project's command can be given on its command line, for tests that look at its trainings."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

#: metric to value, after each validation or, without validations, each epoch of the last command
CURVE: list[dict[str, float]] = []


class Recorder(Checkpoint):
    """Keeps the metrics; a Checkpoint, so that it is called after the module's own hooks."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            CURVE.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.enable_validation:
            CURVE.append({name: float(value) for name, value in trainer.callback_metrics.items()})
