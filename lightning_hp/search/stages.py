"""Which tiers are open, in which box, for which trials: the plan of a study, and its boxes as they follow from trials.

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

A person may decide otherwise at a boundary between stages (:func:`decided`); the study keeps what was decided.

A box is the hull of the best quarter of those trials (at least two) on each parameter's unit axis, with a margin.
``m`` points drawn uniformly from an interval span (m - 1) / (m + 1) of it on average, so adding hull / (m - 1) on both
sides estimates its ends without bias. A parameter that does not matter has good values everywhere and keeps a wide box;
one that matters is narrowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.parameters import Choice, Int, Parameter
from lightning_hp.search.scales import to_unit
from lightning_hp.search.space import SearchSpace

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
#: Part of the budget for coarse stages; what is left is split between two fine stages (0.3 and 0.2 of the budget).
COARSE_SHARE, FIRST_FINE_SHARE = 0.5, 0.3
#: In the default plan: trials before the engine's model decides, and the part of the budget for the zoomed stage.
STARTING, ZOOMED_SHARE = 5, 0.25
#: A box is drawn around this part of the finished trials, once there are at least so many.
BEST_PART, FEWEST_TRIALS = 0.25, 4
#: Least width of a box on the unit axis. Wide in coarse stages, where newly opened parameters move the optimum: over
#: momentum 0.9 to 0.999 the step lr / (1 - momentum) grows by two decades, half of a learning-rate range of four.
LEAST_WIDTH: dict[str, float] = {"coarse": 0.5, "fine": 0.15}
#: A point within this part of a box's width of its edge is at the edge.
AT_EDGE = 0.1
#: An edge at which the best point sits moves out by this part of the box's width.
WIDEN_BY = 0.5
#: So little inside its end a position belongs to the whole number or choice of that side.
TOUCH = 1e-9


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


# --- the plan ---


def plan_stages(
    space: SearchSpace, n_trials: int, opens_from: Mapping[str, int] | None = None, plan: str = "default"
) -> tuple[Stage, ...]:
    """Plan the stages of a study.

    The most important tier that the space has is always open, the others by budget. A coarse stage's share grows with
    the number of parameters that it opens. With fewer trials than stages the last stages are left out.

    Args:
        space: The parameters.
        n_trials: Planned total number of trials, at least 1.
        opens_from: Tier to the total number of trials from which it opens; ``OPENS_FROM`` where a tier is missing.
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
    opens = {**OPENS_FROM, **(opens_from or {})}
    unknown = sorted(set(opens) - set(OPENS_FROM))
    if unknown:
        raise ValueError(f"`opens_from` must have the tiers {', '.join(OPENS_FROM)}, got {', '.join(unknown)}")
    most_important = space.tiers[0]
    tiers = tuple(t for t in space.tiers if t == most_important or n_trials >= opens[t])
    if plan in ("default", "retune"):
        return _default_plan(tiers, n_trials, STARTING if plan == "default" else 1)
    counts = {t: sum(p.tier == t for p in space.parameters) for t in tiers}
    weights = {t: (1 + counts[t]) / sum(1 + c for c in counts.values()) for t in tiers}
    sketch: list[tuple[Literal["coarse", "fine"], int, float]] = []  # kind, open tiers, share
    for i, tier in enumerate(tiers, start=1):
        if plan == "opening":
            sketch.append(("coarse", i, COARSE_SHARE * weights[tier]))
        else:
            sketch += [("coarse", i, COARSE_SHARE * weights[tier]), ("fine", i, FIRST_FINE_SHARE * weights[tier])]
    if plan == "opening":
        sketch.append(("fine", len(tiers), FIRST_FINE_SHARE))
    sketch.append(("fine", len(tiers), 1 - COARSE_SHARE - FIRST_FINE_SHARE))
    sketch = sketch[:n_trials]
    stages: list[Stage] = []
    first = 0
    sizes = _sizes([share for _, _, share in sketch], n_trials)
    for index, ((kind, n_open, _), size) in enumerate(zip(sketch, sizes, strict=True), start=1):
        before = stages[-1].tiers if stages else ()
        stages.append(Stage(index, kind, tiers[:n_open], tiers[len(before) : n_open], first, first + size))
        first += size
    return tuple(stages)


