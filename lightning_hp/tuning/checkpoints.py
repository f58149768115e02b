"""The checkpoints of trials: what is saved, what is kept, and how one is loaded without trusting more than it must."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import optuna
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from optuna.trial import TrialState

from lightning_hp.study.confirmed import CONFIRMS
from lightning_hp.study.paths import StudyPaths, TrialPaths
from lightning_hp.study.trials import best_trials


class TrialCheckpoint(ModelCheckpoint):
    """The checkpoint of a trial; a class of its own, so that it never has the state key of one of the user's.

    A validation without the metric saves nothing, instead of being an error: :class:`TrialPruning` decides at the end
    of the epoch, when training has logged too.
    """

    @classmethod
    def of(cls, paths: TrialPaths, monitor: str, mode: str) -> TrialCheckpoint:
        """That of a trial.

        Args:
            paths: The trial's folder.
            monitor: Name of the metric.
            mode: ``min`` or ``max``.
        """
        name = paths.best_checkpoint.stem
        return cls(dirpath=paths.checkpoints, filename=name, monitor=monitor, mode=mode, enable_version_counter=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where the metric is known."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


def drop_checkpoints(study: optuna.Study, paths: StudyPaths, keep: int, cleaned: set[int]) -> None:
    """Delete the checkpoints of all finished trials but the best ``keep``, and of failed ones.

    Those of the user's own callbacks are in the trial's folder too, and go with ours.

    Args:
        study: The study.
        paths: Its folder.
        keep: How many trials keep theirs.
        cleaned: Numbers of trials that have none any more; those that lose theirs now are added.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    # any of the configurations that are trained again may become the winner
    racing = {t.number for t in finished if CONFIRMS in t.user_attrs} | {
        t.user_attrs[CONFIRMS] for t in finished if CONFIRMS in t.user_attrs
    }
    kept = {t.number for t in best_trials(study, keep)} | racing
    for trial in finished:
        root = paths.trial(trial.number).root
        if trial.number in kept or trial.number in cleaned:
            continue
        cleaned.add(trial.number)
        with contextlib.suppress(FileNotFoundError):  # another process is at it too
            for file in [*root.rglob("*.ckpt")]:
                file.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    file.parent.rmdir()


def can_go_on(checkpoint: Path, fits: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Whether a checkpoint is there, whole, made of weights and classes of the project, and fits a training."""
    if not checkpoint.is_file():
        return False
    try:
        with classes_of(checkpoint):
            return fits(torch.load(checkpoint, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        return False


@contextlib.contextmanager
def classes_of(checkpoint: Path) -> Iterator[None]:
    """Within this context a trial's checkpoint may hold objects of classes that this process has imported already.

    Hyperparameters may be dataclasses or enumerations of the project; ``weights_only=True`` refuses them. What is
    allowed is what the project itself has imported to train: no module is imported for it, and no function is allowed.

    Args:
        checkpoint: A checkpoint that a trial of this project has written.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(checkpoint))
    except (OSError, RuntimeError, ValueError):  # the caller's own loading says what is wrong with it
        names = []
    classes: list[Any] = [found for found in map(_imported, names) if isinstance(found, type)]
    with torch.serialization.safe_globals(classes):
        yield


def _imported(name: str) -> Any:
    """What a dotted name stands for in the modules that are loaded; None where it stands for nothing."""
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        place: Any = sys.modules.get(".".join(parts[:split]))
        if place is not None:
            for part in parts[split:]:
                place = getattr(place, part, None)
            return place
    return None
