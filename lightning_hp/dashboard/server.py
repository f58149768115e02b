"""The dashboard as it is served: Optuna's, over all studies of a folder, behind the guard, with our pages beside it.

Ours are ``/hp/`` (all studies), ``/hp/report/N`` (the report of study N), ``/hp/status/N`` (one line, JSON) and
``/hp/banner.js``, which shows that line on every page of Optuna's; ``/hp/poll.js`` keeps open pages from drawing
what they have drawn already. The server is waitress, on this machine only
unless told otherwise.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from optuna.storages import BaseStorage

from lightning_hp.dashboard.combined_storage import CombinedArtifacts, CombinedStorage, study_folders
from lightning_hp.dashboard.guard import PASSWORD_VARIABLE, Application, Guard, is_loopback, names_of
from lightning_hp.dashboard.overview import overview, status_of
from lightning_hp.dashboard.upstream.figure_order import send_figures_in_order
from lightning_hp.dashboard.upstream.study_json import Details
from lightning_hp.report.gate_question import is_gate, tuned_name
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError, open_storage
from lightning_hp.study.upstream import study_number

_log = logging.getLogger(__name__)
#: waitress threads; a page asks for a few things at once, and a poll of a big study takes a while
THREADS = 8
_DETAIL = re.compile(r"^/api/studies/(\d{1,15})/?$")
_NUMBERED = re.compile(r"^/hp/(status|report)/(\d{1,15})$")
_EARLY = b'<script src="/hp/poll.js"></script></head>'
_SCRIPT = '<script defer src="/hp/banner.js"{}></script></body>'


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

    Raises:
        StudyError: If there is no such study or storage.
        ValueError: If ``host`` is open to the network and there is no password.
        OSError: If the port is taken.
    """
    server = make_server(target, host, port, read_only=read_only, password=password, hosts=hosts)
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
) -> Any:
    """A waitress server that listens and is started with ``run()``; arguments and errors as for :func:`serve`."""
    from waitress.server import create_server

    if not is_loopback(host) and not password:
        raise ValueError(
            f"`host` must be this machine's own (127.0.0.1) where there is no password, got {host!r}; "
            f"set {PASSWORD_VARIABLE} or give a password file"
        )
    guarded = Guard(application(combined_storage_of(target), read_only), {*names_of(host), *hosts}, password, read_only)
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

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If the password is empty, the port is taken, or ``host`` is open to the network without a password.
    """
    password = read_password(password_file)

    def ready(address: str) -> None:
        said = "read-only, " if read_only else ""
        sys.stdout.write(f"dashboard at {address} ({said}{'password, ' if password else ''}Ctrl-C stops it)\n")
        sys.stdout.flush()

    chosen: dict[str, Any] = {"read_only": read_only, "password": password, "hosts": hosts}
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


def combined_storage_of(target: str | Path | BaseStorage) -> CombinedStorage:
    """The studies that a person names; see :func:`serve`.

    Raises:
        StudyError: If there is no such study or storage.
    """
    if isinstance(target, BaseStorage):
        return CombinedStorage([(target, {})])
    text = str(target)
    if "://" in text:
        return CombinedStorage([(open_storage(text, StudyPaths(Path())), {})])
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


def application(combined: CombinedStorage, read_only: bool = False) -> Application:
    """Optuna's dashboard and our pages as one WSGI application, without the guard.

    Args:
        combined: The studies.
        read_only: Whether every page says that nothing can be changed (the guard sees to it).
    """
    from optuna_dashboard import wsgi

    send_figures_in_order()
    dashboard: Application = wsgi(combined, artifact_store=CombinedArtifacts(combined))
    details = _details(combined)
    scripts = {f"/hp/{name}": files(__package__).joinpath(name).read_bytes() for name in ("banner.js", "poll.js")}
    script = _SCRIPT.format(" data-read-only" if read_only else "").encode()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/":
            return _redirect(_start_page(combined), start_response)
        if path in ("/hp", "/hp/"):
            return _send(overview(combined, datetime.now(UTC)).encode(), "text/html; charset=utf-8", start_response)
        if path in scripts:
            return _send(scripts[path], "text/javascript; charset=utf-8", start_response)
        numbered = _NUMBERED.match(path)
        if numbered:
            return _of_study(combined, numbered[1], int(numbered[2]), start_response)
        asked = _DETAIL.match(path)
        if asked and details is not None and environ["REQUEST_METHOD"] == "GET":
            sent = _detail(details, int(asked[1]), environ, start_response)
            if sent is not None:
                return sent
        if path.startswith("/api/") and environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _with_body(dashboard, environ, start_response)
        if path.startswith("/dashboard"):
            return _with_banner(dashboard, script, environ, start_response)
        return dashboard(environ, start_response)

    return answer


def _details(combined: CombinedStorage) -> Details | None:
    try:
        return Details(combined)
    except ImportError:
        _log.warning("this version of optuna-dashboard is not known: big studies will be slow", exc_info=True)
        return None


def _detail(
    details: Details, number: int, environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes] | None:
    """A study with its trials; None where the dashboard has to answer."""
    after = parse_qs(environ.get("QUERY_STRING", "")).get("after", ["0"])[-1]
    try:
        found = details.answer(number, int(after)) if after.isdecimal() else None
    except KeyError:  # deleted meanwhile
        return None
    except Exception:
        _log.warning("study %d is left to optuna-dashboard", number, exc_info=True)
        return None
    if found is None:
        return None
    body, mark = found
    if environ.get("HTTP_IF_NONE_MATCH") == mark:
        start_response("304 Not Modified", [("ETag", mark), ("Cache-Control", "no-store")])
        return []
    return _send(body, "application/json", start_response, more=[("ETag", mark)])


def _of_study(combined: CombinedStorage, what: str, number: int, start_response: Callable[..., Any]) -> Iterable[bytes]:
    try:
        name = combined.get_study_name_from_id(number)
        if what == "status":
            status = status_of(combined, number, name, datetime.now(UTC))
            told = {"line": status.line, "tone": status.tone, "name": status.name}
            if status.form is not None:
                told |= {"line": f"{tuned_name(name)} waits for your answer", "tone": "warn", "href": status.form}
            body = json.dumps(told).encode()
            return _send(body, "application/json", start_response)
        paths = combined.folder_of(number)
        report = paths.report.read_bytes() if paths is not None else None
    except (KeyError, FileNotFoundError):
        report = None
    if report is None:
        return _send(b"not found", "text/plain; charset=utf-8", start_response, "404 Not Found")
    sandbox = [("Content-Security-Policy", "sandbox allow-scripts allow-downloads")]
    return _send(report, "text/html; charset=utf-8", start_response, more=sandbox)


def _start_page(combined: CombinedStorage) -> str:
    studies = combined.get_all_studies()
    names = {study.study_name for study in studies}
    studies = [study for study in studies if not is_gate(study.study_name, names)]
    return f"/dashboard/studies/{study_number(studies[0])}" if len(studies) == 1 else "/hp/"


def _with_body(dashboard: Application, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A change, answered with a body: of a 204, which has none, the dashboard's page says that the change failed."""
    started: list[Any] = []

    def catch(status: str, headers: list[tuple[str, str]], *more: Any) -> Callable[[bytes], None]:
        started[:] = [status, headers]
        return lambda data: None

    body = b"".join(dashboard(environ, catch))
    status, headers = started
    if status.startswith("204"):
        return _send(b"{}", "application/json", start_response)
    start_response(status, headers)
    return [body]


