"""Storage URLs: which are databases with a server, where their passwords come from, and how they are shown.

A password may stand in the URL. Better it stands in the environment (``LIGHTNING_HP_STORAGE_PASSWORD``) or in a file
that ``LIGHTNING_HP_STORAGE_PASSWORD_FILE`` names. Whatever is written or printed has none.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

PASSWORD, PASSWORD_FILE = "LIGHTNING_HP_STORAGE_PASSWORD", "LIGHTNING_HP_STORAGE_PASSWORD_FILE"
#: where a command that names no storage looks for its URL
STORAGE = "LIGHTNING_HP_STORAGE"
#: databases with a server of their own, as URLs begin
_SERVERS = ("postgresql", "mysql", "mariadb")
_PROXY = "grpc://"
#: the port of Optuna's gRPC proxy unless the URL names one
PROXY_PORT = 13000
_IN_QUERY = re.compile(r"(?<=[?&])(password|passwd|passfile)=[^&]*&?")


def is_server(url: str) -> bool:
    """Whether a storage is a database with a server, which takes any number of processes and machines."""
    return url.startswith(_SERVERS)


def is_proxy(url: str) -> bool:
    """Whether a storage is Optuna's gRPC proxy."""
    return url.startswith(_PROXY)


def proxy_address(url: str) -> tuple[str, int]:
    """Host and port of ``grpc://HOST:PORT``.

    Raises:
        ValueError: If it is none.
    """
    parts = re.fullmatch(r"grpc://([^:/@]+|\[[0-9a-fA-F:]+\])(?::(\d{1,5}))?/?", url)
    if parts is None:
        raise ValueError(f"`storage` must be grpc://HOST:PORT, got {redacted(url)}")
    return parts[1], int(parts[2] or PROXY_PORT)


def redacted(url: str) -> str:
    """A storage URL as it is shown: stars in place of its password."""
    head, sep, tail = _IN_QUERY.sub(r"\1=***&", url).rstrip("&").partition("://")
    if not sep or "@" not in tail:
        return f"{head}{sep}{tail}"
    account, _, host = tail.rpartition("@")
    return f"{head}://{account.partition(':')[0]}:***@{host}"


def without_password(url: str) -> str:
    """A storage URL as it is kept: no password."""
    head, sep, tail = _IN_QUERY.sub("", url).rstrip("?&").partition("://")
    if not sep or "@" not in tail:
        return f"{head}{sep}{tail}"
    account, _, host = tail.rpartition("@")
    return f"{head}://{account.partition(':')[0]}@{host}"


def with_password(url: str) -> str:
    """A storage URL as it is opened: with the password of the environment, if it has an account and no password.

    Raises:
        OSError: If the file that the environment names cannot be read.
    """
    head, sep, tail = url.partition("://")
    account, at, host = tail.rpartition("@")
    if not at or ":" in account or not is_server(url):
        return url
    password = os.environ.get(PASSWORD)
    if password is None and (file := os.environ.get(PASSWORD_FILE)):
        password = Path(file).read_text(encoding="utf-8").strip()
    return url if password is None else f"{head}{sep}{account}:{quote(password, safe='')}@{host}"
