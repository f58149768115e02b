"""What a study says about its own search space: which parameters mattered, where the range was too small, what failed.

There is one answer to what mattered: the importance under ``parameters``, measured over the whole study
(:mod:`.importance`). What led within a stage stands under that stage, together with what it is conditional on: the
ranges that the stage searched, the values that it held fixed, and the number of its trials. It answers another question
and is not to be shown without these.

Pure: trials in, plain JSON types out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.boxes import AT_EDGE, OPENED, TOUCH, positions, ranked
from lightning_hp.search.importance import Importance, in_stage, in_study, not_explored
from lightning_hp.search.stages import Stage, stage_at
from lightning_hp.space.known import SHARES, canonical
from lightning_hp.space.parameters import Choice, Float, Parameter
from lightning_hp.space.space import SearchSpace

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
        * ``parameters``: for each its assumed ``tier``; ``open`` (ever searched); and, None where not measured,
          ``importance`` (part of the effect in the study, chance taken off), ``effect`` (more than chance) and
          ``measured_tier`` (as many parameters to a tier as assumed);
        * ``measured_by``: what importance was measured by, ``method`` (``coarse trials``, ``model`` or None) and
          ``trials``;
        * ``why_not_measured``: a sentence, or None;
        * ``stages``: name, index, kind, tiers, trials, and ``within``: what led there, None with too few trials or
          equal values. It holds ``importance`` (parameter to its part of the effect, summing up to 1) and what that is
          conditional on: ``trials`` (without those that left the box to explore), ``between`` (parameter to the lowest
          and highest value that the stage searched, all choices for unordered ones) and ``at`` (parameter to the value
          that it was held at);
        * ``disagreements``: sentences on tiers that the measurement contradicts;
        * ``edges``: parameter, side, bound, trials, sentence for each range that should be wider;
        * ``unimportant``: parameters without effect and with a small part of it; [] with too few trials to say so.

        Evidence written before there was ``within`` has ``importance`` in each stage, without its conditions, and no
        ``measured_by``.

    Raises:
        ValueError: If there is no stage.
    """
    if not stages:
        raise ValueError(f"`stages` must have at least one stage, got {stages!r}")
    order = ranked(trials, direction)
    groups: dict[int, list[FrozenTrial]] = {stage.index: [] for stage in stages}
    for trial in order:
        groups[stage_at(stages, trial.number).index].append(trial)
    measured = in_study(space, stages, groups, direction)
    opened = {tier for stage in stages if groups[stage.index] for tier in stage.tiers}
    # tiers that opened since nothing was left to gain in the planned ones, and the first trial that searched them
    late = {t.user_attrs[OPENED]: t.number for t in reversed(trials) if OPENED in t.user_attrs}
    opened |= late.keys()
    parameters = _parameters(space, opened, measured)
    n_coarse = sum(len(groups[stage.index]) for stage in stages if stage.kind == "coarse")
    unimportant = _unimportant(measured) if n_coarse >= FEWEST_TO_DISMISS else []
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
                "within": _within(space, stage, groups[stage.index], direction),
            }
            for stage in stages
        ],
        "parameters": parameters,
        "measured_by": {"method": measured.method, "trials": measured.trials},
        "disagreements": _disagreements(parameters, unimportant, n_coarse),
        "edges": _edges(space, stages, late, order),
        "unimportant": unimportant,
        "why_not_measured": measured.why_not,
    }


def _counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    counts = {name: sum(t.state is state for t in trials) for name, state in states.items()}
    counts["running"] = sum(t.state is TrialState.RUNNING for t in trials)
    counts["diverged"] = sum(_diverged(t) for t in trials)
    return counts


def _diverged(trial: FrozenTrial) -> bool:
    """Whether a trial is flagged so, or is complete with a value that is no finite number."""
    infinite = trial.state is TrialState.COMPLETE and bool(trial.values) and not math.isfinite(trial.values[0])
    return infinite or bool(trial.user_attrs.get("diverged"))


