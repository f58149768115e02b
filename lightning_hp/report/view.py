"""What a reader sees of a study: its trials, its stages and the colours they keep on every page.

A :class:`StudyView` is read once from storage and handed to every figure and section, so that all of them agree. It
decides three things: which trials count (complete with a finite value), which stage a trial belongs to, and the colour
of a stage: a hue for the tier it opens, a tint for its place within the tier (coarse is pale, the last fine is full).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.search.stages import Stage, stage_at
from lightning_hp.space.parameters import Parameter
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.description import Description, describe
from lightning_hp.study.trials import ranked_since

_log = logging.getLogger(__name__)
#: tier -> hue; distinguishable with the common colour deficiencies, and on white as well as on near-black
TIER_COLOURS = {"A": "#3d6fd9", "B": "#d9822b", "C": "#1f9d84", "D": "#a35bc4"}
NEUTRAL = "#8b929c"
#: share of white in the palest stage of a tier, and of black (negative) in its last where a tier has several
_PALEST, _DEEPEST = 0.5, -0.15


@dataclass(frozen=True)
class StageView:
    """One stage as shown.

    Attributes:
        index: 1-based position in the plan.
        name: Such as ``1 coarse A``.
        tiers: Tiers that are open.
        first: Number of its first trial.
        last: Number of its last trial, included.
        box: Stored name to (low, high) in units of the parameter's scale; None where the whole range is searched.
        colour: Hexadecimal.
        kind: ``coarse`` or ``fine``.
    """

    index: int
    name: str
    tiers: tuple[str, ...]
    first: int
    last: int
    box: Mapping[str, tuple[float, float]] | None
    colour: str
    kind: str = "coarse"

    @property
    def tier(self) -> str:
        """The tier that it opened last."""
        return self.tiers[-1] if self.tiers else "?"

    def interval(self, stored_name: str) -> tuple[float, float]:
        """Where it samples a parameter, in units of the parameter's scale."""
        low, high = (self.box or {}).get(stored_name, (0.0, 1.0))
        return float(low), float(high)


@dataclass(frozen=True)
class StudyView:
    """A study, read once.

    Attributes:
        name: Its name.
        description: What is stored with it: space, plan, metric.
        trials: All trials, by number.
        stages: All stages known so far, in order; at least one if there are trials.
        attributes: The study's user attributes.
    """

    name: str
    description: Description
    trials: tuple[FrozenTrial, ...]
    stages: tuple[StageView, ...]
    attributes: Mapping[str, Any]

    @classmethod
    def read(cls, study: optuna.Study) -> StudyView:
        """Read a study from storage.

        The stages are the sampler's. Where they cannot be had, or trials were drawn by another plan (a study that was
        prolonged), they are those that the trials name, and a box is the range of the stage's trials.

        Args:
            study: A study that lightning_hp made.

        Raises:
            StudyError: If lightning_hp did not make the study.
        """
        description = describe(study)
        trials = tuple(study.get_trials(deepcopy=False))
        drawn = _ask_sampler(study, description)
        if drawn and _agree(drawn, trials):
            shown = [_from_sampler(stage) for stage in drawn]
        else:
            shown = _named_by_trials(description, trials)
        return cls(study.study_name, description, trials, _coloured(shown), study.user_attrs)

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.description.space

    @property
    def minimises(self) -> bool:
        """Whether smaller is better."""
        return self.description.mode == "min"

    @cached_property
    def complete(self) -> tuple[FrozenTrial, ...]:
        """Complete trials with a finite value: the only ones whose values are compared."""
        return tuple(t for t in self.trials if t.state == TrialState.COMPLETE and finite(t.value))

    @cached_property
    def pruned(self) -> tuple[FrozenTrial, ...]:
        """Trials that were stopped early."""
        return tuple(t for t in self.trials if t.state == TrialState.PRUNED)

    @cached_property
    def failed(self) -> tuple[FrozenTrial, ...]:
        """Trials that failed, and complete ones without a finite value."""
        return tuple(
            t
            for t in self.trials
            if t.state == TrialState.FAIL or (t.state == TrialState.COMPLETE and not finite(t.value))
        )

    @cached_property
    def diverged(self) -> tuple[FrozenTrial, ...]:
        """Complete trials that hold a stand-in for a loss that was not finite."""
        return tuple(t for t in self.complete if t.user_attrs.get("diverged"))

    @cached_property
    def ranked(self) -> tuple[FrozenTrial, ...]:
        """Complete trials of the present project that did not diverge, best first."""
        return tuple(ranked_since(self.trials, self.minimises, self.description.since))

    @property
    def best(self) -> FrozenTrial | None:
        """The best complete trial, None without one."""
        return self.ranked[0] if self.ranked else None

    def stage_of(self, trial: FrozenTrial) -> StageView | None:
        """The stage that a trial was drawn in: the one that it names, else by its number."""
        name = trial.user_attrs.get("stage")
        if name in self._by_name:
            return self._by_name[str(name)]
        return next((s for s in self.stages if s.first <= trial.number <= s.last), None)

    @cached_property
    def _by_name(self) -> dict[str, StageView]:
        return {stage.name: stage for stage in self.stages}

    def colour_of(self, trial: FrozenTrial) -> str:
        """The colour of a trial's stage."""
        stage = self.stage_of(trial)
        return stage.colour if stage else NEUTRAL

    @cached_property
    def reached(self) -> tuple[StageView, ...]:
        """The stages that have trials."""
        last = self.trials[-1].number if self.trials else -1
        return tuple(stage for stage in self.stages if stage.first <= last)

    @cached_property
    def by_tier(self) -> tuple[Parameter, ...]:
        """All parameters, tier A first."""
        return tuple(sorted(self.space.parameters, key=lambda parameter: parameter.tier))

    def positions(self, trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], NDArray[np.float64]]:
        """The trials that hold every parameter, and their positions, shape (n, d) in units of the scales."""
        held = [t for t in trials if all(p.stored_name in t.params for p in self.space.parameters)]
        return held, self.space.unit([t.params for t in held])


def finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number that can be compared and drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def value_of(trial: FrozenTrial) -> float:
    """The value of a complete trial."""
    return float(trial.value)  # type: ignore[arg-type]


def finite_points(trial: FrozenTrial) -> list[tuple[int, float]]:
    """The finite points of a trial's learning curve, (step, value), by step."""
    return sorted((int(s), float(v)) for s, v in trial.intermediate_values.items() if finite(v))


def tint(colour: str, share: float) -> str:
    """A hexadecimal colour mixed with white (``share`` up to 1, which is white) or black (down to -1)."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    end = 255 if share > 0 else 0
    return "#" + "".join(f"{round(p + (end - p) * abs(share)):02x}" for p in parts)


def faded(colour: str, alpha: float) -> str:
    """A hexadecimal colour as CSS rgba."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def _ask_sampler(study: optuna.Study, description: Description) -> list[Stage] | None:
    """The stages as recomputed from storage, None where that is not possible."""
    sampler = study.sampler if isinstance(study.sampler, CoarseToFineSampler) else description.plan.sampler()
    try:
        return sampler.stages(study)
    except Exception:  # a picture without boxes is better than no report
        _log.warning("stages of study %r cannot be read", study.study_name, exc_info=True)
        return None


def _from_sampler(stage: Stage) -> StageView:
    return StageView(stage.index, stage.name, stage.tiers, stage.first, stage.last - 1, stage.box, NEUTRAL, stage.kind)


def _agree(stages: Sequence[Stage], trials: Sequence[FrozenTrial]) -> bool:
    """Whether the stages are those that the trials name."""
    return all(
        "stage" not in trial.user_attrs or trial.user_attrs["stage"] == stage_at(stages, trial.number).name
        for trial in trials
    )


def _named_by_trials(description: Description, trials: Sequence[FrozenTrial]) -> list[StageView]:
    """Stages as the trials name them, in order of their first trials; their boxes are the ranges of their trials."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        groups.setdefault(str(trial.user_attrs.get("stage", "all trials")), []).append(trial)
    stages: list[StageView] = []
    opened: set[str] = set()
    for index, (name, group) in enumerate(groups.items(), start=1):
        opened |= {str(t.user_attrs["tier"]) for t in group if "tier" in t.user_attrs}
        tiers = tuple(tier for tier in description.space.tiers if opened and tier <= max(opened))
        kind = "fine" if "fine" in name else "coarse"
        first, last = group[0].number, group[-1].number
        stages.append(StageView(index, name, tiers, first, last, _hull(description.space, group), NEUTRAL, kind))
    return stages


def _hull(space: SearchSpace, trials: Sequence[FrozenTrial]) -> dict[str, tuple[float, float]]:
    points = [t.params for t in trials if all(p.stored_name in t.params for p in space.parameters)]
    unit = space.unit(points)
    if not points:
        return {}
    return {p.stored_name: (float(u.min()), float(u.max())) for p, u in zip(space.parameters, unit.T, strict=True)}


def _coloured(stages: Sequence[StageView]) -> tuple[StageView, ...]:
    """Stages with their colours: the hue of the tier, paler the earlier the stage is within its tier."""
    coloured = []
    for stage in stages:
        siblings = [s.index for s in stages if s.tier == stage.tier]
        place = siblings.index(stage.index)
        share = 0.0 if len(siblings) == 1 else _PALEST + (_DEEPEST - _PALEST) * place / (len(siblings) - 1)
        hue = TIER_COLOURS.get(stage.tier, NEUTRAL)
        coloured.append(replace(stage, colour=tint(hue, share)))
    return tuple(coloured)
