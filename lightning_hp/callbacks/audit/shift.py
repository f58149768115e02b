"""Observes a validation, test or prediction loop: update counters, input moments, calls to replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_hp.batchnorm.findings import Finding
from lightning_hp.batchnorm.observe import CallRecorder
from lightning_hp.batchnorm.reference import InputMoments, Reference, absorption, layer_shifts, shift_findings
from lightning_hp.batchnorm.statistics import find_layers, sum_over_ranks
from lightning_hp.callbacks.audit.record import FEWEST_ROWS

__all__ = ["EvaluationWatch", "informative"]

_MOST_BATCHES = 64  # raw batches kept for judging a repair
_SAME = 1e-3  # in standard deviations: far below sampling noise, far above that of another precision


def informative(shifts: Sequence[Mapping[str, Any]], reference: Reference | None) -> bool:
    """Whether a comparison says anything: enough rows, and not the very rows of the reference.

    A project that validates on one fixed set and predicts on new data would else be told after every prediction that
    all is as it was.

    Args:
        shifts: shift of each layer, as `EvaluationWatch.shift` gives them.
        reference: what was compared with.
    """
    if reference is None or max((shift["rows"] for shift in shifts), default=0) < FEWEST_ROWS:
        return False
    return any(
        shift["rows"] != reference.layers[shift["layer"]].rows or max(shift["d"], shift["lv"]) > _SAME
        for shift in shifts
    )


class EvaluationWatch:
    """Watches evaluation loops of one model.

    Args:
        model: the model.
        collect: whether to collect input moments.
        max_rows: rows to collect a loop.
    """

    def __init__(self, model: nn.Module, collect: bool, max_rows: int) -> None:
        self.model = model
        self.layers = find_layers(model)
        self.batches: list[Any] = []
        self._collect, self._max_rows = collect, max_rows
        self._moments: InputMoments | None = None
        self._recorder: CallRecorder | None = None
        self._open = ExitStack()
        self._before: dict[str, int] = {}
        self._raw = False

    def _counters(self) -> dict[str, int]:
        return {n: int(x.num_batches_tracked) for n, x in self.layers.items() if x.num_batches_tracked is not None}

    def start(self, record: bool, raw: bool) -> None:
        """Begin a loop. `record` keeps calls for `shift`; `raw` keeps batches for `repair_at_end`."""
        self.layers = find_layers(self.model)
        self._before, self._raw = self._counters(), raw
        self._moments = InputMoments(self.layers, self._max_rows) if self._collect and self.layers else None
        self._recorder = CallRecorder(self.model, max_rows=self._max_rows) if record and self.layers else None
        self.batches = []

    def before_batch(self, batch: Any) -> None:
        """Put hooks on for one batch, while there is room."""
        self.after_batch()
        if self._raw and len(self.batches) < _MOST_BATCHES:
            self.batches.append(tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, batch))
        if self._moments is None or self._moments.full:
            return
        self._open.enter_context(self._moments.collecting())
        if self._recorder is not None:
            self._recorder.start()

    def after_batch(self) -> None:
        """Take the hooks of the batch off."""
        self._open.close()
        if self._recorder is not None:
            self._recorder.stop()

    def abandon(self) -> None:
        """Take hooks off after an exception."""
        self._open.close()
        if self._recorder is not None:
            self._recorder.stop(keep=False)

    def updates(self) -> dict[str, int]:
        """How far each layer's counter moved since `start`."""
        self.after_batch()
        return {name: count - self._before.get(name, count) for name, count in self._counters().items()}

    def moments(self) -> Reference:
        """Moments of the inputs seen in this loop, over all ranks."""
        return self._moments.result() if self._moments is not None else Reference({})

    def shift(
        self, reference: Reference | None, thresholds: Mapping[str, float]
    ) -> tuple[list[Finding], list[dict[str, Any]]]:
        """Findings DR01 and DR02 and the shift of each layer, against `reference`; nothing without one."""
        if reference is None or not reference.layers:
            return [], []
        shifts = layer_shifts(reference, self.moments())
        disagreement = None
        steps = self._recorder.steps if self._recorder is not None else []
        # a collective inside: a rank without rows would leave the others waiting
        if not sum_over_ranks(torch.tensor([0.0 if steps else 1.0], dtype=torch.float64)).item():
            with torch.inference_mode(False):
                disagreement = absorption(self.model, steps)
        return shift_findings(shifts, disagreement, thresholds), [asdict(shift) for shift in shifts]
