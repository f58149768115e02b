"""Scripts that start a second process for distributed training."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

#: What the C++ runtime says when a process ends while a thread of gloo is still at work: Lightning 2.6 leaves the
#: process group to the end of the process. A rank that has done all of its work is then aborted; on two busy cores it
#: was seen once in about ten starts (torch 2.13).
GLOO_ABORT = "terminate called without an active exception"


def run_distributed(
    *command: object, environment: Mapping[str, str] | None = None, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """Run a Python script to its end, and again, at most twice, where gloo aborts a process that ends.

    Args:
        command: The script and its arguments.
        environment: In place of this process's own.
        timeout: Seconds.
    """
    environment = {**(os.environ if environment is None else environment), "OMP_NUM_THREADS": "1"}
    paths = (str(Path(__file__).parent), environment.get("PYTHONPATH"))  # scripts import from test modules
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    for attempt in range(3):
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if attempt == 2 or done.returncode == 0 or GLOO_ABORT not in done.stderr:
            break
    return done
