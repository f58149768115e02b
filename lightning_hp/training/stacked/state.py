"""The tensors of a stack: parameters and buffers of all members in one, each member looking at its own part.

A stacked tensor has the members in its first dimension. Every member's own module is lent views of it: the module has
its present weights at any moment, without a copy, and what changes in the one changes in the other. Where members of
different sizes share a stack, the stacked tensor has the largest size in every dimension, and a smaller member's part
is filled up with zeros, which its module does not see. Shapes: M members.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_hp.training.stacked.layout import Layout, Partition
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


def resized(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor of a shape: what it has beyond that is cut off, what it lacks are zeros."""
    if tuple(tensor.shape) == tuple(shape):
        return tensor
    out = tensor.new_zeros(tuple(shape))
    common = tuple(slice(0, min(mine, other)) for mine, other in zip(tensor.shape, shape, strict=True))
    out[common] = tensor[common]
    return out


def part_of(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the part of a tensor that holds a smaller one of this shape, as a view."""
    if tuple(tensor.shape) == tuple(shape):
        return tensor
    return tensor[tuple(slice(0, size) for size in shape)]


class StackedState:
    """Parameters and buffers of M members.

    Attributes:
        modules: The members, in the order of the first dimension.
        trained: Parameters that the optimizers change, by name, shape (M, ...); views of ``matrices``.
        matrices: All of them side by side, as ``layout`` says.
        layout: Which of them lies where.
        fixed: Parameters that no optimizer changes, by name.
        buffers: Buffers by name.
        shapes: The shapes of each member's own tensors, by name.
    """

    def __init__(self, modules: Sequence[pl.LightningModule], partition: Partition, *, pads: bool = False) -> None:
        """Take over the tensors of the modules.

        Args:
            modules: At least one; all with the same names, shapes and types.
            partition: Names of the parameters that the optimizers change, group by group.
            pads: Whether shapes may differ: smaller tensors are filled up with zeros.

        Raises:
            NotStackable: If the tensors of two modules do not match.
        """
        self.modules, self._pads, self._partition = list(modules), pads, partition
        names = [name for group in partition for name in group]
        self.trained = {name: self._stack(name, [_parameter(m, name) for m in modules]) for name in names}
        others = [name for name, _ in modules[0].named_parameters() if name not in self.trained]
        self.fixed = {name: self._stack(name, [_parameter(m, name) for m in modules]) for name in others}
        buffers = [stacked_buffers(module) for module in modules]
        if any(list(one) != list(buffers[0]) for one in buffers):
            raise NotStackable("the members do not have the same buffers")
        self.buffers = {name: self._stack(name, [one[name] for one in buffers]) for name in buffers[0]}
        self.shapes = [
            {name: tensor.shape for name, tensor in (dict(module.named_parameters()) | own).items()}
            for module, own in zip(modules, buffers, strict=True)
        ]
        self._arrange()

    def __len__(self) -> int:
        """Return M."""
        return len(self.modules)

    def _groups(self) -> tuple[dict[str, Tensor], ...]:
        return self.trained, self.fixed, self.buffers

    def _arrange(self) -> None:
        """Lay the trained parameters side by side, and have every module look at its part."""
        self.layout = Layout.of(self._partition, self.trained)
        self.matrices = self.layout.pack(self.trained)
        self.trained = self.layout.views(self.matrices)
        self.lend()

    def lend(self) -> None:
        """Have every module look at its part; one that was given tensors of its own looks at the stack's again."""
        for row, module in enumerate(self.modules):
            point(module, self._own(row))

    def _own(self, row: int) -> dict[str, Tensor]:
        """Return one member's tensors, by name, as views."""
        shapes = self.shapes[row]
        return {name: part_of(tensor[row], shapes[name]) for group in self._groups() for name, tensor in group.items()}

    def _stack(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        for tensor in tensors[1:]:
            _check_like(name, tensors[0], tensor, self._pads)
        largest = _largest([tensor.shape for tensor in tensors])
        return torch.stack([resized(tensor.detach(), largest) for tensor in tensors]).contiguous()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these members only; the others get tensors of their own."""
        self.release([row for row in range(len(self)) if row not in set(rows)])
        self.modules = [self.modules[row] for row in rows]
        self.shapes = [self.shapes[row] for row in rows]
        for group in self._groups():
            for name, tensor in group.items():
                kept = tensor[torch.tensor(list(rows), dtype=torch.int64, device=tensor.device)]
                largest = _largest([shapes[name] for shapes in self.shapes]) if rows else tensor.shape[1:]
                group[name] = resized(kept, (len(rows), *largest))
        self._arrange()

    def release(self, rows: Iterable[int]) -> None:
        """Give these members tensors of their own, so that the stack no longer changes them."""
        for row in rows:
            point(self.modules[row], {name: tensor.clone() for name, tensor in self._own(row).items()})

    def append(self, other: StackedState) -> None:
        """Take in the members of another stack."""
        for mine, theirs in zip(self._groups(), other._groups(), strict=True):
            for name in mine:
                pair = (mine[name], theirs[name])
                _check_like(name, pair[0][0], pair[1][0], self._pads)
                largest = _largest([tensor.shape[1:] for tensor in pair])
                mine[name] = torch.cat([resized(tensor, (len(tensor), *largest)) for tensor in pair])
        self.modules += other.modules
        self.shapes += other.shapes
        self._arrange()

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


def _check_like(name: str, first: Tensor, other: Tensor, pads: bool) -> None:
    same = first.ndim == other.ndim if pads else first.shape == other.shape
    if not same or first.dtype != other.dtype:
        raise NotStackable(f"{name} is {tuple(first.shape)} {first.dtype} and {tuple(other.shape)} {other.dtype}")


def _largest(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the largest size in every dimension; no dimensions where there are no shapes."""
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


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
