"""Where a study is kept: storages by URL or folder, and studies that a person names.

The default is a journal file in the study folder (:mod:`.journal`), which takes several processes at once without a
server.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import BaseStorage, JournalStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError

from lightning_hp.study.database import QuickDatabase
from lightning_hp.study.journal import MendingJournal
from lightning_hp.study.paths import StudyPaths, write_text
from lightning_hp.study.patience import StorageAwayError, is_away, patient, patiently
from lightning_hp.study.storage_error import StudyError as StudyError
from lightning_hp.study.urls import is_proxy, is_server, proxy_address, with_password, without_password
from lightning_hp.study.urls import redacted as redacted

#: seconds that a server has to take a connection
CONNECT_SECONDS = 10
#: what a server says that is not there yet, or not any more
_STARTING = ("starting up", "shutting down", "recovery", "server closed the connection", "Lost connection")
#: how often tables are made, or found, before that is an error
TRIES = 5
PatientDatabase = patient(QuickDatabase)
PatientProxy = patient(optuna.storages.GrpcStorageProxy)


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


def open_storage(
    storage: str, paths: StudyPaths, *, must_exist: bool = False, say: Callable[[str], None] | None = None
) -> BaseStorage:
    """Open a storage.

    Args:
        storage: ``journal`` (a file in the study folder), or an Optuna URL.
        paths: The study folder.
        must_exist: Whether a database file that is not there is an error, instead of being created empty.
        say: Is told in one line that a server is waited for, as workers do; None does not wait for it.

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
        if say is None:
            return _open(storage, must_exist)
        return patiently(lambda: _open(storage, must_exist), say=say, away=lambda error: _is_down(storage, error))
    except StorageAwayError:
        raise
    except Exception as error:
        shown = redacted(storage)
        reason = one_line(error).replace(storage, shown)
        raise StudyError(f"`storage` must be a database that answers, got {shown}: {reason}") from error


def _open(storage: str, must_exist: bool) -> BaseStorage:
    if is_proxy(storage):
        return _open_proxy(storage)
    if is_server(storage):
        return _open_server(with_password(storage))
    file = make_url(storage).database if storage.startswith("sqlite") else None
    if must_exist and file and file != ":memory:" and not Path(file).is_file():
        raise FileNotFoundError(f"there is no file {file}")
    return optuna.storages.get_storage(QuickDatabase(storage))


def _is_down(storage: str, error: BaseException) -> bool:
    """Whether a server could not be opened because it is not there, now; a wrong password is no reason to wait."""
    if not is_away(error):
        return False
    if any(text in str(error) for text in _STARTING):
        return True
    if is_proxy(storage):
        host, port = proxy_address(storage)
    elif is_server(storage):
        url = make_url(storage)
        host, port = url.host or "", url.port or (5432 if storage.startswith("postgresql") else 3306)
    else:
        return False
    try:
        socket.create_connection((host.strip("[]") or "localhost", port), CONNECT_SECONDS).close()
    except OSError:
        return True
    return is_proxy(storage)  # it is there, and its database is not


def _open_server(url: str) -> BaseStorage:
    """A database with a server; of two processes that make its tables at once, the slower one looks again."""
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("postgresql"):
        options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    for _ in range(TRIES - 1):
        with contextlib.suppress(IntegrityError, ProgrammingError):
            return optuna.storages.get_storage(PatientDatabase(url, engine_kwargs=options))
        time.sleep(0.2)
    return optuna.storages.get_storage(PatientDatabase(url, engine_kwargs=options))


def _open_proxy(url: str) -> BaseStorage:
    """Optuna's gRPC proxy, if it answers."""
    host, port = proxy_address(url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        proxy: BaseStorage = PatientProxy(host=host, port=port)
    proxy.wait_server_ready(timeout=CONNECT_SECONDS)  # type: ignore[attr-defined]
    return proxy


def one_line(error: BaseException) -> str:
    """An exception as one line, its kind first."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def write_study_pointer(paths: StudyPaths, name: str, storage: str, source: Path | None = None) -> None:
    """Write into the study folder which study of which storage it belongs to, and which ``tune.yaml`` it came from.

    A password is left out.
    """
    storage = without_password(storage)
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
            return load_study(pointer["name"], open_storage(pointed_storage(pointer), paths)), paths
    there = ", ".join(sorted(p.parent.name for p in runs.glob("*/study.json"))) or "none"
    raise StudyError(
        f"`study` must be a study folder or the name of one in {runs} (there: {there}), got {name_or_folder!r}"
    )


def pointed_storage(pointer: Mapping[str, Any]) -> str:
    """The storage that a study folder names, with the password of the ``tune.yaml`` that it came from."""
    storage, source = str(pointer["storage"]), pointer.get("source")
    if is_server(storage) and source and Path(source).is_file():
        with contextlib.suppress(OSError, yaml.YAMLError, AttributeError):
            named = yaml.safe_load(Path(source).read_text(encoding="utf-8")).get("storage")
            if isinstance(named, str) and without_password(named) == storage:
                return named
    return storage


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
