"""The auditor that the environment adds to a Trainer; see :mod:`lightning_hp.callbacks.factory`."""

from __future__ import annotations

import lightning.pytorch as pl
from typing_extensions import override

from lightning_hp.callbacks.audit.auditor import BatchNormAuditor


class EnvironmentAuditor(BatchNormAuditor):
    """A :class:`BatchNormAuditor` that leaves a Trainer which has one of its own."""

    @property
    @override
    def state_key(self) -> str:
        """Of its own, so that Lightning lets both stand in one list until :meth:`setup`."""
        return self._generate_state_key(of="environment")

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Audit, unless somebody else in the list does."""
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(one, BatchNormAuditor) and one is not self for one in callbacks):
            # a new list: Lightning walks over the old one just now
            trainer.callbacks = [one for one in callbacks if one is not self]  # type: ignore[attr-defined]
