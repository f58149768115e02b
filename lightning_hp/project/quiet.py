"""Context managers used while a study runs: repeated announcements and warnings are suppressed, collection is quick."""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator
from functools import lru_cache

from lightning.fabric.utilities import registry

from lightning_hp.study.storage import quiet_optuna


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's announcements (seeds, devices, tips) out of the way; warnings and errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def remembered_plugins() -> Iterator[None]:
    """Look once for what other packages add to every Trainer: Lightning searches all installed packages each time."""
    before = vars(registry)["entry_points"]
    vars(registry)["entry_points"] = lru_cache(before)
    try:
        yield
    finally:
        vars(registry)["entry_points"] = before


@contextlib.contextmanager
def imports_kept() -> Iterator[None]:
    """Keep what a command has imported out of garbage collection, without looking through it first (0.2 s or more)."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def quick_collection() -> Iterator[None]:
    """Keep what there is out of garbage collection, which else takes 0.2 s or more after every trial."""
    is_kept = gc.get_freeze_count() > 0  # within `imports_kept`, which ends it
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not is_kept:
            gc.unfreeze()


@contextlib.contextmanager
def suppress_repeated_warnings() -> Iterator[None]:
    """Hold back what Lightning and Optuna say at every single trial."""
    with warnings.catch_warnings(), quiet_lightning(), quiet_optuna():
        for message in (
            ".*does not have many workers.*",
            ".*smaller than the logging interval.*",
            ".*Checkpoint directory .* exists and is not empty.*",
            ".*Experiment logs directory .* exists and is not empty.*",
            ".*callbacks used to create the checkpoint need to be provided.*",
            ".*The dirpath has changed from.*",
            ".*configure_optimizers. will be overridden by.*",
            r".*isinstance\(treespec, LeafSpec\).*",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
