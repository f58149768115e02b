"""A storage that does not answer is asked again for a while, with longer and longer pauses, before that is an error.

What is asked again may have been done already, only the answer was lost. A trial that was created so has no lease, and
is taken over; an end that was stored so is recognised.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from lightning_hp.study.causes import causes
from lightning_hp.study.storage_error import StudyError

#: seconds that a storage may be away, and between the first two tries; the longest pause
PATIENCE, FIRST_PAUSE, LONGEST_PAUSE = 120.0, 0.2, 8.0
#: methods of Optuna's database storage that its cache calls in place of the public ones
_PRIVATE = ("_create_new_trial", "_set_trial_param", "_get_trials", "_get_best_trial_id")
T = TypeVar("T")


class StorageAwayError(StudyError):
    """The storage has not answered for long; what was to be stored is not."""


class _Mood(threading.local):
    patience: float | None = None
    inside = False


_mood = _Mood()
#: when a storage was last found away by this process: seconds of ``time.monotonic``
_last_away = -math.inf


def last_away() -> float:
    """When a storage was last found away by this process: seconds of ``time.monotonic``, minus infinity for never."""
    return _last_away


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Within this context, in this thread, a storage is asked once."""
    before, _mood.patience = _mood.patience, 0.0
    try:
        yield
    finally:
        _mood.patience = before


def is_away(error: BaseException | None) -> bool:
    """Whether an exception says that a storage's server was not there, or has been lost on the way."""
    for cause in causes(error):
        if isinstance(cause, StorageAwayError | OperationalError | InterfaceError | ConnectionError):
            return True
        if isinstance(cause, DBAPIError) and cause.connection_invalidated:
            return True
        code = getattr(cause, "code", None)  # of a grpc.RpcError; a proxy whose database is away says UNKNOWN
        if callable(code) and getattr(code(), "name", "") in ("UNAVAILABLE", "UNKNOWN", "DEADLINE_EXCEEDED"):
            return True
    return False


def patiently(
    ask: Callable[[], T],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    done: Callable[[], T | None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
    away: Callable[[BaseException], bool] = is_away,
) -> T:
    """Ask a storage, again and again while it is away; inside of it everything is asked once.

    Args:
        ask: Asks.
        sleep: Waits for so many seconds.
        clock: Seconds; only differences count.
        done: What to return where a second try finds that a trial has ended; None if it did not end as asked for.
        say: Is told in one line that the storage is waited for.
        away: Whether an exception says that it is away.

    Raises:
        StorageAwayError: If the storage stays away.
    """
    global _last_away
    if _mood.inside:
        return ask()
    patience = PATIENCE if _mood.patience is None else _mood.patience
    begun, pause, tries = clock(), FIRST_PAUSE, 0
    while True:
        _mood.inside = True
        try:
            return ask()
        except UpdateFinishedTrialError:
            result = done() if tries else None
            if result is None:
                raise
            return result
        except Exception as error:
            if not away(error):
                raise
            _last_away = time.monotonic()
            cause = error.__cause__ or error
            reason = " ".join(str(getattr(cause, "orig", None) or cause).split())[:200]
            if clock() - begun + pause > patience:
                raise StorageAwayError(
                    f"`storage` has not answered for {clock() - begun:.0f} s ({reason}); the same command goes on from "
                    "here when it is back"
                ) from error
            if not tries:
                say(f"`storage` does not answer ({reason}); it is asked again for {patience:.0f} s")
        finally:
            _mood.inside = False
        sleep(pause * (0.5 + random.random()))
        pause, tries = min(2 * pause, LONGEST_PAUSE), tries + 1


def patient(kind: type[Any]) -> type[Any]:
    """A class of storages whose methods are asked again while the server is away."""
    names = [*BaseStorage.__abstractmethods__, *(name for name in _PRIVATE if hasattr(kind, name))]
    return type(f"Patient{kind.__name__}", (kind,), {name: _patient(getattr(kind, name)) for name in names})


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def ask(self: BaseStorage, *args: Any, **kwargs: Any) -> Any:
        def done() -> bool | None:
            if method.__name__ != "set_trial_state_values":
                return None
            return _has_ended_so(self, *args, **kwargs) or None

        return patiently(lambda: method(self, *args, **kwargs), done=done)

    return ask


def _has_ended_so(storage: BaseStorage, trial_id: int, state: TrialState, values: Any = None) -> bool:
    trial = storage.get_trial(trial_id)
    return trial.state is state and (list(values) if values is not None else None) == trial.values
