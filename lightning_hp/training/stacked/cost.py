"""What a step costs in a stack and alone, measured: whether it pays to train together. Units: seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lightning_hp.training.stacked.check import trainer_facts
from lightning_hp.training.stacked.logs import Captured, capturing
from lightning_hp.training.stacked.memory import member_bytes
from lightning_hp.training.stacked.stack import Stack
from lightning_hp.training.stacked.threads import threads_of_stack
from lightning_hp.training.stacked.traced import takes_index

#: the best of so many steps counts, after one that is not looked at
_STEPS = 4


def step_seconds(stack: Stack, activations: int = 0) -> tuple[float, float]:
    """Measure one step of a member in the stack, and of one member alone, without what a Trainer adds.

    Args:
        stack: Before its first step; it has taken some afterwards, and is of no further use.
        activations: Bytes that autograd keeps for one member's mini-batch, as `check_stack` measures it.

    Returns:
        Seconds of one member's step in the stack, and alone.
    """
    batch = stack.train_feed().batch(0)

    def together() -> None:
        stack.train_batch(batch, 0)

    module, optimizer = stack.seats[0].member.module, stack.seats[0].start.optimizer
    one = stack.train_feed().one(batch, 0)
    step = module.training_step

    def alone() -> None:
        with stack.precision.forward_context():
            output = step(one, 0) if takes_index(step) else step(one)
            loss: Any = output["loss"] if isinstance(output, Mapping) else output
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with threads_of_stack(member_bytes(stack, activations) * len(stack), stack.device):
        seconds = _best_of(together) / len(stack)
    with trainer_facts(module), capturing(module, Captured()), torch.enable_grad():
        return seconds, _best_of(alone)


def _best_of(step: Callable[[], None]) -> float:
    best = float("inf")
    for number in range(_STEPS + 1):
        began = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number:
            best = min(best, time.perf_counter() - began)
    return best
