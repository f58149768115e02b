"""An Optuna sampler that tunes what matters first: stages say where, an engine says which point; this module wires.

For each trial it finds the stage (by trial number) and the stage's box (from the trials in storage), then draws

* trial 0: the defaults, so that every study holds the point it started from;
* coarse stages: scrambled Sobol in the box, ``f(seed, stage, number)``, every second point drawn around the defaults;
* fine stages: the point of the box with the most expected improvement (:mod:`.engine`), or, where a base sampler was
  given, whatever that proposes inside the box.

Nothing is remembered between calls, so a resumed study and several workers continue as one. Every parameter is stored
at its full range; only the base sampler is shown narrow ones. (A range that changes under one name makes Optuna's
samplers drop the parameter from their joint model for good.)
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lightning_hp.search import boxes
from lightning_hp.search.boxes import EXPLORED, OPENED, WIDENED, direction_of, narrowed, outside_text, reaching
from lightning_hp.search.curves import Curve, older_curve
from lightning_hp.search.engine import Engine, Proposal
from lightning_hp.search.group import Group
from lightning_hp.search.proposal import starting_point
from lightning_hp.search.sobol import sobol_point, to_stored_values
from lightning_hp.search.stages import DECIDED, Stage, apply_decisions, plan_stages, stage_at
from lightning_hp.space.fields import whole_number
from lightning_hp.space.parameters import Float
from lightning_hp.space.space import SearchSpace

if TYPE_CHECKING:
    from lightning_hp.search.pruner import CurvePruner

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_ASKED = (*_FINISHED, TrialState.RUNNING, TrialState.FAIL)
#: A float that a base sampler proposes again is moved by up to this part of its box's width; where that does not help,
#: further and further, at most so many times.
_NUDGE, _NUDGES = 0.01, 24


class CoarseToFineSampler(BaseSampler):
    """Opens hyperparameters by tier, explores each quasi-randomly, then zooms into the good region.

    Works in any Optuna script with one objective; :meth:`SearchSpace.suggest` asks a trial for the whole space::

        space = SearchSpace.from_dict(preset("sgd"))
        sampler = CoarseToFineSampler(space, n_trials=60)
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: train(**space.suggest(trial)), n_trials=60)

    Learning curves that the objective reports are learned from, whatever stopped them; ``pruner()`` is the pruner that
    belongs to this sampler. Points of running trials are taken into account.

    Parameters that the space does not know are left to the base sampler, or to a TPE; those that the objective
    does not ask for are left out. Enqueued values win over the sampler's, as with every Optuna sampler. Failed trials
    teach where not to go again, and no more: tell a diverged trial as complete with a bad value.

    The same seed gives the same study. A base sampler of your own keeps its own random state: seed it, and know that
    samplers with state (all of Optuna's) do not repeat the same draws after a resume. ``CmaEsSampler`` keeps its
    distribution relative to the box, so it follows a zoom without knowing of it, and asks one by one for categories.

    Args:
        space: A :class:`SearchSpace`, or the mapping that :meth:`SearchSpace.from_dict` takes.
        n_trials: Planned total number of trials of the study; it decides which tiers open. Trials past it continue the
            last stage.
        max_steps: The step at which a complete learning curve ends, as reported by ``trial.report`` (counted from 1 or
            from 0). None to read it off the longest curve that a complete trial reported.
        base: Proposes the points of fine stages instead of the engine; coarse stages stay quasi-random, since a model
            has nothing to go by in a tier that has just opened. None for the engine.
        seed: A whole number of at least 0.
        plan: ``default``; ``opening`` for opening tiers one after the other (the default where a base is given); or
            ``tiers`` for zooming into each tier before the next opens. See :mod:`.stages`.
        opens_from: Tier to the number of trials from which it opens, where it differs from what the plan has.
        older: Curves of an older study of the same space (:func:`.curves_to_dicts`), its best trial first. The engine
            learns from them as far as they still hold, which it reads off the trials of this study; best if the first
            trial, the defaults, repeats the older study's best. Goes with the plan ``retune``.

    Raises:
        ValueError: If a number is out of range, or the plan or a tier is unknown.
        TypeError: If the space or the base is of another type.
    """

    def __init__(
        self,
        space: SearchSpace | Mapping[str, Any],
        *,
        n_trials: int = 60,
        max_steps: int | None = None,
        base: BaseSampler | None = None,
        seed: int = 0,
        plan: str = "default",
        opens_from: Mapping[str, int] | None = None,
        older: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.space = space if isinstance(space, SearchSpace) else SearchSpace.from_dict(space)
        if base is not None and not isinstance(base, BaseSampler):
            raise TypeError(f"`base` must be an Optuna sampler or None, got {base!r}")
        self.n_trials = whole_number("n_trials", n_trials, 1)
        self.max_steps = None if max_steps is None else whole_number("max_steps", max_steps, 1)
        self.seed = whole_number("seed", seed, 0)
        self.base = base
        self.plan = plan
        in_order = "opening" if plan == "default" and base is not None else plan
        self.planned = plan_stages(self.space, self.n_trials, opens_from, in_order)
        self._engine = Engine(self.space, self.max_steps, [older_curve(fields) for fields in older])
        self._beyond: tuple[object, int, IntersectionSearchSpace] | None = None
        self._parameters = {p.stored_name: p for p in self.space.parameters}
        self.group: Group | None = None  # of trials that are asked for together

    # --- beyond Optuna's interface ---

    @property
    def engine(self) -> Engine:
        """The model of the study's trials, as the sampler and its pruner use it."""
        return self._engine

    def describe(self, trial: Trial | FrozenTrial) -> dict[str, Any]:
        """The stage of a trial, as the user attributes that a study shows: ``stage``, ``stage_index``, ``tier``."""
        stage = stage_at(self.planned, trial.number)
        return {"stage": stage.name, "stage_index": stage.index, "tier": stage.tier}

    def stages(self, study: Study) -> list[Stage]:
        """All stages, with the boxes as they follow from storage; a stage not yet begun has the box None."""
        trials = study.get_trials(deepcopy=False)
        latest = max((t.number for t in trials if t.state is not TrialState.WAITING), default=-1)
        planned = self._decided(study)
        begun = [s for s in planned if s.first <= latest]
        boxed = self.with_boxes(study, begun)
        return [*boxed, *planned[len(boxed) :]]

    def with_boxes(self, study: Study, stages: Sequence[Stage]) -> list[Stage]:
        """These stages, the first of the plan and those after it, with their boxes as they follow from storage.

        The box of a fine stage is where the engine's model places the optimum. Where a person zooms in earlier than
        planned, and with a base sampler, it is drawn around the good trials.
        """
        trials = study._get_trials(deepcopy=False, use_cache=True)

        def optima(stage: Stage) -> NDArray[np.float64] | None:
            if not self.planned[stage.index - 1].zoom:
                return None
            curves = self._engine.curves(study, [t for t in trials if t.state in _FINISHED])
            earlier = [c for c in curves if c.number < stage.first]
            full = self._full(boxes.with_opened(stage, [t for t in trials if t.number < stage.first]))
            return self._engine.optima(earlier, full, self._rng(stage.first, "optima"))

        return boxes.with_boxes(self.space, trials, stages, direction_of(study), optima if self.base is None else None)

    def pruner(self) -> CurvePruner:
        """The pruner that belongs to this sampler, for ``optuna.create_study(sampler=..., pruner=...)``."""
        from lightning_hp.search.pruner import CurvePruner

        n_trials = self.n_trials + len(self._engine.older)
        return CurvePruner(space=self.space, max_steps=self.max_steps, engine=self._engine, n_trials=n_trials)

    @contextlib.contextmanager
    def together(self, fixed: Mapping[str, Any], n: int) -> Iterator[None]:
        """Propose further points for trials that are trained together, all with these stored values.

        Points of fine stages are then proposed by one model, all at once, when the first of them is asked for.

        Args:
            fixed: Stored values by stored name.
            n: How many trials are going to be asked for.
        """
        self.group = Group(dict(fixed), n)
        try:
            yield
        finally:
            self.group = None

    # --- Optuna's sampler interface ---

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The full ranges of the space, and what the base sampler models beyond it."""
        _check_single(study)
        if self.base is not None:
            beyond = self.base.infer_relative_search_space(study, trial)
        else:
            beyond = {n: d for n, d in self._intersection(study).calculate(study).items() if not d.single()}
        return {**{n: d for n, d in beyond.items() if n not in self._parameters}, **self.space.distributions}

    def _intersection(self, study: Study) -> IntersectionSearchSpace:
        """What TPE would model jointly; kept for the latest study, since it reads each trial once only."""
        kept = self._beyond
        if kept is None or kept[0] is not study._storage or kept[1] != study._study_id:
            kept = self._beyond = (study._storage, study._study_id, IntersectionSearchSpace(include_pruned=True))
        return kept[2]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Stored values of the trial's point, for the names asked for."""
        _check_single(study)
        beyond = {n: d for n, d in search_space.items() if n not in self._parameters}
        values = self._ask_base(study, trial, beyond, beyond)
        if len(beyond) < len(search_space):
            point = self._point(study, trial)
            values |= {n: point[n] for n in search_space if n in self._parameters}
        return values

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that the space does not know, or one asked for with a range that excludes our value."""
        _check_single(study)
        base = self._base_for(trial, param_name)
        return base.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """No random state of its own: draws depend on seed and trial number, also in threads."""
        if self.base is not None:
            self.base.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on to the base sampler."""
        if self.base is not None:
            self.base.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Passed on to the base sampler."""
        if self.base is not None:
            self.base.after_trial(study, trial, state, values)

    # --- wiring ---

    def _point(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """Stored values of a trial, by stored name."""
        if trial.number == 0:
            return self.space.defaults()
        current, group = stage_at(self.planned, trial.number), self.group or Group({}, 1)
        stage = self.with_boxes(study, self._decided(study)[: current.index])[-1]
        if stage.kind == "coarse":
            unit = self._start(trial, stage)
        elif self.base is not None:
            unit = self._refine(study, trial, stage)
        else:
            stage = boxes.with_opened(stage, study._get_trials(deepcopy=False, use_cache=True))
            if group.opened is not None and group.opened not in stage.tiers:  # by a trial read before it was marked
                stage = replace(stage, tiers=(*stage.tiers, group.opened))
            proposed = self._improve(study, trial, stage, group)
            unit, stage = proposed.unit, self._marked(study, trial, stage, proposed, group)
        values = to_stored_values(self.space, stage, unit) | group.fixed
        return self._distinct(study, trial, stage, values)

    def _marked(self, study: Study, trial: FrozenTrial, stage: Stage, proposed: Proposal, group: Group) -> Stage:
        """The stage as the proposed point leaves it; the trial and the group are told what the point did to it."""
        marks, further = {}, self._next_tier(stage)
        if proposed.opens and further is not None:
            marks[OPENED] = group.opened = further
            stage = replace(stage, tiers=(*stage.tiers, further))
        outside = outside_text(self.space, stage, self.space.at(proposed.unit))
        if proposed.explores:
            marks[EXPLORED] = outside or boxes.INSIDE
        elif outside:
            marks[WIDENED] = outside
        for name, mark in marks.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, mark)
        return reaching(self.space, stage, proposed.unit[None])

    def _decided(self, study: Study) -> tuple[Stage, ...]:
        """The planned stages, with what a person decided about them; the study keeps it."""
        return apply_decisions(self.planned, study._storage.get_study_user_attrs(study._study_id).get(DECIDED) or {})

    def _start(self, trial: FrozenTrial, stage: Stage) -> NDArray[np.float64]:
        """The unit point of a coarse trial, shape (d,): quasi-random in the box, odd numbers around the defaults."""
        unit = sobol_point(self.space, stage, trial.number, self.seed)
        if stage.zoom:  # the default plan alone starts with all tiers and no box
            return unit
        sides = self._sides(stage)
        width = np.maximum(sides[:, 1] - sides[:, 0], 1e-12)
        cube = np.clip((unit - sides[:, 0]) / width, 0.0, 1.0)
        return starting_point(self.space, sides, cube, near_default=trial.number % 2 == 1)

    def _improve(self, study: Study, trial: FrozenTrial, stage: Stage, group: Group) -> Proposal:
        """The engine's point for a fine trial; quasi-random in the box while no trial is complete.

        The engine proposes for a whole group at once, when its first point is asked for.
        """
        if not group.proposals:
            curves, avoided = self._seen(study, trial)
            rng, full, further = self._rng(trial.number, "improve"), self._full(stage), self._next_tier(stage)
            box = beyond = None
            if stage.zoom:
                in_plan = np.array([p.tier in self.planned[stage.index - 1].tiers for p in self.space.parameters])
                box = group.sides(self.space, np.where(in_plan[:, None], self._sides(stage), full))
            if further is not None:
                beyond = group.sides(self.space, self._full(replace(stage, tiers=(*stage.tiers, further))))
            full = group.sides(self.space, full)
            group.proposals = self._engine.propose_many(curves, full, rng, group.n, avoided, box, beyond)
        if not group.proposals:
            return Proposal(sobol_point(self.space, stage, trial.number, self.seed))
        return group.proposals.pop(0)

    def _next_tier(self, stage: Stage) -> str | None:
        """The tier that opens when nothing is left to gain in the open ones: the first that the plan leaves closed."""
        closed = [t for t in self.space.tiers if t not in stage.tiers]
        to_come = set(self.planned[-1].tiers) - set(stage.tiers)
        return None if to_come or not closed or self.plan == "retune" else closed[0]

    def _seen(self, study: Study, trial: FrozenTrial) -> tuple[list[Curve], list[NDArray[np.float64]]]:
        """The curves of the other trials, and where trials have failed, shape (d,) each."""
        trials = study._get_trials(deepcopy=False, states=_ASKED, use_cache=True)
        others = [t for t in trials if t.number != trial.number]
        failed = [t.params for t in others if t.state is TrialState.FAIL]
        avoided = self.space.unit([params for params in failed if self._parameters.keys() <= params.keys()])
        return self._engine.curves(study, others), list(avoided)

    def _full(self, stage: Stage) -> NDArray[np.float64]:
        """Low and high of the whole range, shape (d, 2); a closed parameter stays at its default."""
        default = self.space.unit([self.space.defaults()])[0]
        is_open = np.array([p.tier in stage.tiers for p in self.space.parameters])
        return np.where(is_open[:, None], [0.0, 1.0], default[:, None])

    def _sides(self, stage: Stage) -> NDArray[np.float64]:
        """Low and high of a stage's box, shape (d, 2)."""
        assert stage.box is not None
        return np.array([stage.box[p.stored_name] for p in self.space.parameters])

    def _refine(self, study: Study, trial: FrozenTrial, stage: Stage) -> NDArray[np.float64]:
        """The unit point of a fine trial, shape (d,): the base sampler's proposal inside the box."""
        assert stage.box is not None
        narrow = {
            p.stored_name: narrowed(p, *stage.box[p.stored_name])
            for p in self.space.parameters
            if p.tier in stage.tiers
        }
        modelled = self._base_for(trial, "").infer_relative_search_space(study, trial)
        joint = {n: d for n, d in narrow.items() if n in modelled and not d.single()}
        proposed = self._ask_base(study, trial, joint, narrow)
        unit: NDArray[np.float64] = self.space.unit([{**self.space.defaults(), **proposed}])[0]
        return unit

    def _ask_base(
        self,
        study: Study,
        trial: FrozenTrial,
        joint: Mapping[str, BaseDistribution],
        all_of: Mapping[str, BaseDistribution],
    ) -> dict[str, Any]:
        """The base sampler's values: jointly where it models a name, else (its start-up trials, say) one by one."""
        values = self._base_for(trial, "").sample_relative(study, trial, dict(joint)) if joint else {}
        for name, distribution in all_of.items():
            if name not in values:
                base = self._base_for(trial, name)
                values[name] = base.sample_independent(study, trial, name, distribution)
        return values

    def _base_for(self, trial: FrozenTrial, name: str) -> BaseSampler:
        """The given base sampler, or a TPE whose draws depend on seed, trial number and parameter name only."""
        if self.base is not None:
            return self.base
        return TPESampler(seed=int(self._rng(trial.number, name).integers(2**32)))

    def _rng(self, number: int, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, zlib.crc32(name.encode())])

    def _distinct(self, study: Study, trial: FrozenTrial, stage: Stage, values: dict[str, Any]) -> dict[str, Any]:
        """No two trials share the value of an open float: base samplers like to repeat the edges of a box."""
        assert stage.box is not None
        others = study._get_trials(deepcopy=False, states=_ASKED, use_cache=True)
        params = [t.params for t in others if t.number != trial.number]  # a property, slow to ask for
        earlier = [t.params for t in others if t.state is TrialState.RUNNING and t.number < trial.number]
        for parameter in self.space.parameters:
            name = parameter.stored_name
            if not isinstance(parameter, Float) or parameter.tier not in stage.tiers:
                continue
            low, high = stage.box[name]
            taken = {held[name] for held in params if name in held}
            if any(name not in held for held in earlier):  # asked for in this instant: an edge is theirs
                taken |= {parameter.at(edge) for edge in (0.0, low, high, 1.0)}
            rng = self._rng(trial.number, name)
            for attempt in range(_NUDGES):  # values are stored rounded: a box may hold few
                if values[name] not in taken:
                    break
                unit = float(parameter.unit([values[name]])[0])
                inward = 1.0 if unit < (low + high) / 2 else -1.0
                reach = min(_NUDGE * 2.0 ** max(attempt - 2, 0), 0.5) * (high - low)
                values[name] = parameter.at(unit + inward * reach * (1.0 - rng.random()))
        return values


def _check_single(study: Study) -> None:
    if len(study.directions) > 1:
        raise ValueError(f"`study` must have one objective, got {len(study.directions)} directions")
