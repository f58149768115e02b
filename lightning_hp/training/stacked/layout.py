"""Where the trained parameters of a stack lie: side by side in one matrix, so that one operation changes all of them.

A matrix has a row a member, and a column a number; there is one for each parameter group of the optimizer (and for each
type of numbers in it). A parameter is a view of some of its columns. Shapes: M members, P numbers a member.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Partition = tuple[tuple[str, ...], ...]  # names of the parameters of each group


@dataclass(frozen=True)
class Block:
    """The columns of one matrix.

    Attributes:
        group: Number of the parameter group.
        names: Its parameters, in the order of their columns.
        shapes: Their shapes, without the members' dimension.
    """

    group: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> list[int]:
        """Numbers of each parameter of one member."""
        return [math.prod(shape) for shape in self.shapes]


@dataclass(frozen=True)
class Layout:
    """Which parameter lies where.

    Attributes:
        partition: Names of the parameters of each group.
        blocks: One for each matrix.
    """

    partition: Partition
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, partition: Partition, tensors: Mapping[str, Tensor]) -> Layout:
        """Lay out parameters.

        Args:
            partition: Names of the parameters of each group.
            tensors: Parameters by name, shape (M, ...).
        """
        blocks = []
        for group, names in enumerate(partition):
            for dtype in dict.fromkeys(tensors[name].dtype for name in names):
                own = tuple(name for name in names if tensors[name].dtype == dtype)
                blocks.append(Block(group, own, tuple(tuple(tensors[name].shape[1:]) for name in own)))
        return cls(partition, tuple(blocks))

    def pack(self, tensors: Mapping[str, Tensor], out: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Copy parameters, or what has their shapes, into matrices.

        Args:
            tensors: By name, shape (M, ...).
            out: Matrices to write into, (M, P); None for new ones.
        """
        matrices = []
        for number, block in enumerate(self.blocks):
            named = [(tensors[name], size) for name, size in zip(block.names, block.sizes, strict=True)]
            parts = [tensor.reshape(len(tensor), size) for tensor, size in named]
            if out is None:
                matrices.append(torch.cat(parts, dim=1))
            else:
                matrices.append(torch.cat(parts, dim=1, out=out[number]))
        return matrices

    def views(self, matrices: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the parameters of these matrices by name, as views of shape (M, ...)."""
        return {
            name: columns.view(len(matrix), *shape)
            for block, matrix in zip(self.blocks, matrices, strict=True)
            for name, shape, columns in zip(block.names, block.shapes, matrix.split(block.sizes, dim=1), strict=True)
        }
