"""Ctrl-C while a study runs: the first asks to stop after the running trial, the second leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def interruptible(
    stopping: threading.Event, say: Callable[[str], None], last: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """The first Ctrl-C asks to stop after the running trial, the second leaves at once.

    Nothing is lost by the second: the trial it interrupts is run again when the study is resumed.

    Args:
        stopping: Set by the first.
        say: Is told of the first, in a sentence.
        last: Called by the second before this process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            last()
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # the live display hides the cursor
            os._exit(130)
        stopping.set()
        # it may have interrupted a print, and a print inside a print gets lost: a thread waits for its turn
        text = "stopping after the running trial; Ctrl-C again leaves at once (nothing is lost)"
        threading.Thread(target=say, args=(text,)).start()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