def _best(space: SearchSpace, order: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    if not order or order[0].state is not TrialState.COMPLETE or not math.isfinite(order[0].values[0]):
        return None
    return {
        "number": order[0].number,
        "value": order[0].values[0],
        "values": space.natural(order[0].params),
    }


# --- importance ---


def _parameters(space: SearchSpace, opened: set[str], measured: Importance) -> dict[str, dict[str, Any]]:
    """Assumed and measured tier of each parameter: the most important ones get the first tiers that were assumed."""
    order = sorted(measured.parts, key=lambda name: -measured.parts[name])
    assumed = sorted(space[name].tier for name in order)
    tiers = dict(zip(order, assumed, strict=True))
    return {
        p.name: {
            "tier": p.tier,
            "open": p.tier in opened,
            "importance": measured.parts.get(p.name),
            "effect": measured.effects.get(p.name),
            "measured_tier": tiers.get(p.name),
        }
        for p in space.parameters
    }


def _within(space: SearchSpace, stage: Stage, trials: Sequence[FrozenTrial], direction: str) -> dict[str, Any] | None:
    """What led within a stage, and what that is conditional on."""
    importance = in_stage(space, stage, trials, direction)
    if importance is None or stage.box is None:
        return None
    between: dict[str, list[Any]] = {}
    held: dict[str, Any] = {}
    for parameter in space.parameters:
        low, high = stage.box[parameter.stored_name]
        if parameter.tier not in stage.tiers and low == high:
            held[parameter.name] = parameter.default
        elif isinstance(parameter, Choice) and parameter.is_categorical:
            between[parameter.name] = list(parameter.labels)
        else:
            inset = TOUCH if parameter.cardinality is not None else 0.0
            ends: list[Any] = [parameter.at(low + inset), parameter.at(high - inset)]
            between[parameter.name] = [parameter.natural(end) for end in ends]
    return {"importance": importance, "trials": len(not_explored(trials)), "between": between, "at": held}


def _unimportant(measured: Importance) -> list[str]:
    least = CLEARLY_LESS / max(len(measured.parts), 1)
    return [name for name, part in measured.parts.items() if not measured.effects[name] and part < least]


def _disagreements(parameters: Mapping[str, Mapping[str, Any]], unimportant: Sequence[str], n_coarse: int) -> list[str]:
    sentences = []
    for name, row in parameters.items():
        if row["importance"] is None:
            continue
        here = f"{name} behaves like tier {row['measured_tier']} here: {row['importance']:.2f} of the effect"
        if row["effect"] and row["measured_tier"] < row["tier"]:
            sentences.append(f"{here} (assumed tier {row['tier']})")
        elif name in unimportant and row["measured_tier"] > row["tier"]:
            sentences.append(f"{here}, no more than chance in {n_coarse} trials (assumed tier {row['tier']})")
    return sentences


# --- edges ---


def _edges(
    space: SearchSpace, stages: Sequence[Stage], late: Mapping[str, int], order: Sequence[FrozenTrial]
) -> list[dict[str, Any]]:
    opened = {tier: stage.first for stage in reversed(stages) for tier in stage.tiers}
    for tier, number in late.items():
        opened.setdefault(tier, number)
    edges = []
    for j, parameter in enumerate(space.parameters):
        if parameter.is_categorical or parameter.tier not in opened:
            continue
        best = [t for t in order[: 2 * BEST_AT_EDGE] if t.number >= opened[parameter.tier]][:BEST_AT_EDGE]
        if len(best) < BEST_AT_EDGE:
            continue
        units = positions(space, best)[:, j]
        step = 0.0 if parameter.cardinality is None else 0.5 / parameter.cardinality
        for side in ("lower", "upper"):
            if _at_the_bottom(parameter) if side == "lower" else _at_the_top(parameter):
                continue
            away = units if side == "lower" else 1.0 - units
            if np.all(away <= max(AT_EDGE, step * (1 + 1e-9))):
                edges.append(_edge(parameter, side, [t.number for t in best]))
    return edges


def _at_the_bottom(parameter: Parameter) -> bool:
    """Whether nothing lies below the range: no share or rate is negative, and no count is below 1."""
    low = parameter.choices[0] if isinstance(parameter, Choice) else parameter.low
    return low == 0 or (low == 1 and not isinstance(parameter, Float))


def _at_the_top(parameter: Parameter) -> bool:
    """Whether nothing lies above the range: what is a share by its name is at most 1."""
    return not isinstance(parameter, Choice) and parameter.high == 1 and canonical(parameter.name) in SHARES


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
