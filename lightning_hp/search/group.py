"""Trials that are asked for together and share some values: what they do not share is proposed for all at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_hp.search.engine import Proposal
from lightning_hp.space.space import SearchSpace


@dataclass
class Group:
    """Trials of a group that are still to be asked for.

    Attributes:
        fixed: Stored values that all of them share, by stored name.
        n: How many trials there are.
        proposals: Those not yet taken.
        opened: The tier that they opened, None if they opened none.
    """

    fixed: dict[str, Any]
    n: int
    proposals: list[Proposal] = field(default_factory=list)
    opened: str | None = None

    def sides(self, space: SearchSpace, full: NDArray[np.float64]) -> NDArray[np.float64]:
        """Low and high of the range, shape (d, 2), with low equal to high where the group shares a value.

        Args:
            space: The parameters.
            full: Low and high of the whole range, shape (d, 2).
        """
        point = space.unit([{**space.defaults(), **self.fixed}])[0]
        held = np.array([p.stored_name in self.fixed for p in space.parameters])
        sides: NDArray[np.float64] = np.where(held[:, None], point[:, None], full)
        return sides
