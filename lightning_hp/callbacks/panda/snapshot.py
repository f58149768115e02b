"""Snapshots of a training: taken and restored in place, bit for bit.

A snapshot holds weights, buffers (BatchNorm's running statistics, counters), the optimizer's state and groups, the
states of learning-rate schedulers, the loss scaler of 16-bit precision, the average kept by a `WeightAveraging`
callback, and, where it is a start from which several attempts are compared, the random states of this process.
Everything is cloned into memory on the device where it lives.

What Lightning does not let a callback turn back: the loop's counters and the position in the data. A training that was
rolled back goes on with the next mini-batches.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from torch import Tensor, nn
from torch.optim import Optimizer

Snapshot = dict[str, Any]
#: the parts of a snapshot that a copy of the module without a Trainer does not have
NOTHING_ELSE: Snapshot = {"schedulers": [], "precision": {}, "averages": [], "random": None}
_AVERAGED = ("state_dict", "current_model_state", "averaging_state")


def take(trainer: pl.Trainer, module: pl.LightningModule, step: int, randomness: bool = True) -> Snapshot:
    """Return a copy of the present state.

    Args:
        trainer: Whose optimizers, precision, schedulers and averages are copied.
        module: Whose parameters and buffers are copied.
        step: Kept beside the state.
        randomness: Whether the random states come along. Attempts that are compared should draw the same numbers; a
            training that was only rolled back should not repeat its dropout masks and augmentations.
    """
    with torch.no_grad():
        tensors = {name: tensor.clone() for name, tensor in _tensors(module)}
        optimizers = [optimizer_state(optimizer) for optimizer in trainer.optimizers]
    return {
        "step": step,
        "tensors": tensors,
        "optimizers": optimizers,
        "schedulers": [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        "precision": _clone(trainer.precision_plugin.state_dict()),
        "averages": [_average(trainer, module, callback) for callback in _averaging(trainer)],
        "random": random_states() if randomness else None,
    }


def restore(trainer: pl.Trainer, module: pl.LightningModule, snapshot: Snapshot, groups: bool = True) -> None:
    """Put everything back; the snapshot may be used again.

    Args:
        trainer: Whose optimizers, precision and schedulers are restored.
        module: Whose parameters and buffers are restored, in place.
        snapshot: As `take` returned it, or as it came back from a checkpoint.
        groups: False leaves learning-rate schedulers and all hyperparameters in the optimizer's groups as they are.
    """
    _restore_tensors(module, snapshot)
    for optimizer, state in zip(trainer.optimizers, snapshot["optimizers"], strict=True):
        _restore_optimizer(optimizer, state, groups)
    if groups:
        for config, state in zip(trainer.lr_scheduler_configs, snapshot["schedulers"], strict=False):
            config.scheduler.load_state_dict(copy.deepcopy(state))
    if snapshot["precision"]:
        trainer.precision_plugin.load_state_dict(_clone(snapshot["precision"]))
    for callback, state in zip(_averaging(trainer), snapshot["averages"], strict=False):
        with _quiet():
            callback.on_load_checkpoint(trainer, module, _clone(state))
    if snapshot["random"] is not None:
        set_random_states(snapshot["random"])


def load(module: pl.LightningModule, optimizer: Optimizer, snapshot: Snapshot) -> None:
    """Put weights, buffers and the first optimizer's state and groups into a copy of the module that has no Trainer."""
    _restore_tensors(module, snapshot)
    _restore_optimizer(optimizer, snapshot["optimizers"][0], groups=True)


def _restore_tensors(module: nn.Module, snapshot: Snapshot) -> None:
    with torch.no_grad():
        for name, tensor in _tensors(module):
            kept = snapshot["tensors"].get(name)  # None for a layer that came later
            if kept is not None and kept.shape == tensor.shape:
                tensor.copy_(kept)
            elif kept is not None:  # a queue or a cache that has grown
                tensor.data = kept.to(tensor.device, copy=True)


