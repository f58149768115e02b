"""How many threads a stack's operations use on the CPU.

Small operations gain nothing from a second thread; and where other programs use the cores too, threads that wait for
each other cost many times what they bring. The number follows from sizes alone, not from a measurement, since it
decides the rounding of sums, and the same study must give the same numbers. Units: bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: A stack has a thread for each so many bytes of weights, optimizer's state and activations, see :mod:`.memory`. 64
#: members of two layers, with mini-batches of 64 rows, have 60 MB at 128 units, 26 at 64, and 12 at 32.
BYTES_A_THREAD = 16 << 20


def threads_for(size: int, most: int) -> int:
    """Return how many threads a stack of ``size`` bytes uses, at least one and at most ``most``."""
    return max(1, min(most, size // BYTES_A_THREAD))


@contextmanager
def threads_of_stack(size: int, device: torch.device) -> Iterator[None]:
    """Have torch use as many threads as a stack of ``size`` bytes needs, at most as many as it uses now.

    On another device the CPU only reads the data, and keeps its threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads_for(size, before) if device.type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
