"""The OptunaHub package of lightning_hp's sampler. It needs `pip install lightning-hp`."""

from lightning_hp.search import CoarseToFineSampler, CurvePruner, SearchSpace, StopWhenConverged, preset, space_of_study

__all__ = ["CoarseToFineSampler", "CurvePruner", "SearchSpace", "StopWhenConverged", "preset", "space_of_study"]
