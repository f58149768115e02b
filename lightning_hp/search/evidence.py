"""What a study says about its own search space: which parameters mattered, where the range was too small, what failed.

Importance is PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255): how far the values of the best quarter of the
trials differ from those of all of them, on each parameter's unit axis. It is measured once per stage, inside the
stage's box, and once for the study. For the study only coarse trials count, each with the parameters that its stage had
open: they are drawn quasi-randomly, while fine trials are better and narrower at once, which credits every parameter
that was narrowed along the way, whether it mattered or not. Chance is measured by shuffling the values within each
stage: what a parameter scores on average then is taken off its score, and only a score that no shuffle reached counts
as an effect (a permutation test at 1 / (1 + ``SHUFFLES``)).

The default plan has but a few quasi-random trials and crowds the others around the optimum, where good and bad ones
differ little. For the study its surrogate is asked instead: how far the predicted final loss moves along a parameter,
averaged over the others (main effects; Jones et al. 1998, section 5). It is never called unimportant from that alone.

Pure: trials in, plain JSON types out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.boxes import AT_EDGE, BEST_PART, loss, positions, ranked
from lightning_hp.search.curves import CurveReader
from lightning_hp.search.engine import Engine
from lightning_hp.search.parameters import Choice, Float, Parameter
from lightning_hp.search.space import SearchSpace
from lightning_hp.search.stages import Stage, stage_at

#: Least part of the sum of the main effects that counts as an effect.
LEAST_PART = 0.05
#: Times that ranks are shuffled; an effect beats all of them, which chance does once in 20.
SHUFFLES = 19
#: Fewest trials to measure a stage, and coarse ones to measure the study: PED-ANOVA wants five trials in its best part.
FEWEST_IN_STAGE, FEWEST_IN_STUDY = 8, 20
#: With so many values or fewer a whole number is counted, not smoothed.
FEW_VALUES = 12
#: Fewest coarse trials to call a parameter unimportant. A learning rate that carried most of the effect was dismissed
#: in 6 of 30 simulated studies with 20 coarse trials, in none with 30, 40, 60 or 100.
FEWEST_TO_DISMISS = 30
#: A parameter without effect whose part is below this much of an equal share is called unimportant.
CLEARLY_LESS = 0.5
#: Edges are judged by so many of the best trials.
BEST_AT_EDGE = 3


def evidence(
    space: SearchSpace, trials: Sequence[FrozenTrial], direction: str, stages: Sequence[Stage]
) -> dict[str, Any]:
    """What the trials say about the space.

    Args:
        space: The parameters.
        trials: Trials of the study, of any state.
        direction: ``minimize`` or ``maximize``.
        stages: The stages, with boxes where known (``CoarseToFineSampler.stages``).

    Returns:
        Plain JSON types, by natural parameter names:

        * ``counts``: complete, pruned, failed, running, diverged;
        * ``best``: number, value and natural values of the best complete trial, or None;
        * ``stages``: name, index, kind, tiers, trials, and ``importance`` (parameter to its part of the effect, summing
          up to 1), None with too few trials or equal values;
        * ``parameters``: for each its assumed ``tier``; ``open`` (ever searched); and, None where not measured,
          ``importance`` (part of the effect in the study, chance taken off), ``effect`` (more than chance) and
          ``measured_tier`` (as many parameters to a tier as assumed);
        * ``disagreements``: sentences on tiers that the measurement contradicts;
        * ``edges``: parameter, side, bound, trials, sentence for each range that should be wider;
        * ``unimportant``: parameters without effect and with a small part of it; [] with too few trials to say so;
        * ``why_not_measured``: a sentence, or None.

    Raises:
        ValueError: If there is no stage.
    """
    if not stages:
        raise ValueError(f"`stages` must have at least one stage, got {stages!r}")
    order = ranked(trials, direction)
    groups: dict[int, list[FrozenTrial]] = {stage.index: [] for stage in stages}
    for trial in order:
        groups[stage_at(stages, trial.number).index].append(trial)
    parameters, why_not = _parameters(space, stages, groups, direction)
    n_coarse = sum(len(groups[stage.index]) for stage in stages if stage.kind == "coarse")
    unimportant = _unimportant(parameters) if n_coarse >= FEWEST_TO_DISMISS else []
    return {
        "counts": _counts(trials),
        "best": _best(space, order),
        "stages": [
            {
                "name": stage.name,
                "index": stage.index,
                "kind": stage.kind,
                "tiers": list(stage.tiers),
                "trials": len(groups[stage.index]),
                "importance": _in_stage(space, stage, groups[stage.index], direction),
            }
            for stage in stages
        ],
        "parameters": parameters,
        "disagreements": _disagreements(parameters, unimportant, n_coarse),
        "edges": _edges(space, stages, order),
        "unimportant": unimportant,
        "why_not_measured": why_not,
    }


def _counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    counts = {name: sum(t.state is state for t in trials) for name, state in states.items()}
    counts["running"] = sum(t.state is TrialState.RUNNING for t in trials)
    counts["diverged"] = sum(_diverged(t) for t in trials)
    return counts


def _diverged(trial: FrozenTrial) -> bool:
    """Flagged so, or told with a value that is no finite number."""
    told = trial.state is TrialState.COMPLETE and bool(trial.values) and not math.isfinite(trial.values[0])
    return told or bool(trial.user_attrs.get("diverged"))


def _best(space: SearchSpace, order: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    if not order or order[0].state is not TrialState.COMPLETE or not math.isfinite(order[0].values[0]):
        return None
    return {
        "number": order[0].number,
        "value": order[0].values[0],
        "values": space.natural(order[0].params),
    }


# --- importance ---


def _in_stage(
    space: SearchSpace, stage: Stage, trials: Sequence[FrozenTrial], direction: str
) -> dict[str, float] | None:
    if len(trials) < FEWEST_IN_STAGE or stage.box is None:
        return None
    sides = np.array([(0.0, 1.0) if p.is_categorical else stage.box[p.stored_name] for p in space.parameters])
    width = sides[:, 1] - sides[:, 0]
    inside = (_open_positions(space, stage, trials) - sides[:, 0]) / np.where(width > 0, width, 1.0)
    losses = np.array([loss(t, direction) for t in trials])
    scores = _ped_anova(space, np.clip(inside, 0.0, 1.0), [losses])[0]
    total = sum(scores.values())
    return {name: score / total for name, score in scores.items()} if total > 0 else None


def _parameters(
    space: SearchSpace, stages: Sequence[Stage], groups: Mapping[int, Sequence[FrozenTrial]], direction: str
) -> tuple[dict[str, dict[str, Any]], str | None]:
    """The study-wide measurement, by natural name, and why there is none."""
    searched = {tier for stage in stages if groups[stage.index] for tier in stage.tiers}
    found: dict[str, dict[str, Any]] = {
        p.name: {
            "tier": p.tier,
            "open": p.tier in searched,
            "importance": None,
            "effect": None,
            "measured_tier": None,
        }
        for p in space.parameters
    }
    coarse = [stage for stage in stages if stage.kind == "coarse"]
    trials = [t for stage in coarse for t in groups[stage.index]]
    if len(trials) < FEWEST_IN_STUDY and any(not s.zoom and s.kind == "fine" for s in stages):
        return _from_model(space, [t for group in groups.values() for t in group], direction, found)
    if len(trials) < FEWEST_IN_STUDY:
        return found, f"importance needs at least {FEWEST_IN_STUDY} finished coarse trials, there are {len(trials)}"
    losses = np.array([loss(t, direction) for t in trials])
    if np.unique(losses).size < 2:
        return found, "all finished coarse trials have the same value"
    points = np.concatenate([_open_positions(space, stage, groups[stage.index]) for stage in coarse])
    ends = np.cumsum([len(groups[stage.index]) for stage in coarse])[:-1]
    rng = np.random.default_rng(0)
    shuffled = [np.concatenate([rng.permutation(part) for part in np.split(losses, ends)]) for _ in range(SHUFFLES)]
    real, *chance = _ped_anova(space, points, [losses, *shuffled])
    effects = {n: max(score - float(np.mean([c[n] for c in chance])), 0.0) for n, score in real.items()}
    total = sum(effects.values())
    for name, effect in effects.items():
        found[name]["importance"] = effect / total if total > 0 else 0.0
        found[name]["effect"] = bool(real[name] > max(c[name] for c in chance))
    by_importance = sorted(effects, key=lambda n: -effects[n])
    for name, tier in zip(by_importance, sorted(found[n]["tier"] for n in effects), strict=True):
        found[name]["measured_tier"] = tier
    return found, None


def _open_positions(space: SearchSpace, stage: Stage, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
    """Positions, shape (n, d), with NaN where the stage does not search: a default would look like a preference."""
    points = positions(space, trials)
    points[:, [p.tier not in stage.tiers for p in space.parameters]] = np.nan
    return points


def _ped_anova(
    space: SearchSpace, points: NDArray[np.float64], losses: Sequence[NDArray[np.float64]]
) -> list[dict[str, float]]:
    """PED-ANOVA scores by natural name, once for each vector of losses (n,) of the same points (n, d)."""
    axes: dict[str, BaseDistribution] = {}
    held = ~np.isnan(points)
    for j, parameter in enumerate(space.parameters):
        if held[:, j].sum() >= 2 and (parameter.cardinality is None or parameter.cardinality > 1):
            axes[parameter.name] = _axis(parameter)
    with _silent():
        study = optuna.create_study()
        for i in range(len(points)):
            here = {
                p.name: _coordinate(p, points[i, j])
                for j, p in enumerate(space.parameters)
                if p.name in axes and held[i, j]
            }
            distributions = {n: axes[n] for n in here}
            study.add_trial(optuna.create_trial(params=here, distributions=distributions, value=0.0))
        judge = PedAnovaImportanceEvaluator(target_quantile=BEST_PART)
        return [
            get_param_importances(
                study,
                evaluator=judge,
                params=list(axes),
                target=lambda t, values=values: float(values[t.number]),  # type: ignore[misc]
                normalize=False,
            )
            for values in losses
        ]


def _axis(parameter: Parameter) -> BaseDistribution:
    """The unit axis, or the places of a few values: on a continuum, PED-ANOVA's kernels would see gaps between them."""
    if parameter.is_categorical:
        return CategoricalDistribution(tuple(range(parameter.cardinality or 1)))
    if parameter.cardinality is not None and parameter.cardinality <= FEW_VALUES:
        return IntDistribution(0, parameter.cardinality - 1)
    return FloatDistribution(0.0, 1.0)