def _default_plan(tiers: tuple[str, ...], n_trials: int, starting: int) -> tuple[Stage, ...]:
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


def decided(planned: Sequence[Stage], decisions: Mapping[str, str]) -> tuple[Stage, ...]:
    """The stages as a person wants them.

    Args:
        planned: The stages of a study.
        decisions: Number of a stage's first trial, as text, to one of ``DECISIONS``; stages that are not named, and
            ``stop``, which is no matter of boxes, leave a stage as planned.
    """
    said = [decisions.get(str(stage.first)) for stage in planned]
    return tuple(
        replace(stage, zoom=stage.zoom or answer == "zoom here", widen=answer == "widen")
        for stage, answer in zip(planned, said, strict=True)
    )


# --- boxes ---


def loss(trial: FrozenTrial, direction: str = "minimize") -> float:
    """What a trial is ranked by, lower is better: its value, or the last reported one; inf where there is none.

    Args:
        trial: A finished trial of a study with one objective.
        direction: ``minimize`` or ``maximize``.
    """
    value = trial.values[0] if trial.values else None
    if value is None and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    if value is None or math.isnan(value):
        return math.inf
    return -value if direction == "maximize" else value


def ranked(trials: Sequence[FrozenTrial], direction: str = "minimize") -> list[FrozenTrial]:
    """Complete and pruned trials, the best first; failed, waiting and running ones, and those without value, dropped.

    A pruned trial stands where its last report puts it among the final values. Where curves improve with
    training it would have ended better than that, so it is not flattered; still, the first place, which pulls the box
    by itself, is kept for a complete trial. (To rank all pruned trials behind all complete ones would put diverged
    trials, which are complete, ahead of promising ones.)

    Args:
        trials: Trials of any state.
        direction: ``minimize`` or ``maximize``.
    """
    finished = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    scored = [(loss(t, direction), t.state is TrialState.PRUNED, t.number, t) for t in finished]
    scored = sorted((s for s in scored if not s[1] or s[0] < math.inf), key=lambda s: s[:3])
    best = next((i for i, s in enumerate(scored) if not s[1] and math.isfinite(s[0])), 0)
    return [s[3] for s in [*scored[best : best + 1], *scored[:best], *scored[best + 1 :]]]


