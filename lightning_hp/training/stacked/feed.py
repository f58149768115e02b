"""The mini-batches of a stack: every member reads the rows in the order in which it would read them alone.

The order comes from the member's own loader and its own random numbers: an iterator of a ``DataLoader`` draws one
number when it is created, and a shuffling sampler one more when it is first asked; both are drawn here as there. Rows
of data in memory are then taken from one copy of the data for all members. Other data sets are read row by row through
the loader's own ``collate_fn``.
Shapes: M members, B rows of a mini-batch, L rows of an epoch, N rows of the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset, TensorDataset

from lightning_hp.training.sampling import BatchSampler as OwnSampler
from lightning_hp.training.stacked.randomness import RandomState, drawing_from, drawing_torch_from
from lightning_hp.training.stacked.refusal import NotStackable

Convert = Callable[[Any], Any]
Order = tuple[Tensor, list[int]]  # row numbers of an epoch, shape (L,), and the sizes of its mini-batches


class Reader:
    """How one member reads one loader.

    Attributes:
        loader: The loader.
        limit: Mini-batches of an epoch.
        tensors: The whole data, one tensor a column, where it lies in memory; else None.
        container: What a mini-batch is, list or tuple, where the data lies in memory.
    """

    def __init__(self, loader: DataLoader[Any], limit: int, state: RandomState) -> None:
        """Find out whether the data lies in memory; nothing is drawn."""
        self.loader, self.limit, self._state = loader, limit, state
        whole = _tensors_of(loader.dataset)
        self.container: type = list
        self.tensors: tuple[Tensor, ...] | None = None
        self._rows: Tensor | None = None
        if whole is not None:
            tensors, rows = whole
            container = _plain_container(loader, tensors, rows)
            if container is not None:
                self.tensors, self._rows, self.container = tensors, rows, container

    def rows_of(self, numbers: Tensor) -> Tensor:
        """Return the rows of the tensors that these rows of the data set are (of the data set, if read row by row)."""
        return numbers if self._rows is None or self.tensors is None else self._rows[numbers]

    @property
    def draws(self) -> bool:
        """Whether the order, or the rows, may depend on the process's generators."""
        batches = self.loader.batch_sampler
        sampler = self.loader.sampler if batches is None else getattr(batches, "sampler", None)
        return self.tensors is None or type(sampler) not in (SequentialSampler, OwnSampler)

    def draw(self, new_iterator: bool = True, isolated: bool = True) -> Order:
        """Draw the order of an epoch from the member's generators.

        Args:
            new_iterator: Whether an iterator is created now; that of the first epoch exists since the start of the fit.
            isolated: False where nothing of the member depends on generators, to save the time of changing them.

        Returns:
            Row numbers of ``tensors`` where the data lies in memory, else of the data set, and the mini-batches' sizes.
        """
        if not isolated:
            return self._limited()
        # a data set that is read row by row may draw from any generator
        with drawing_torch_from(self._state) if self.tensors is not None else drawing_from(self._state):
            if new_iterator:
                torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
            return self._limited()

    def _limited(self) -> Order:
        rows, sizes = self._order()
        sizes = sizes[: self.limit]
        return self.rows_of(rows[: sum(sizes)]), sizes

    def _order(self) -> Order:
        loader = self.loader
        sampler, batches = loader.sampler, loader.batch_sampler
        if type(sampler) is OwnSampler and batches is None:
            return sampler.plan()
        if type(batches) is BatchSampler and type(batches.sampler) in (RandomSampler, SequentialSampler):
            order = _whole_order(batches.sampler)
            if order is not None:
                full, rest = divmod(len(order), batches.batch_size)
                sizes = [batches.batch_size] * full + ([rest] if rest and not batches.drop_last else [])
                return order, sizes
        items = itertools.islice(iter(batches if batches is not None else sampler), self.limit)
        rows = [torch.as_tensor(item, dtype=torch.int64).reshape(-1) for item in items]
        return (torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)), [len(batch) for batch in rows]

    def fetch(self, rows: Tensor) -> Any:
        """Return a mini-batch as the loader itself would collate it, drawing what the data set draws."""
        with drawing_from(self._state):
            return _fetch(self.loader, rows)


def _whole_order(sampler: Any) -> Tensor | None:
    """Return the order of a plain sampler in one tensor: the same draws without a Python number for each row."""
    rows = len(sampler.data_source)
    if type(sampler) is SequentialSampler:
        return torch.arange(rows)
    if sampler.replacement or sampler.num_samples != rows or sampler.generator is not None:
        return None
    generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
    return torch.randperm(rows, generator=generator)


def _tensors_of(dataset: Any) -> tuple[tuple[Tensor, ...], Tensor | None] | None:
    """Return the tensors of a data set in memory, and which of their rows it has (None for all)."""
    if type(dataset) is TensorDataset:
        return tuple(dataset.tensors), None
    if type(dataset) is Subset:
        inner = _tensors_of(dataset.dataset)
        if inner is None:
            return None
        tensors, rows = inner
        mine = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return tensors, mine if rows is None else rows[mine]
    return None


def _fetch(loader: DataLoader[Any], rows: Tensor) -> Any:
    dataset: Any = loader.dataset
    if loader.batch_sampler is None:
        return loader.collate_fn(dataset[rows if len(rows) != 1 or type(dataset) is TensorDataset else int(rows)])
    if hasattr(dataset, "__getitems__"):
        return loader.collate_fn(dataset.__getitems__(rows.tolist()))
    return loader.collate_fn([dataset[row] for row in rows.tolist()])


