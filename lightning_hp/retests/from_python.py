"""``retune``: one call that re-tests and refreshes a study of Python classes, as ``lightning-hp retune`` does files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_hp.retests.retune import Retuned, retune_study
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.description import describe
from lightning_hp.study.storage import find_study
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.progress import StudyDisplay
from lightning_hp.tuning.tune import python_builder


def retune(
    study: str | Path,
    module: Callable[..., pl.LightningModule],
    datamodule: Callable[..., Any] | pl.LightningDataModule | None = None,
    space: SearchSpace | Mapping[str, Any] | None = None,
    *,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    test_dataloaders: Any = None,
    trainer: Mapping[str, Any] | None = None,
    neighbours: int = 4,
    trials: int | None = None,
    test: bool = True,
    search: bool = True,
    progress: bool = True,
    now: datetime | None = None,
    engine: str = "auto",
) -> Retuned:
    """Re-test the best values of a study that :func:`tune` made, on today's data; refresh it where they are beaten.

    What ``lightning-hp retune`` does for a ``tune.yaml``. Metric, seed and length of a training are those of the study.

    Args:
        study: The study folder, or the name of one in ``runs``.
        module: As for :func:`tune`.
        datamodule: As for :func:`tune`, with today's data.
        space: Today's ranges of the same parameters; None for those of the study.
        train_dataloaders: As for :func:`tune`.
        val_dataloaders: As for :func:`tune`.
        test_dataloaders: As for :func:`tune`.
        trainer: Further arguments of ``Trainer``.
        neighbours: How many neighbours of the best are re-tested.
        trials: What a new study adds to those of the re-test; None for a quarter of the first study's.
        test: Whether to re-test first; without, a new study is run in any case.
        search: Whether to run a new study; without, the re-test alone decides.
        progress: As for :func:`tune`.
        now: The clock, with a time zone; None is the current time.
        engine: ``auto`` to train settings of one structure, and the seeds of one, together where the module allows it
            and it pays; ``stacked`` in any case; or ``in_process``.

    Raises:
        ConfigError: If an argument does not fit the study.
        StudyError: If there is no such study, or it has no best trial.
    """
    builder = python_builder(module, datamodule, trainer, train_dataloaders, val_dataloaders, test_dataloaders)
    stored, paths = find_study(str(study))
    description = describe(stored)
    settings: dict[str, Any] = {"name": stored.study_name, "monitor": description.monitor, "mode": description.mode}
    settings |= {"folder": str(paths.root), "seed": description.plan.seed, "caviar": {"engine": engine}}
    budget = {"trials": description.plan.n_trials}
    config = TuneConfig.from_arguments(description.space if space is None else space, budget, settings, builder)
    refresh = partial(
        retune_study, str(paths.root), config, builder, k=neighbours, trials=trials, test=test, search=search, now=now
    )
    if not progress:
        return refresh()
    with StudyDisplay(config.name, config.search.n_trials, config.monitor, config.mode) as display:
        return refresh(listener=display)
