"""Writes schedules that ask for the status once a week: a crontab line and a GitHub workflow. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

#: Monday morning, off the full hour, where shared schedulers are busiest.
WHEN = "17 7 * * 1"


def cron_line(
    paths: Sequence[str], folder: str, fail_on: str = "due", program: Sequence[str] = ("lightning-hp",)
) -> str:
    """A crontab line that is silent while all is fresh, so that cron mails only what needs doing.

    Args:
        paths: What ``lightning-hp status`` is given.
        folder: Working folder of the job, absolute.
        fail_on: ``due`` or ``stale``.
        program: The command and what stands before "status", absolute where cron's short PATH does not find it.

    Raises:
        ValueError: If a path holds an end of line, which a crontab cannot express.
    """
    for path in (*paths, folder, *program):
        if "\n" in path or "\r" in path:
            raise ValueError(f"`paths` must be free of line ends for a crontab, got {path!r}")
    command = shlex.join([*program, "status", *paths, "--fail-on", fail_on])
    # cron takes an unescaped % as an end of line
    line = f'cd {shlex.quote(folder)} && out=$({command} 2>&1) || echo "$out"'.replace("%", "\\%")
    return f"{WHEN} {line}\n"


def github_action(paths: Sequence[str], fail_on: str = "due") -> str:
    """A workflow for ``.github/workflows/``; its run fails, and so notifies, once something needs doing.

    Args:
        paths: What ``lightning-hp status`` is given, relative to the repository, which must hold the ledgers.
        fail_on: ``due`` or ``stale``.
    """
    command = shlex.join(["lightning-hp", "status", *paths, "--fail-on", fail_on])
    # a literal block of YAML: a path may hold anything but an end of line
    if any("\n" in path or "\r" in path for path in paths):
        raise ValueError(f"`paths` must be free of line ends, got {list(paths)!r}")
    if "${{" in command:
        raise ValueError(f"`paths` must not hold the expression mark ${{{{, got {list(paths)!r}")
    return f"""\
# Reads the ledgers of the repository: commit them, also where the rest of runs/ is ignored (git add -f).
name: tuning status
on:
  schedule:
    - cron: "{WHEN}"
  workflow_dispatch:
permissions:
  contents: read
jobs:
  status:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install lightning-hp
      - run: |
          {command}
"""
