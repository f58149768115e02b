"""Where a study is kept: storages by URL or folder, and studies that a person names.

The default is a journal file in the study folder (:mod:`.journal`), which takes several processes at once without a
server.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from sqlalchemy.engine import make_url

from lightning_hp.study.database import QuickDatabase
from lightning_hp.study.journal import MendingJournal
from lightning_hp.study.paths import StudyPaths, write_text


class StudyError(Exception):
    """A study cannot be opened or continued in this way; the message is one line that says what to do."""


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Context in which Optuna does not announce new studies, finished trials and experimental features."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def open_storage(storage: str, paths: StudyPaths, *, must_exist: bool = False) -> BaseStorage:
    """Open a storage.

    Args:
        storage: ``journal`` (a file in the study folder), or an Optuna URL.
        paths: The study folder.
        must_exist: Whether a database file that is not there is an error, instead of being created empty.

    Raises:
        StudyError: If the storage does not answer or the file is no journal.
    """
    if storage == "journal":
        try:
            paths.root.mkdir(parents=True, exist_ok=True)
            return JournalStorage(MendingJournal(paths.journal))
        except Exception as error:  # Optuna has no error of its own for a file that is no journal
            raise StudyError(f"`storage` cannot be opened: {paths.journal}: {one_line(error)}") from error
    try:
        file = make_url(storage).database if storage.startswith("sqlite") else None
        if must_exist and file and file != ":memory:" and not Path(file).is_file():
            raise FileNotFoundError(f"there is no file {file}")
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


def write_study_pointer(paths: StudyPaths, name: str, storage: str, source: Path | None = None) -> None:
    """Write into the study folder which study of which storage it belongs to, and which ``tune.yaml`` it came from."""
    pointer = json.dumps({"name": name, "storage": storage, "source": None if source is None else str(source)})
    if not paths.study.exists() or paths.study.read_text(encoding="utf-8") != pointer:
        write_text(paths.study, pointer)


def find_study(name_or_folder: str, runs: Path = Path("runs")) -> tuple[optuna.Study, StudyPaths]:
    """Open a study that a person names.

    Args:
        name_or_folder: A study folder, or the name of one in ``runs``.
        runs: Where studies are kept.

    Raises:
        StudyError: If there is no such study; says which there are.
    """
    for folder in (Path(name_or_folder), runs / name_or_folder):
        paths = StudyPaths(folder)
        if paths.study.is_file():
            pointer = json.loads(paths.study.read_text(encoding="utf-8"))
            return load_study(pointer["name"], open_storage(pointer["storage"], paths)), paths
    there = ", ".join(sorted(p.parent.name for p in runs.glob("*/study.json"))) or "none"
    raise StudyError(
        f"`study` must be a study folder or the name of one in {runs} (there: {there}), got {name_or_folder!r}"
    )


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
