"""Where good trials lie: how trials are ranked, and the box of each stage as it follows from them.

The box of a fine stage is the region where the engine's model places the optimum: on each axis the central MASS of its
distribution (:meth:`.CurveModel.optima`). It is where the sampler looks first, and no wall: where there is nothing to
gain inside compared with outside, a point outside is taken, and widens the box.

Without a model (coarse stages, another sampler) a box is the hull of the best quarter of those trials (at least two) on
each parameter's unit axis, with a margin. ``m`` points drawn uniformly from an interval span (m - 1) / (m + 1) of it on
average, so adding hull / (m - 1) on both sides estimates its ends without bias. A parameter that does not matter has
good values everywhere and keeps a wide box; one that matters is narrowed.

All functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.stages import Box, Stage, stage_at
from lightning_hp.space.parameters import Choice, Float, Int, Parameter
from lightning_hp.space.scales import to_unit
from lightning_hp.space.space import SearchSpace

#: A box is drawn around this part of the finished trials, once there are at least so many.
BEST_PART, FEWEST_TRIALS = 0.25, 4
#: A fine stage's box holds this much of the probability that the optimum has, on each axis, by the engine's model.
MASS = 0.9
#: Trial attributes: where a point left its stage's box, since there was more to gain outside, and widened it; and where
#: it was taken to explore, since nothing was left to gain anywhere; and which tier it opened, for the same reason, that
#: the budget had left closed.
WIDENED, EXPLORED, OPENED = "widened", "explored", "opened"
#: What EXPLORED says of a point that explored without leaving the box.
INSIDE = "inside the box"
#: Least width of a box on the unit axis. Wide in coarse stages, where newly opened parameters move the optimum: over
#: momentum 0.9 to 0.999 the step lr / (1 - momentum) grows by two decades, half of a learning-rate range of four.
LEAST_WIDTH: dict[str, float] = {"coarse": 0.5, "fine": 0.15}
#: A point within this part of a box's width of its edge is at the edge.
AT_EDGE = 0.1
#: An edge at which the best point sits moves out by this part of the box's width.
WIDEN_BY = 0.5
#: So little inside its end a position belongs to the whole number or choice of that side.
TOUCH = 1e-9


def loss(trial: FrozenTrial, direction: str = "minimize") -> float:
    """What a trial is ranked by, lower is better: its value, or the last reported one; inf where there is none.

    Args:
        trial: A finished trial of a study with one objective.
        direction: ``minimize`` or ``maximize``.
    """
    value: float | None = trial.values[0] if trial.values else None
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
    units = np.full((len(trials), len(space)), np.nan)
    for j, parameter in enumerate(space.parameters):
        name, wide = parameter.stored_name, parameter.distribution
        held = [(i, t.params[name]) for i, t in enumerate(trials) if name in t.params]
        if isinstance(parameter, Choice):
            held = [(i, v) for i, v in held if v in parameter.labels]
        else:
            held = [(i, v) for i, v in held if type(trials[i].distributions[name]) is type(wide)]
        if held:
            units[[i for i, _ in held], j] = parameter.unit([v for _, v in held])
    if any(p.active_if for p in space.parameters):
        default = space.defaults()
        for i, trial in enumerate(trials):
            point = {**default, **{k: v for k, v in trial.params.items() if k in default}}
            units[i, ~space.active(point)] = np.nan
    return units


def box(
    space: SearchSpace,
    finished: Sequence[FrozenTrial],
    planned: Stage,
    previous: Box | None,
    direction: str = "minimize",
    optima: NDArray[np.float64] | None = None,
) -> dict[str, tuple[float, float]]:
    """The box of a stage.

    Args:
        space: The parameters.
        finished: Trials of the study; only complete and pruned ones numbered below ``planned.first`` are used.
        planned: The stage.
        previous: The box of the stage before, None for the first.
        direction: ``minimize`` or ``maximize``.
        optima: Positions drawn from where a model places the optimum, the best complete trial first, shape (s, d);
            None to take the good trials themselves.

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
    sides: dict[str, tuple[float, float]] = {}
    for j, parameter in enumerate(space.parameters):
        name = parameter.stored_name
        if parameter.tier not in planned.tiers:
            default = float(parameter.unit([parameter.store(parameter.default)])[0])
            sides[name] = (default, default)
            continue
        before = (0.0, 1.0) if previous is None or parameter.tier in planned.new else previous[name]
        values = points[:, j][~np.isnan(points[:, j])] if optima is None else _central(optima[:, j])
        if parameter.tier in planned.new or parameter.is_categorical or len(values) < 2 or not planned.zoom:
            sides[name] = before
        else:
            sides[name] = _zoom(parameter, values, before, LEAST_WIDTH[planned.kind])
    return sides


