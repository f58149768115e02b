"""Random numbers of one member: what it would draw alone, it draws here, whoever is in the stack beside it.

A sequential trial seeds the process, builds its model and then draws from the process's generators: the order of its
mini-batches, for one. A member keeps the state of those generators; it is put back for as long as the member draws.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class RandomState:
    """The generators of torch (CPU), numpy and Python, and the seed that Lightning keeps in the environment."""

    torch_state: Tensor
    numpy_state: Any
    python_state: Any
    seed: str | None

    @classmethod
    def capture(cls) -> RandomState:
        """Return the present state of the process."""
        numpy_state = np.random.get_state()
        return cls(torch.get_rng_state(), numpy_state, random.getstate(), os.environ.get("PL_GLOBAL_SEED"))

    def copy(self) -> RandomState:
        """Return a state that goes on independently."""
        return RandomState(self.torch_state.clone(), self.numpy_state, self.python_state, self.seed)

    def restore(self) -> None:
        """Make this the state of the process."""
        torch.set_rng_state(self.torch_state)
        np.random.set_state(self.numpy_state)
        random.setstate(self.python_state)
        if self.seed is None:
            os.environ.pop("PL_GLOBAL_SEED", None)
        else:
            os.environ["PL_GLOBAL_SEED"] = self.seed


@contextmanager
def drawing_from(state: RandomState) -> Iterator[None]:
    """Draw from a member's generators; the member's state goes on, that of the process is put back."""
    outside = RandomState.capture()
    state.restore()
    try:
        yield
    finally:
        inside = RandomState.capture()
        state.torch_state, state.numpy_state = inside.torch_state, inside.numpy_state
        state.python_state, state.seed = inside.python_state, inside.seed
        outside.restore()


@contextmanager
def drawing_torch_from(state: RandomState) -> Iterator[None]:
    """As `drawing_from` for torch alone: a hundred times an epoch, the other generators would cost."""
    outside = torch.get_rng_state()
    torch.set_rng_state(state.torch_state)
    try:
        yield
    finally:
        state.torch_state = torch.get_rng_state()
        torch.set_rng_state(outside)
