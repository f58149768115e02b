"""What Lightning adds to every Trainer of an environment where lightning_hp is installed: nothing, unless asked.

Registered as the entry point ``lightning.pytorch.callbacks_factory``, which Lightning calls for every Trainer. With
``LIGHTNING_HP_AUDIT=1`` in the environment it gives a :class:`BatchNormAuditor`, so that the trainings of a project are
audited without a line of its code. A Trainer that has an auditor keeps its own.
"""

from __future__ import annotations

import os
from typing import Any

#: the variable that turns it on
SWITCH = "LIGHTNING_HP_AUDIT"


def environment_callbacks() -> list[Any]:
    """The callbacks for a new Trainer: an auditor where ``LIGHTNING_HP_AUDIT`` is ``1``, else none.

    Raises:
        ValueError: If the variable is something else than empty, 0 or 1.
    """
    setting = os.environ.get(SWITCH, "")
    if setting not in ("", "0", "1"):
        raise ValueError(f"`{SWITCH}` must be 0 or 1, got {setting!r}")
    if setting != "1":
        return []  # nothing heavy is imported
    from lightning_hp.callbacks.audit.environment import EnvironmentAuditor

    return [EnvironmentAuditor()]
