"""Reports each finding once: as a warning, as an exception, or as a line of the log."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from lightning_hp.batchnorm.findings import Finding
from lightning_hp.callbacks.audit.record import warning_text

__all__ = ["REACTIONS", "BatchNormAuditError", "BatchNormWarning", "Notifier"]

log = logging.getLogger("lightning_hp.audit")

REACTIONS = ("warn", "raise", "log")
_TOLD_EARLY = ("BN01", "BN03", "BN05", "BN11", "BN13")  # certain at once; the others are judged on the final weights


class BatchNormWarning(UserWarning):
    """The category of every warning of the auditor; filter on it to silence them or to raise them."""


class BatchNormAuditError(RuntimeError):
    """Raised by `on_finding="raise"` when a finding is an ERROR."""


class Notifier:
    """Reports findings, and remembers which ones it has reported.

    Args:
        reaction: one of `REACTIONS`.
    """

    def __init__(self, reaction: str) -> None:
        self._reaction = reaction
        self._told: set[tuple[str, str, str]] = set()

    def tell(self, findings: Sequence[Finding], early: bool, speak: bool) -> None:
        """Warn, raise or log what is new.

        Args:
            findings: the findings, the same on every rank.
            early: in the middle of a training, where only what cannot change any more is reported.
            speak: whether this rank warns and logs; every rank raises.

        Raises:
            BatchNormAuditError: if one of them is an ERROR and the reaction is "raise".
        """
        fresh = [
            f for f in findings if (f.id, f.layer, f.topic) not in self._told and (not early or f.id in _TOLD_EARLY)
        ]
        self._told |= {(f.id, f.layer, f.topic) for f in fresh}
        serious = [f for f in fresh if f.severity != "INFO"]
        if speak:
            for finding in fresh:
                log.info("%s %s %s: %s", finding.severity, finding.id, finding.layer, finding.sentence)
        if self._reaction == "raise" and any(f.severity == "ERROR" for f in serious):
            raise BatchNormAuditError(warning_text(serious))
        if serious and self._reaction != "log" and speak:
            warnings.warn(warning_text(serious), BatchNormWarning, stacklevel=3)