def _central(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions on one axis without the outermost ones, so that MASS stays; the first, the best trial, stays too."""
    low, high = np.quantile(values[1:], [(1.0 - MASS) / 2, (1.0 + MASS) / 2])
    return np.array([values[0], *np.clip(values[1:], low, high)])


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
    space: SearchSpace,
    trials: Sequence[FrozenTrial],
    planned: Sequence[Stage],
    direction: str = "minimize",
    optima: Callable[[Stage], NDArray[np.float64] | None] | None = None,
) -> list[Stage]:
    """The stages with their boxes: each from the trials numbered below its first, and wider for what was taken outside.

    Args:
        space: The parameters.
        trials: Trials of the study, of any state.
        planned: Stages in order, from the first one on.
        direction: ``minimize`` or ``maximize``.
        optima: Asked about each fine stage that zooms: where a model places the optimum, see :func:`box`. None to draw
            all boxes around good trials.
    """
    reached = [t for t in trials if t.state is not TrialState.FAIL and WIDENED in t.user_attrs]
    boxed: list[Stage] = []
    for stage in planned:
        before = boxed[-1].box if boxed else None
        believed = optima(stage) if optima is not None and stage.zoom and stage.kind == "fine" else None
        sides = box(space, trials, stage, before, direction, believed)
        stage = replace(stage, box=_widened(space, sides) if stage.widen else sides)
        units = positions(space, [t for t in reached if stage_at(planned, t.number).index == stage.index])
        boxed.append(reaching(space, stage, units))
    return boxed


def reaching(space: SearchSpace, stage: Stage, units: NDArray[np.float64]) -> Stage:
    """A stage whose box is as much wider as it takes to hold these positions, shape (n, d); NaN takes nothing."""
    if not len(units) or stage.box is None:
        return stage
    sides = {}
    for parameter, column in zip(space.parameters, units.T, strict=True):
        low, high = stage.box[parameter.stored_name]
        for unit in column[~np.isnan(column)]:
            if not low - TOUCH <= unit <= high + TOUCH:
                cell = (float(unit), float(unit)) if parameter.cardinality is None else _cell(parameter, float(unit))
                low, high = min(low, cell[0]), max(high, cell[1])
        sides[parameter.stored_name] = (low, high)
    return replace(stage, box=sides)


def with_opened(stage: Stage, trials: Iterable[FrozenTrial]) -> Stage:
    """A stage with the tiers that these trials opened."""
    opened = {t.user_attrs[OPENED] for t in trials if OPENED in t.user_attrs} - set(stage.tiers)
    return replace(stage, tiers=(*stage.tiers, *sorted(opened))) if opened else stage


def outside_text(space: SearchSpace, stage: Stage, values: Mapping[str, Any]) -> str | None:
    """Which parameters of a point leave a stage's box, such as ``learning_rate 0.31, num_layers 2``; None if none does.

    Args:
        space: The parameters.
        stage: A stage with its box.
        values: Stored values of the point.
    """
    wider = reaching(space, stage, space.unit([values]))
    names = [p.stored_name for p in space.parameters]
    left = [n for n in names if wider.box is not None and stage.box is not None and wider.box[n] != stage.box[n]]
    natural = space.natural(values)
    return ", ".join(f"{space[n].name} {_short(natural[space[n].name])}" for n in left) or None


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _widened(space: SearchSpace, sides: Box) -> dict[str, tuple[float, float]]:
    """A box with every side that can vary moved out by ``WIDEN_BY`` of its width, at most to the end of the range."""
    wide: dict[str, tuple[float, float]] = {}
    for parameter in space.parameters:
        low, high = sides[parameter.stored_name]
        by = WIDEN_BY * (high - low)
        low, high = max(0.0, low - by), min(1.0, high + by)
        if parameter.cardinality is not None and by:
            low, high = _cell(parameter, low + TOUCH)[0], _cell(parameter, high - TOUCH)[1]
        wide[parameter.stored_name] = (low, high)
    return wide


def narrowed(parameter: Parameter, low: float, high: float) -> BaseDistribution:
    """The part of a parameter's distribution that lies in [low, high] of its unit axis; choices stay as they are."""
    wide = parameter.distribution
    if isinstance(parameter, Choice) or isinstance(wide, CategoricalDistribution):
        return wide
    inset = 0.0 if isinstance(parameter, Float) else 1e-9
    start, stop = sorted((parameter.at(low + inset), parameter.at(high - inset)))
    if isinstance(wide, IntDistribution):
        return IntDistribution(int(start), int(stop), log=wide.log)
    assert isinstance(wide, FloatDistribution)
    return FloatDistribution(start, stop, log=wide.log)


def direction_of(study: Study) -> str:
    """The direction of a study with one objective: ``minimize`` or ``maximize``."""
    return "maximize" if study.directions[0] is StudyDirection.MAXIMIZE else "minimize"
