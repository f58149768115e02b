"""A lock on an open ledger, held for the length of one append or one read. Standard library only.

``flock`` on the file itself where the system has it: nothing is left behind, and a killed holder lets go. Elsewhere
(Windows, file systems without ``flock``) writers hold an exclusive ``NAME.lock`` file; readers go without, and a line
that is being written is then a torn last line to them.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}
_BUSY = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}


@contextmanager
def locked(descriptor: int, path: Path, *, shared: bool = False, timeout: float = 30.0) -> Iterator[None]:
    """Holds the lock of the open file ``descriptor``.

    Args:
        descriptor: The open ledger.
        path: Its path, for the fallback and for errors.
        shared: For a reader: other readers may hold it too.
        timeout: Seconds to wait.

    Raises:
        TimeoutError: If somebody else keeps the lock for longer than ``timeout``.
    """
    deadline = time.monotonic() + timeout
    if _flock(descriptor, path, shared, deadline):
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    elif shared:
        yield
    else:
        beside = path.with_name(path.name + ".lock")
        _create(beside, path, deadline)
        try:
            yield
        finally:
            beside.unlink(missing_ok=True)


def _flock(descriptor: int, path: Path, shared: bool, deadline: float) -> bool:
    """True once locked, False where the system or the file system has no such lock."""
    if fcntl is None:
        return False
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    while True:
        try:
            fcntl.flock(descriptor, mode)
            return True
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            if error.errno not in _BUSY:
                raise
        _wait(deadline, f"ledger {path} is locked by another process")


def _create(beside: Path, path: Path, deadline: float) -> None:
    while True:
        try:
            os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            return
        except FileExistsError:
            _wait(deadline, f"ledger {path} is locked: remove {beside} if no process writes to it")


def _wait(deadline: float, message: str) -> None:
    if time.monotonic() >= deadline:
        raise TimeoutError(message)
    time.sleep(0.002)
