"""A space for a study that exists already: its own parameters, with tiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hp.space.known import guess
from lightning_hp.space.space import SearchSpace


def space_of_study(study: optuna.Study, tiers: Mapping[str, str] | None = None) -> SearchSpace:
    """The space of a study's own parameters, for going on with a :class:`CoarseToFineSampler`.

    Ranges, log axes and choices are those of the study, of its latest trial where they changed: Optuna allows no other
    scale under the same name. Parameters that only some trials have, or that lie on a grid (``step``), are left out,
    and stay with the sampler's own TPE.

    Args:
        study: With at least one trial that has parameters.
        tiers: Parameter to tier, ``A`` to ``D``; None, or what is missing, takes what the name tells, else ``B``.

    Returns:
        A space with the study's names; defaults are the values of its best trial, where it has one.

    Raises:
        ValueError: If no parameter is in all trials, or a tier is given to one that the study does not have.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.distributions]
    shared = [name for name in (trials[-1].distributions if trials else ()) if all(name in t.params for t in trials)]
    if not shared:
        raise ValueError("`study` must have trials that share a parameter, got none")
    unknown = sorted(set(tiers or ()) - set(shared))
    if unknown:
        raise ValueError(f"`tiers` must name parameters of the study ({', '.join(shared)}), got {unknown[0]!r}")
    best = _best_of(study)
    entries: dict[str, dict[str, Any]] = {}
    for name in shared:
        entry = _entry(trials[-1].distributions[name])
        if entry is None:
            continue
        entry["tier"] = (tiers or {}).get(name, guess(name).tier)
        value = best.get(name)
        if value is not None and ("choices" in entry or entry["low"] <= value <= entry["high"]):
            entry["default"] = value
        entries[name] = entry
    return SearchSpace.from_dict(entries)


def _best_of(study: optuna.Study) -> Mapping[str, Any]:
    try:
        return study.best_params
    except (ValueError, RuntimeError):  # no complete trial, or several objectives
        return {}


def _entry(distribution: BaseDistribution) -> dict[str, Any] | None:
    """The fields of an entry; None for a single value, and for values on a grid, which a space does not have."""
    if distribution.single():
        return None
    if isinstance(distribution, CategoricalDistribution):
        return {"choices": list(distribution.choices)}
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.step not in (None, 1):
        return None
    scale = "log" if distribution.log else "linear"
    return {"low": distribution.low, "high": distribution.high, "scale": scale}
