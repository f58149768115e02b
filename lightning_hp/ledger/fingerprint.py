"""Describes the training data, the model and the search space, so that a later run can tell what changed.

The data fingerprint is made in one bounded pass over a sample of the training rows, in this process and with the global
random state put back. Shapes: B = rows of a batch, F = features, C = channels, n = sampled rows.

Columns: a tensor (B,) is one column, (B, F) is F columns, more dimensions are flattened. Where that gives more than
``max_columns``, a tensor (B, C, ...) becomes the mean and the standard deviation of each channel of a row, so that a
move of brightness shows in the first and of contrast in the second; a tensor (B, F) becomes evenly spaced columns
beside the mean and the standard deviation of the whole row, and rows of varying shape keep these two alone. Integer
tensors (B,) with few values are classes and keep their shares.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, SubsetRandomSampler
from torch.utils.data.distributed import DistributedSampler

from lightning_hp.ledger.drift import ColumnDrift as ColumnDrift
from lightning_hp.ledger.drift import Tolerance as Tolerance
from lightning_hp.ledger.drift import compare_fingerprints as compare_fingerprints

SCHEMA = 1
#: Quantiles are kept at 0, 1/20, ... 1.
_QUANTILE_STEPS = 20
_MAX_CLASSES = 256
#: Rows that are read from a data set at a time.
_CHUNK = 256
_DIGITS = 6


def data_fingerprint(
    source: Any,
    *,
    max_rows: int = 2048,
    max_columns: int = 256,
    column_names: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Fingerprint of the training data.

    A data set with a length is read without the loader's sampler and workers: ``max_rows`` rows drawn with ``seed``
    from those that the sampler draws from. Iterable data sets and loaders with a sampler of an unknown kind (weighted
    ones among them) are read from the start, in this process. An iterable data set that can be read only once loses
    these rows.

    Args:
        source: A DataModule that is set up, a DataLoader, an iterable of batches, or a mapping or list of loaders.
        max_rows: Most rows to read.
        max_columns: Most columns to keep of one tensor.
        column_names: Names for the columns of the first tensor, where it has that many.
        seed: For the rows, and for whatever draws random numbers while they are read.

    Returns:
        JSON types: ``rows``, ``rows_exact`` (False: at least that many), ``sampled``, ``sample`` (hash of the rows
        read), and ``columns`` by name with ``dtype``, ``count``, ``missing``, ``mean``, ``sd``, ``kurtosis``,
        ``quantiles`` (at 0, 0.05, ... 1), and ``shares`` of the classes.

    Raises:
        ValueError: If there are no rows, or a batch holds no tensor.
    """
    for name, value in (("max_rows", max_rows), ("max_columns", max_columns)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise ValueError(f"`{name}` must be a whole number from 2, got {value!r}")
    with _seeded(seed):
        columns: dict[str, dict[str, Any]] = {}
        digest = hashlib.sha256()
        rows, exact, sampled = 0, True, 0
        for prefix, loader in _loaders(source).items():
            batches, length = _batches(loader, max_rows, seed)
            leaves, read, ended = _read(batches, max_rows, max_columns)
            if not read:
                raise ValueError("`source` must have at least one training row, got none")
            rows += read if length is None else length
            exact = exact and (ended or length is not None)
            sampled += read
            names = column_names if not prefix else None
            for leaf in leaves.values():
                digest.update(leaf.digest.digest())
                columns.update(leaf.columns(prefix, names))
                names = None
    return {
        "schema": SCHEMA,
        "rows": rows,
        "rows_exact": exact,
        "sampled": sampled,
        "sample": digest.hexdigest()[:16],
        "columns": columns,
    }


def model_fingerprint(model: Any) -> str:
    """Class path and ``__init__`` signature of a model, not its source: ``pkg.mod.Net(units=64, *, lr)``.

    Args:
        model: A class, or an object (a compiled one counts as the module inside).
    """
    model = getattr(model, "_orig_mod", model)
    cls = model if isinstance(model, type) else type(model)
    parameters = []
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            parameter = parameter.replace(default=_Word(_default(parameter.default)))
        parameters.append(parameter.replace(annotation=inspect.Parameter.empty))
    return f"{cls.__module__}.{cls.__qualname__}{inspect.Signature(parameters)}"


class _Word(str):
    """Text that prints without quotes inside a signature."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _default(value: Any) -> str:
    """Text of a default value that is the same in every process: the repr of an object may hold its address."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(_default, value))})"
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def space_fingerprint(space: Mapping[str, Any]) -> str:
    """Hash of a search space given as a mapping of JSON types; the order of its keys does not matter."""
    text = json.dumps(space, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws from ``seed`` inside, and puts Python's, NumPy's and torch's random state back."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy is not None else None
    initialized = torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if initialized else []
    with torch.random.fork_rng(devices=devices):
        try:
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            if numpy is not None:
                numpy.random.seed(seed)
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(state)


def _loaders(source: Any) -> dict[str, Any]:
    """Loader by column prefix; one loader has the prefix ''."""
    if callable(getattr(source, "train_dataloader", None)):
        source = source.train_dataloader()
    source = getattr(source, "iterables", source)  # Lightning's CombinedLoader
    if isinstance(source, Mapping):
        return {f"{key}.": loader for key, loader in source.items()}
    if isinstance(source, (list, tuple)) and source and all(isinstance(item, DataLoader) for item in source):
        return {f"{index}.": loader for index, loader in enumerate(source)}
    if not hasattr(source, "__iter__"):
        raise ValueError(f"`source` must be a DataModule, a DataLoader or an iterable of batches, got {source!r}")
    return {"": source}


def _batches(loader: Any, max_rows: int, seed: int) -> tuple[Iterator[Any], int | None]:
    """Batches to read, and the number of rows where it is known without reading."""
    if not isinstance(loader, DataLoader):
        return iter(loader), None
    dataset, collate = loader.dataset, loader.collate_fn
    if isinstance(dataset, IterableDataset):
        return iter(DataLoader(dataset, batch_size=loader.batch_size, collate_fn=collate)), None
    bulk = loader.batch_sampler is None
    indices = _indices(loader.sampler if bulk else loader.batch_sampler, dataset)
    like = _first(loader.sampler) if bulk else None
    if indices is None or (bulk and not isinstance(like, (list, tuple, torch.Tensor))):
        return _own_batches(loader), None
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(indices), generator=generator)[:max_rows].tolist()
    chosen = [indices[position] for position in order]
    chunks: list[Any] = [chosen[start : start + _CHUNK] for start in range(0, len(chosen), _CHUNK)]
    if not bulk:
        return iter(DataLoader(dataset, batch_sampler=chunks, collate_fn=collate)), len(indices)
    if isinstance(like, torch.Tensor):
        chunks = [torch.tensor(chunk) for chunk in chunks]
    return iter(DataLoader(dataset, sampler=chunks, batch_size=None, collate_fn=collate)), len(indices)


def _first(sampler: Any) -> Any:
    """The first item of a sampler. If it is a list or tensor of row numbers, the data set returns whole batches.

    A single number without automatic batching means that an item of the data set is a batch, whose rows nobody counted.
    """
    return next(iter(copy.copy(sampler)), None)


def _indices(sampler: Any, dataset: Any) -> Sequence[int] | None:
    """Rows that the sampler draws from, or None if that is unknown. Of a batch sampler, the sampler inside counts."""
    if isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)
    if isinstance(sampler, (RandomSampler, SequentialSampler, DistributedSampler)):
        return range(len(dataset))
    inside = getattr(sampler, "sampler", None)
    return None if inside is None else _indices(inside, dataset)


