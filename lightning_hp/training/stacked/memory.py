"""How much memory a member of a stack takes, and how many fit at a time. Units: bytes."""

from __future__ import annotations

import os

import torch

from lightning_hp.training.stacked.stack import Stack


def member_bytes(stack: Stack, activations: int) -> int:
    """Estimate the memory of one member in training.

    Args:
        stack: A stack of any number of members.
        activations: What autograd keeps for one member's mini-batch, as `check_stack` measures it.

    Returns:
        Weights, their gradients (twice where they are traced: as they come, and side by side), the optimizer's state
        and one scratch copy, buffers, and twice the activations (they and their gradients).
    """
    trained = sum(tensor[0].numel() * tensor.element_size() for tensor in stack.state.trained.values())
    rest = [*stack.state.fixed.values(), *stack.state.buffers.values()]
    other = sum(tensor[0].numel() * tensor.element_size() for tensor in rest)
    copies = 3 + (stack.way == "traced") + len(stack.optimizer.moment_names)
    return trained * copies + other + 2 * activations


def free_bytes(device: torch.device) -> int:
    """Return the memory that a stack may take on a device: half of what is free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):  # not every system counts its pages
        return 2 << 30


def members_that_fit(each: int, limit: int) -> int:
    """Return how many members of ``each`` bytes fit into ``limit`` bytes, at least one."""
    return max(1, limit // max(each, 1))
