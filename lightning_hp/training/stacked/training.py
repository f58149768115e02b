"""Training members in stacks: the epochs, who stops and when, who takes the free places.

`train_stacked` is given ordinary members and gives them back trained, or with the reason why it could not; it never
trains a member in another way. Units: epochs and steps of each member's own training; seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lightning_hp.training.stacked.check import check_newcomers, check_stack
from lightning_hp.training.stacked.member import Member
from lightning_hp.training.stacked.memory import free_bytes, member_bytes, members_that_fit
from lightning_hp.training.stacked.randomness import RandomState, drawing_from
from lightning_hp.training.stacked.refusal import NotStackable
from lightning_hp.training.stacked.seat import Seat, seat, structure_of
from lightning_hp.training.stacked.stack import Stack
from lightning_hp.training.stacked.threads import threads_of_stack


@dataclass(eq=False)
class Outcome:
    """What became of one member.

    Attributes:
        member: The member; its module holds the trained weights, its optimizer the state of a resumed training.
        refused: Why it was not trained here, in one line, or None. A refused member must be built anew to be trained.
        metrics: The newest value of everything it logged.
        curve: All it logged at each validation (1, 2, ...), or epoch where there is no validation.
        epochs: Epochs trained, the last one perhaps not to its end.
        steps: Optimizer steps taken.
        stopped: Whether it was asked to stop early.
        seconds: Its share of the stack's time.
        way: "own" or "traced", and how it was validated.
    """

    member: Member
    refused: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    curve: dict[int, dict[str, float]] = field(default_factory=dict)
    epochs: int = 0
    steps: int = 0
    stopped: bool = False
    seconds: float = 0.0
    way: str = ""


@dataclass(frozen=True)
class Report:
    """What a member logged at a validation, or at the end of an epoch where there is no validation.

    Attributes:
        member: The member.
        validation: Its number: 1, 2, ...
        epoch: The member's epoch, 0 first.
        step: Optimizer steps it has taken.
        progress: The part of its training that is done, from 0 to 1; None where nothing limits it.
        logged: What this validation logged, by name.
        metrics: The newest value of everything it ever logged.
    """

    member: Member
    validation: int
    epoch: int
    step: int
    progress: float | None
    logged: dict[str, float]
    metrics: dict[str, float]


def train_stacked(
    members: Sequence[Member],
    should_stop: Callable[[Sequence[Report]], Sequence[bool]] | None = None,
    refill: Callable[[int], Sequence[Member]] | None = None,
    finished: Callable[[Outcome], None] | None = None,
    memory: int | None = None,
    check: bool = True,
) -> list[Outcome]:
    """Train members of one structure together.

    Members of another structure than the first one's are trained after it, those of each structure together. Members
    that cannot be stacked come back refused, and so do newcomers whose structure is not that of the stack. The random
    numbers of dropout are drawn for all members of a stack together, starting from its first member's state.

    Args:
        members: Not yet trained; each with its own module.
        should_stop: Called after every validation (after every epoch, where there is none) with what each member
            logged; returns which of them stop. A NaN is reported like any other value.
        refill: Called at the end of an epoch, while a member of the first one's structure is still in training, with
            the number of free places; returns new members of this structure, at most as many. Not called where
            newcomers could not join: where a step asks for the epoch, or mini-batches grow with it.
        finished: Called with every outcome as soon as it is there.
        memory: Bytes that a stack may take; None for half of what is free. More members than fit are trained in turn.
        check: Compare a stacked step with single steps before training.

    Returns:
        Outcomes in the order in which the members came.
    """
    run = _Run(should_stop, refill, finished)
    waiting = run.seated(members)
    kept = run.keys[waiting[0]] if waiting else None
    while waiting:
        first = waiting[0]
        if run.keys[first] != kept:
            run.refill = None  # it brings members of the first structure
        group = [one for one in waiting if run.keys[one] == run.keys[first]]
        others = [one for one in waiting if run.keys[one] != run.keys[first]]
        waiting = run.train(group, memory, check) + others
    return [run.outcomes[member] for member in run.order]


class _Run:
    """One call of `train_stacked`."""

    def __init__(
        self,
        should_stop: Callable[[Sequence[Report]], Sequence[bool]] | None,
        refill: Callable[[int], Sequence[Member]] | None,
        finished: Callable[[Outcome], None] | None,
    ) -> None:
        self.should_stop, self.refill, self.finished = should_stop, refill, finished
        self.order: list[Member] = []
        self.outcomes: dict[Member, Outcome] = {}
        self.keys: dict[Seat, object] = {}

    def seated(self, members: Sequence[Member]) -> list[Seat]:
        """Begin the members' fits; those that cannot be stacked are refused."""
        seats = []
        for member in members:
            self.order.append(member)
            self.outcomes[member] = Outcome(member)
            try:
                one = seat(member)
                self.keys[one] = structure_of(one)
                seats.append(one)
            except NotStackable as refusal:
                self.refuse(member, refusal.reason)
        return seats

    def refuse(self, member: Member, reason: str) -> None:
        self.outcomes[member].refused = reason
        if self.finished is not None:
            self.finished(self.outcomes[member])

    def train(self, group: Sequence[Seat], memory: int | None, check: bool) -> list[Seat]:
        """Train the members of one structure; return those that did not fit into memory."""
        probe = group if memory is None and len(group) <= 256 else group[:2]
        try:
            stack = Stack(probe)
            kept = check_stack(stack) if check else 0
            limit = free_bytes(stack.device) if memory is None else memory
            each = member_bytes(stack, kept)
            places = min(members_that_fit(each, limit), len(group))
            if len(probe) > places:
                stack.keep(range(places))
            elif len(probe) < places:
                validation, compared = stack.validation, stack.compared
                stack = Stack(group[:places])
                stack.validation, stack.compared = validation, compared
                if check:
                    check_newcomers(stack, len(probe))
        except NotStackable as refusal:
            for one in group:
                self.refuse(one.member, refusal.reason)
            return []
        rest = list(group[places:])  # they take the first free places
        with threads_of_stack(each * places, stack.device):
            self._train(stack, places, rest, check)
        return rest

    def _train(self, stack: Stack, places: int, rest: list[Seat], check: bool) -> None:
        # dropout is drawn from here on; the process's own generators are put back
        with drawing_from(stack.seats[0].member.random_state.copy()):
            _begin_schedules(stack.seats)
            while len(stack):
                self._epoch(stack)
                free = places - len(stack)
                if len(stack) and free and stack.takes_newcomers:
                    self._fill(stack, free, rest, check)

    def _fill(self, stack: Stack, free: int, rest: list[Seat], check: bool) -> None:
        """Give free places to members that wait (``rest``, which gets shorter), then to new ones."""
        new, rest[:free] = rest[:free], []
        if self.refill is not None and len(new) < free:
            process = RandomState.capture()  # building a model may seed the process, from which dropout is drawn
            try:
                new += self.seated(self.refill(free - len(new)))
            finally:
                process.restore()
        try:
            if new:
                self._join(stack, new, check)
        except NotStackable:  # some of them do not fit: find out which
            for one in new:
                try:
                    self._join(stack, [one], check)
                except NotStackable as refusal:
                    self.refuse(one.member, refusal.reason)

    def _join(self, stack: Stack, new: Sequence[Seat], check: bool) -> None:
        """Append members to a stack that is in training; where they are refused, the stack is as before."""
        before = len(stack)
        stack.append(Stack(new))
        try:
            if check:
                check_newcomers(stack, before)
        except NotStackable:
            stack.keep(range(before))
            raise
        _begin_schedules(new)

    def _epoch(self, stack: Stack) -> None:
        began = time.perf_counter()
        everybody = list(stack.seats)
        feed = stack.train_feed()
        for batch_idx in range(len(feed.sizes)):
            stack.train_batch(feed.batch(batch_idx), batch_idx)
            stack.after_batch(batch_idx)
            leaving: list[int] = []
            due = [row for row, one in enumerate(stack.seats) if one.validates_now(batch_idx)]
            if due:
                stack.validate(due)
                leaving = self._stopping(stack, due, batch_idx + 1)
            for row in due:
                stack.seats[row].ask_stoppers("on_validation_end")
            leaving += [row for row in due if row not in leaving and stack.seats[row].leaves]
            stack.after_validation(batch_idx)
            if batch_idx + 1 < len(feed.sizes):
                # at the end of an epoch the epoch is ended first
                leaving += [row for row, one in enumerate(stack.seats) if one.finished and row not in leaving]
                self._leave(stack, leaving, everybody, began, feed)
                if not len(stack):
                    return
        stack.end_epoch()
        for one in stack.seats:
            one.ask_stoppers("on_train_epoch_end")
        silent = [row for row, one in enumerate(stack.seats) if not one.val_readers]
        if silent:
            for row in silent:
                stack.seats[row].validations += 1
                stack.seats[row].logged = dict(stack.seats[row].metrics)
            self._stopping(stack, silent, 0)
        leaving = [row for row, one in enumerate(stack.seats) if one.finished or one.leaves]
        self._share_time(everybody, began)
        self._leave(stack, leaving, (), began, None)

    def _stopping(self, stack: Stack, rows: Sequence[int], batches_done: int) -> list[int]:
        """Report what these members logged; return those of them that stop now."""
        reports = []
        for row in rows:
            one = stack.seats[row]
            self.outcomes[one.member].curve[one.validations] = dict(one.metrics)
            progress = one.progress(batches_done)
            counts = (one.validations, one.epoch, one.step, progress)
            reports.append(Report(one.member, *counts, dict(one.logged), dict(one.metrics)))
        if self.should_stop is None:
            return []
        for row, stop in zip(rows, self.should_stop(reports), strict=True):
            stack.seats[row].stopped |= bool(stop)
        return [row for row in rows if stack.seats[row].leaves]

    def _leave(
        self, stack: Stack, leaving: Sequence[int], everybody: Sequence[Seat], began: float, feed: object
    ) -> None:
        if not leaving:
            return
        gone = [stack.seats[row] for row in leaving]
        stay = [row for row in range(len(stack)) if row not in set(leaving)]
        if everybody:
            share = (time.perf_counter() - began) / len(everybody)
            for one in gone:
                self.outcomes[one.member].seconds += share
                one.epoch += 1  # begun, and not to its end
        stack.keep(stay)
        if feed is not None and stay:
            feed.keep(stay)  # type: ignore[attr-defined]
        for one in gone:
            outcome = self.outcomes[one.member]
            outcome.metrics, outcome.epochs, outcome.steps = dict(one.metrics), one.epoch, one.step
            outcome.stopped = one.stopped
            outcome.way = f"{stack.way}, validated {stack.validation}"
            if self.finished is not None:
                self.finished(outcome)

    def _share_time(self, everybody: Sequence[Seat], began: float) -> None:
        share = (time.perf_counter() - began) / len(everybody)
        for one in everybody:
            if not self.outcomes[one.member].steps:
                self.outcomes[one.member].seconds += share


def _begin_schedules(seats: Sequence[Seat]) -> None:
    for one in seats:
        if one.start.schedules:
            one.start.optimizer.step()  # without gradients: a scheduler warns if it never saw a step