def _plain_container(loader: DataLoader[Any], tensors: tuple[Tensor, ...], rows: Tensor | None) -> type | None:
    """Return list or tuple if the loader collates to the plain rows of the tensors, else None."""
    probe = torch.arange(min(3, len(loader.dataset)))  # type: ignore[arg-type]
    before = RandomState.capture()
    try:
        batch = _fetch(loader, probe)
    finally:
        before.restore()
    if type(batch) not in (list, tuple) or len(batch) != len(tensors):
        return None
    where = probe if rows is None else rows[probe]
    plain = all(
        isinstance(part, Tensor) and torch.equal(part, tensor[where])
        for part, tensor in zip(batch, tensors, strict=True)
    )
    return type(batch) if plain else None


class Tables:
    """Data in memory, held once for all members on their device; members with other data have other rows of it."""

    def __init__(self, device: torch.device, convert: Convert) -> None:
        """Begin empty.

        Args:
            device: Where the stack computes.
            convert: What the precision plugin does to a mini-batch.
        """
        self.device, self.convert = device, convert
        self._sources: list[tuple[Tensor, ...]] = []
        self._starts: list[int] = []
        self._known: dict[tuple[Any, ...], int] = {}
        self.columns: list[Tensor] = []

    def start_of(self, tensors: tuple[Tensor, ...]) -> int:
        """Return the row at which these tensors begin, taking them in if they are new.

        Raises:
            NotStackable: If they cannot be put below those of the other members.
        """
        key = tuple((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in tensors)
        if key not in self._known:
            self._known[key] = self._place(tensors)
        return self._known[key]

    def _place(self, tensors: tuple[Tensor, ...]) -> int:
        for source, start in zip(self._sources, self._starts, strict=True):
            if all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(source, tensors, strict=True)):
                self._sources.append(tensors)  # kept alive: its address is its name
                self._starts.append(start)
                return start
        start = len(self.columns[0]) if self.columns else 0
        new = [self.convert(tensor).to(self.device) for tensor in tensors]
        if self.columns:
            if [(c.shape[1:], c.dtype) for c in self.columns] != [(c.shape[1:], c.dtype) for c in new]:
                raise NotStackable("the members' data have other shapes or types")
            new = [torch.cat(pair) for pair in zip(self.columns, new, strict=True)]
        self.columns = new
        self._sources.append(tensors)
        self._starts.append(start)
        return start

    def rows(self, numbers: Tensor) -> list[Tensor]:
        """Return the rows with these numbers, (any shape) to (that shape, ...) for every column."""
        flat = numbers.reshape(-1)
        return [column.index_select(0, flat).view(*numbers.shape, *column.shape[1:]) for column in self.columns]


class Feed:
    """The mini-batches of one epoch for all members, or of one validation pass.

    Attributes:
        sizes: Rows of each mini-batch.
        shared: Whether all members read the same rows, so that one of them may read for all.
    """

    def __init__(self, readers: Sequence[Reader], orders: Sequence[Order], tables: Tables) -> None:
        """Line the orders up.

        Args:
            readers: One a member.
            orders: What each reader drew.
            tables: Where data in memory is held.

        Raises:
            NotStackable: If the members' mini-batches differ in number or size.
        """
        self.sizes = orders[0][1]
        if any(sizes != self.sizes for _, sizes in orders):
            raise NotStackable("the members' mini-batches differ in number or size")
        self._readers, self._tables = list(readers), tables
        self._in_memory = all(reader.tensors is not None for reader in readers)
        rows = [order for order, _ in orders]
        if self._in_memory:
            starts = [tables.start_of(reader.tensors or ()) for reader in readers]
            rows = [row + start if start else row for row, start in zip(rows, starts, strict=True)]
        self._order = torch.stack(rows)
        self.shared = self._in_memory and bool((self._order == self._order[0]).all())
        if self._in_memory:
            self._order = self._order.to(tables.device)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on for these members only."""
        self._readers = [self._readers[row] for row in rows]
        self._order = self._order[torch.tensor(list(rows), dtype=torch.int64, device=self._order.device)]

    def batch(self, number: int, shared: bool = False) -> Any:
        """Return a mini-batch, its tensors of shape (M, B, ...), or (B, ...) if ``shared`` is asked for."""
        begin = sum(self.sizes[:number])
        rows = self._order[:, begin : begin + self.sizes[number]]
        tables = self._tables
        if self._in_memory:
            return self._readers[0].container(tables.rows(rows[0] if shared else rows))
        batches = [tables.convert(reader.fetch(order)) for reader, order in zip(self._readers, rows, strict=True)]
        return tree_map(lambda *leaves: _stack_leaves(leaves, tables.device), *batches)

    def one_of(self, number: int, row: int) -> Any:
        """Return a mini-batch of one member, its tensors of shape (B, ...)."""
        begin = sum(self.sizes[:number])
        order = self._order[row, begin : begin + self.sizes[number]]
        reader, tables = self._readers[row], self._tables
        if self._in_memory:
            return reader.container(tables.rows(order))
        return tree_map(lambda leaf: leaf.to(tables.device), tables.convert(reader.fetch(order)))

    def one(self, batch: Any, row: int) -> Any:
        """Return one member's part of a mini-batch of shape (M, B, ...)."""
        return tree_map(lambda leaf: leaf[row] if isinstance(leaf, Tensor) else leaf, batch)


def _stack_leaves(leaves: Sequence[Any], device: torch.device) -> Tensor:
    if not isinstance(leaves[0], Tensor):
        raise NotStackable(f"a mini-batch holds a {type(leaves[0]).__name__}, a stack needs tensors")
    if any(leaf.shape != leaves[0].shape for leaf in leaves):
        raise NotStackable("the members' mini-batches differ in shape")
    return torch.stack(list(leaves)).to(device)
