"""How much each parameter mattered: one measure for a study, and one within a stage that holds only there.

**In the study.** Where a plan explores quasi-randomly, it is PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255):
how far the values of the best quarter of the trials differ from those of all of them, on each parameter's unit axis.
Only coarse trials count, each with the parameters that its stage had open: they are drawn quasi-randomly, while fine
trials are better and narrower at once, which credits every parameter that was narrowed along the way, whether it
mattered or not. Chance is measured by shuffling the values within each stage: what a parameter scores on average then
is taken off its score, and only a score that no shuffle reached counts as an effect (a permutation test at
1 / (1 + ``SHUFFLES``)).

The default plan has but a few quasi-random trials and crowds the others around the optimum, where good and bad ones
differ little. Its surrogate is asked instead: how far the predicted final loss moves along a parameter over its full
range, averaged over the others (main effects; Jones et al. 1998, section 5).

**Within a stage** it is PED-ANOVA over the stage's trials, inside its box. The numbers answer another question: what
separated good from bad there, given where the stage searched and what it held fixed. Near an optimum the parameter that
matters most in the study is settled, and others lead.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.blas_threads import one_blas_thread
from lightning_hp.search.boxes import BEST_PART, EXPLORED, INSIDE, OPENED, loss, positions
from lightning_hp.search.curves import CurveReader
from lightning_hp.search.engine import Engine
from lightning_hp.search.stages import Stage
from lightning_hp.space.parameters import Choice, Float, Parameter
from lightning_hp.space.space import SearchSpace

#: Least part of the sum of the main effects that counts as an effect.
LEAST_PART = 0.05
#: Times that ranks are shuffled; an effect beats all of them, which chance does once in 20.
SHUFFLES = 19
#: Fewest trials to measure a stage, and coarse ones to measure the study: PED-ANOVA wants five trials in its best part.
FEWEST_IN_STAGE, FEWEST_IN_STUDY = 8, 20
#: With so many values or fewer a whole number is counted, not smoothed.
FEW_VALUES = 12

Method = Literal["coarse trials", "model"]


@dataclass(frozen=True)
class Importance:
    """What mattered in a study.

    Attributes:
        method: What it was measured by: the coarse trials alone, or the model of all trials; None where it was not.
        trials: How many finished trials it was measured from, or would have been.
        parts: Natural name to its part of the effect, summing up to 1 (or 0), for the parameters that were measured.
        effects: Natural name to whether its effect is more than chance.
        why_not: Why it was not measured, one sentence, else None.
    """

    method: Method | None
    trials: int
    parts: Mapping[str, float] = field(default_factory=dict)
    effects: Mapping[str, bool] = field(default_factory=dict)
    why_not: str | None = None


@one_blas_thread
def in_study(
    space: SearchSpace, stages: Sequence[Stage], groups: Mapping[int, Sequence[FrozenTrial]], direction: str
) -> Importance:
    """Importance in a study.

    Args:
        space: The parameters.
        stages: The stages of the study.
        groups: Index of a stage to its complete and pruned trials.
        direction: ``minimize`` or ``maximize``.
    """
    coarse = [stage for stage in stages if stage.kind == "coarse"]
    n_coarse = sum(len(groups[stage.index]) for stage in coarse)
    if n_coarse < FEWEST_IN_STUDY and any(not s.zoom and s.kind == "fine" for s in stages):
        return _from_model(space, stages, groups, direction)
    if n_coarse < FEWEST_IN_STUDY:
        why_not = f"importance needs at least {FEWEST_IN_STUDY} finished coarse trials, there are {n_coarse}"
        return Importance(None, n_coarse, why_not=why_not)
    return _from_coarse(space, coarse, groups, direction)


@one_blas_thread
def in_stage(
    space: SearchSpace, stage: Stage, trials: Sequence[FrozenTrial], direction: str
) -> dict[str, float] | None:
    """Importance within a stage: natural name to part of the effect, summing up to 1.

    Args:
        space: The parameters.
        stage: The stage.
        trials: Its complete and pruned trials. Those that left the box to explore do not count (:func:`not_explored`).
        direction: ``minimize`` or ``maximize``.

    Returns:
        The parts of the stage's open parameters; None with too few trials, without a box, or with equal values.
    """
    trials = not_explored(trials)
    if len(trials) < FEWEST_IN_STAGE or stage.box is None:
        return None
    sides = np.array([(0.0, 1.0) if p.is_categorical else stage.box[p.stored_name] for p in space.parameters])
    width = sides[:, 1] - sides[:, 0]
    inside = (_open_positions(space, stage, trials) - sides[:, 0]) / np.where(width > 0, width, 1.0)
    losses = np.array([loss(t, direction) for t in trials])
    scores = _ped_anova(space, np.clip(inside, 0.0, 1.0), [losses])[0]
    total = sum(scores.values())
    return {name: score / total for name, score in scores.items()} if total > 0 else None


def not_explored(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that did not leave their stage's box to explore.

    Explored ones lie anywhere in the whole range, mostly far from all that is good: put into the box they would pile up
    at its edges, with bad values that say nothing of these edges.
    """
    return [t for t in trials if t.user_attrs.get(EXPLORED, INSIDE) == INSIDE]


