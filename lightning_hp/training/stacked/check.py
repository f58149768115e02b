"""The check before training: on one mini-batch, a stacked step must be what the members' single steps are.

Losses, gradients and buffers are compared first, then the optimizer step on the same gradients (so that rounding, which
Adam's first step would blow up, does not matter). Random draws are made the same on both sides for as long as it takes.
Nothing is left changed. Shapes: M members, B rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torchmetrics import Metric

from lightning_hp.training.stacked.feed import Feed
from lightning_hp.training.stacked.logs import Captured, capturing
from lightning_hp.training.stacked.randomness import RandomState
from lightning_hp.training.stacked.refusal import NotStackable
from lightning_hp.training.stacked.stack import Stack
from lightning_hp.training.stacked.state import part_of
from lightning_hp.training.stacked.threads import threads_of_stack
from lightning_hp.training.stacked.traced import TrainerFacts, takes_index
from lightning_hp.training.stacked.validation import validate_one

#: so many mini-batches are compared before a difference is believed
TRIES = 3
_DROPOUTS = (
    torch.dropout,
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
)
_DRAWS = (torch.rand, torch.rand_like, torch.randn, torch.randn_like)


class SameDraws(TorchFunctionMode):
    """Random draws are 0.999 everywhere: no dropout drops anything, noise is the same for a member and in the stack."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace draws; call everything else as it is."""
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            x, rate, training = (
                (kwargs | dict(zip(("input", "p", "training"), args, strict=False))).get(name, default)
                for name, default in (("input", None), ("p", 0.5), ("training", True))
            )
            return x / (1 - rate) if training and 0 < rate < 1 else x * (0.0 if training and rate >= 1 else 1.0)
        if func is functional.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0
            return func(*args[:4], **{k: v for k, v in kwargs.items() if k != "dropout_p" or len(args) < 5})
        if func in _DRAWS:
            return func(*args, **kwargs).fill_(0.999)
        return func(*args, **kwargs)


def check_stack(stack: Stack) -> int:
    """Compare one stacked step with the single steps of a few members, and find out how the stack is validated.

    Args:
        stack: Before its first step; unchanged afterwards.

    Returns:
        Bytes that autograd keeps for one member's mini-batch.

    Raises:
        NotStackable: If they differ, or the module does what a stack cannot do.
    """
    kept = _checked(stack, chosen_rows(stack.modules))
    stack.compared = _differing([_scalars(module) for module in stack.modules])
    return kept


def check_newcomers(stack: Stack, before: int) -> None:
    """Check members that have joined, as far as they differ from the others in what was the same for all so far.

    Args:
        stack: Which may be in training; unchanged afterwards.
        before: How many members it had before the newcomers, at least one.

    Raises:
        NotStackable: As `check_stack`.
    """
    facts = [_scalars(module) for module in stack.modules]
    rows, new = [0], set[str]()
    for row in range(before, len(stack)):
        differing = _differing([facts[0], facts[row]]) - stack.compared
        if differing - new:
            rows.append(row)
            new |= differing
    if new:
        _checked(stack, rows)
        stack.compared |= new


