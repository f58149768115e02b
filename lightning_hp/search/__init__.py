"""The Optuna half: stages, models, samplers, pruners, and the spaces they search. Never imports torch or lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_hp.search.convergence import StopWhenConverged
    from lightning_hp.search.plan import SearchPlan
    from lightning_hp.search.pruner import CurvePruner
    from lightning_hp.search.sampler import CoarseToFineSampler
    from lightning_hp.space.attach import space_of_study
    from lightning_hp.space.parameters import Choice, Float, Int
    from lightning_hp.space.presets import PRESETS, preset
    from lightning_hp.space.scales import sample
    from lightning_hp.space.space import SearchSpace

# loaded on first use (PEP 562): drawing a sample or naming a preset needs no Optuna
_HOMES = {
    "PRESETS": "space.presets",
    "Choice": "space.parameters",
    "CoarseToFineSampler": "search.sampler",
    "CurvePruner": "search.pruner",
    "Float": "space.parameters",
    "Int": "space.parameters",
    "SearchPlan": "search.plan",
    "SearchSpace": "space.space",
    "StopWhenConverged": "search.convergence",
    "preset": "space.presets",
    "sample": "space.scales",
    "space_of_study": "space.attach",
}
__all__ = [
    "PRESETS",
    "Choice",
    "CoarseToFineSampler",
    "CurvePruner",
    "Float",
    "Int",
    "SearchPlan",
    "SearchSpace",
    "StopWhenConverged",
    "preset",
    "sample",
    "space_of_study",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lightning_hp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
