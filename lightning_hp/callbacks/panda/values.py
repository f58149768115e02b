"""Hyperparameters where they live: in the groups of a torch optimizer and in a DataModule.

Several groups keep their ratios: the first group that uses a hyperparameter stands for all, and a new value moves the
others with it (momentum and betas: the ratio of 1 - value is kept). A learning rate of 0 (a frozen group) and a weight
decay of 0 beside decayed groups (biases, gamma, beta) stay 0.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import SGD, Optimizer

from lightning_hp.callbacks.panda.history import Values

_ONE_MINUS = ("momentum", "beta1", "beta2")
_KEYS = {"learning_rate": "lr", "momentum": "momentum", "weight_decay": "weight_decay", "epsilon": "eps"}
_BETAS = {"beta1": 0, "beta2": 1}


def sets_its_own_rate(optimizer: Optimizer) -> bool:
    """Whether an optimizer finds its own step size (Prodigy, D-Adaptation) or schedule (schedule-free).

    The first keep their estimate of the distance to the solution in the groups as ``d``; the second must be switched
    between training and evaluation, so they have methods ``train`` and ``eval``.
    """
    estimates = any("d" in group and ("d0" in group or "d_coef" in group) for group in optimizer.param_groups)
    return estimates or (callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)))


def read_values(optimizer: Optimizer, datamodule: Any = None) -> Values:
    """The present hyperparameters by name; only those that the optimizer and the DataModule have."""
    values: Values = {}
    for name in (*_KEYS, *_BETAS):
        present = [value for value in (_get(group, name) for group in optimizer.param_groups) if value is not None]
        if present:
            values[name] = next((value for value in present if value != 0), present[0])
    if values.get("momentum") == 0 and not _may_gain_momentum(optimizer):
        del values["momentum"]
    size = _batch_size(datamodule)
    if size is not None:
        values["batch_size"] = float(size)
    return values


def _may_gain_momentum(optimizer: Optimizer) -> bool:
    """Whether a momentum of 0 may be raised: others than SGD make its buffer only at their first step (RMSprop)."""
    return isinstance(optimizer, SGD) or any("momentum_buffer" in state for state in optimizer.state.values())


def write_values(optimizer: Optimizer, values: Values, datamodule: Any = None) -> None:
    """Set hyperparameters, the ratios between groups kept.

    A new batch size is only entered in the DataModule; loaders that exist do not change.

    Args:
        optimizer: Whose groups are changed in place.
        values: New values by name.
        datamodule: Has an integer attribute ``batch_size`` if one is among the values.

    Raises:
        ValueError: For a name that neither has.
    """
    present = read_values(optimizer, datamodule)
    for name, value in values.items():
        if name not in present:
            raise ValueError(f"`hyperparameter` must be one of {', '.join(sorted(present))}, got {name!r}")
        if name == "batch_size":
            datamodule.batch_size = round(value)
            continue
        for group in optimizer.param_groups:
            own = _get(group, name)
            if own is not None:
                _set(group, name, _moved(name, own, present[name], value, group))


def _moved(name: str, own: float, reference: float, value: float, group: dict[str, Any]) -> float:
    if own == reference:
        if name == "weight_decay" and own == 0 and all(parameter.ndim < 2 for parameter in group["params"]):
            return 0.0  # a group of biases and norms: nothing was decayed so far, and these should not be
        return value
    if name in _ONE_MINUS:
        return 1 - min(1.0, (1 - value) * (1 - own) / (1 - reference))
    return own * value / reference if reference else own


def _get(group: dict[str, Any], name: str) -> float | None:
    if name in _BETAS:
        betas = group.get("betas")
        return None if betas is None else float(betas[_BETAS[name]])
    value = group.get(_KEYS[name])
    if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    return None  # Adafactor's eps is a pair


def _set(group: dict[str, Any], name: str, value: float) -> None:
    if name in _BETAS:
        betas = list(group["betas"])
        betas[_BETAS[name]] = value
        group["betas"] = tuple(betas)
        return
    key = _KEYS[name]
    if isinstance(group[key], Tensor):
        group[key].fill_(value)  # a tensor may be captured in a graph: the object must stay
    else:
        group[key] = value


def _batch_size(datamodule: Any) -> int | None:
    size = getattr(datamodule, "batch_size", None)
    return size if isinstance(size, int) and not isinstance(size, bool) else None


class LoaderReload:
    """Has Lightning ask for the training loader once more, at the next epoch, and gives its interval back then."""

    def __init__(self) -> None:
        self._interval: int | None = None

    def ask(self, trainer: pl.Trainer) -> None:
        """Reload at the beginning of the next epoch."""
        if self._interval is None:
            self._interval = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
            trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]

    def settle(self, trainer: pl.Trainer) -> bool:
        """Reload no more; True if a reload had been asked for."""
        if self._interval is None:
            return False
        trainer.reload_dataloaders_every_n_epochs = self._interval  # type: ignore[attr-defined]
        self._interval = None
        return True