def _coordinate(parameter: Parameter, unit: float) -> float | int:
    if isinstance(parameter, Float) or ((parameter.cardinality or 1) > FEW_VALUES and not parameter.is_categorical):
        return float(unit)
    value = parameter.at(unit)
    return parameter.labels.index(value) if isinstance(parameter, Choice) else int(value) - parameter.low


@contextmanager
def _silent() -> Iterator[None]:
    """Optuna tells of every new study, and warns of targets; neither concerns the reader here."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _unimportant(parameters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    parts = {name: found["importance"] for name, found in parameters.items() if found["importance"] is not None}
    return [n for n, part in parts.items() if not parameters[n]["effect"] and part < CLEARLY_LESS / len(parts)]


def _from_model(
    space: SearchSpace, trials: Sequence[FrozenTrial], direction: str, found: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Importance from the surrogate's main effects, over the full ranges of what was searched."""
    engine = Engine(space, None)
    finished = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    model = engine.model(CurveReader(space, None, direction == "maximize").read(finished))
    if model is None or len(finished) < FEWEST_IN_STUDY:
        return found, f"importance needs at least {FEWEST_IN_STUDY} finished trials, there are {len(finished)}"
    searched = np.array([found[p.name]["open"] for p in space.parameters])
    parts = model.main_effects(searched)
    if not parts.sum() > 0:
        return found, "no parameter moves the predicted loss"
    parts = parts / parts.sum()
    opened = [(p, float(part)) for p, part, on in zip(space.parameters, parts, searched, strict=True) if on]
    order = sorted(opened, key=lambda pair: -pair[1])
    tiers = sorted(p.tier for p, _ in opened)
    for (parameter, part), tier in zip(order, tiers, strict=True):
        found[parameter.name] |= {"importance": part, "effect": part >= LEAST_PART, "measured_tier": tier}
    return found, None


