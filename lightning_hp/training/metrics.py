"""The mean of a loss over rows, right in one process and in many.

Logging a plain number with ``sync_dist=True`` is not: Lightning (2.6) averages the row counts of the processes as
integers, so with 180 and 179 rows the mean comes out 359/358 of the true one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class RowMean(Metric):
    """Mean over rows of a quantity known as a mean per mini-batch; a NaN stays a NaN.

    Example:
        >>> metric = RowMean()
        >>> metric.update(torch.tensor(1.0), 30)
        >>> metric.update(torch.tensor(5.0), 10)
        >>> metric.compute()
        tensor(2.)
    """

    higher_is_better = False
    full_state_update = False
    total: Tensor
    rows: Tensor

    def __init__(self, **arguments: Any) -> None:
        """Start at nothing; arguments are those of every torchmetrics metric."""
        super().__init__(**arguments)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, mean: Tensor, rows: int) -> None:
        """Add a mini-batch.

        Args:
            mean: Its mean, shape ().
            rows: Its number of rows.
        """
        self.total += mean.detach() * rows
        self.rows += rows

    def compute(self) -> Tensor:
        """Return the mean over all rows, shape ()."""
        return self.total / self.rows