def _with_banner(
    dashboard: Application, script: bytes, environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    """The dashboard's page with our scripts added; unchanged where it has no end that we know."""
    asked = {
        k: v for k, v in environ.items() if k not in ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE")
    }
    started: list[Any] = []

    def catch(status: str, headers: list[tuple[str, str]], *more: Any) -> Callable[[bytes], None]:
        started[:] = [status, headers]
        return lambda data: None

    answered = dashboard(asked, catch)
    try:
        body = b"".join(answered)
    finally:
        close = getattr(answered, "close", None)
        if close is not None:
            close()
    status, headers = started
    if status.startswith("200") and b"</body>" in body:
        head, _, tail = body.rpartition(b"</body>")
        body = head.replace(b"</head>", _EARLY, 1) + script + tail
        dropped = ("content-length", "last-modified", "etag")
        headers = [h for h in headers if h[0].lower() not in dropped] + [("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]


def _send(
    body: bytes,
    kind: str,
    start_response: Callable[..., Any],
    status: str = "200 OK",
    more: Iterable[tuple[str, str]] = (),
) -> Iterable[bytes]:
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"), *more]
    start_response(status, headers)
    return [body]


def _redirect(where: str, start_response: Callable[..., Any]) -> Iterable[bytes]:
    return _send(b"", "text/plain", start_response, "302 Found", [("Location", where)])