def _differing(facts: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of the scalars that are not the same in all."""
    first = facts[0]
    return {
        key
        for other in facts[1:]
        for key in first.keys() | other.keys()
        if key not in first or key not in other or not (first[key] == other[key] or first[key] is other[key])
    }


def _checked(stack: Stack, rows: Sequence[int]) -> int:
    """Compare the steps and the validation of these members; return what `check_stack` does."""
    drawn = [one.member.random_state.copy() for one in stack.seats]
    process, copied = RandomState.capture(), stack.state.copy()
    optimizer = stack.optimizer
    moments, steps = optimizer.moments, optimizer.steps
    optimizer.reset()
    try:
        with SameDraws(), threads_of_stack(0, stack.device):
            kept = _compared(stack, copied, rows)
            stack.state.restore(copied)
            _try_validation(stack, rows[:2])
    except NotStackable:
        raise
    except (RuntimeError, TypeError, AttributeError, ValueError, NotImplementedError, KeyError, IndexError) as error:
        raise NotStackable(f"a step fails under vmap: {error}") from error
    finally:
        process.restore()
        stack.state.restore(copied)
        optimizer.reset()
        optimizer.moments, optimizer.steps = moments, steps
        for one, state in zip(stack.seats, drawn, strict=True):
            vars(one.member.random_state).update(vars(state))
            for child in one.member.module.modules():
                if isinstance(child, Metric):
                    child.reset()
    return kept


class _Differs(NotStackable):
    """A stacked number is not that of the member alone."""


def _compared(stack: Stack, copied: Sequence[Tensor], chosen: Sequence[int]) -> int:
    """As `_compare`, on up to TRIES mini-batches.

    Where rounding takes a value across a kink (of a ReLU, say), a gradient differs by far more than rounding; but it
    does not on the next rows. What is really different is so on all.
    """
    for attempt in range(TRIES - 1):
        with suppress(_Differs):
            return _compare(stack, copied, chosen, attempt)
        stack.state.restore(copied)
        stack.optimizer.reset()
    return _compare(stack, copied, chosen, TRIES - 1)


def _probe(stack: Stack, readers: Sequence[Any], tables: Any, rows: int, attempt: int = 0) -> Feed:
    """Return a feed of one mini-batch, other rows for every member and attempt, without drawing an order."""
    total = len(readers[0].loader.dataset)
    orders = []
    for number, reader in enumerate(readers):
        order = (torch.arange(min(rows, total)) + number + attempt * rows) % total
        orders.append((reader.rows_of(order), [len(order)]))
    return Feed(readers, orders, tables)


def _compare(stack: Stack, copied: Sequence[Tensor], chosen: Sequence[int], attempt: int) -> int:
    loader: Any = stack.seats[0].reader.loader
    rows = loader.batch_size or getattr(loader.sampler, "batch_size", None) or 32
    feed = _probe(stack, [one.reader for one in stack.seats], stack.tables, rows, attempt)
    batch = feed.batch(0)
    with _no_side_effects(stack):
        losses, gradients, _ = stack.gradients(batch, 0)
    losses = losses.detach().clone()
    gradients = {name: gradient.detach().clone() for name, gradient in gradients.items()}
    buffers = {name: buffer.clone() for name, buffer in stack.state.buffers.items()}
    stack.state.restore(copied)
    kept = 0
    for row in chosen:
        kept = max(kept, _single(stack, row, feed.one(batch, row), losses[row], gradients, buffers))
    stack.state.restore(copied)
    with torch.no_grad():
        stack.optimizer.step(stack.state.matrices, stack.state.layout.pack(gradients))
    stepped = {name: tensor.clone() for name, tensor in stack.state.trained.items()}
    stack.state.restore(copied)
    for row in chosen:
        _single_optimizer_step(stack, row, gradients, stepped)
    return kept


def _single(
    stack: Stack, row: int, batch: Any, loss: Tensor, gradients: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> int:
    module = stack.seats[row].member.module
    step: Any = module.training_step
    name = type(module).__name__
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with trainer_facts(module), capturing(module, Captured()), torch.enable_grad():
        with stack.precision.forward_context(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = step(batch, 0) if takes_index(step) else step(batch)
            single = output["loss"] if isinstance(output, Mapping) else output
        trained = {n: module.get_parameter(n) for n in stack.state.trained}
        own_gradients = torch.autograd.grad(single.mean(), list(trained.values()), allow_unused=True)
    _same(f"{name}: the stacked loss", loss, single.detach().mean(), 1.0)
    overall = max((float(g.abs().max()) for g in own_gradients if g is not None and g.numel()), default=0.0)
    for parameter, gradient in zip(trained, own_gradients, strict=True):
        if gradient is None:
            raise NotStackable(f"{name}: the loss does not depend on {parameter}, so its optimizer would skip it")
        stacked = part_of(gradients[parameter][row], gradient.shape)
        _same(f"{name}: the stacked gradient of {parameter}", stacked, gradient, overall * 1e-3)
    own = dict(module.named_buffers())
    for buffer, tensor in buffers.items():
        _same(f"{name}: the stacked buffer {buffer}", part_of(tensor[row], own[buffer].shape), own[buffer], 1e-3)
    return sum(kept.values())


def _single_optimizer_step(
    stack: Stack, row: int, gradients: Mapping[str, Tensor], stepped: Mapping[str, Tensor]
) -> None:
    one = stack.seats[row]
    module, optimizer = one.member.module, one.start.optimizer
    # on tensors of its own: a fused optimizer goes wrong on a part of a larger tensor (torch 2.13, CPU)
    stack.state.release([row])
    try:
        for name in gradients:
            own = module.get_parameter(name)
            own.grad = part_of(gradients[name][row], own.shape).clone()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()
        for name, tensor in stepped.items():
            parameter = module.get_parameter(name).detach()
            scale = float(parameter.abs().max()) if parameter.numel() else 0.0
            stepped_row = part_of(tensor[row], parameter.shape)
            _same(f"the stacked {type(optimizer).__name__} step of {name}", stepped_row, parameter, scale)
    finally:
        stack.state.lend()


def _same(what: str, stacked: Tensor, single: Tensor, scale: float) -> None:
    """Raise _Differs if two tensors differ by more than rounding, relative to their size and to ``scale``."""
    if stacked.shape != single.shape:
        raise _Differs(f"{what} has shape {tuple(stacked.shape)}, alone it has {tuple(single.shape)}")
    if not single.numel():
        return
    a, b = stacked.double(), single.double()
    tolerance = 1e-3 if stacked.dtype in (torch.float32, torch.float16, torch.bfloat16) else 1e-8
    both = torch.isfinite(a) & torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
        raise _Differs(f"{what} is finite where it is not alone, or the other way round")
    size = float(b[both].abs().max()) if both.any() else 0.0
    worst = float((a - b)[both].abs().max()) if both.any() else 0.0
    if worst > tolerance * (size + scale):
        raise _Differs(f"{what} differs from that of the member alone by {worst:.3g} at a size of {size:.3g}")


def chosen_rows(modules: Sequence[pl.LightningModule]) -> list[int]:
    """Return members to compare: two at least, and for every scalar attribute that differs, two that differ in it."""
    facts = [_scalars(module) for module in modules]
    chosen = [0]
    for key, value in facts[0].items():
        others = [one.get(key) for one in facts]
        if all(other == value or other is value for other in others) or any(others[row] != value for row in chosen):
            continue
        chosen.append(next(row for row, other in enumerate(others) if other != value))
    if len(chosen) == 1 and len(modules) > 1:
        chosen.append(1)
    return chosen


def _scalars(module: pl.LightningModule) -> dict[str, Any]:
    kinds = (int, float, bool, str, tuple, list, type(None))
    out = {
        f"{path}.{name}": repr(value) if isinstance(value, list | tuple) else value
        for path, child in module.named_modules()
        if not isinstance(child, Metric)
        for name, value in vars(child).items()
        if isinstance(value, kinds) and not name.startswith("__")
    }
    return out | {f"hparams.{name}": repr(value) for name, value in module.hparams.items() if isinstance(value, kinds)}


@contextmanager
def trainer_facts(module: pl.LightningModule) -> Iterator[None]:
    """Have a module's step find what may be asked of a Trainer in a stack, and nothing else."""
    trainer, module.trainer = module._trainer, TrainerFacts()  # type: ignore[assignment]
    try:
        yield
    finally:
        module.trainer = trainer


@contextmanager
def _no_side_effects(stack: Stack) -> Iterator[None]:
    """Raise NotStackable if a traced step changes an attribute of the module: a stack has only one of it."""
    before = {} if stack.traced is None else _attributes(stack.traced.base)
    yield
    if stack.traced is not None:
        after = _attributes(stack.traced.base)
        changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        if changed:
            raise NotStackable(f"training_step changes self.{changed[0].lstrip('.')}, of which a stack has only one")


def _attributes(module: nn.Module) -> dict[str, Any]:
    skipped = {"_parameters", "_buffers", "_modules", "log", "_metric_attributes", "_trainer"}
    return {
        f"{path}.{name}": (id(value), len(value) if isinstance(value, list | dict | set) else 0)
        for path, child in module.named_modules()
        for name, value in vars(child).items()
        if name not in skipped
    }


def _try_validation(stack: Stack, chosen: Sequence[int]) -> None:
    """Find out whether validation traces, by comparing the values of chosen members with their own."""
    if not stack.seats[0].val_readers:
        return
    readers = [one.val_readers[0] for one in stack.seats]
    feed = _probe(stack, readers, stack.val_tables, 32)
    if stack.validation == "traced":
        try:
            values = stack.validation_values(feed)
            assert stack.traced is not None
            if stack.traced.captured.metrics or not values:
                stack.validation = "singly"
        except (RuntimeError, TypeError, AttributeError, ValueError, NotImplementedError, KeyError, IndexError):
            stack.validation = "singly"
    context = stack.precision.forward_context
    if stack.validation == "singly":
        validate_one(stack.modules[0], feed, 0, TrainerFacts(), context)
        return
    values = stack.validation_values(feed)
    for row in chosen:
        single = validate_one(stack.modules[row], feed, row, TrainerFacts(), context)
        try:
            if set(single) != set(values):
                raise NotStackable(f"validation logs {sorted(single)}, the stack {sorted(values)}")
            for name, value in single.items():
                _same(f"the stacked {name}", values[name][row].float(), value.float(), 1.0)
        except NotStackable:
            if stack.validation == "own":
                raise
            stack.validation = "singly"
            return