def _own_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """What the loader gives, read in this process: iterating it could restart the workers of a running epoch.

    The samplers are copied and their generators put back, so that the next epoch is what it would have been.
    """
    samplers = [part for part in (loader.batch_sampler, loader.sampler) if part is not None]
    samplers += [part.sampler for part in samplers if hasattr(part, "sampler")]
    generators = [getattr(part, "generator", None) for part in (loader, *samplers)]
    held = [part for part in generators if isinstance(part, torch.Generator)]
    states = [part.get_state() for part in held]
    sampling: dict[str, Any] = {"batch_sampler": copy.copy(loader.batch_sampler)}
    if loader.batch_sampler is None:
        sampling = {"sampler": copy.copy(loader.sampler), "batch_size": None}
    try:
        yield from DataLoader(loader.dataset, collate_fn=loader.collate_fn, **sampling)
    finally:
        for part, state in zip(held, states, strict=True):
            part.set_state(state)


def _read(batches: Iterator[Any], max_rows: int, max_columns: int) -> tuple[dict[str, _Leaf], int, bool]:
    """Tensors of a batch by name, rows read, and whether the batches came to their end."""
    leaves: dict[str, _Leaf] = {}
    rows, ended = 0, False
    try:
        while rows < max_rows:
            batch = next(batches, None)
            if batch is None:
                ended = True
                break
            tensors = [(name, value.detach().cpu()) for name, value in _tensors(batch)]
            tensors = [(name, value.reshape(1) if value.ndim == 0 else value) for name, value in tensors]
            if not tensors:
                raise ValueError(f"`source` must give batches with at least one tensor, got {type(batch).__name__}")
            for name, value in tensors:
                leaves.setdefault(name, _Leaf(name, value, max_columns)).add(value[: max_rows - rows])
            rows += min(len(tensors[0][1]), max_rows - rows)
    finally:
        if (close := getattr(batches, "close", None)) is not None:
            close()
    return leaves, rows, ended


