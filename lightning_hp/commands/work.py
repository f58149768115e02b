"""``lightning-hp work``: a worker process of a study; ``tune`` starts it and hands it the study on standard input."""

from __future__ import annotations

import sys

from lightning_hp.tuning.runner import StudyRunner
from lightning_hp.tuning.workers.payload import unpack


def work_verb() -> int:
    """Run trials until there are no more.

    Raises:
        ConfigError: If a trial showed that the configuration cannot work.
        StudyError: If the study has to stop.
    """
    builder, config = unpack(sys.stdin.buffer)
    StudyRunner(config, builder).work()
    return 0
