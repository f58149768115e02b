"""A forked child process: it starts in milliseconds, since it is already past its imports."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


class Child:
    """A forked child that runs a function; what it prints goes to a file."""

    def __init__(self, work: Callable[[], object], output_file: Path):
        self.output_file = output_file
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                out = os.open(output_file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
                os.dup2(out, 1)
                os.dup2(out, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                result = work()
                code = result if isinstance(result, int) else 0
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        self.code: int | None = None

    def wait(self) -> int:
        """The exit code; below 0 the signal that killed it."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds, or the child has ended."""
        while self.code is None and not condition():
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            time.sleep(0.002)

    def kill(self, signum: int) -> None:
        if self.code is None:
            os.kill(self.pid, signum)

    @property
    def output(self) -> str:
        return self.output_file.read_text()
