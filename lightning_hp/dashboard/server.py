"""The dashboard as a server: over all studies and babysat runs of a folder, behind the guard.

The server is waitress, on this machine only unless told otherwise.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from lightning_hp.dashboard.application import application
from lightning_hp.dashboard.babysat import BabysatRuns, RunFiles
from lightning_hp.dashboard.combined_storage import CombinedStorage, study_folders
from lightning_hp.dashboard.guard import PASSWORD_VARIABLE, Guard, is_loopback, names_of
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError, open_storage

_log = logging.getLogger(__name__)
#: waitress threads; a page asks for a few things at once, and a poll of a big study takes a while
THREADS = 8


def serve(
    target: str | Path | BaseStorage,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    read_only: bool = False,
    password: str | None = None,
    hosts: Iterable[str] = (),
    open_browser: bool = False,
    ready: Callable[[str], None] | None = None,
    run_files: RunFiles | None = None,
) -> None:
    """Serve the dashboard until interrupted.

    Args:
        target: A study folder, a folder of study folders, the name of a study in ``runs``, an Optuna storage URL, a
            SQLite file, or an open storage.
        host: Address to listen on. Others than loopback need a password.
        port: Port to listen on; 0 takes a free one.
        read_only: Refuse everything that could change a study.
        password: Asked for by every page, any user name; None for none.
        hosts: Further names under which the server is reached, as behind a proxy.
        open_browser: Open the page in this machine's browser.
        ready: Called with the address once the server listens.
        run_files: Reads and steers the babysat runs of the folder; None leaves them out.

    Raises:
        StudyError: If there is no such study or storage.
        ValueError: If ``host`` is open to the network and there is no password.
        OSError: If the port is taken.
    """
    server = make_server(target, host, port, read_only=read_only, password=password, hosts=hosts, run_files=run_files)
    address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{server.effective_port}/"
    if ready is not None:
        ready(address)
    if open_browser:
        webbrowser.open(address)
    try:
        server.run()
    finally:
        server.close()


def make_server(
    target: str | Path | BaseStorage,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    read_only: bool = False,
    password: str | None = None,
    hosts: Iterable[str] = (),
    run_files: RunFiles | None = None,
) -> Any:
    """A waitress server that listens and is started with ``run()``; arguments and errors as for :func:`serve`."""
    from waitress.server import create_server

    if not is_loopback(host) and not password:
        raise ValueError(
            f"`host` must be this machine's own (127.0.0.1) where there is no password, got {host!r}; "
            f"set {PASSWORD_VARIABLE} or give a password file"
        )
    babysat = _babysat_runs(target, run_files)
    combined = CombinedStorage(folder=babysat.folder) if babysat is not None else combined_storage_of(target)
    guarded = Guard(application(combined, read_only, babysat), {*names_of(host), *hosts}, password, read_only)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family)
    return create_server(guarded, sockets=[listening], threads=THREADS, ident="lightning-hp")


def serve_command(
    target: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    read_only: bool = False,
    password_file: str | None = None,
    hosts: Iterable[str] = (),
    open_browser: bool = False,
    run_files: RunFiles | None = None,
) -> int:
    """What the command line runs: :func:`serve`, the password from the environment or a file, never from arguments.

    Args:
        target: See :func:`serve`.
        host: See :func:`serve`.
        port: See :func:`serve`.
        read_only: See :func:`serve`.
        password_file: A file whose first line is the password; None reads ``LIGHTNING_HP_PASSWORD``, if set.
        hosts: See :func:`serve`.
        open_browser: See :func:`serve`.
        run_files: See :func:`serve`.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If the password is empty, the port is taken, or ``host`` is open to the network without a password.
    """
    password = read_password(password_file)

    def ready(address: str) -> None:
        notes = [*(["read-only"] if read_only else []), *(["password"] if password else []), "Ctrl-C stops it"]
        sys.stdout.write(f"dashboard at {address} ({', '.join(notes)})\n")
        sys.stdout.flush()

    chosen: dict[str, Any] = {"read_only": read_only, "password": password, "hosts": hosts, "run_files": run_files}
    try:
        serve(target, host, port, **chosen, open_browser=open_browser, ready=ready)
    except OSError as error:
        raise ValueError(f"`port` must be free on {host}, got {port!r} ({error.strerror or error})") from error
    return 0


def read_password(file: str | None) -> str | None:
    """The password from a file, else from the environment, else None.

    Raises:
        ValueError: If the file cannot be read or its first line is empty, or the variable is set and empty.
    """
    if file is None:
        password = os.environ.get(PASSWORD_VARIABLE)
        if password == "":
            raise ValueError(f"`{PASSWORD_VARIABLE}` must have at least one character, got ''")
        return password
    try:
        with open(file, encoding="utf-8") as opened:
            password = opened.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`password_file` must be a file that can be read, got {file!r}: {error}") from error
    if not password:
        raise ValueError(f"`password_file` must hold the password in its first line, got an empty line in {file!r}")
    return password


def _babysat_runs(target: str | Path | BaseStorage, files: RunFiles | None) -> BabysatRuns | None:
    """The babysat runs of a folder; None where the target is no folder or holds neither runs nor studies."""
    if files is None or isinstance(target, BaseStorage) or "://" in str(target):
        return None
    for folder in (Path(target), Path("runs") / target):
        if folder.is_dir():
            babysat = BabysatRuns(folder, files)
            if study_folders(folder) or babysat.runs():
                return babysat
    return None


def combined_storage_of(target: str | Path | BaseStorage) -> CombinedStorage:
    """The studies of a folder, a file, a URL or a storage; see :func:`serve`.

    Raises:
        StudyError: If there is no such study or storage.
    """
    if isinstance(target, BaseStorage):
        return CombinedStorage([(target, {})])
    text = str(target)
    if "://" in text:
        return CombinedStorage([(open_storage(text, StudyPaths(Path()), must_exist=True), {})])
    for path in (Path(text), Path("runs") / text):
        if path.is_dir() and study_folders(path):
            return CombinedStorage(folder=path)
        if path.is_file() and path.name == "journal.log":
            return CombinedStorage([(open_storage("journal", StudyPaths(path.parent)), {})])
        if path.is_file() and path.suffix in (".db", ".sqlite", ".sqlite3"):
            return CombinedStorage([(open_storage(f"sqlite:///{path.absolute()}", StudyPaths(path.parent)), {})])
    raise StudyError(
        f"`study` must be a study folder, a folder of studies, the name of one in runs, or a storage URL, got {text!r}"
    )
