"""Which tiers are open for which trials: the plan of a study. Boxes follow from its trials, see :mod:`.boxes`.

The ``default`` plan opens the tiers that the budget allows at once, since the engine's model knows how far each tier
is to be trusted: a few starting points, a fine stage over the full ranges, a fine stage zoomed in::

    1 coarse ABC  ->  2 fine ABC  ->  3 fine ABC
    full ranges       full ranges     all boxes

The plan ``opening``, for samplers without such knowledge, opens them in order, one coarse stage each, then zooms in::

    1 coarse A   ->  2 coarse AB  ->  3 coarse ABC  ->  4 fine ABC  ->  5 fine ABC
    A: full range    A: its box       A, B: boxes       all boxes       all boxes, from more trials
                     B: full range    C: full range

A stage is decided by the trial number, a box by the finished trials numbered below the stage's first. Nothing else
enters, so a resumed study and a second worker come to the same answer. All functions are pure.

A person may decide otherwise at a boundary between stages (:func:`apply_decisions`); the study keeps what was decided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lightning_hp.space.space import SearchSpace

Box = Mapping[str, tuple[float, float]]
Plan = Literal["default", "opening", "tiers", "retune"]
PLANS: tuple[Plan, ...] = ("default", "opening", "tiers", "retune")

#: What a person may decide before a stage begins: to draw its box around the good trials, to widen the box, to end.
DECISIONS = ("zoom here", "widen", "stop")
#: The study's user attribute that holds what was decided.
DECIDED = "stage_decisions"
#: Tier -> total number of trials from which it opens. After the Deep Learning Tuning Playbook (Godbole et al., FAQ on
#: Adam): below 10 trials tune the learning rate only, from 10 one group more, from 25 another, the rest with
#: substantially more. A tier opened with fewer trials costs more in the important directions than it can win.
OPENS_FROM: dict[str, int] = {"A": 0, "B": 10, "C": 25, "D": 100}
#: The same for the plans that are left to the engine's model, which knows how far each tier is to be trusted. With B
#: and C closed a study of 6, 8 or 12 trials ended at a regret of .386, .337, .123; with them open at .274, .207, .088,
#: for 1 to 10 % more epochs (LCBench, 17 tasks, 2 seeds; benchmarks/README.md). D gains nothing there.
MODEL_OPENS_FROM: dict[str, int] = {"A": 0, "B": 0, "C": 0, "D": 100}
#: Part of the budget for coarse stages; what is left is split between two fine stages (0.3 and 0.2 of the budget).
COARSE_SHARE, FIRST_FINE_SHARE = 0.5, 0.3
#: In the default plan: trials before the engine's model decides, and the part of the budget for the zoomed stage.
STARTING, ZOOMED_SHARE = 5, 0.25


@dataclass(frozen=True)
class Stage:
    """One step of a study.

    Attributes:
        index: 1-based position in the plan.
        kind: ``coarse`` (explore) or ``fine`` (zoom).
        tiers: The open tiers, in order of importance.
        new: The tiers that this stage opens, searched over their full range.
        first: Number of its first trial.
        last: One past the number of its last trial, as planned; the last stage also takes all later trials.
        box: Stored parameter name to (low, high) on the unit axis; a closed parameter has low == high == its default.
            None while it is not known.
        zoom: Whether the box is drawn around good trials; else it is the full range of the open tiers.
        widen: Whether the box is widened on all sides.
    """

    index: int
    kind: Literal["coarse", "fine"]
    tiers: tuple[str, ...]
    new: tuple[str, ...]
    first: int
    last: int
    box: Box | None = None
    zoom: bool = True
    widen: bool = False

    @property
    def name(self) -> str:
        """Such as ``4 fine ABC``."""
        return f"{self.index} {self.kind} {''.join(self.tiers)}"

    @property
    def tier(self) -> str:
        """The newest open tier."""
        return self.tiers[-1]


def plan_stages(
    space: SearchSpace, n_trials: int, opens_from: Mapping[str, int] | None = None, plan: str = "default"
) -> tuple[Stage, ...]:
    """Plan the stages of a study.

    The most important tier that the space has is always open, the others by budget. A coarse stage's share grows with
    the number of parameters that it opens. With fewer trials than stages the last stages are left out.

    Args:
        space: The parameters.
        n_trials: Planned total number of trials, at least 1.
        opens_from: Tier to the total number of trials from which it opens; where a tier is missing,
            ``MODEL_OPENS_FROM`` for the plans ``default`` and ``retune``, ``OPENS_FROM`` for the others.
        plan: ``default`` has all tiers open from the start; ``opening`` opens them in order and then zooms; ``tiers``
            zooms into each tier before the next one opens; ``retune`` is ``default`` with the first trial alone as
            its coarse stage, for a study that knows an older one.

    Returns:
        Stages without boxes, in order; their trials are contiguous and start at 0.

    Raises:
        ValueError: If ``n_trials`` is below 1, or the plan or a tier is unknown.
    """
    if n_trials < 1:
        raise ValueError(f"`n_trials` must be at least 1, got {n_trials!r}")
    if plan not in PLANS:
        raise ValueError(f"`plan` must be one of {', '.join(PLANS)}, got {plan!r}")
    in_order = plan in ("opening", "tiers")
    tiers = open_tiers(space, n_trials, {**(OPENS_FROM if in_order else MODEL_OPENS_FROM), **(opens_from or {})})
    if plan == "opening":
        return _laid_out(_opening_plan(space, tiers), tiers, n_trials)
    if plan == "tiers":
        return _laid_out(_tiers_plan(space, tiers), tiers, n_trials)
    return _default_plan(tiers, n_trials, STARTING if plan == "default" else 1)


def open_tiers(space: SearchSpace, n_trials: int, opens_from: Mapping[str, int]) -> tuple[str, ...]:
    """The tiers that a budget opens, in order of importance; the most important one of the space is always open.

    Raises:
        ValueError: If ``opens_from`` names an unknown tier.
    """
    unknown = sorted(set(opens_from) - set(OPENS_FROM))
    if unknown:
        raise ValueError(f"`opens_from` must have the tiers {', '.join(OPENS_FROM)}, got {', '.join(unknown)}")
    return tuple(t for t in space.tiers if t == space.tiers[0] or n_trials >= opens_from[t])


#: A stage before it has trial numbers: its kind, how many tiers are open, its share of the budget.
Sketch = tuple[Literal["coarse", "fine"], int, float]


def _weights(space: SearchSpace, tiers: Sequence[str]) -> list[float]:
    """How the budget of opening is divided among the tiers: one part for each tier, one for each of its parameters."""
    counts = [1 + sum(p.tier == t for p in space.parameters) for t in tiers]
    return [count / sum(counts) for count in counts]


def _opening_plan(space: SearchSpace, tiers: Sequence[str]) -> list[Sketch]:
    """Each tier opens in a coarse stage of its own; then two fine stages."""
    opening: list[Sketch] = [("coarse", i, COARSE_SHARE * w) for i, w in enumerate(_weights(space, tiers), start=1)]
    last_share = 1 - COARSE_SHARE - FIRST_FINE_SHARE
    return [*opening, ("fine", len(tiers), FIRST_FINE_SHARE), ("fine", len(tiers), last_share)]


def _tiers_plan(space: SearchSpace, tiers: Sequence[str]) -> list[Sketch]:
    """Each tier has a coarse and a fine stage before the next one opens; then one fine stage for all."""
    sketch: list[Sketch] = []
    for i, weight in enumerate(_weights(space, tiers), start=1):
        sketch += [("coarse", i, COARSE_SHARE * weight), ("fine", i, FIRST_FINE_SHARE * weight)]
    return [*sketch, ("fine", len(tiers), 1 - COARSE_SHARE - FIRST_FINE_SHARE)]


def _laid_out(sketch: Sequence[Sketch], tiers: tuple[str, ...], n_trials: int) -> tuple[Stage, ...]:
    """Sketched stages with trial numbers; with fewer trials than stages the last ones are left out."""
    sketch = sketch[:n_trials]
    sizes = _sizes([share for _, _, share in sketch], n_trials)
    stages: list[Stage] = []
    first = 0
    for index, ((kind, n_open, _), size) in enumerate(zip(sketch, sizes, strict=True), start=1):
        before = stages[-1].tiers if stages else ()
        stages.append(Stage(index, kind, tiers[:n_open], tiers[len(before) : n_open], first, first + size))
        first += size
    return tuple(stages)


def _default_plan(tiers: tuple[str, ...], n_trials: int, starting: int) -> tuple[Stage, ...]:
    """All tiers are open from the start: a few starting points, then two fine stages."""
    start = min(starting, max(1, n_trials // 3))
    zoomed = max(n_trials - max(1, round(ZOOMED_SHARE * n_trials)), start + 1)
    bounds = [(0, start), (start, zoomed), (zoomed, n_trials)]
    stages = [
        Stage(i + 1, "fine" if i else "coarse", tiers, () if i else tiers, first, last, zoom=i == 2)
        for i, (first, last) in enumerate(bounds)
        if first < n_trials
    ]
    return (*stages[:-1], replace(stages[-1], last=n_trials))


def _sizes(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers of at least 1 that sum up to ``total`` and follow the shares (largest remainders)."""
    free = total - len(shares)
    wanted = [max(share / sum(shares) * total - 1, 0.0) for share in shares]
    scale = free / sum(wanted) if sum(wanted) else 0.0
    exact = [w * scale for w in wanted]
    sizes = [math.floor(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (sizes[i] - exact[i], i))
    for i in by_remainder[: free - sum(sizes)]:
        sizes[i] += 1
    return [size + 1 for size in sizes]


def stage_at(planned: Sequence[Stage], number: int) -> Stage:
    """The stage of a trial number; numbers past the plan belong to the last stage."""
    return next((s for s in reversed(planned) if number >= s.first), planned[0])


def apply_decisions(planned: Sequence[Stage], decisions: Mapping[str, str]) -> tuple[Stage, ...]:
    """The stages as a person wants them.

    Args:
        planned: The stages of a study.
        decisions: Number of a stage's first trial, as text, to one of ``DECISIONS``; stages that are not named, and
            ``stop``, which is no matter of boxes, leave a stage as planned.
    """
    answers = [decisions.get(str(stage.first)) for stage in planned]
    return tuple(
        replace(stage, zoom=stage.zoom or answer == "zoom here", widen=answer == "widen")
        for stage, answer in zip(planned, answers, strict=True)
    )
