"""Shadows of a training: copies of a module in the middle of it, which take the mini-batches that the training takes.

A shadow begins with the module's weights, buffers and optimizer state; only its hyperparameters differ. Shadows of a
module that brings its own stacked step are one stack. Others take their steps in turn, with the module's own
``training_step`` and a copy of its optimizer, but without a Trainer's loops: for two or three small networks that is
several times faster than ``vmap``, and it needs less of a module and its optimizer.
Shapes: M shadows, B rows of a mini-batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.training.stacked.check import check_stack
from lightning_hp.training.stacked.feed import Reader
from lightning_hp.training.stacked.logs import Captured
from lightning_hp.training.stacked.member import Member, Start, clip_of, refuse_module, refuse_trainer
from lightning_hp.training.stacked.optimizers import optimizer_key
from lightning_hp.training.stacked.protocol import own_step
from lightning_hp.training.stacked.randomness import RandomState
from lightning_hp.training.stacked.refusal import NotStackable
from lightning_hp.training.stacked.seat import Seat
from lightning_hp.training.stacked.stack import Stack
from lightning_hp.training.stacked.state import stacked_buffers
from lightning_hp.training.stacked.traced import TrainerFacts, takes_index

#: changes the weights, the buffers, the optimizer of one shadow before it begins
Change = Callable[[pl.LightningModule, Optimizer], None]
Pair = tuple[pl.LightningModule, Optimizer]


class Shadows(Protocol):
    """M copies of a module in training."""

    def check(self, batch: Any) -> None:
        """Take a step that is not kept.

        Raises:
            NotStackable: If it does what a shadow cannot do.
        """
        ...

    def train_batch(self, batch: Any, batch_idx: int, epoch: int, step: int) -> Tensor:
        """Train all shadows on one mini-batch.

        Args:
            batch: As the module's step would be given it, tensors of shape (B, ...); not changed.
            batch_idx: Its number in the epoch.
            epoch: The epoch, 0 first.
            step: Optimizer steps that the training has taken.

        Returns:
            Losses, shape (M,).
        """
        ...

    def pair(self, row: int) -> Pair:
        """Return one shadow with its optimizer, and in it the state that it has come to."""
        ...


def shadows_of(trainer: pl.Trainer, module: pl.LightningModule, changes: Sequence[Change], batch: Any) -> Shadows:
    """Copy a module and its optimizer.

    Args:
        trainer: In training, between two steps; not changed.
        module: Its module; not changed.
        changes: What makes each shadow different; at least one.
        batch: A mini-batch on the module's device.

    Returns:
        The shadows.

    Raises:
        NotStackable: If the Trainer or the module does something that a copy cannot do.
    """
    _refuse(trainer, module)
    pairs = []
    for change in changes:
        pair = _copied(module, trainer.optimizers[0])
        change(*pair)
        pairs.append(pair)
    plain = type(batch) in (list, tuple) and all(isinstance(part, Tensor) and len(part) for part in batch)
    if own_step(module) is not None and plain:
        return StackedShadows(trainer, pairs, DataLoader(TensorDataset(*batch), batch_size=len(batch[0])))
    return SingleShadows(trainer, module, pairs)


class StackedShadows:
    """Shadows in one stack."""

    def __init__(self, trainer: pl.Trainer, pairs: Sequence[Pair], loader: DataLoader[Any]) -> None:
        """Take over the copies' tensors; ``loader`` shows the form of the data."""
        seats, states = [], []
        reader = Reader(loader, 1, RandomState.capture())  # one for all: its rows are only for the check
        for shadow, optimizer in pairs:
            states.append(dict(optimizer.state))
            optimizer.state.clear()  # the stack keeps it
            optimizer_key(shadow, optimizer)
            member = Member(shadow, trainer)
            seats.append(Seat(member, _start(trainer, optimizer, loader), reader, [], []))
        self._stack = Stack(seats)
        self._stack.optimizer.take_over(states)

    def check(self, batch: Any) -> None:
        """Compare a stacked step with single steps; nothing is left changed."""
        check_stack(self._stack)

    def train_batch(self, batch: Any, batch_idx: int, epoch: int, step: int) -> Tensor:
        """See `Shadows`."""
        rows = len(self._stack)
        stacked = [part.expand(rows, *part.shape) for part in batch]
        return self._stack.train_batch(stacked, batch_idx).detach().clone()

    def pair(self, row: int) -> Pair:
        """See `Shadows`."""
        optimizer = self._stack.optimizer.optimizers[row]
        optimizer.state.clear()
        self._stack.optimizer.write_back(row)
        for group in optimizer.param_groups:
            if group.get("fused") or group.get("capturable"):  # these count on the device
                for state in (optimizer.state.get(parameter, {}) for parameter in group["params"]):
                    state |= {"step": state["step"].to(state["exp_avg"].device)} if "step" in state else {}
        return self._stack.modules[row], optimizer


