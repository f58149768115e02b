"""What stands between the network and the dashboard: who may ask, what may be changed, what a file may do.

Optuna's dashboard has no protection of its own: anybody who reaches its port can read and delete studies. The guard is
a WSGI application around it that decides, in this order:

* Host: a request must name this machine; any other name is refused with 421. It stops DNS rebinding, where a page of a
  foreign name is pointed at this address. Addresses in digits are no names, so they pass.
* Password, where one is set: HTTP Basic, any user name, compared in constant time; else 401.
* Changes: with ``read_only`` refused with 403 and a reason that the page shows; otherwise only from our own pages.
* Artifacts may be HTML with scripts: they are served in a sandbox, without the origin's rights, and to no other site.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: environment variable that holds the password
PASSWORD_VARIABLE = "LIGHTNING_HP_PASSWORD"
_READING = ("GET", "HEAD", "OPTIONS")
_SANDBOX = "sandbox allow-scripts; default-src 'self' data: blob: 'unsafe-inline'; form-action 'none'"


class Guard:
    """A WSGI application that protects another.

    Args:
        application: What is protected.
        hosts: Names that requests may give in ``Host``, beside ``localhost`` and addresses in digits; without port.
        password: None for none. It is kept as a keyed hash only.
        read_only: Whether requests that could change something are refused.

    Raises:
        ValueError: If the password is empty.
    """

    def __init__(
        self,
        application: Application,
        hosts: Iterable[str] = (),
        password: str | None = None,
        read_only: bool = False,
    ) -> None:
        if password is not None and not password:
            raise ValueError("`password` must have at least one character, got ''")
        self._application = application
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._key = os.urandom(32)
        self._wanted = None if password is None else self._hashed(password.encode())
        self._read_only = read_only

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        refusal = self._refusal(environ)
        if refusal is not None:
            status, reason, headers = refusal
            body = json.dumps({"reason": reason}).encode()
            kind = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            start_response(status, [*kind, ("Cache-Control", "no-store"), *headers])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        in_sandbox = environ.get("PATH_INFO", "").startswith("/artifacts/")

        def protected(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            kept = [h for h in headers if not h[0].lower().startswith("access-control-")]
            if in_sandbox:
                kept = [h for h in kept if h[0].lower() != "content-security-policy"]
                kept.append(("Content-Security-Policy", _SANDBOX))
            kept += [("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "same-origin")]
            kept += [] if in_sandbox else [("X-Frame-Options", "SAMEORIGIN")]
            return start_response(status, kept, *more)

        return self._application(environ, protected)

    def _refusal(self, environ: dict[str, Any]) -> tuple[str, str, list[tuple[str, str]]] | None:
        host = environ.get("HTTP_HOST", "")
        if not self._is_ours(host):
            return "421 Misdirected Request", f"this server does not answer for {host!r}", []
        if self._wanted is not None and not self._knows(environ.get("HTTP_AUTHORIZATION", "")):
            ask = [("WWW-Authenticate", 'Basic realm="lightning-hp", charset="UTF-8"')]
            return "401 Unauthorized", "a password is needed", ask
        if environ["REQUEST_METHOD"] in _READING:
            return None
        if self._read_only:
            return "403 Forbidden", "read-only dashboard: nothing can be changed here", []
        origin = environ.get("HTTP_ORIGIN")
        if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "none") or (
            origin is not None and urlsplit(origin).netloc != host
        ):
            return "403 Forbidden", "changes are taken from this server's own pages only", []
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if not name or any(c in host for c in "/@?#\\ "):
            return False
        return name in self._hosts or is_address(name)

    def _knows(self, header: str) -> bool:
        kind, _, coded = header.partition(" ")
        if kind.lower() != "basic" or self._wanted is None:
            return False
        try:
            _, colon, password = base64.b64decode(coded.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        return bool(colon) and hmac.compare_digest(self._hashed(password), self._wanted)

    def _hashed(self, password: bytes) -> bytes:
        return hmac.new(self._key, password, hashlib.sha256).digest()


def is_address(name: str) -> bool:
    """Whether a host is an IP address in digits."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a server bound to ``host`` is reached from this machine only."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def names_of(host: str) -> set[str]:
    """The names under which a server bound to ``host`` is reached; this machine's own where it is bound to all."""
    if is_loopback(host):
        return set()
    own = {socket.gethostname().lower(), socket.getfqdn().lower()}
    return own if is_address(host) else {host.lower(), *own}
