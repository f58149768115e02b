"""The Optuna half: scales, spaces, stages, samplers, pruners. Never imports torch or lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_hp.search.attach import space_of_study
    from lightning_hp.search.convergence import StopWhenConverged
    from lightning_hp.search.parameters import Choice, Float, Int
    from lightning_hp.search.plan import SearchPlan
    from lightning_hp.search.presets import PRESETS, preset
    from lightning_hp.search.pruner import CurvePruner
    from lightning_hp.search.sampler import CoarseToFineSampler
    from lightning_hp.search.scales import sample
    from lightning_hp.search.space import SearchSpace

# loaded on first use (PEP 562): drawing a sample or naming a preset needs no Optuna
_HOMES = {
    "PRESETS": "presets",
    "Choice": "parameters",
    "CoarseToFineSampler": "sampler",
    "CurvePruner": "pruner",
    "Float": "parameters",
    "Int": "parameters",
    "SearchPlan": "plan",
    "SearchSpace": "space",
    "StopWhenConverged": "convergence",
    "preset": "presets",
    "sample": "scales",
    "space_of_study": "attach",
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
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
