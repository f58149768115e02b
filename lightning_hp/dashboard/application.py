"""What the server answers: Optuna's dashboard with our pages beside it, as one WSGI application.

Ours are ``/hp/`` (all studies), ``/hp/report/N`` (the report of study N), ``/hp/status/N`` (one line, JSON) and
``/hp/banner.js``, which shows that line on every page of Optuna's; ``/hp/poll.js`` keeps open pages from drawing what
they have drawn already; ``/hp/babysat/NAME`` is the page of a babysat run, and takes a person's commands to it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, quote

from lightning_hp.dashboard.babysat import BabysatRuns
from lightning_hp.dashboard.combined_storage import CombinedArtifacts, CombinedStorage
from lightning_hp.dashboard.guard import Application
from lightning_hp.dashboard.overview import overview, status_of
from lightning_hp.dashboard.upstream.figure_order import send_figures_in_order
from lightning_hp.dashboard.upstream.study_json import StudyJson
from lightning_hp.study.questions import is_gate, tuned_name
from lightning_hp.study.upstream import study_number

_log = logging.getLogger(__name__)
_DETAIL = re.compile(r"^/api/studies/(\d{1,15})/?$")
_NUMBERED = re.compile(r"^/hp/(status|report)/(\d{1,15})$")
_BABYSAT = "/hp/babysat/"
#: bytes of a person's command, at most
_LONGEST_COMMAND = 10_000
_EARLY = b'<script src="/hp/poll.js"></script></head>'
_SCRIPT = '<script defer src="/hp/banner.js"{}></script></body>'


def application(combined: CombinedStorage, read_only: bool = False, babysat: BabysatRuns | None = None) -> Application:
    """Optuna's dashboard and our pages as one WSGI application, without the guard.

    Args:
        combined: The studies.
        read_only: Whether every page says that nothing can be changed (the guard sees to it).
        babysat: Babysat runs beside the studies; None for none.
    """
    from optuna_dashboard import wsgi

    send_figures_in_order()
    dashboard: Application = wsgi(combined, artifact_store=CombinedArtifacts(combined))
    study_json = _study_json(combined)
    scripts = {f"/hp/{name}": files(__package__).joinpath(name).read_bytes() for name in ("banner.js", "poll.js")}
    script = _SCRIPT.format(" data-read-only" if read_only else "").encode()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/":
            return _redirect(_start_page(combined, babysat), start_response)
        if path in ("/hp", "/hp/"):
            page = overview(combined, datetime.now(UTC), babysat.runs() if babysat is not None else [])
            return _send(page.encode(), "text/html; charset=utf-8", start_response)
        if path.startswith(_BABYSAT) and babysat is not None:
            return _of_run(babysat, path.removeprefix(_BABYSAT), read_only, environ, start_response)
        if path in scripts:
            return _send(scripts[path], "text/javascript; charset=utf-8", start_response)
        numbered = _NUMBERED.match(path)
        if numbered:
            return _of_study(combined, numbered[1], int(numbered[2]), start_response)
        detail = _DETAIL.match(path)
        if detail and study_json is not None and environ["REQUEST_METHOD"] == "GET":
            answered = _study_detail(study_json, int(detail[1]), environ, start_response)
            if answered is not None:
                return answered
        if path.startswith("/api/") and environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _with_body(dashboard, environ, start_response)
        if path.startswith("/dashboard"):
            return _with_banner(dashboard, script, environ, start_response)
        return dashboard(environ, start_response)

    return answer


def _study_json(combined: CombinedStorage) -> StudyJson | None:
    """What answers for a study with its trials; None where the dashboard's own parts for it are missing."""
    try:
        return StudyJson(combined)
    except ImportError:
        _log.warning("this version of optuna-dashboard is not known: big studies will be slow", exc_info=True)
        return None


def _study_detail(
    study_json: StudyJson, number: int, environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes] | None:
    """A study with its trials; None where the dashboard has to answer."""
    after = parse_qs(environ.get("QUERY_STRING", "")).get("after", ["0"])[-1]
    try:
        answer = study_json.answer(number, int(after)) if after.isdecimal() else None
    except KeyError:  # deleted meanwhile
        return None
    except Exception:
        _log.warning("study %d is left to optuna-dashboard", number, exc_info=True)
        return None
    if answer is None:
        return None
    body, mark = answer
    if environ.get("HTTP_IF_NONE_MATCH") == mark:
        start_response("304 Not Modified", [("ETag", mark), ("Cache-Control", "no-store")])
        return []
    return _send(body, "application/json", start_response, more=[("ETag", mark)])