def _disagreements(parameters: Mapping[str, Mapping[str, Any]], unimportant: Sequence[str], n_coarse: int) -> list[str]:
    said = []
    for name, found in parameters.items():
        if found["importance"] is None:
            continue
        here = f"{name} behaves like tier {found['measured_tier']} here: {found['importance']:.2f} of the effect"
        if found["effect"] and found["measured_tier"] < found["tier"]:
            said.append(f"{here} (assumed tier {found['tier']})")
        elif name in unimportant and found["measured_tier"] > found["tier"]:
            said.append(f"{here}, no more than chance in {n_coarse} trials (assumed tier {found['tier']})")
    return said


# --- edges ---


def _edges(space: SearchSpace, stages: Sequence[Stage], order: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    opened = {tier: stage.first for stage in reversed(stages) for tier in stage.tiers}
    found = []
    for j, parameter in enumerate(space.parameters):
        if parameter.is_categorical or parameter.tier not in opened:
            continue
        best = [t for t in order[: 2 * BEST_AT_EDGE] if t.number >= opened[parameter.tier]][:BEST_AT_EDGE]
        if len(best) < BEST_AT_EDGE:
            continue
        units = positions(space, best)[:, j]
        step = 0.0 if parameter.cardinality is None else 0.5 / parameter.cardinality
        for side in ("lower", "upper"):
            if side == "lower" and _at_the_bottom(parameter):
                continue
            away = units if side == "lower" else 1.0 - units
            if np.all(away <= max(AT_EDGE, step * (1 + 1e-9))):
                found.append(_edge(parameter, side, [t.number for t in best]))
    return found


def _at_the_bottom(parameter: Parameter) -> bool:
    """Nothing lies below: no share or rate is negative, no count below 1."""
    low = parameter.choices[0] if isinstance(parameter, Choice) else parameter.low
    return low == 0 or (low == 1 and not isinstance(parameter, Float))


def _edge(parameter: Parameter, side: str, numbers: Sequence[int]) -> dict[str, Any]:
    low, high = (
        (parameter.choices[0], parameter.choices[-1])
        if isinstance(parameter, Choice)
        else (parameter.low, parameter.high)
    )
    bound, beyond = (low, "below") if side == "lower" else (high, "above")
    sentence = (
        f"widen {parameter.name} {beyond} {bound}: the best {len(numbers)} trials lie within a tenth of the {side} end"
    )
    return {"parameter": parameter.name, "side": side, "bound": bound, "trials": list(numbers), "sentence": sentence}