def distance(module: nn.Module, snapshot: Snapshot) -> float:
    """Distance of the trainable weights from a snapshot's, relative to the norm of those; 0 for a norm of 0."""
    now, old = [], []
    for name, parameter in module.named_parameters():
        kept = snapshot["tensors"].get(name)
        if parameter.requires_grad and kept is not None and kept.shape == parameter.shape:
            now.append(parameter.detach())
            old.append(kept if kept.device == parameter.device else kept.to(parameter.device))
    if not now:
        return 0.0
    moved, norm = torch.stack([total_norm(torch._foreach_sub(now, old)), total_norm(old)]).tolist()
    return moved / norm if norm else 0.0


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all entries of some dense tensors, in single precision, on the device of the first."""
    norms = list(torch._foreach_norm(list(tensors)))
    if all(norm.dtype == torch.float32 and norm.device == norms[0].device for norm in norms):
        stacked = torch.stack(norms)
    else:
        stacked = torch.stack([norm.float().to(norms[0].device) for norm in norms])
    length: Tensor = torch.linalg.vector_norm(stacked).detach()
    return length


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and all buffers, those outside the state_dict too; a shared tensor appears once."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _clone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {key: _clone(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_clone(entry) for entry in value)
    return copy.deepcopy(value)


# --- optimizers ---


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return a copy of the state, by the number of the parameter, and of the hyperparameters of the groups."""
    state = {
        index: {key: _clone(value) for key, value in optimizer.state[parameter].items()}
        for index, parameter in enumerate(_parameters(optimizer))
        if parameter in optimizer.state
    }
    groups = [
        {key: _clone(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    return {"state": state, "groups": groups}


def _restore_optimizer(optimizer: Optimizer, saved: dict[str, Any], groups: bool) -> None:
    """Like ``load_state_dict``, but without its cast of the state to the dtype of the parameter.

    Groups that were added later (layers that a finetuning callback has thawed) keep their hyperparameters.
    """
    for index, parameter in enumerate(_parameters(optimizer)):
        if index in saved["state"]:
            optimizer.state[parameter] = _beside(_clone(saved["state"][index]), parameter)
        else:
            optimizer.state.pop(parameter, None)
    if not groups:
        return
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=False):
        for key, value in values.items():
            if isinstance(value, Tensor) and isinstance(group.get(key), Tensor):
                group[key].copy_(value)
            else:
                group[key] = _clone(value)


def _beside(state: Any, parameter: Tensor) -> Any:
    """Move what came from a checkpoint to the parameter's device; counters (0 dimensions) stay where they were."""
    if not isinstance(state, dict) or parameter.device.type == "cpu":
        return state
    far = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.ndim}
    return {**state, **{key: value.to(parameter.device) for key, value in far.items()}}


# --- averaged weights ---


def _averaging(trainer: pl.Trainer) -> list[Any]:
    kind = getattr(lightning_callbacks, "WeightAveraging", None)  # since Lightning 2.6
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [] if kind is None else [callback for callback in callbacks if isinstance(callback, kind)]


def _average(trainer: pl.Trainer, module: pl.LightningModule, callback: Any) -> dict[str, Any]:
    """The average through the callback's own checkpoint hook, which is its public way in and out."""
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    callback.on_save_checkpoint(trainer, module, checkpoint)
    return {key: _clone(dict(checkpoint[key])) for key in _AVERAGED if key in checkpoint}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The hook announces every load; a rollback is announced by our log."""
    import logging

    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


# --- random states ---


def random_states() -> dict[str, Any]:
    """Random states of torch (all devices), numpy and Python, in types that load with ``weights_only=True``."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (str(kind), torch.from_numpy(np.array(keys).view(np.int32)), position, has_gauss, cached),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` returned."""
    torch.set_rng_state(states["torch"].cpu())
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().view(np.uint32), position, has_gauss, cached))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in states:
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
