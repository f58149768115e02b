"""lightning_hp: tune what matters first.

Importing this package loads neither torch, nor lightning, nor optuna: public names are loaded on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_hp.callbacks import PandaBabysitter as PandaBabysitter
    from lightning_hp.callbacks.pruning import TrialPruning as TrialPruning
    from lightning_hp.project.yaml_file import ConfigError as ConfigError
    from lightning_hp.retests.from_python import retune as retune
    from lightning_hp.search.pruner import CurvePruner as CurvePruner
    from lightning_hp.search.sampler import CoarseToFineSampler as CoarseToFineSampler
    from lightning_hp.space.presets import preset as preset
    from lightning_hp.space.scales import sample as sample
    from lightning_hp.space.space import SearchSpace as SearchSpace
    from lightning_hp.study.storage import StudyError as StudyError
    from lightning_hp.training import BatchNormClassifier as BatchNormClassifier
    from lightning_hp.training import BatchNormMLP as BatchNormMLP
    from lightning_hp.training import BatchNormRegressor as BatchNormRegressor
    from lightning_hp.training import DigitsDataModule as DigitsDataModule
    from lightning_hp.training import TabularDataModule as TabularDataModule
    from lightning_hp.tuning.config import TuneConfig as TuneConfig
    from lightning_hp.tuning.finish import Result as Result
    from lightning_hp.tuning.tune import tune as tune
    from lightning_hp.tuning.tune import tune_file as tune_file

_HOMES = {
    "preset": "lightning_hp.space.presets",
    "CoarseToFineSampler": "lightning_hp.search.sampler",
    "CurvePruner": "lightning_hp.search.pruner",
    "sample": "lightning_hp.space.scales",
    "SearchSpace": "lightning_hp.space.space",
    "BatchNormClassifier": "lightning_hp.training",
    "BatchNormMLP": "lightning_hp.training",
    "BatchNormRegressor": "lightning_hp.training",
    "DigitsDataModule": "lightning_hp.training",
    "PandaBabysitter": "lightning_hp.callbacks",
    "TabularDataModule": "lightning_hp.training",
    "ConfigError": "lightning_hp.project.yaml_file",
    "TuneConfig": "lightning_hp.tuning.config",
    "Result": "lightning_hp.tuning.finish",
    "StudyError": "lightning_hp.study.storage",
    "TrialPruning": "lightning_hp.callbacks.pruning",
    "retune": "lightning_hp.retests.from_python",
    "tune": "lightning_hp.tuning.tune",
    "tune_file": "lightning_hp.tuning.tune",
}

__version__ = "0.1.0"
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
