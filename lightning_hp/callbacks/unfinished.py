"""A checkpoint from which an interrupted training goes on, written now and then between epochs.

It is written when the work since the last one is worth it: a write may cost at most a twentieth of the time between
two. So a training of seconds writes few or none, and one of hours loses an epoch. What is restored is what Lightning
restores (weights, optimizers, schedules, callbacks, loops), and the learning curve; the random generators begin anew.
The last epoch writes none, and the file stays until the study has been told of the trial (:func:`drop_unfinished`):
a process that is killed between a training's end and that loses the last epoch only, and who takes the trial over ends
the training as any other.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lightning_hp.callbacks.pruning import TrialPruning, training_progress

#: a write costs at most this part of the time between two
SHARE = 0.05
#: what the first write is expected to cost, seconds
FIRST_COST = 0.05


def drop_unfinished(file: Path) -> None:
    """Delete a trial's checkpoint, and what killed processes have left of others: the study has been told of the trial.

    Args:
        file: See :class:`UnfinishedCheckpoint`.
    """
    for one in (file, *file.parent.glob(f".part-*-{file.name}")):
        one.unlink(missing_ok=True)


class UnfinishedCheckpoint(Checkpoint):
    """Keeps a training's last state in a file; see the top of this module.

    Args:
        file: The checkpoint.
        pruning: Has the learning curve, which is kept and restored too.
        of: What is trained (values, seed, length), as text; the checkpoint of another training is not gone on from.
        clock: Seconds; only differences count.

    Attributes:
        begun_at: The epoch that the training went on from, 0 where it began anew.
    """

    def __init__(
        self, file: Path, pruning: TrialPruning, of: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.file, self._pruning, self._of, self._clock = file, pruning, of, clock
        self._since, self._cost = clock(), FIRST_COST
        self._writing = False
        self.begun_at = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time counts from here."""
        self._since = self._clock()
        self.begun_at = trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, if it is worth it; checkpoints come after all other callbacks."""
        begun = self._clock()
        is_over = trainer.should_stop or training_progress(trainer, epoch_ended=True) == 1.0
        if trainer.strategy.broadcast(self._cost <= SHARE * (begun - self._since)) and not is_over:
            self._write(trainer)
            self._since = self._clock()
            self._cost = self._since - begun

    def _write(self, trainer: pl.Trainer) -> None:
        # a name of its own: a process that stood still, and has lost the trial, may be writing too
        writer = trainer.strategy.broadcast(f"{socket.gethostname()}-{os.getpid()}")
        beside = self.file.with_name(f".part-{writer}-{self.file.name}")
        self._writing = True
        try:
            trainer.save_checkpoint(beside)
        finally:
            self._writing = False
        if trainer.is_global_zero:
            with contextlib.suppress(FileNotFoundError):  # such a process has told the study, and cleared up
                os.replace(beside, self.file)

    def state_dict(self) -> dict[str, Any]:
        """The learning curve; nothing in the checkpoints of others."""
        return {"of": self._of, "pruning": self._pruning.progress()} if self._writing else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the learning curve."""
        self._pruning.restore(state_dict["pruning"])

    def fits(self, checkpoint: Mapping[str, Any]) -> bool:
        """Whether a checkpoint that was loaded is one of this very training."""
        return bool(checkpoint.get("callbacks", {}).get(self.state_key, {}).get("of") == self._of)