def _from_coarse(
    space: SearchSpace, coarse: Sequence[Stage], groups: Mapping[int, Sequence[FrozenTrial]], direction: str
) -> Importance:
    """PED-ANOVA over the coarse trials, chance taken off."""
    losses = np.array([loss(t, direction) for stage in coarse for t in groups[stage.index]])
    if np.unique(losses).size < 2:
        return Importance(None, len(losses), why_not="all finished coarse trials have the same value")
    points = np.concatenate([_open_positions(space, stage, groups[stage.index]) for stage in coarse])
    ends = np.cumsum([len(groups[stage.index]) for stage in coarse])[:-1]
    rng = np.random.default_rng(0)
    shuffled = [np.concatenate([rng.permutation(part) for part in np.split(losses, ends)]) for _ in range(SHUFFLES)]
    real, *chance = _ped_anova(space, points, [losses, *shuffled])
    above = {n: max(score - float(np.mean([c[n] for c in chance])), 0.0) for n, score in real.items()}
    total = sum(above.values())
    return Importance(
        "coarse trials",
        len(losses),
        {name: score / total if total > 0 else 0.0 for name, score in above.items()},
        {name: bool(real[name] > max(c[name] for c in chance)) for name in above},
    )


def _from_model(
    space: SearchSpace, stages: Sequence[Stage], groups: Mapping[int, Sequence[FrozenTrial]], direction: str
) -> Importance:
    """Main effects of the surrogate, over the full ranges of what was searched."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    finished = [t for group in groups.values() for t in group if t.state in states]
    model = Engine(space, None).model(CurveReader(space, None, direction == "maximize").read(finished))
    if model is None or len(finished) < FEWEST_IN_STUDY:
        why_not = f"importance needs at least {FEWEST_IN_STUDY} finished trials, there are {len(finished)}"
        return Importance(None, len(finished), why_not=why_not)
    opened = {tier for stage in stages if groups[stage.index] for tier in stage.tiers}
    opened |= {t.user_attrs[OPENED] for t in finished if OPENED in t.user_attrs}
    searched = np.array([p.tier in opened for p in space.parameters])
    parts = model.main_effects(searched)
    if not parts.sum() > 0:
        return Importance(None, len(finished), why_not="no parameter moves the predicted loss")
    by_name = {
        p.name: float(part)
        for p, part, open_ in zip(space.parameters, parts / parts.sum(), searched, strict=True)
        if open_
    }
    return Importance("model", len(finished), by_name, {name: part >= LEAST_PART for name, part in by_name.items()})


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
    present = ~np.isnan(points)
    for j, parameter in enumerate(space.parameters):
        if present[:, j].sum() >= 2 and (parameter.cardinality is None or parameter.cardinality > 1):
            axes[parameter.name] = _axis(parameter)
    with _silent():
        study = optuna.create_study()
        for i in range(len(points)):
            values = {
                p.name: _coordinate(p, points[i, j])
                for j, p in enumerate(space.parameters)
                if p.name in axes and present[i, j]
            }
            distributions = {name: axes[name] for name in values}
            study.add_trial(optuna.create_trial(params=values, distributions=distributions, value=0.0))
        evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_PART)
        return [
            get_param_importances(
                study,
                evaluator=evaluator,
                params=list(axes),
                target=lambda t, losses_of=vector: float(losses_of[t.number]),  # type: ignore[misc]
                normalize=False,
            )
            for vector in losses
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
    """Without Optuna's announcement of a new study, and its warning of targets."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