def _tensors(batch: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Leaves of a batch with their names; text and other objects are left out."""
    if isinstance(batch, torch.Tensor):
        yield name or "column", batch
    elif hasattr(batch, "__array__") and getattr(batch, "dtype", None) is not None and batch.dtype.kind in "biuf":
        yield name or "column", torch.as_tensor(batch)
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(batch, (list, tuple)):
        fields = getattr(batch, "_fields", None)
        for index, value in enumerate(batch):
            if fields is not None:
                key = fields[index]
            elif len(batch) <= 2 and not name:
                key = ("column", "target")[index]  # the usual (x, y), or (x,)
            else:
                key = str(index)
            yield from _tensors(value, f"{name}.{key}" if name else key)


class _Leaf:
    """One tensor of the batches, reduced to at most about ``max_columns`` columns batch by batch."""

    def __init__(self, name: str, first: torch.Tensor, max_columns: int) -> None:
        self.name = name
        self.dtype = str(first.dtype).removeprefix("torch.")
        self.shape = first.shape[1:]
        self.width = int(self.shape.numel())
        self.max_columns = max_columns
        self.ragged = False
        self.digest = hashlib.sha256()
        self.tables: list[torch.Tensor] = []
        self.pooled: list[torch.Tensor] = []

    def add(self, value: torch.Tensor) -> None:
        """Takes the rows of one batch, (B, ...)."""
        value = _real(value)
        self.digest.update(value.contiguous().numpy().tobytes())
        self.ragged = self.ragged or value.shape[1:] != self.shape
        self.pooled.append(torch.stack(_moments(value.flatten(1) if value.ndim > 1 else value[:, None]), dim=1))
        if not self.ragged:
            self.tables.append(self._reduce(value))

    def columns(self, prefix: str, names: Sequence[str] | None) -> dict[str, dict[str, Any]]:
        """Summary by column name; ``names`` are those of all columns, where there are as many."""
        base = prefix if self.name == "column" else prefix + self.name
        if not self.shape and not self.ragged:
            column = torch.cat(self.tables)[:, 0]
            single = names is not None and len(names) == 1
            key = names[0] if single and names else base.rstrip(".") or "0"
            return {key: {**_summary(column, self.dtype), **self._shares(column)}}
        by_name: dict[str, torch.Tensor] = {}
        if not self.ragged:
            keys = list(names) if names is not None and len(names) == self.width else self._keys()
            if self.name != "column" and keys is not names:
                keys = [f"{base}[{key}]" for key in keys]
            elif prefix:
                keys = [prefix + key for key in keys]
            by_name = dict(zip(keys, torch.cat(self.tables).unbind(1), strict=True))
        if self.ragged or (len(self.shape) == 1 and self.width > self.max_columns):
            pooled = torch.cat(self.pooled)
            by_name |= {f"{base} row mean".strip(): pooled[:, 0], f"{base} row sd".strip(): pooled[:, 1]}
        return {key: _summary(column, self.dtype) for key, column in by_name.items()}

    def _kept(self) -> torch.Tensor:
        """Features, or channels, that are looked at where there are too many."""
        size = self.shape[0]
        most = self.max_columns if len(self.shape) == 1 else max(1, self.max_columns // 2)
        positions: torch.Tensor = torch.linspace(0, size - 1, min(size, most)).round().long().unique()
        return positions

    def _keys(self) -> list[str]:
        if self.width <= self.max_columns:
            return [str(index) for index in range(self.width)]
        if len(self.shape) == 1:
            return [str(index) for index in self._kept().tolist()]
        return [f"channel {index} {part}" for part in ("mean", "sd") for index in self._kept().tolist()]

    def _reduce(self, value: torch.Tensor) -> torch.Tensor:
        """(B, ...) to (B, columns), in the order of the keys."""
        if self.width <= self.max_columns:
            return value.reshape(len(value), self.width)
        if len(self.shape) == 1:
            return value[:, self._kept()]
        return torch.cat(_moments(value[:, self._kept()].flatten(2)), dim=1)

    def _shares(self, column: torch.Tensor) -> dict[str, Any]:
        if self.dtype.startswith(("float", "bfloat", "complex")):
            return {}
        classes, counts = column.unique(return_counts=True)
        if len(classes) > _MAX_CLASSES:
            return {}
        pairs = zip(classes.tolist(), counts.tolist(), strict=True)
        return {"shares": {str(int(label)): _short(count / len(column)) for label, count in pairs}}


def _moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over the last dimension, biased so that one value has sd 0."""
    variance, mean = torch.var_mean(values, dim=-1, correction=0)
    return mean, variance.sqrt()


def _real(values: torch.Tensor) -> torch.Tensor:
    """Floats that hold the values exactly, but for integers beyond 2^53; complex numbers by their size."""
    values = values.abs() if values.is_complex() else values
    return values.to(torch.float64 if values.dtype in (torch.float64, torch.int32, torch.int64) else torch.float32)


def _summary(column: torch.Tensor, dtype: str) -> dict[str, Any]:
    """Moments and quantiles of one column (n,); what is not finite counts as missing."""
    values = column.to(torch.float64)
    finite = values[values.isfinite()].sort().values
    count = len(finite)
    summary: dict[str, Any] = {"dtype": dtype, "count": count, "missing": len(values) - count}
    if count:
        mean, sd = (float(part) for part in _moments(finite))
        kurtosis = float((((finite - mean) / sd) ** 4).mean()) if sd > 0 else 0.0
        # order statistics, not interpolated: at least a share p of the values is at most the quantile at p
        levels = [max(0, -(-count * step // _QUANTILE_STEPS) - 1) for step in range(_QUANTILE_STEPS + 1)]
        quantiles = [_short(float(finite[level])) for level in levels]
        summary |= {"mean": _short(mean), "sd": _short(sd), "kurtosis": _short(kurtosis), "quantiles": quantiles}
    return summary


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
