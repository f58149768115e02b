"""Describes the training data, the model and the search space, so that a later run can tell what changed.

The data fingerprint is made in one bounded pass over a sample of the training rows, in this process and with the global
random state put back. Shapes: B = rows of a batch, F = features, C = channels, n = sampled rows.

Columns: a tensor (B,) is one column, (B, F) is F columns, more dimensions are flattened. Where that gives more than
``max_columns``, a tensor (B, C, ...) becomes the mean and the standard deviation of each channel of a row, so that a move
of brightness shows in the first and of contrast in the second; a tensor (B, F) becomes evenly spaced columns beside the
mean and the standard deviation of the whole row. Integer tensors (B,) with few values are classes and keep their shares.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler, SubsetRandomSampler
from torch.utils.data import RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from lightning_hp.ledger.drift import ColumnDrift as ColumnDrift
from lightning_hp.ledger.drift import Tolerance as Tolerance
from lightning_hp.ledger.drift import compare as compare

SCHEMA = 1
#: Quantiles are kept at 0, 1/20, ... 1.
_QUANTILE_STEPS = 20
_MAX_CLASSES = 256
_HASHED_ROWS = 64
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

    A data set with a length is sampled without its sampler and workers: ``max_rows`` rows drawn with ``seed``. Others,
    and loaders with a sampler of their own, are read from the start. Weighted samplers therefore do not show.

    Args:
        source: A DataModule that is set up, a DataLoader, an iterable of batches, or a mapping or list of loaders.
        max_rows: Most rows to read.
        max_columns: Most columns to keep of one tensor.
        column_names: Names for the columns of the first tensor, where it has that many.
        seed: For the rows, and for whatever draws random numbers while they are read.

    Returns:
        JSON types: ``rows``, ``rows_exact`` (False: at least that many), ``sampled``, ``sample`` (hash of the first rows
        read), and ``columns`` by name with ``dtype``, ``count``, ``missing``, ``mean``, ``sd``, ``kurtosis``,
        ``quantiles`` (at 0, 0.05, ... 1), or ``shares`` of the classes.

    Raises:
        ValueError: If there are no rows, or a batch holds no tensor.
    """
    for name, value in (("max_rows", max_rows), ("max_columns", max_columns)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise ValueError(f"`{name}` must be a whole number from 2, got {value!r}")
    with _seeded(seed):
        loaders = _loaders(source)
        columns: dict[str, dict[str, Any]] = {}
        digest = hashlib.sha256()
        rows, exact, sampled = 0, True, 0
        for prefix, loader in loaders.items():
            batches, length = _batches(loader, max_rows, seed)
            leaves, read, ended = _read(batches, max_rows)
            if not read:
                raise ValueError("`source` must have at least one training row, got none")
            rows += read if length is None else length
            exact = exact and (ended or length is not None)
            sampled += read
            names = column_names if not prefix else None
            for leaf, values in leaves.items():
                digest.update(leaf.encode())
                digest.update(_bytes(values[0][:_HASHED_ROWS]))
                columns.update(_columns(leaf, values, prefix, max_columns, names if leaf == next(iter(leaves)) else None))
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
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        default = parameter.default
        if default is not inspect.Parameter.empty and not isinstance(default, (bool, int, float, str, type(None), tuple)):
            # the repr of an arbitrary object may hold its address
            default = type(default).__name__
            parameter = parameter.replace(default=default)
        parameters.append(parameter.replace(annotation=inspect.Parameter.empty))
    return f"{cls.__module__}.{cls.__qualname__}{inspect.Signature(parameters)}"


def space_fingerprint(space: Mapping[str, Any]) -> str:
    """Hash of a search space given as a mapping of JSON types; the order of its keys does not matter."""
    text = json.dumps(space, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws from ``seed`` inside, and puts Python's, NumPy's and torch's random state back."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy is not None else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
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
    indices = _indices(loader.sampler if loader.batch_size is not None else None, dataset)
    if indices is None:
        return _without_workers(loader), None
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(indices), generator=generator)[:max_rows].tolist()
    chosen = [indices[position] for position in order]
    size = loader.batch_size or 1
    chunks = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    return iter(DataLoader(dataset, batch_sampler=chunks, collate_fn=collate)), len(indices)


def _indices(sampler: Sampler[Any] | None, dataset: Any) -> Sequence[int] | None:
    """Rows that the sampler draws from, or None if only it knows."""
    if isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)
    if isinstance(sampler, (RandomSampler, SequentialSampler, DistributedSampler)):
        return range(len(dataset))
    return None


