"""What a trial writes, kept apart from what other trials and the project's own runs write.

Loggers keep their class and their settings, and each trial has an instance of its own. Those that write to a folder
write into the trial's (``logs/``). Those that send runs to a store (W&B, MLflow) name the run after the trial, and the
group or experiment after the study where the project names none. Checkpoints of the project's own callbacks go to
``checkpoints/project/``, where ``keep_checkpoints`` covers them. Beside them stands our ``metrics.csv``.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.paths import TrialPaths, write_text

#: MLFlowLogger's experiment where the project names none
_UNNAMED_EXPERIMENT = "lightning_logs"
METRICS_FILE = "metrics.csv"
#: seconds between two writes of it while a trial trains
WRITE_EVERY = 10.0


class MetricsLog(pl.Callback):
    """Writes ``metrics.csv``: a row a validation and an epoch, with all metrics as they stand then.

    A callback rather than a logger, so that ``self.logger`` is what the project's own run has.

    Args:
        file: Where to.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []
        self._written = 0.0

    def _row(self, trainer: pl.Trainer) -> None:
        if not self.rows or self.rows[-1]["step"] != trainer.global_step:
            self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step})
        self.rows[-1] |= {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the rows of a trial that was trained without a loop of its own: ``epoch``, ``step`` and metrics."""
        self.rows = list(rows)
        self._write_rows()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One row a validation of the fit."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._row(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One row an epoch; the file is written now and then."""
        self._row(trainer)
        if time.monotonic() - self._written > WRITE_EVERY:
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What the module logged at the end of the last epoch belongs to its row."""
        if self.rows:
            self._row(trainer)
        self._write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep what there is."""
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if self.rows and trainer.is_global_zero:
            self._write_rows()

    def _write_rows(self) -> None:
        self._written = time.monotonic()
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.file, text.getvalue())


def callbacks_of_trial(callbacks: Sequence[pl.Callback], folder: Path) -> list[pl.Callback]:
    """The project's callbacks as a trial has them: checkpoints under its folder, nothing that draws on the screen.

    Args:
        callbacks: Instances of this trial's own; they are changed.
        folder: The trial's.
    """
    own = [callback for callback in callbacks if not isinstance(callback, ProgressBar | ModelSummary)]
    for callback in own:
        if isinstance(callback, Checkpoint) and hasattr(callback, "dirpath"):
            inside = _inside(callback.dirpath) if callback.dirpath else ""
            callback.dirpath = str((TrialPaths(folder).project_checkpoints / inside).absolute())
    return own


def _inside(dirpath: str | Path) -> Path:
    """A folder as seen from the working directory, or from the root where it is elsewhere: two remain two."""
    path = Path(os.path.realpath(dirpath))
    here = Path(os.path.realpath("."))
    return path.relative_to(here if path.is_relative_to(here) else path.anchor)


def loggers_of_trial(loggers: Any, folder: Path) -> Any:
    """What a Trainer takes as ``logger``, with an instance of this trial's own for every logger.

    Args:
        loggers: A logger, several, True, False or None.
        folder: The trial's.

    Raises:
        ConfigError: If a logger cannot be copied, or is at work already.
    """
    if isinstance(loggers, Logger):
        return logger_of_trial(loggers, folder)
    if isinstance(loggers, list | tuple):
        return [logger_of_trial(logger, folder) for logger in loggers]
    return loggers


def logger_of_trial(logger: Logger, folder: Path) -> Logger:
    """A copy of a logger that writes into a trial's folder, or under the trial's name.

    Raises:
        ConfigError: See :func:`loggers_of_trial`.
    """
    kind = type(logger).__name__
    if getattr(logger, "_experiment", None) is not None:
        raise ConfigError(f"`trainer.logger` must be a logger that has not begun to log, got {kind} at work")
    own: Logger = object.__new__(type(logger))  # copy.copy would make WandbLogger begin its run
    try:
        vars(own).update(deepcopy(vars(logger)))
    except Exception as error:
        raise ConfigError(
            f"`trainer.logger` must be one that each trial can have a copy of, got {kind}: {error}"
        ) from error
    study, trial = _names(folder)
    place = str((folder / "logs").absolute())
    if isinstance(own, WandbLogger):
        run = f"{own._wandb_init.get('name') or study}-{trial}"
        own._wandb_init |= {"dir": place, "id": None, "name": run, "group": own._wandb_init.get("group") or study}
        own._save_dir, own._id, own._name = place, None, run
        Path(place).mkdir(parents=True, exist_ok=True)
    elif isinstance(own, MLFlowLogger):
        own._run_name, own._run_id = f"{own._run_name or study}-{trial}", None
        if own._experiment_name == _UNNAMED_EXPERIMENT:
            own._experiment_name = study
    else:
        for attribute in ("_root_dir", "_save_dir"):
            if vars(own).get(attribute) is not None:
                setattr(own, attribute, place)
    return own


def close_loggers(trainer: pl.Trainer) -> None:
    """End what outlives a training.

    W&B has one run at a time in a process, and the next trial would go on with it. A TensorBoard writer holds back what
    it was given last for up to two minutes, in a thread of its own.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger | TensorBoardLogger) and logger._experiment is not None:
            experiment: Any = logger._experiment
            experiment.finish() if isinstance(logger, WandbLogger) else experiment.close()


def _names(folder: Path) -> tuple[str, str]:
    """Study and trial, from the trial's folder ``runs/STUDY/trials/0007``."""
    parents = folder.absolute().parents
    return (parents[1] if parents[0].name == "trials" else parents[0]).name, folder.name
