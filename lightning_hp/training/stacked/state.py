"""The tensors of a stack: parameters and buffers of all members in one, each member looking at its own part.

A stacked tensor has the members in its first dimension. Every member's own module is lent views of it: the module has
its present weights at any moment, without a copy, and what changes in the one changes in the other. Shapes: M members.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_hp.training.stacked.refusal import NotStackable


def stacked_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers by name, without those inside metrics (which keep what they count, not what is trained)."""
    inside = {
        f"{path}.{name}" if path else name
        for path, child in module.named_modules()
        if isinstance(child, Metric)
        for name, _ in child.named_buffers()
    }
    return {name: buffer for name, buffer in module.named_buffers() if name not in inside}


class StackedState:
    """Parameters and buffers of M members.

    Attributes:
        modules: The members, in the order of the first dimension.
        trained: Parameters that the optimizers change, by name, shape (M, ...), each contiguous.
        fixed: Parameters that no optimizer changes, by name.
        buffers: Buffers by name.
    """

    def __init__(self, modules: Sequence[pl.LightningModule], trained_names: Iterable[str]) -> None:
        """Take over the tensors of the modules.

        Args:
            modules: At least one; all with the same names, shapes and types.
            trained_names: Names of the parameters that the optimizers change.

        Raises:
            NotStackable: If the tensors of two modules do not match.
        """
        names = list(trained_names)
        self.modules = list(modules)
        self.trained = {name: _stack(name, [_parameter(m, name) for m in modules]) for name in names}
        others = [name for name, _ in modules[0].named_parameters() if name not in self.trained]
        self.fixed = {name: _stack(name, [_parameter(m, name) for m in modules]) for name in others}
        buffers = [stacked_buffers(module) for module in modules]
        if any(list(one) != list(buffers[0]) for one in buffers):
            raise NotStackable("the members do not have the same buffers")
        self.buffers = {name: _stack(name, [one[name] for one in buffers]) for name in buffers[0]}
        self._lend()

    def __len__(self) -> int:
        """Return M."""
        return len(self.modules)

    def _groups(self) -> tuple[dict[str, Tensor], ...]:
        return self.trained, self.fixed, self.buffers

    def _lend(self) -> None:
        """Have every module look at its part."""
        for row, module in enumerate(self.modules):
            point(module, {name: tensor[row] for group in self._groups() for name, tensor in group.items()})

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these members only; the others get tensors of their own."""
        self.release([row for row in range(len(self)) if row not in set(rows)])
        self.modules = [self.modules[row] for row in rows]
        for group in self._groups():
            for name, tensor in group.items():
                group[name] = tensor[torch.tensor(list(rows), dtype=torch.int64, device=tensor.device)]
        self._lend()

    def release(self, rows: Iterable[int]) -> None:
        """Give these members tensors of their own, so that the stack no longer changes them."""
        for row in rows:
            own = {name: tensor[row].clone() for group in self._groups() for name, tensor in group.items()}
            point(self.modules[row], own)

    def append(self, other: StackedState) -> None:
        """Take in the members of another stack."""
        for mine, theirs in zip(self._groups(), other._groups(), strict=True):
            for name in mine:
                _check_like(name, mine[name][0], theirs[name][0])
                mine[name] = torch.cat([mine[name], theirs[name]])
        self.modules += other.modules
        self._lend()

    def row_clone(self, row: int) -> list[Tensor]:
        """Return a copy of everything that belongs to one member."""
        return [tensor[row].clone() for group in self._groups() for tensor in group.values()]

    def copy(self) -> list[Tensor]:
        """Return a copy of everything, for `restore`."""
        return [tensor.clone() for group in self._groups() for tensor in group.values()]

    @torch.no_grad()
    def restore(self, copied: Sequence[Tensor]) -> None:
        """Put a copy back, in place."""
        tensors = [tensor for group in self._groups() for tensor in group.values()]
        for tensor, old in zip(tensors, copied, strict=True):
            tensor.copy_(old)


def _parameter(module: nn.Module, name: str) -> Tensor:
    try:
        return module.get_parameter(name)
    except AttributeError:
        raise NotStackable(f"the members do not have the same parameters: {name} is missing in one") from None


def _check_like(name: str, first: Tensor, other: Tensor) -> None:
    if first.shape != other.shape or first.dtype != other.dtype:
        raise NotStackable(f"{name} is {tuple(first.shape)} {first.dtype} and {tuple(other.shape)} {other.dtype}")


def _stack(name: str, tensors: Sequence[Tensor]) -> Tensor:
    for tensor in tensors[1:]:
        _check_like(name, tensors[0], tensor)
    return torch.stack([tensor.detach() for tensor in tensors]).contiguous()


def point(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Make the module's parameters and buffers of these names look at these tensors; parameters stay the same objects.

    Args:
        module: The module.
        tensors: New contents by name; of a shared buffer one name is enough.
    """
    shared = {id(buffer): name for name, buffer in module.named_buffers()}
    for child_name, child in module.named_modules():
        prefix = f"{child_name}." if child_name else ""
        for name, parameter in child._parameters.items():
            if parameter is not None and f"{prefix}{name}" in tensors:
                parameter.data = tensors[f"{prefix}{name}"]
        for name, buffer in child._buffers.items():
            first = shared.get(id(buffer)) if buffer is not None else None
            if first in tensors:
                child._buffers[name] = tensors[first]