def _of_study(combined: CombinedStorage, page: str, number: int, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The status line or the report of a study."""
    try:
        name = combined.get_study_name_from_id(number)
        if page == "status":
            return _send(_status_line(combined, number, name), "application/json", start_response)
        paths = combined.folder_of(number)
        report = paths.report.read_bytes() if paths is not None else None
    except (KeyError, FileNotFoundError):
        report = None
    if report is None:
        return _send(b"not found", "text/plain; charset=utf-8", start_response, "404 Not Found")
    sandbox = [("Content-Security-Policy", "sandbox allow-scripts allow-downloads")]
    return _send(report, "text/html; charset=utf-8", start_response, more=sandbox)


def _of_run(
    babysat: BabysatRuns, name: str, read_only: bool, environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    """The page of a babysat run, or the answer to a command for it."""
    try:
        if environ["REQUEST_METHOD"] != "POST":
            is_news = environ.get("QUERY_STRING") == "news"
            page = babysat.page(name, read_only, is_news)
            return _send(page.encode(), "text/html; charset=utf-8", start_response)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length > _LONGEST_COMMAND:
            raise ValueError(f"a command must have at most {_LONGEST_COMMAND} bytes, got {length}")
        answer, status = babysat.command(name, environ["wsgi.input"].read(length)), "202 Accepted"
    except KeyError:
        answer, status = {"reason": f"there is no babysat run {name!r} here"}, "404 Not Found"
    except ValueError as error:
        answer, status = {"reason": str(error)}, "400 Bad Request"
    except OSError as error:
        answer, status = {"reason": f"the files of {name!r} cannot be used: {error}"}, "500 Internal Server Error"
    return _send(json.dumps(answer).encode(), "application/json", start_response, status)


def _status_line(combined: CombinedStorage, number: int, name: str) -> bytes:
    """What the banner shows, as JSON; the question that waits for an answer goes first."""
    status = status_of(combined, number, name, datetime.now(UTC))
    shown = {"line": status.line, "tone": status.tone, "name": status.name}
    if status.form is not None:
        shown |= {"line": f"{tuned_name(name)} waits for your answer", "tone": "warn", "href": status.form}
    return json.dumps(shown).encode()


def _start_page(combined: CombinedStorage, babysat: BabysatRuns | None) -> str:
    """The page of the only study, or of the only babysat run that is no study yet; else the overview."""
    studies = combined.get_all_studies()
    names = {study.study_name for study in studies}
    studies = [study for study in studies if not is_gate(study.study_name, names)]
    runs = babysat.runs() if babysat is not None and not studies else []
    if len(runs) == 1:
        return _BABYSAT + quote(runs[0].name)
    return f"/dashboard/studies/{study_number(studies[0])}" if len(studies) == 1 else "/hp/"


def _with_body(dashboard: Application, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A change, answered with a body: of a 204, which has none, the dashboard's page says that the change failed."""
    status, headers, body = _answer_of(dashboard, environ)
    if status.startswith("204"):
        return _send(b"{}", "application/json", start_response)
    start_response(status, headers)
    return [body]


def _with_banner(
    dashboard: Application, script: bytes, environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    """The dashboard's page with our scripts added; unchanged where it has no end that we know."""
    conditional = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE")
    whole = {name: value for name, value in environ.items() if name not in conditional}
    status, headers, body = _answer_of(dashboard, whole)
    if status.startswith("200") and b"</body>" in body:
        before, _, after = body.rpartition(b"</body>")
        body = before.replace(b"</head>", _EARLY, 1) + script + after
        replaced = ("content-length", "last-modified", "etag")
        headers = [h for h in headers if h[0].lower() not in replaced] + [("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]


def _answer_of(application: Application, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
    """What a WSGI application answers: status, headers and the whole body."""
    started: list[Any] = []

    def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Callable[[bytes], None]:
        started[:] = [status, headers]
        return lambda data: None

    parts = application(environ, start)
    try:
        body = b"".join(parts)
    finally:
        close = getattr(parts, "close", None)
        if close is not None:
            close()
    status, headers = started
    return status, headers, body


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