def positions(space: SearchSpace, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
    """Where trials lie on the unit axes, shape (n, d); NaN where a value is missing, inactive or not of this space."""
    found = np.full((len(trials), len(space)), np.nan)
    for j, parameter in enumerate(space.parameters):
        name, wide = parameter.stored_name, parameter.distribution
        held = [(i, t.params[name]) for i, t in enumerate(trials) if name in t.params]
        if isinstance(parameter, Choice):
            held = [(i, v) for i, v in held if v in parameter.choices]
        else:
            held = [(i, v) for i, v in held if type(trials[i].distributions[name]) is type(wide)]
        if held:
            found[[i for i, _ in held], j] = parameter.unit([v for _, v in held])
    if any(p.active_if for p in space.parameters):
        default = space.defaults()
        for i, trial in enumerate(trials):
            point = {**default, **{k: v for k, v in trial.params.items() if k in default}}
            found[i, ~space.active(point)] = np.nan
    return found


def box(
    space: SearchSpace,
    finished: Sequence[FrozenTrial],
    planned: Stage,
    previous: Box | None,
    direction: str = "minimize",
) -> dict[str, tuple[float, float]]:
    """The box of a stage.

    Args:
        space: The parameters.
        finished: Trials of the study; only complete and pruned ones numbered below ``planned.first`` are used.
        planned: The stage.
        previous: The box of the stage before, None for the first.
        direction: ``minimize`` or ``maximize``.

    Returns:
        Stored name to (low, high) within [0, 1]. New tiers have their full range, closed ones low == high == default.
        For the others the box holds the best point; its width is at least ``LEAST_WIDTH`` (whole numbers and ordered
        choices: the neighbours of the good values). Where the best point was within a tenth of an edge of the previous
        box that edge is moved out, at most to the end of the range. Unordered choices are never narrowed.
    """
    order = ranked([t for t in finished if t.number < planned.first], direction)
    enough = len(order) >= FEWEST_TRIALS
    good = [t for t in order[: max(2, math.ceil(BEST_PART * len(order)))] if math.isfinite(loss(t, direction))]
    points = positions(space, good) if enough and good else np.empty((0, len(space)))
    found: dict[str, tuple[float, float]] = {}
    for j, parameter in enumerate(space.parameters):
        name = parameter.stored_name
        if parameter.tier not in planned.tiers:
            default = float(parameter.unit([parameter.store(parameter.default)])[0])
            found[name] = (default, default)
            continue
        before = (0.0, 1.0) if previous is None or parameter.tier in planned.new else previous[name]
        values = points[:, j][~np.isnan(points[:, j])]
        if parameter.tier in planned.new or parameter.is_categorical or len(values) < 2 or not planned.zoom:
            found[name] = before
        else:
            found[name] = _zoom(parameter, values, before, LEAST_WIDTH[planned.kind])
    return found


def _zoom(
    parameter: Parameter, values: NDArray[np.float64], before: tuple[float, float], least: float
) -> tuple[float, float]:
    """One side of a box from the good positions, the best first, at least two of them."""
    best, low, high = float(values[0]), float(values.min()), float(values.max())
    inner = (low, high)
    margin = (high - low) / (len(values) - 1)
    low, high = low - margin, high + margin
    low, high = min(low, best - (high - low) / 8), max(high, best + (high - low) / 8)
    width = before[1] - before[0]
    if best < before[0] + AT_EDGE * width:
        low = min(low, before[0] - WIDEN_BY * width)
    if best > before[1] - AT_EDGE * width:
        high = max(high, before[1] + WIDEN_BY * width)
    if parameter.cardinality is not None:  # the neighbours of good values stay in reach
        low = min(low, _cell(parameter, _cell(parameter, inner[0])[0] - TOUCH)[0])
        high = max(high, _cell(parameter, _cell(parameter, inner[1])[1] + TOUCH)[1])
    low, high = max(low, 0.0), min(high, 1.0)
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
        low, high = (0.0, least) if low < 0 else (1 - least, 1.0) if high > 1 else (low, high)
    if parameter.cardinality is not None:
        low, high = _cell(parameter, low + TOUCH)[0], _cell(parameter, high - TOUCH)[1]
    return low, high


def _cell(parameter: Parameter, unit: float) -> tuple[float, float]:
    """The interval of the unit axis that a whole number or a choice owns."""
    unit = min(max(unit, 0.0), 1.0)
    if isinstance(parameter, Int):
        value = parameter.at(unit)
        ends = to_unit([value - 0.5, value + 0.5], parameter.low - 0.5, parameter.high + 0.5, parameter.scale)
        return float(ends[0]), float(ends[1])
    n = parameter.cardinality or 1
    i = min(int(unit * n), n - 1)
    return i / n, (i + 1) / n


def with_boxes(
    space: SearchSpace, trials: Sequence[FrozenTrial], planned: Sequence[Stage], direction: str = "minimize"
) -> list[Stage]:
    """The stages with their boxes, each from the trials numbered below its first.

    Args:
        space: The parameters.
        trials: Trials of the study, of any state.
        planned: Stages in order, from the first one on.
        direction: ``minimize`` or ``maximize``.
    """
    known: list[Stage] = []
    for stage in planned:
        before = known[-1].box if known else None
        found = box(space, trials, stage, before, direction)
        known.append(replace(stage, box=_widened(space, found) if stage.widen else found))
    return known


def _widened(space: SearchSpace, found: Box) -> dict[str, tuple[float, float]]:
    """A box with every side that can vary moved out by ``WIDEN_BY`` of its width, at most to the end of the range."""
    wide: dict[str, tuple[float, float]] = {}
    for parameter in space.parameters:
        low, high = found[parameter.stored_name]
        by = WIDEN_BY * (high - low)
        low, high = max(0.0, low - by), min(1.0, high + by)
        if parameter.cardinality is not None and by:
            low, high = _cell(parameter, low + TOUCH)[0], _cell(parameter, high - TOUCH)[1]
        wide[parameter.stored_name] = (low, high)
    return wide
