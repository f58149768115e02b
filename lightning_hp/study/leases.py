"""Who runs a trial, and for how long that holds: a lease per running trial, kept with the trial in any storage.

A worker takes a lease when it is given a trial, and renews it while the trial runs. Others watch whether a lease
changes: one that stays the same for its length, by the watcher's own clock, has expired, so clocks of different
machines need not agree. A lease of a worker in the same folder on the same machine has expired at once when that
worker's process has ended, which the kernel tells. An expired trial is given to the next worker with the same values:
each owner writes under a key of its own (its turn), so that a worker that comes back late cannot overwrite who has the
trial now. The storage ends a trial once only; whatever a late worker tells is refused.

Leases are system attributes of trials (Optuna's own kind, which the dashboard does not show).
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.study.locks import machine
from lightning_hp.study.patience import StorageAwayError, impatient, last_away
from lightning_hp.study.upstream import storage_of, trial_number

#: seconds that a lease holds without being renewed
LEASE_SECONDS = 60.0
#: a lease is renewed so many times in its length
RENEWALS = 3
#: the attribute of a trial that holds its n-th lease
_KEY = "lightning_hp:lease:"


@dataclass(frozen=True)
class Lease:
    """Who runs a trial.

    Attributes:
        worker: Name of the worker; empty where it has handed the trial back.
        place: Machine and folder of the worker, see :class:`Worker`; empty where its process cannot be looked for.
        turn: How many owners the trial had before.
        beat: How often the lease was renewed.
        seconds: How long it holds unless it is renewed.
        at: When it was taken or last renewed, by the worker's clock: UTC, ISO 8601.
    """

    worker: str
    place: str
    turn: int
    beat: int
    seconds: float
    at: str


def lease_of(trial: FrozenTrial) -> Lease | None:
    """The lease of the trial's present, or last, owner; None where nobody ever had one."""
    turns = [key for key in trial.system_attrs if key.startswith(_KEY)]
    if not turns:
        return None
    stored: dict[str, Any] = trial.system_attrs[max(turns, key=lambda key: int(key.removeprefix(_KEY)))]
    return Lease(**stored)


def place_of(folder: Path) -> str:
    """Machine and folder: processes of one place see each other's lock files, and the kernel tells which are held."""
    status = os.stat(_lock_folder(folder))
    return f"{machine()}/{status.st_dev}:{status.st_ino}"


def is_alive(lease: Lease, folder: Path, now: datetime) -> bool:
    """Whether the owner of a lease seems to be at work, at first sight; see :meth:`Leases.is_free` for a longer look.

    Args:
        lease: Of a running trial.
        folder: The study folder.
        now: The time of day, with a time zone. That of another machine may differ a little.
    """
    if not lease.worker:
        return False
    if lease.place and lease.place == place_of(folder):
        return not _has_ended(folder, lease.worker)
    return (now - datetime.fromisoformat(lease.at)).total_seconds() < 2 * lease.seconds


def _lock_folder(folder: Path) -> Path:
    locks = folder / "locks" / "workers"
    locks.mkdir(parents=True, exist_ok=True)
    return locks


def _has_ended(folder: Path, worker: str) -> bool:
    """Whether nobody holds the lock file of a worker of this place."""
    lock = FileLock(_lock_folder(folder) / f"{worker}.lock")
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
    return True


