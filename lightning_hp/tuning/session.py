"""What is different while a study runs: garbage collection is quick, and what is said at every trial is not said."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator

from lightning_hp.tuning.build import quiet
from lightning_hp.tuning.storage import hushed


@contextlib.contextmanager
def quick_collection() -> Iterator[None]:
    """Keep what the imports brought out of garbage collection, which else takes 0.2 s or more after every trial."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def patient_warnings() -> Iterator[None]:
    """Hold back what Lightning and Optuna say at every single trial."""
    with warnings.catch_warnings(), quiet(), hushed():
        for message in (
            ".*does not have many workers.*",
            ".*smaller than the logging interval.*",
            ".*Checkpoint directory .* exists and is not empty.*",
            ".*Experiment logs directory .* exists and is not empty.*",
            ".*callbacks used to create the checkpoint need to be provided.*",
            r".*isinstance\(treespec, LeafSpec\).*",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
