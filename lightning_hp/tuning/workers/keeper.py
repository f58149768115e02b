"""While a worker trains: a thread renews its leases, and a training whose trial was given away ends."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl

from lightning_hp.study.leases import RENEWALS, Leases

_log = logging.getLogger(__name__)


class TrialTakenError(BaseException):
    """The trial that is trained here belongs to another worker now.

    No ordinary exception, since it says nothing about the training: neither the project nor the study may take it for
    a crash.
    """


@contextlib.contextmanager
def renewed(leases: Leases, wait: Callable[[threading.Event, float], bool] = threading.Event.wait) -> Iterator[None]:
    """Within this context a thread renews the leases of this worker.

    Args:
        leases: Of this worker.
        wait: Waits for an event or so many seconds; whether the event is set.
    """
    ended = threading.Event()

    def renew() -> None:
        while not wait(ended, leases.seconds / RENEWALS / 2):
            try:
                leases.renew(always=False)
            except Exception:  # a storage that is away; if it stays away, the training learns it at its end
                _log.debug("the leases of %s could not be renewed", leases.worker.name, exc_info=True)

    thread = threading.Thread(target=renew, name="lightning_hp leases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class LeaseGuard(pl.Callback):
    """Ends a training whose trial was given away, before it writes anything more into the trial's folder.

    Args:
        is_lost: Whether the trial belongs to another worker now.
    """

    def __init__(self, is_lost: Callable[[], bool]) -> None:
        self._is_lost = is_lost

    def look(self) -> None:
        """Look.

        Raises:
            TrialTakenError: If the trial is another worker's.
        """
        if self._is_lost():
            raise TrialTakenError

    def on_train_batch_start(self, *_: Any) -> None:
        """Look before every step."""
        self.look()

    def on_validation_batch_start(self, *_: Any) -> None:
        """Look before every batch of a validation."""
        self.look()

    def on_validation_end(self, *_: Any) -> None:
        """Look before a checkpoint is written; checkpoints come after all other callbacks."""
        self.look()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Likewise."""
        self.look()
