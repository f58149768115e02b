"""A member in its place in a stack: what it has read off its Trainer, and how far it has come.

Also which members fit together. Units: epochs count from 0, steps are optimizer steps, validations count from 1.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning.pytorch.callbacks import EarlyStopping

from lightning_hp.training.stacked.feed import Order, Reader
from lightning_hp.training.stacked.member import Member, Start, epoch_plan, set_epoch, start
from lightning_hp.training.stacked.optimizers import optimizer_key
from lightning_hp.training.stacked.protocol import own_step
from lightning_hp.training.stacked.refusal import NotStackable
from lightning_hp.training.stacked.state import stacked_buffers
from lightning_hp.training.stacked.stopping import ask_to_stop, stoppers_of


@dataclass(eq=False)
class Seat:
    """One member of a stack.

    Attributes:
        member: The member.
        start: What the beginning of its fit decided.
        reader: How it reads its training data.
        val_readers: How it reads its validation data.
        stoppers: Its callbacks that may stop it early.
        epoch: Its present epoch.
        step: Optimizer steps taken.
        validations: Validations done.
        metrics: What its callbacks would see: the newest value by name.
        logged: What the newest validation (or epoch, where there is none) itself has logged.
        batches: Mini-batches of the present epoch.
        validate_every: Mini-batches between validations of the present epoch.
        stopped: Whether it was asked to stop early.
    """

    member: Member
    start: Start
    reader: Reader
    val_readers: list[Reader]
    stoppers: list[EarlyStopping]
    epoch: int = 0
    step: int = 0
    validations: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    batches: int = 0
    validate_every: int = 1
    logged: dict[str, float] = field(default_factory=dict)
    stopped: bool = False

    @property
    def finished(self) -> bool:
        """Whether the member's own limits end its training here, at the end of an epoch or after a step."""
        start = self.start
        over = start.max_epochs is not None and self.epoch >= start.max_epochs
        return over or (start.max_steps is not None and self.step >= start.max_steps)

    @property
    def leaves(self) -> bool:
        """Whether it was asked to stop, and is allowed to here, within an epoch or after its end."""
        return self.stopped and self.epoch >= self.start.min_epochs and self.step >= self.start.min_steps

    @property
    def draws(self) -> bool:
        """Whether anything the member reads may depend on the process's generators."""
        return self.reader.draws or any(reader.draws for reader in self.val_readers)

    def draw_epoch(self) -> Order:
        """Draw the order of the epoch that begins, from the member's own generators."""
        set_epoch(self.reader.loader, self.epoch)
        if self.start.grows:
            self.batches, self.validate_every = epoch_plan(self.member.trainer, self.reader.loader)
            self.reader.limit = self.batches
        return self.reader.draw(new_iterator=self.epoch > 0, isolated=self.draws)

    def draw_validation(self) -> Order:
        """Draw the order of a validation."""
        (reader,) = self.val_readers
        set_epoch(reader.loader, self.epoch)
        return reader.draw(isolated=self.draws)

    def progress(self, batches_done: int) -> float | None:
        """The part of the training that is done, from 0 to 1, as the limit that comes first counts it."""
        parts = []
        if self.start.max_epochs:
            parts.append((self.epoch + batches_done / max(self.batches, 1)) / self.start.max_epochs)
        if self.start.max_steps:
            parts.append(self.step / self.start.max_steps)
        return min(max(parts), 1.0) if parts else None

    def ask_stoppers(self, hook: Literal["on_validation_end", "on_train_epoch_end"]) -> None:
        """Let the member's own early stopping look at its metrics."""
        if self.stoppers:
            member = self.member
            self.stopped |= ask_to_stop(self.stoppers, hook, member.module, member.trainer, self.metrics, self.epoch)

    def validates_now(self, batch_idx: int) -> bool:
        """Whether its Trainer would validate after this mini-batch of its present epoch."""
        start = self.start
        return (
            bool(self.val_readers)
            and (self.epoch + 1) % start.validate_every_epochs == 0
            and (batch_idx + 1) % self.validate_every == 0
        )


def seat(member: Member) -> Seat:
    """Begin a member's fit and give it a seat.

    Raises:
        NotStackable: If it cannot be part of any stack.
    """
    begun = start(member)
    state = member.random_state
    reader = Reader(begun.train_loader, begun.batches, state)
    val_readers = [Reader(one, limit, state) for one, limit in zip(begun.val_loaders, begun.val_batches, strict=True)]
    if len(val_readers) > 1:
        raise NotStackable(f"a stack validates on one loader, got {len(val_readers)}")
    if not begun.batches:
        raise NotStackable("the training loader has no mini-batches")
    one = Seat(member, begun, reader, val_readers, stoppers_of(member.module, member.trainer))
    one.batches, one.validate_every = begun.batches, begun.validate_every_batches
    return one


def pads(one: Seat) -> bool:
    """Whether a member may share a stack with larger ones of its structure: its tensors are filled up with zeros.

    Adam divides by a zero second moment there, so its epsilon must be above 0.
    """
    step = own_step(one.member.module)
    divides = any(group.get("eps") == 0 for group in one.start.optimizer.param_groups)
    return getattr(step, "stack_pads", False) and one.reader.tensors is not None and not divides


def structure_of(one: Seat) -> Hashable:
    """Return what members of one stack must have in common.

    Raises:
        NotStackable: If the member cannot be part of any stack.
    """
    module, begun = one.member.module, one.start
    step = own_step(module)
    size: Any = (lambda tensor: tensor.ndim) if pads(one) else (lambda tensor: tuple(tensor.shape))
    tensors = [(name, size(p), str(p.dtype), p.requires_grad) for name, p in module.named_parameters()]
    buffers = [(name, size(b), str(b.dtype)) for name, b in stacked_buffers(module).items()]
    layers: Any = (
        step.stack_key() if step is not None else tuple(type(child).__qualname__ for child in module.modules())
    )
    return (
        type(module),
        None if pads(one) else one.member.structure,
        tuple(tensors),
        tuple(buffers),
        layers,
        optimizer_key(module, begun.optimizer),
        (begun.batches, tuple(begun.val_batches), begun.accumulate, begun.clip is None, begun.clip_by),
        (begun.validate_every_epochs, begun.validate_every_batches),
        (type(begun.precision), str(begun.device), one.reader.tensors is None),
        _batch_plan(one.reader),
    )


def _batch_plan(reader: Reader) -> Hashable:
    """Return what decides the sizes of mini-batches, where the loader's sampler says so."""
    sampler: Any = reader.loader.sampler
    rows = len(reader.loader.dataset)  # type: ignore[arg-type]
    if reader.loader.batch_sampler is not None:
        return rows, getattr(reader.loader.batch_sampler, "batch_size", None)
    return rows, getattr(sampler, "plan_key", None)
