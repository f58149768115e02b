"""Samplers and pruners of Optuna that ``tune.yaml`` names by class path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler

from lightning_hp.project.project_cli import import_path
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.tuning.config import TuneConfig


def base_sampler(block: Mapping[str, Any] | None) -> BaseSampler | None:
    """The sampler that ``sampler`` describes, None for no block.

    Raises:
        ConfigError: See :func:`base_pruner`.
    """
    sampler = _make(block, "sampler", BaseSampler)
    assert sampler is None or isinstance(sampler, BaseSampler)
    return sampler


def base_pruner(block: Mapping[str, Any] | None) -> BasePruner | None:
    """The pruner that ``pruner`` describes, None for no block.

    Raises:
        ConfigError: If the class cannot be imported, does not take its arguments, or is of another kind.
    """
    pruner = _make(block, "pruner", BasePruner)
    assert pruner is None or isinstance(pruner, BasePruner)
    return pruner


def pruner_of(
    config: TuneConfig, sampler: CoarseToFineSampler, max_steps: int, own: Callable[[int], BasePruner] | None
) -> BasePruner:
    """The pruner of a study.

    Args:
        config: Of the study.
        sampler: Of the study; its own pruner is the default.
        max_steps: The step of a complete training.
        own: Makes one from that step, in place of all others.

    Raises:
        ConfigError: See :func:`base_pruner`.
    """
    if not config.prune:
        return NopPruner()
    return own(max_steps) if own is not None else base_pruner(config.pruner) or sampler.pruner()


def _make(block: Mapping[str, Any] | None, key: str, kind: type) -> Any:
    if block is None:
        return None
    source = import_path(block["class_path"], f"{key}.class_path")
    try:
        instance = source(**block.get("init_args", {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`{key}.init_args` must be arguments of {block['class_path']}: {error}") from error
    if not isinstance(instance, kind):
        raise ConfigError(f"`{key}.class_path` must be an Optuna {key}, got {block['class_path']!r}")
    return instance
