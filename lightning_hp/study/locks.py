"""Locks that hold between processes and between machines, for a folder that several machines share.

A kernel lock (``flock``) is dropped with its owner, however it dies, but on a network file system it may hold within
one machine only: two machines then write lines into each other. A file that is created exclusively holds
everywhere (NFS from version 3), but stays behind when its owner is killed. Here both are taken, the kernel's first:
whoever has that knows that a link of the same machine is a dead one's. A link of another machine is waited for, and
broken once it has not changed for longer than any owner needs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

#: seconds after which a link that nobody renews is a dead one's
PATIENCE = 30.0
#: seconds between two looks at a lock that somebody else has
LOOK_EVERY = 0.01
#: what a file system says that knows no kernel locks, or no symbolic links
_UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EINVAL}


@cache
def machine() -> str:
    """A name of this machine, until it is started again; two containers of one host have two."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        start = f"{uuid.getnode():x}"
    return f"{socket.gethostname()}/{start}"


class FolderLock:
    """A lock of a file in a folder that processes, or machines, share; with ``with``, or ``acquire`` and ``release``.

    Args:
        path: The kernel lock's file; the link is ``PATH.owner`` beside it.
        patience: After so many seconds a link of another machine that did not change is broken.
        clock: Seconds; only differences count.
        sleep: Waits for so many seconds.
        owner: The machine that takes the lock.
    """

    def __init__(
        self,
        path: Path | str,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        owner: str | None = None,
    ) -> None:
        self._kernel = FileLock(path)
        self._link = f"{path}.owner"
        self._path, self._patience, self._clock, self._sleep = str(path), patience, clock, sleep
        self._machine = machine() if owner is None else owner
        self._token = ""
        self._has_kernel = False

    def acquire(self, timeout: float = -1) -> bool:
        """Wait for the lock; always True.

        Args:
            timeout: Seconds; below 0 for no limit.

        Raises:
            Timeout: A ``TimeoutError``, if somebody else has it for so long.
        """
        begun = self._clock()
        try:
            self._kernel.acquire(timeout=timeout, poll_interval=LOOK_EVERY)
            self._has_kernel = True
        except (OSError, NotImplementedError) as error:
            if isinstance(error, Timeout) or getattr(error, "errno", None) not in {*_UNKNOWN, None}:
                raise
            self._has_kernel = False
        try:
            self._take_link(begun, timeout)
        except BaseException:
            self._release_kernel()
            raise
        return True

    def _take_link(self, begun: float, timeout: float) -> None:
        token = f"{self._machine}|{uuid.uuid4().hex}"
        seen, since = "", self._clock()
        while not _create(self._link, token):
            owner = _owner(self._link)
            if owner != seen:
                seen, since = owner, self._clock()
            ours = self._has_kernel and owner.rpartition("|")[0] == self._machine
            if owner and (ours or self._clock() - since > self._patience):
                self._break(owner)
                continue
            if 0 <= timeout <= self._clock() - begun:
                raise Timeout(self._path)
            self._sleep(LOOK_EVERY)
        self._token = token

    def _break(self, owner: str) -> None:
        """Remove a dead one's link; of several that try, one moves it away, and sees what it has moved."""
        aside = f"{self._link}.{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):
            os.rename(self._link, aside)
            if _owner(aside) != owner:  # somebody was faster, and this is the next one's
                with contextlib.suppress(OSError):
                    os.link(aside, self._link, follow_symlinks=False)
            os.unlink(aside)

    def is_held(self) -> bool:
        """Whether the lock is still ours: after a long standstill another machine may have broken it."""
        return bool(self._token) and _owner(self._link) == self._token

    def release(self) -> None:
        """Release the lock."""
        if self.is_held():
            with contextlib.suppress(OSError):
                os.unlink(self._link)
        self._token = ""
        self._release_kernel()

    def _release_kernel(self) -> None:
        if self._has_kernel:
            self._kernel.release()
            self._has_kernel = False

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _create(link: str, token: str) -> bool:
    """Create a link with its content, at once; False if there is one."""
    try:
        os.symlink(token, link)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    try:  # a file system without symbolic links
        handle = os.open(link, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(handle, token.encode())
    finally:
        os.close(handle)
    return True


def _owner(link: str) -> str:
    """The content of a link; empty if there is none."""
    try:
        return os.readlink(link)
    except OSError as error:
        if error.errno != errno.EINVAL:  # else it is a file
            return ""
    try:
        return Path(link).read_text(encoding="utf-8")
    except OSError:
        return ""
