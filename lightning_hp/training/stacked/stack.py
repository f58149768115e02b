"""A stack: members that are trained as one, in one pass over their mini-batches.

The stack takes over the members' parameters and buffers; every member's module goes on looking at its own part. One
`Stack.train_batch` is one mini-batch of every member: losses and gradients together, then clipping, then the optimizer
step, then the members' own schedules. Nothing is read back from the device but at a validation.
Shapes: M members, B rows of a mini-batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_hp.training.stacked.feed import Feed, Tables
from lightning_hp.training.stacked.gradients import Accumulated, clip_by_norm, clip_by_value
from lightning_hp.training.stacked.logs import EpochLog
from lightning_hp.training.stacked.member import Member, Schedule
from lightning_hp.training.stacked.optimizers import build_stacked_optimizer, partition_of
from lightning_hp.training.stacked.protocol import own_step
from lightning_hp.training.stacked.refusal import NotStackable
from lightning_hp.training.stacked.seat import Seat, pads, seat, structure_of
from lightning_hp.training.stacked.state import StackedState
from lightning_hp.training.stacked.traced import TracedModule, settings_of
from lightning_hp.training.stacked.validation import has_validation_hooks, validate_singly, validate_traced


def stack(members: Sequence[Member]) -> Stack:
    """Begin the fits of the members and stack them.

    Args:
        members: At least one.

    Returns:
        The stack, before its first step.

    Raises:
        NotStackable: If one of them cannot be stacked, or they have not the same structure.
    """
    return Stack([seat(member) for member in members])


class Stack:
    """M members in training.

    Attributes:
        seats: The members in the order of the first dimension.
        state: Their parameters and buffers.
        optimizer: Their optimizers as one.
        batches: Mini-batches of the present epoch.
        way: How losses are computed: "own" (the module's pure functions) or "traced" (its training_step under vmap).
        validation: How they are validated: "own", "traced" or "singly".
        compared: Names of the members' scalars that may differ: members that differ in them have been compared with
            their own steps.
    """

    def __init__(self, seats: Sequence[Seat]) -> None:
        """Take over the members' tensors.

        Args:
            seats: At least one, of one structure.

        Raises:
            NotStackable: If the structures differ.
        """
        if not seats:
            raise ValueError("`seats` must be at least one member, got none")
        keys = [structure_of(one) for one in seats]
        if any(key != keys[0] for key in keys):
            raise NotStackable("the members have not the same structure")
        self.seats, self._structure = list(seats), keys[0]
        begun, module = seats[0].start, seats[0].member.module
        self.device, self.precision = begun.device, begun.precision
        self.tables, self.val_tables = (Tables(self.device, self.precision.convert_input) for _ in range(2))
        self.way = "own" if own_step(module) is not None and seats[0].reader.tensors is not None else "traced"
        self.validation = "own" if self.way == "own" else "singly" if has_validation_hooks(module) else "traced"
        self.traced: TracedModule | None = None
        self._numbers: dict[str, list[float]] = {}
        self._prepare_steps()
        self.state = StackedState(self.modules, partition_of(module, begun.optimizer), pads=pads(seats[0]))
        self.optimizer = build_stacked_optimizer([one.start.optimizer for one in seats], self.state.layout)
        self._gradients: list[Tensor] = []  # of all parameters, as the state's matrices
        self._own_gradients: dict[str, Tensor] = {}  # the same, by name
        self._accumulated = Accumulated()
        self._clip: Tensor | None = None
        self._read_clip()
        self.batches = begun.batches
        self._sizes: list[int] = []
        self.train_log = EpochLog(training=True)
        self._losses_of_epoch: tuple[Tensor, int] | None = None
        self.compared: set[str] = set()

    @property
    def modules(self) -> list[pl.LightningModule]:
        """The members' modules."""
        return [one.member.module for one in self.seats]

    def __len__(self) -> int:
        """Return M."""
        return len(self.seats)

    # --- what changes with the members ---

    def _prepare_steps(self) -> None:
        """Read off the scalars in which the members differ, and build the step for them."""
        modules = self.modules
        if self.way == "own":
            steps: list[Any] = [own_step(module) for module in modules]
            each = [step.stack_settings() for step in steps]
            numbers = {name: [one[name] for one in each] for name in each[0]}
            self.own: Any = steps[0].stack_step(numbers)
        else:
            numbers = settings_of(modules)
            if self.traced is None or set(numbers) - set(self._numbers):
                self.traced = TracedModule(modules[0], numbers)
            else:
                numbers |= {name: _settings(modules, name) for name in set(self._numbers) - set(numbers)}
        self._numbers = numbers
        dtype = next(modules[0].parameters()).dtype
        self.settings = {name: torch.tensor(v, dtype=dtype, device=self.device) for name, v in numbers.items()}

    def _read_clip(self) -> None:
        limits = [one.start.clip for one in self.seats]
        self._clip = (
            None if limits[0] is None else torch.tensor(limits, dtype=torch.float64).to(self.device).unsqueeze(1)
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these members only; the others are released with what they have learned."""
        for row in range(len(self)):
            if row not in set(rows):
                self.optimizer.write_back(row)
        self.state.keep(rows)
        self.optimizer.keep(rows)
        self.optimizer.fit(self.state.layout)
        self.seats = [self.seats[row] for row in rows]
        self._changed()

    @property
    def takes_newcomers(self) -> bool:
        """Whether a member in its first epoch can train beside those that are further."""
        asks_for_epoch = self.traced is not None and self.traced.facts.asked
        return not asks_for_epoch and not any(one.start.grows for one in self.seats)

    def append(self, other: Stack) -> None:
        """Take in the members of another stack, which has not begun, at the end of an epoch.

        Raises:
            NotStackable: If they have another structure, or the stack takes no newcomers.
        """
        if not self.takes_newcomers and self.seats[0].epoch:
            raise NotStackable("a step or the mini-batches depend on the epoch, so all members must be in the same")
        if self._structure != other._structure:
            raise NotStackable("the members have not the same structure")
        self.state.append(other.state)
        self.optimizer.append([one.start.optimizer for one in other.seats])
        self.optimizer.fit(self.state.layout)
        self.seats += other.seats
        self._changed()

    def _changed(self) -> None:
        self._gradients, self._own_gradients = [], {}
        self._accumulated = Accumulated()
        if self.seats:
            self._prepare_steps()
            self._read_clip()
            self.train_log = EpochLog(training=True)
            self._losses_of_epoch = None

    def unstack(self, row: int) -> pl.LightningModule:
        """Give one member its own tensors and its optimizer its state, and return its module; the stack goes on."""
        self.optimizer.write_back(row)
        self.state.release([row])
        return self.seats[row].member.module

    # --- training ---

    def train_feed(self) -> Feed:
        """Draw the order of the epoch that begins for every member."""
        self.train_log, self._losses_of_epoch = EpochLog(training=True), None
        feed = Feed([one.reader for one in self.seats], [one.draw_epoch() for one in self.seats], self.tables)
        self._sizes = feed.sizes
        self.batches = len(feed.sizes)
        return feed

    def gradients(self, batch: Any, batch_idx: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return losses (M,), gradients by name and logged values of one mini-batch; buffers are updated.

        Args:
            batch: Tensors of shape (M, B, ...).
            batch_idx: Its number in the epoch.
        """
        state = self.state
        with self.precision.forward_context():
            if self.way == "own":
                self._prepare_gradients()
                weights = {**state.trained, **state.fixed}
                losses = self.own.losses_and_gradients(
                    weights, state.buffers, self.settings, batch, self._own_gradients
                )
                return losses, self._own_gradients, {}
            assert self.traced is not None
            self.traced.facts.at(self.seats[0].epoch, self.seats[0].step)
            others = {**state.fixed, **self.settings}
            losses, gradients, logged = self.traced.losses_and_gradients(
                state.trained, others, state.buffers, batch, batch_idx
            )
            return losses, gradients, logged

    def _prepare_gradients(self) -> None:
        if not self._gradients:
            self._gradients = [torch.empty_like(matrix) for matrix in self.state.matrices]
            self._own_gradients = self.state.layout.views(self._gradients)

    def _in_matrices(self, gradients: dict[str, Tensor]) -> list[Tensor]:
        if gradients is self._own_gradients:
            return self._gradients
        self._prepare_gradients()
        return self.state.layout.pack(gradients, out=self._gradients)

    def train_batch(self, batch: Any, batch_idx: int) -> Tensor:
        """Train every member on its next mini-batch, as its Trainer would.

        Args:
            batch: Tensors of shape (M, B, ...).
            batch_idx: Its number in the epoch.

        Returns:
            Losses, shape (M,), on the device.
        """
        begun = self.seats[0].start
        losses, by_name, logged = self.gradients(batch, batch_idx)
        gradients = self._in_matrices(by_name)
        rows = self._sizes[batch_idx] if batch_idx < len(self._sizes) else 1
        if self.traced is not None:
            self.train_log.add(logged, self.traced.captured.options, rows)
        weighted = losses.detach() * rows
        total, count = self._losses_of_epoch or (torch.zeros_like(weighted), 0)
        self._losses_of_epoch = (total + weighted, count + rows)
        last = batch_idx + 1 == self.batches
        if begun.accumulate > 1:
            whole = self._accumulated.add(gradients, begun.accumulate)
            if (batch_idx + 1) % begun.accumulate and not last:
                return losses
            gradients, self._accumulated = whole, Accumulated()
        if self._clip is not None:
            (clip_by_value if begun.clip_by == "value" else clip_by_norm)(gradients, self._clip)
        with torch.no_grad():
            self.optimizer.step(self.state.matrices, gradients)
        for one in self.seats:
            one.step += 1
        self._step_schedules("step", batch_idx, plateau=False)
        return losses

    def after_batch(self, batch_idx: int) -> None:
        """Step the schedules that follow epochs, after the last mini-batch and before the validation."""
        if batch_idx + 1 == self.batches:
            self._step_schedules("epoch", batch_idx, plateau=False)

    def after_validation(self, batch_idx: int) -> None:
        """Step the schedules that follow a metric step by step, after the validation if there was one."""
        begun = self.seats[0].start
        if (batch_idx + 1) % begun.accumulate == 0 or batch_idx + 1 == self.batches:
            self._step_schedules("step", batch_idx, plateau=True)

    def end_epoch(self) -> None:
        """Take the epoch's values into the members' metrics, step schedules that follow a metric, count the epoch."""
        values = self.train_log.epoch_values()
        name = getattr(own_step(self.modules[0]), "stack_train_metric", None) if self.way == "own" else None
        if name is not None and self._losses_of_epoch is not None:
            values[name] = self._losses_of_epoch[0] / self._losses_of_epoch[1]
        self._take(self.train_log.step_values() | values)
        self._step_schedules("epoch", self.batches - 1, plateau=True)
        for one in self.seats:
            one.epoch += 1

    def _step_schedules(self, interval: str, batch_idx: int, plateau: bool) -> None:
        stepped = False
        for one in self.seats:
            for schedule in one.start.schedules:
                count = batch_idx + 1 if interval == "step" else one.epoch + 1
                due = schedule.interval == interval and count % schedule.frequency == 0
                if due and schedule.plateau == plateau:
                    stepped |= _step(schedule, one)
        if stepped:
            self.optimizer.refresh()

    # --- validation ---

    def validate(self, rows: Sequence[int]) -> None:
        """Validate, and put what these members log into their metrics; the others are as if nothing had happened."""
        due = set(rows)
        orders = []
        for row, one in enumerate(self.seats):
            before = one.member.random_state.copy()
            orders.append(one.draw_validation())
            if row not in due:
                vars(one.member.random_state).update(vars(before))
        feed = Feed([one.val_readers[0] for one in self.seats], orders, self.val_tables)
        values = self.validation_values(feed)
        self._take(self.train_log.step_values() | values, due)
        for row in rows:
            one = self.seats[row]
            one.validations += 1
            one.logged = {name: one.metrics[name] for name in values}

    @torch.no_grad()
    def validation_values(self, feed: Feed) -> dict[str, Tensor]:
        """Return what validation logs, by name, shape (M,)."""
        state = self.state
        tensors = {**state.trained, **state.fixed}
        if self.validation == "own":
            batches = [self._expanded(feed, number) for number in range(len(feed.sizes))]
            with self.precision.forward_context():
                own: dict[str, Tensor] = self.own.validate(tensors, state.buffers, self.settings, batches)
            return own
        assert self.traced is not None
        self.traced.facts.at(self.seats[0].epoch, self.seats[0].step)
        if self.validation == "traced":
            everything = {**tensors, **state.buffers, **self.settings}
            return validate_traced(self.traced, everything, feed, self.precision.forward_context)
        counts = [(one.epoch, one.step) for one in self.seats]
        return validate_singly(self.modules, feed, counts, self.precision.forward_context)

    def _expanded(self, feed: Feed, number: int) -> Any:
        batch = feed.batch(number, feed.shared)
        return [part.expand(len(self), *part.shape) for part in batch] if feed.shared else batch

    def _take(self, values: dict[str, Tensor], rows: Collection[int] | None = None) -> None:
        """Read values off the device, once for all of them, into the metrics of these members (None: of all)."""
        if not values:
            return
        table = torch.stack([value.double().expand(len(self)) for value in values.values()]).tolist()
        for name, numbers in zip(values, table, strict=True):
            for row, number in enumerate(numbers):
                if rows is None or row in rows:
                    self.seats[row].metrics[name] = number


def _step(schedule: Schedule, one: Seat) -> bool:
    if not schedule.plateau:
        schedule.scheduler.step()
        return True
    if schedule.monitor not in one.metrics:
        if schedule.strict:
            logged = ", ".join(sorted(one.metrics)) or "nothing"
            name = schedule.monitor
            raise ValueError(f"`monitor` of ReduceLROnPlateau must be a logged metric ({logged}), got {name!r}")
        return False
    schedule.scheduler.step(one.metrics[schedule.monitor])
    return True


def _settings(modules: Sequence[pl.LightningModule], name: str) -> list[float]:
    path, _, buffer = name.rpartition(".")
    attribute = {"rate": "p", "epsilon": "eps"}.get(buffer, buffer)
    return [float(getattr(module.get_submodule(path), attribute)) for module in modules]
