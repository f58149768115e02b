"""``tune``: one call from a module and a space, or from ``tune.yaml``, to a tuned model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_hp.project.build import CliBuilder, PythonBuilder
from lightning_hp.project.python_project import LoadersModule, check_project
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.aside import move_aside
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.curve_store import POINTS
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.finish import Result
from lightning_hp.tuning.progress import StudyDisplay


def tune(
    module: Callable[..., pl.LightningModule],
    datamodule: Callable[..., Any] | pl.LightningDataModule | None = None,
    space: SearchSpace | Mapping[str, Any] | str = "sgd",
    *,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    test_dataloaders: Any = None,
    monitor: str = "val_loss",
    mode: str = "min",
    trials: int = 60,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    trainer: Mapping[str, Any] | None = None,
    name: str = "study",
    folder: str | Path | None = None,
    storage: str = "journal",
    seed: int = 0,
    start: Mapping[str, Any] | str | Path | None = None,
    plan: str = "default",
    prune: bool = True,
    curve_points: int = POINTS,
    gate: bool | Mapping[str, Any] = False,
    engine: str | Mapping[str, Any] = "auto",
    workers: int | None = None,
    confirm: bool | Mapping[str, int] = True,
    keep_checkpoints: int = 3,
    retune_after: str | dict[str, str] | None = None,
    accept_changes: bool = False,
    restart: bool = False,
    progress: bool = True,
    now: datetime | None = None,
) -> Result:
    """Tune a LightningModule.

    Calling it again with the same name continues the study, up to ``trials`` in total.

    Args:
        module: Class or function that takes hyperparameters by name and returns a LightningModule.
        datamodule: The same for the data: it returns a LightningDataModule, or loaders as ``(train, val)`` or
            ``(train, val, test)``. An instance is enough if no hyperparameter belongs to the data. None if the module
            has its own loaders.
        space: A :class:`SearchSpace`, the mapping that it is made from, or the name of a preset. Keys are arguments of
            ``module`` or ``datamodule``, or ``trainer.NAME`` for those of the Trainer. An entry without a default takes
            the argument's own, so that trial 0 is the module as it is.
        train_dataloaders: Loaders instead of a data module. All trials share them; they have no hyperparameters.
        val_dataloaders: For validation.
        test_dataloaders: For the winner's test metrics.
        monitor: Name of the metric, as the module logs it.
        mode: ``min`` or ``max``.
        trials: Total number of trials.
        max_epochs: Length of a complete training, in epochs; None takes it from ``trainer``.
        max_steps: The same in optimiser steps; with both, a training ends at the one that it reaches first.
        trainer: Further arguments of ``Trainer``; callbacks in it are copied for every trial.
        name: Study name.
        folder: Where the study's files go; None for ``runs/NAME``.
        storage: ``journal`` (a file in the folder) or an Optuna URL.
        seed: Seed of the study.
        start: The values that the study starts from, instead of the module's own: a mapping from names to values, the
            folder of a babysat run or of another study, or a JSON file.
        plan: Stage plan, see :class:`lightning_hp.search.CoarseToFineSampler`.
        prune: Whether hopeless trials are stopped.
        curve_points: How many points of a learning curve are stored; the pruner sees all of it.
        gate: Whether the study asks a person in the dashboard before each stage; ``{"timeout": "30m"}`` says how long
            it waits for the answer.
        engine: ``auto``: trials with the same structure are trained together if the module allows it and it is faster,
            else one after another; one line gives the reason. Or by name: ``in_process``, ``stacked``, ``local`` for
            worker processes on this machine, ``ray`` for workers on a Ray cluster. Workers get a copy of the arguments
            of ``tune``; a script needs no ``if __name__ == "__main__"`` for them. A mapping takes all keys of
            ``caviar`` in ``tune.yaml``: ``{"engine": "ray", "gpus": 0.5}``.
        workers: Number of worker processes; None for 2 with ``local`` and ``ray``, else 1.
        confirm: Whether the best configurations are trained again with new seeds at the end, inside the budget, and
            the best mean wins; ``{"candidates": 3, "seeds": 2}`` says how many. This needs at least 20 trials.
        keep_checkpoints: How many of the best trials keep their checkpoints.
        retune_after: Interval such as ``30d``, or tier to interval.
        accept_changes: Whether to continue a study although module, data or Trainer arguments have changed. Otherwise
            a change is an error that names it.
        restart: Whether to move a study with this name to ``runs/NAME.old-1``, and to start a new one.
        progress: Whether to show the trials on standard error: in a terminal a live table, else one line for each.
        now: The date for the ledger, with a time zone; None for the time when the study ends.

    Returns:
        The best trial, its metrics, its checkpoint and the report.

    Raises:
        ConfigError: If an argument does not fit.
        StudyError: If the study cannot be opened, or has to stop.
    """
    caviar: dict[str, Any] = dict(engine) if isinstance(engine, Mapping) else {"engine": engine}
    if workers is not None:
        caviar["workers"] = workers
    settings: dict[str, Any] = {
        "name": name,
        "monitor": monitor,
        "mode": mode,
        "storage": storage,
        "seed": seed,
        "start": start,
        "plan": plan,
        "prune": prune,
        "curve_points": curve_points,
        "gate": gate,
        "caviar": caviar,
        "confirm": confirm,
        "keep_checkpoints": keep_checkpoints,
        "retune_after": retune_after,
        "accept_changes": accept_changes,
    }
    if folder is not None:
        settings["folder"] = str(folder)
    limits = {"trials": trials, "max_epochs": max_epochs, "max_steps": max_steps}
    budget = {limit: value for limit, value in limits.items() if value is not None}
    builder = python_builder(module, datamodule, trainer, train_dataloaders, val_dataloaders, test_dataloaders)
    config = TuneConfig.from_arguments(space, budget, settings, builder)
    if restart:
        move_aside(config.folder, config.name, config.storage)
    return _shown(config, builder, progress, now)


def python_builder(
    module: Any, datamodule: Any, trainer: Any, train_dataloaders: Any, val_dataloaders: Any, test_dataloaders: Any
) -> PythonBuilder:
    """The builder of a project of Python classes.

    Raises:
        ConfigError: If an argument cannot serve every trial.
    """
    check_project(module, datamodule, trainer)
    if train_dataloaders is not None:
        if datamodule is not None:
            raise ConfigError("`datamodule` must be None where `train_dataloaders` is given, got both")
        datamodule = LoadersModule(train_dataloaders, val_dataloaders, test_dataloaders)
    return PythonBuilder(module, datamodule, trainer)


def tune_file(path: str | Path, progress: bool = True) -> Result:
    """Tune what ``tune.yaml`` describes; what ``lightning-hp tune`` does.

    Args:
        path: The file.
        progress: As for :func:`tune`.

    Raises:
        ConfigError: If the file, or a key of it, does not fit.
        StudyError: If the study cannot be opened, or has to stop.
    """
    config = TuneConfig.from_file(path)
    return _shown(config, cli_builder(config), progress)


def _shown(
    config: TuneConfig, builder: CliBuilder | PythonBuilder, progress: bool, now: datetime | None = None
) -> Result:
    if not progress:
        return run(config, builder, now=now)
    with StudyDisplay(config.name, config.search.n_trials, config.monitor, config.mode) as display:
        return run(config, builder, display, now=now)


def cli_builder(config: TuneConfig) -> CliBuilder:
    """The builder of a ``tune.yaml``."""
    assert config.config is not None
    return CliBuilder(config.config, config.model, config.data, config.cli)