class SingleShadows:
    """Shadows that take their steps in turn, each with the random numbers that the training will draw."""

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, pairs: Sequence[Pair]) -> None:
        """Keep the copies; the module's gradients show which parameters must have one."""
        self._pairs = list(pairs)
        self._facts = TrainerFacts()
        for shadow, _ in pairs:
            self._prepare(shadow)
        self._takes_index = takes_index(module.training_step)
        self._precision, self._clip = trainer.precision_plugin, clip_of(trainer)
        self._needed = [name for name, parameter in module.named_parameters() if parameter.grad is not None]

    def _prepare(self, shadow: pl.LightningModule) -> None:
        """Have a copy find epoch and step of its Trainer, and its logged values go nowhere."""
        shadow.trainer = self._facts  # type: ignore[assignment]
        for child in shadow.modules():
            if isinstance(child, pl.LightningModule):
                vars(child)["log"] = Captured().log

    def check(self, batch: Any) -> None:
        """Have a copy of the first shadow take a step, and see that its gradients are its own."""
        shadow, optimizer = _copied(*self._pairs[0])
        self._prepare(shadow)
        process = RandomState.capture()
        try:
            self._step((shadow, optimizer), batch, 0)
        except NotStackable:
            raise
        except Exception as error:  # whatever a user's step raises without its Trainer
            raise NotStackable(f"a step of a copy fails: {error}") from error
        finally:
            process.restore()
        lost = [name for name in self._needed if shadow.get_parameter(name).grad is None]
        if lost:
            raise NotStackable(f"the loss of a copy does not depend on its {lost[0]}")

    def train_batch(self, batch: Any, batch_idx: int, epoch: int, step: int) -> Tensor:
        """See `Shadows`."""
        self._facts.at(epoch, step)
        begin, losses = torch.get_rng_state(), []
        for pair in self._pairs:
            torch.set_rng_state(begin)
            losses.append(self._step(pair, batch, batch_idx))
        return torch.stack(losses)

    def _step(self, pair: Pair, batch: Any, batch_idx: int) -> Tensor:
        """Take one step as Lightning does; return the loss."""
        shadow, optimizer = pair
        step: Any = shadow.training_step
        limit, kind = self._clip

        def closure() -> Tensor:
            with self._precision.forward_context():
                output = step(batch, batch_idx) if self._takes_index else step(batch)
            loss = output.get("loss") if isinstance(output, Mapping) else output
            if not isinstance(loss, Tensor):
                raise NotStackable("training_step returns no loss, or not always")
            optimizer.zero_grad()
            loss.backward()
            if limit is not None:
                self._precision.clip_gradients(optimizer, limit, GradClipAlgorithmType(kind))
            return loss.detach()

        with torch.enable_grad():
            loss: Any = optimizer.step(closure)  # type: ignore[arg-type]
        return torch.as_tensor(loss).clone()

    def pair(self, row: int) -> Pair:
        """See `Shadows`."""
        return self._pairs[row]


def tensors_of(module: pl.LightningModule) -> dict[str, Tensor]:
    """Return copies of what a shadow has learned: its parameters and buffers by name, without what metrics count."""
    named = {**dict(module.named_parameters()), **stacked_buffers(module)}
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def _refuse(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    refuse_trainer(trainer, tuple(type(callback) for callback in trainer.callbacks))  # type: ignore[attr-defined]
    refuse_module(module, None)
    if trainer.accumulate_grad_batches != 1:
        raise NotStackable(f"gradients are accumulated over {trainer.accumulate_grad_batches} mini-batches")
    for child in module.modules():
        own = [name for name in ("forward", "training_step") if name in vars(child)]
        if own:
            raise NotStackable(
                f"{own[0]} of {type(child).__name__} is replaced, or compiled: a copy would call the same"
            )
    optimizer: Any = trainer.optimizers[0]
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise NotStackable(f"a hook is registered on {type(optimizer).__name__}")


def _copied(module: pl.LightningModule, optimizer: Optimizer) -> Pair:
    """Copy both together, so that the copied optimizer trains the copied parameters; the Trainer is left out."""
    owners = [child for child in module.modules() if isinstance(child, pl.LightningModule)]
    trainers = [owner._trainer for owner in owners]
    try:
        for owner in owners:
            owner._trainer = None
        return copy.deepcopy((module, optimizer))
    except Exception as error:  # whatever an attribute of a user's module raises
        raise NotStackable(f"{type(module).__name__} cannot be copied: {error}") from error
    finally:
        for owner, trainer in zip(owners, trainers, strict=True):
            owner._trainer = trainer


def _start(trainer: pl.Trainer, optimizer: Optimizer, loader: DataLoader[Any]) -> Start:
    return Start(
        optimizer=optimizer,
        schedules=[],
        train_loader=loader,
        batches=1,
        val_loaders=[],
        val_batches=[],
        validate_every_epochs=1,
        validate_every_batches=1,
        grows=False,
        accumulate=1,
        clip=clip_of(trainer)[0],
        clip_by=clip_of(trainer)[1],
        max_epochs=None,
        max_steps=None,
        min_epochs=0,
        min_steps=0,
        precision=trainer.precision_plugin,
        device=trainer.strategy.root_device,
    )