def _without_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's own batches, read in this process: iterating it could restart the workers of a running epoch."""
    sampling: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
    if loader.batch_sampler is None:
        sampling = {"sampler": loader.sampler, "batch_size": None}
    generators = [getattr(part, "generator", None) for part in (loader, loader.sampler)]
    held = [part for part in generators if isinstance(part, torch.Generator)]
    states = [part.get_state() for part in held]
    try:
        yield from DataLoader(loader.dataset, collate_fn=loader.collate_fn, **sampling)
    finally:
        for part, state in zip(held, states, strict=True):
            part.set_state(state)


def _read(batches: Iterator[Any], max_rows: int) -> tuple[dict[str, list[torch.Tensor]], int, bool]:
    """Tensors by leaf, rows read, and whether the batches came to their end."""
    leaves: dict[str, list[torch.Tensor]] = {}
    rows, ended = 0, False
    while rows < max_rows:
        batch = next(batches, None)
        if batch is None:
            ended = True
            break
        found = {name: value.detach().cpu() for name, value in _tensors(batch)}
        if not found:
            raise ValueError(f"`source` must give batches with at least one tensor, got {type(batch).__name__}")
        found = {name: value.reshape(1) if value.ndim == 0 else value for name, value in found.items()}
        size = len(next(iter(found.values())))
        for name, value in found.items():
            leaves.setdefault(name, []).append(value[: max_rows - rows])
        rows += min(size, max_rows - rows)
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
            elif len(batch) == 2 and not name:
                key = ("column", "target")[index]  # the usual (x, y)
            else:
                key = str(index)
            yield from _tensors(value, f"{name}.{key}" if name else key)


def _columns(
    leaf: str, values: list[torch.Tensor], prefix: str, max_columns: int, names: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """Summaries of the columns of one leaf. Each tensor of ``values`` is (B, ...)."""
    dtype = str(values[0].dtype).removeprefix("torch.")
    shape = values[0].shape[1:]
    name = prefix if leaf == "column" else prefix + leaf
    if not shape and not values[0].is_floating_point():
        classes = torch.cat(values)
        found, counts = classes.unique(return_counts=True)
        if len(found) <= min(_MAX_CLASSES, max(2, len(classes) // 2)):
            shares = {str(int(key)): _short(int(n) / len(classes)) for key, n in zip(found, counts, strict=True)}
            return {name or "column": {"dtype": dtype, "count": len(classes), "missing": 0, "shares": shares}}
    if not shape:
        return {name or "0": _summary(torch.cat(values), dtype)}
    numbers = [_real(value) for value in values]
    table = _wide(numbers, shape, max_columns)
    width = int(torch.Size(shape).numel())
    if any(value.shape[1:] != shape for value in values) or (len(shape) == 1 and width > max_columns):
        pooled = torch.cat([torch.stack(_moments(value.flatten(1)), dim=1) for value in numbers])
        extra = {f"{name or 'row'} mean": pooled[:, 0], f"{name or 'row'} sd": pooled[:, 1]}
    else:
        extra = {}
    if names is not None and len(names) == len(table) == width:
        table = dict(zip(names, table.values(), strict=True))
    elif leaf == "column":
        table = {f"{prefix}{key}": column for key, column in table.items()}
    else:
        table = {f"{name}[{key}]": column for key, column in table.items()}
    return {key: _summary(column, dtype) for key, column in {**table, **extra}.items()}


def _wide(values: list[torch.Tensor], shape: torch.Size, max_columns: int) -> dict[str, torch.Tensor]:
    """Columns (n,) by position; none where the rows differ in shape."""
    if any(value.shape[1:] != shape for value in values):
        return {}
    width = int(shape.numel())
    if width <= max_columns:
        return {str(j): column for j, column in enumerate(torch.cat([v.flatten(1) for v in values]).unbind(1))}
    if len(shape) == 1:
        kept = torch.linspace(0, width - 1, max_columns - 2).round().long().unique()
        return {str(int(j)): column for j, column in zip(kept, torch.cat([v[:, kept] for v in values]).unbind(1), strict=True)}
    kept = torch.linspace(0, shape[0] - 1, min(shape[0], max(1, max_columns // 2))).round().long().unique()
    mean, sd = (torch.cat(part) for part in zip(*(_moments(v[:, kept].flatten(2)) for v in values), strict=True))
    table = {}
    for position, channel in enumerate(kept.tolist()):
        table[f"channel {channel} mean"], table[f"channel {channel} sd"] = mean[:, position], sd[:, position]
    return table


def _moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over the last dimension, biased so that one value has sd 0."""
    variance, mean = torch.var_mean(values, dim=-1, correction=0)
    return mean, variance.sqrt()


def _real(values: torch.Tensor) -> torch.Tensor:
    return (values.abs() if values.is_complex() else values).to(torch.float32)


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


def _bytes(values: torch.Tensor) -> bytes:
    return _real(values).contiguous().numpy().tobytes()