class Worker:
    """One process's part in a study, under a name of its own; as long as it lives it holds a lock file.

    Args:
        folder: The study folder, where lock files are.
        name: Name of the worker; None for one that is made of machine, process and a random part.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.name = name or f"{machine().partition('/')[0]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._folder = folder
        self.place = place_of(folder)
        self._lock = FileLock(_lock_folder(folder) / f"{self.name}.lock", thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except (OSError, NotImplementedError):  # a file system without such locks: leases expire by time
            self.place = ""
        self._close = weakref.finalize(self, _release, self._lock, os.getpid())

    def presence(self, now: datetime) -> Lease:
        """That this worker is at work, for :func:`is_alive`, before it has a trial."""
        return Lease(self.name, self.place, 0, 0, LEASE_SECONDS, now.isoformat(timespec="seconds"))

    def is_dead(self, lease: Lease) -> bool:
        """Whether the owner of a lease was a process of this place that has ended."""
        same = bool(self.place) and lease.place == self.place and lease.worker != self.name
        return same and _has_ended(self._folder, lease.worker)

    def close(self) -> None:
        """Give the name up: whatever this worker still has is free. The end of the process does so too."""
        self._close()


def _release(lock: FileLock, process: int) -> None:
    if os.getpid() == process and lock.is_locked:  # else a forked child, which must not take its parent's lock away
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


class Leases:
    """The leases of one worker, and its view of those of others.

    Args:
        study: The study.
        worker: Who takes the leases.
        seconds: How long they hold.
        clock: Seconds; only differences count.
        now: The time of day, for people.
        away: When storage was last away, by the same clock: nobody could renew a lease then. None where this process
            knows it.
    """

    def __init__(
        self,
        study: optuna.Study,
        worker: Worker,
        seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        away: Callable[[], float] | None = None,
    ) -> None:
        self.worker, self.seconds = worker, seconds
        self._storage: BaseStorage = storage_of(study)
        self._clock, self._now = clock, now
        self._away = away or (last_away if clock is time.monotonic else lambda: -math.inf)
        self._lock = threading.RLock()
        #: number of a trial in storage -> its lease, and when that was last written
        self._held: dict[int, tuple[Lease, float]] = {}
        self._lost: dict[int, Lease | None] = {}
        #: what was seen of others' leases: turn and beat, and since when
        self._seen: dict[int, tuple[int, int, float]] = {}
        self._asked = -math.inf

    @contextlib.contextmanager
    def hold(self, trial: FrozenTrial | optuna.Trial) -> Iterator[None]:
        """Take the lease of a trial, and at the end hand it back if the trial is still running.

        The study's lock must be held while this begins.
        """
        key = trial_number(trial)
        before = lease_of(self._storage.get_trial(key))
        turn = 0 if before is None else before.turn + 1
        lease = Lease(self.worker.name, self.worker.place, turn, 0, self.seconds, "")
        with self._lock:
            self._lost.pop(key, None)
            self._write(key, lease)
        try:
            yield
        finally:
            with self._lock:
                mine = self._held.pop(key, None)
            with contextlib.suppress(Exception), impatient():  # a storage that is away: the lease expires
                if mine is not None and self._is_current(key, mine[0]):
                    handed_back = replace(mine[0], worker="", beat=mine[0].beat + 1, at=self._time())
                    self._storage.set_trial_system_attr(key, f"{_KEY}{turn}", asdict(handed_back))

    def renew(self, always: bool = True) -> None:
        """Renew all leases that are held; those that have been given away meanwhile are marked as lost.

        Storage is asked once: while it is away leases are not renewed, and trainings go on.

        Args:
            always: Whether to renew also those that need it only later.
        """
        with self._lock:
            due = [
                (key, lease)
                for key, (lease, written) in self._held.items()
                if always or self._clock() - written >= self.seconds / RENEWALS
            ]
        for key, lease in due:
            self._renew_one(key, lease)

    def _renew_one(self, key: int, lease: Lease) -> None:
        with impatient():
            trial = self._storage.get_trial(key)
            present = lease_of(trial)
            if not _is_same(present, lease):
                with self._lock:
                    if self._held.pop(key, None) is not None:
                        self._lost[key] = present
            elif trial.state is TrialState.RUNNING:
                with contextlib.suppress(UpdateFinishedTrialError):  # told by this process meanwhile
                    self._write(key, replace(lease, beat=lease.beat + 1), only_if_held=True)

    def is_lost(self, trial: FrozenTrial | optuna.Trial) -> bool:
        """Whether a trial that this worker was given belongs to another one now; asks storage only after a standstill.

        A process that was stopped for longer than a lease learns it here, before it writes anything. While storage is
        away nobody can be given the trial, and it goes on.
        """
        key = trial_number(trial)
        with self._lock:
            held = self._held.get(key)
        if held is not None and self._clock() - max(held[1], self._asked) > self.seconds:
            try:
                self._renew_one(key, held[0])
            except StorageAwayError:
                self._asked = self._clock() - self.seconds * (1 - 1 / RENEWALS)  # ask again in a third of its length
        with self._lock:
            return key in self._lost

    def present_owner(self, trial: FrozenTrial | optuna.Trial) -> str | None:
        """Who has a trial that this worker has lost; None if it was not lost, as storage has it now."""
        key = trial_number(trial)
        held = self.lease(trial)
        if held is not None:
            present = lease_of(self._storage.get_trial(key))
            with self._lock:
                if not _is_same(present, held) and self._held.pop(key, None) is not None:
                    self._lost[key] = present
        lease = self._lost.get(key)
        return None if lease is None else lease.worker or "nobody yet"

    def is_free(self, trial: FrozenTrial) -> bool:
        """Whether a running trial may be taken over; the study's lock must be held.

        A trial without a lease is one whose worker died between asking and taking: both are done under the lock.
        """
        key, lease = trial_number(trial), lease_of(trial)
        if lease is None or not lease.worker or self.worker.is_dead(lease):
            return True
        with self._lock:
            if key in self._held:
                return False
            if lease.worker == self.worker.name:
                return True
            turn, beat, since = self._seen.get(key, (-1, -1, 0.0))
            if (turn, beat) != (lease.turn, lease.beat):
                since = self._clock()
                self._seen[key] = (lease.turn, lease.beat, since)
            return self._clock() - max(since, self._away()) > lease.seconds

    def lease(self, trial: FrozenTrial | optuna.Trial) -> Lease | None:
        """The lease that this worker has of a trial, as far as it knows."""
        with self._lock:
            held = self._held.get(trial_number(trial))
            return None if held is None else held[0]

    def _is_current(self, key: int, lease: Lease) -> bool:
        return _is_same(lease_of(self._storage.get_trial(key)), lease)

    def _write(self, key: int, lease: Lease, only_if_held: bool = False) -> None:
        lease = replace(lease, at=self._time())
        self._storage.set_trial_system_attr(key, f"{_KEY}{lease.turn}", asdict(lease))
        with self._lock:
            if not only_if_held or key in self._held:
                self._held[key] = (lease, self._clock())

    def _time(self) -> str:
        return self._now().isoformat(timespec="seconds")


def _is_same(present: Lease | None, lease: Lease) -> bool:
    return present is not None and (present.turn, present.worker) == (lease.turn, lease.worker)
