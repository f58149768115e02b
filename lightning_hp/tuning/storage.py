"""Where a study is kept: open it by URL or folder, describe it in its attributes, read the description back.

The default is Optuna's journal file, which takes several processes at once without a server. Two things of it are
mended here, since processes do get killed and disks do get full: a line that was only half written is cut off before
the next one is added, and the lock is one that the operating system drops with its owner.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock  # the documented base class; not re-exported
from optuna.study import StudyDirection
from optuna.trial import TrialState

from lightning_hp.search.space import SearchSpace, differences
from lightning_hp.tuning.database import QuickDatabase
from lightning_hp.tuning.paths import StudyPaths, write_text

#: the study user attribute that holds the description, and its schema number
ATTRIBUTE = "lightning_hp"
SCHEMA = 1
#: bytes that hold any line of a journal: the longest is the description of a study
LONGEST_LINE = 1 << 20


class StudyError(Exception):
    """A study cannot be opened or continued as asked; the message is one line that says what to do."""


class _KernelLock(BaseJournalFileLock):
    """A lock that the operating system releases when its owner dies."""

    def __init__(self, path: str) -> None:
        self._lock = FileLock(path + ".flock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


class _MendingJournal(JournalFileBackend):
    """A journal that survives half-written lines: of a killed process, or of a full disk."""

    def __init__(self, path: Path) -> None:
        self._mending = _KernelLock(str(path))
        super().__init__(str(path), lock_obj=self._mending)
        self._path = path
        self._mending.acquire()
        try:
            self._cut()
            self._check_end()
        finally:
            self._mending.release()

    def _check_end(self) -> None:
        """Refuse a file whose last whole line is none of Optuna's, who would pass over it until others follow."""
        with open(self._path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_LINE))
            last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
        if last and not (last.startswith(b"{") and last.endswith(b"}")):
            raise ValueError(f"its last line is no journal line: {last[:40].decode(errors='replace')!r}")

    def _cut(self) -> int:
        """Cut what stands behind the last line end, and give the size that is left; the lock must be held."""
        with open(self._path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            end = size
            while end > 0:
                start = max(0, end - 65536)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
            return end

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append log lines; on an error the file is as it was."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._mending.acquire()
        try:
            size = self._cut()
            try:
                with open(self._path, "ab") as file:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                os.truncate(self._path, size)
                raise
        finally:
            self._mending.release()


@dataclass(frozen=True)
class Description:
    """What a study says of itself, so that anybody can continue or read it from storage alone.

    Attributes:
        space: The search space.
        n_trials: Planned total of trials.
        max_steps: Number of validations in a complete training, None without curves.
        monitor: Name of the metric.
        mode: ``min`` or ``max``.
        seed: The study's seed.
        plan: Name of the stage plan.
        preset: Name of the preset that the space came from, None for a mapping.
        versions: Package name to version, as of the first run.
        created: UTC, ISO 8601.
        older: Curves of the study that this one refreshes, see :class:`.CoarseToFineSampler`.
        opens_from: Tier to the number of trials from which it opens, None for the usual plan or the preset's.
        previous: Folder of the study that this one refreshes, None for a first study.
    """

    space: SearchSpace
    n_trials: int
    max_steps: int | None
    monitor: str
    mode: str
    seed: int
    plan: str = "default"
    preset: str | None = None
    versions: Mapping[str, str] | None = None
    created: str = ""
    older: tuple[Mapping[str, Any], ...] = ()
    opens_from: Mapping[str, int] | None = None
    previous: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": SCHEMA,
            "space": self.space.to_dict(),
            "n_trials": self.n_trials,
            "max_steps": self.max_steps,
            "monitor": self.monitor,
            "mode": self.mode,
            "seed": self.seed,
            "plan": self.plan,
            "preset": self.preset,
            "versions": dict(self.versions or {}),
            "created": self.created,
            "older": [dict(curve) for curve in self.older],
            "opens_from": None if self.opens_from is None else dict(self.opens_from),
            "previous": self.previous,
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Description:
        """The inverse of :meth:`to_json`.

        Raises:
            StudyError: If the schema is newer than this version reads.
        """
        if given.get("schema", 0) > SCHEMA:
            raise StudyError(
                f"the study was written by a newer lightning_hp (schema {given['schema']}, this version reads "
                f"{SCHEMA}); upgrade lightning_hp"
            )
        fields = {k: v for k, v in given.items() if k != "schema"}
        space = SearchSpace.from_description(given["space"])
        return cls(**{**fields, "space": space, "older": tuple(given.get("older", ()))})


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without Optuna's announcements: of new studies and finished trials, and of what is experimental in it."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def open_storage(storage: str, paths: StudyPaths) -> BaseStorage:
    """Open a storage.

    Args:
        storage: ``journal`` (a file in the study folder), or an Optuna URL.
        paths: The study folder.

    Raises:
        StudyError: If the storage does not answer or the file is no journal.
    """
    if storage == "journal":
        try:
            paths.root.mkdir(parents=True, exist_ok=True)
            return JournalStorage(_MendingJournal(paths.journal))
        except Exception as error:  # Optuna has no error of its own for a file that is no journal
            raise StudyError(f"`storage` cannot be opened: {paths.journal}: {one_line(error)}") from error
    try:
        return optuna.storages.get_storage(QuickDatabase(storage))
    except Exception as error:
        raise StudyError(
            f"`storage` must be a database that answers, got {redacted(storage)}: {one_line(error)}"
        ) from error


def redacted(url: str) -> str:
    """A storage URL without its password."""
    head, sep, tail = url.partition("://")
    if not sep or "@" not in tail:
        return url
    account, _, host = tail.rpartition("@")
    return f"{head}://{account.partition(':')[0]}:***@{host}"


def one_line(error: BaseException) -> str:
    """An exception as one line, its kind first."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def open_study(
    name: str,
    storage: BaseStorage,
    wanted: Description,
    paths: StudyPaths,
) -> optuna.Study:
    """Create a study, or continue it if its space, metric, seed and plan are the same.

    Another study that has not finished a single trial is nothing to lose: it makes way, so that a mistake that the
    first trial showed can be mended and the command given again. The study's ask lock must be held.

    Args:
        name: Study name.
        storage: An open storage.
        wanted: What the study is to be; written where the study is new. A changed total of trials is taken over.
        paths: The study folder, where running trials are claimed.

    Raises:
        StudyError: If a study of this name exists with another space, metric, seed or plan.
    """
    direction = StudyDirection.MINIMIZE if wanted.mode == "min" else StudyDirection.MAXIMIZE
    with hushed():
        try:  # Optuna's load_if_exists would write to the journal at every opening
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
    found = study.user_attrs.get(ATTRIBUTE)
    advice = "choose another `name`, or delete the study folder to start anew"
    if found is None:
        if study.get_trials(deepcopy=False):
            raise StudyError(f"a study named {name!r} exists that lightning_hp did not make; choose another `name`")
        with hushed():
            study.set_metric_names([wanted.monitor])
        study.set_user_attr(ATTRIBUTE, wanted.to_json())
        return study
    had = Description.from_json(found)
    changed = differences(found["space"], wanted.space.to_dict())
    changed += [
        f"{field} was {getattr(had, field)!r}, is {getattr(wanted, field)!r}"
        for field in ("monitor", "mode", "seed", "plan")
        if getattr(had, field) != getattr(wanted, field)
    ]
    if changed:
        if _nothing_to_lose(study, paths):
            optuna.delete_study(study_name=name, storage=storage)
            return open_study(name, storage, wanted, paths)
        raise StudyError(f"study {name!r} exists with another configuration: {'; '.join(changed)}; {advice}")
    if study.direction != direction:
        raise StudyError(f"study {name!r} exists with direction {study.direction.name.lower()}; {advice}")
    if (had.n_trials, had.max_steps) != (wanted.n_trials, wanted.max_steps):
        study.set_user_attr(ATTRIBUTE, {**found, "n_trials": wanted.n_trials, "max_steps": wanted.max_steps})
    return study


def _nothing_to_lose(study: optuna.Study, paths: StudyPaths) -> bool:
    """Whether a study has no result, and nobody is at work on one."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            return False
        if trial.state is TrialState.RUNNING:
            with paths.trial(trial.number).claim() as orphan:
                if not orphan:
                    return False
    return True


def describe(study: optuna.Study) -> Description:
    """The description of a study.

    Raises:
        StudyError: If lightning_hp did not make the study.
    """
    found = study.user_attrs.get(ATTRIBUTE)
    if found is None:
        raise StudyError(f"study {study.study_name!r} was not made by lightning_hp: it has no attribute {ATTRIBUTE!r}")
    return Description.from_json(found)


def remember(paths: StudyPaths, name: str, storage: str, source: Path | None = None) -> None:
    """Note in the study folder which study of which storage it belongs to, and which ``tune.yaml`` it came from."""
    said = json.dumps({"name": name, "storage": storage, "source": None if source is None else str(source)})
    if not paths.study.exists() or paths.study.read_text(encoding="utf-8") != said:
        write_text(paths.study, said)


def find_study(given: str, runs: Path = Path("runs")) -> tuple[optuna.Study, StudyPaths]:
    """Open a study that a person names.

    Args:
        given: A study folder, or the name of one in ``runs``.
        runs: Where studies are kept.

    Raises:
        StudyError: If there is no such study; says which there are.
    """
    for folder in (Path(given), runs / given):
        paths = StudyPaths(folder)
        if paths.study.is_file():
            known = json.loads(paths.study.read_text(encoding="utf-8"))
            return load_study(known["name"], open_storage(known["storage"], paths)), paths
    there = ", ".join(sorted(p.parent.name for p in runs.glob("*/study.json"))) or "none"
    raise StudyError(f"`study` must be a study folder or the name of one in {runs} (there: {there}), got {given!r}")


def load_study(name: str, storage: BaseStorage) -> optuna.Study:
    """Open an existing study for reading.

    Raises:
        StudyError: If there is none of this name.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        names = ", ".join(s.study_name for s in storage.get_all_studies()) or "none"
        raise StudyError(f"there is no study named {name!r} in this storage (there is: {names})") from error
