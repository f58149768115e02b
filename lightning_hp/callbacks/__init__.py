"""Callbacks for an existing Trainer. Each is imported when it is first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_hp.callbacks.audit.auditor import BatchNormAuditError as BatchNormAuditError
    from lightning_hp.callbacks.audit.auditor import BatchNormAuditor as BatchNormAuditor
    from lightning_hp.callbacks.audit.auditor import BatchNormWarning as BatchNormWarning
    from lightning_hp.callbacks.panda.babysitter import PandaBabysitter as PandaBabysitter
    from lightning_hp.callbacks.panda.replay import ReplayPolicy as ReplayPolicy
    from lightning_hp.callbacks.pruning import TrialPruning as TrialPruning
    from lightning_hp.callbacks.staleness import StalenessTracker as StalenessTracker

_WHERE = {
    "BatchNormAuditError": "audit.auditor",
    "BatchNormAuditor": "audit.auditor",
    "BatchNormWarning": "audit.auditor",
    "PandaBabysitter": "panda.babysitter",
    "ReplayPolicy": "panda.replay",
    "StalenessTracker": "staleness",
    "TrialPruning": "pruning",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
