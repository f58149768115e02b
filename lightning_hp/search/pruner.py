"""Which running trials have no chance left: decided at a few looks, from the predicted final loss.

At each look (about 1/16, 1/8, 1/4 and 1/2 of the longest training) the surrogate of :mod:`.engine` predicts where the
trial would end, from its curve so far and from all others. Rules, in order:

* ``none complete``: never stop before a trial is complete: there is nothing to beat yet;
* ``diverged``: stop where the latest report is NaN or infinite;
* ``behind``: in a study that is planned with fewer than FEW trials, and while fewer than SETTLED are complete, stop
  what is worse than the best complete trial was after a BEHIND-th part of this one's training, and nothing else: such
  a study ends before it knows enough to predict;
* ``rung``: while fewer than START_UP trials are finished, stop what is outside the best third at this look;
* ``predicted``: later, stop where the predicted final mean, less SURE standard deviations (SURE_LATE once SETTLED
  trials are complete, and more for each trial stopped in a row), is worse than what the surrogate expects of the best
  complete trial.

Trials that are trained together are judged by the same rules, all by one model (:meth:`CurvePruner.cull`). To let as
many go on as hold the best final loss with 97 % chance, luck included, cost cohorts of 2 .083 ± .020 and .080 ± .024 of
regret after 10 and 20 trainings' worth of time, and cohorts of 4 .049 and .016 (26 runs, ``benchmarks/cohorts.py``);
with 16 it won .018 ± .019 and .034 ± .018 (17 runs), which is not worth a second rule.
The thresholds were measured on the development tasks of ``benchmarks/search_efficiency.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.blas_threads import one_blas_thread
from lightning_hp.search.curves import SHORTEST, Curve, curve_length, from_one, looks
from lightning_hp.search.engine import Engine
from lightning_hp.space.parameters import Choice, Float, Int, Parameter
from lightning_hp.space.space import Entry, SearchSpace

#: The model is too sure of where a curve ends: finals lie about so many times further from its mean than it says
#: (measured on curves whose ends are known; ``tests/search/test_calibration.py`` holds the intervals to it).
WIDER = 2.0
#: How many (widened) standard deviations a prediction may be wrong in the trial's favour.
SURE = 0.5
#: Once this many trials are complete it takes this many: what is left to gain is small then, and a wrong stop costs
#: more than a full training.
SETTLED, SURE_LATE = 10, 1.5
#: And so many more for each trial stopped in a row: a model that lets nothing pass is not contradicted by anything.
PATIENCE = 0.125
#: While fewer trials than this are finished, predictions are worth less than a comparison.
START_UP = 6
_RUNG_PART = 1 / 3
#: A study that is planned with fewer trials than this stops only what is slower than the best by this factor.
FEW, BEHIND = 20, 4.0
#: The trial attribute that says why a trial was stopped.
ATTRIBUTE = "stopped"


class CurvePruner(BasePruner):
    """Stops a trial when its predicted final value has too little chance of beating the best.

    Belongs to :class:`CoarseToFineSampler` (``sampler.pruner()``), and works with any other sampler::

        study = optuna.create_study(sampler=optuna.samplers.TPESampler(), pruner=CurvePruner(max_steps=50))

    Call ``trial.should_prune()`` after every report; it is decided only at the first report at or after each look, and
    costs nothing at the others. What was decided is stored with a stopped trial as the user attribute ``stopped``: the
    rule, the step, the predicted final mean and standard deviation, and the best. Everything is recomputed from
    storage, so several workers decide alike. The last look is at half the training: what passes it is completed.

    Args:
        space: The study's :class:`SearchSpace`, or the mapping that :meth:`SearchSpace.from_dict` takes. None to take
            the parameters as the trials hold them, without tiers.
        max_steps: The step at which a complete curve ends, reports at steps counted from 1 or from 0. None to read it
            off the longest curve that a complete trial reported; nothing is stopped before one is complete.
        engine: The sampler's, to share fitted hyperparameters with; None for one of its own.
        n_trials: How many trials are planned, those of an older study that it learns from included; fewer than 20 are
            stopped only where they are clearly worse. None for many.

    Raises:
        ValueError: If ``max_steps`` or ``n_trials`` is below 1.
        TypeError: If the space is of another type.
    """

    def __init__(
        self,
        space: SearchSpace | Mapping[str, Any] | None = None,
        max_steps: int | None = None,
        engine: Engine | None = None,
        n_trials: int | None = None,
    ) -> None:
        for name, number in (("max_steps", max_steps), ("n_trials", n_trials)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(f"`{name}` must be a whole number of at least 1 or None, got {number!r}")
        if space is not None and not isinstance(space, SearchSpace):
            space = SearchSpace.from_dict(space)
        self._space, self._max_steps, self._engine = space, max_steps, engine
        self._few = n_trials is not None and n_trials < FEW

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial now; if so, the reason is stored with it.

        Raises:
            ValueError: If the study has several objectives.
        """
        verdict = self.verdict(study, trial)
        if verdict is None or not verdict["stop"]:
            return False
        reason = {k: v for k, v in verdict.items() if k != "stop"}
        study._storage.set_trial_user_attr(trial._trial_id, ATTRIBUTE, reason)
        return True

    def verdict(self, study: Study, trial: FrozenTrial) -> dict[str, Any] | None:
        """What is decided about a running trial at its latest report, and why; nothing is stored.

        Returns:
            None where the latest report is at no look, else ``stop`` (bool), ``rule`` (text), ``step``, and, where they
            are known, ``mean`` and ``best`` (final values in the metric's units and direction: what is predicted for
            this trial, and the best complete one), ``low`` and ``high`` (mean less and plus one standard deviation).

        Raises:
            ValueError: If the study has several objectives.
        """
        if len(study.directions) > 1:
            raise ValueError(f"`study` must have one objective, got {len(study.directions)} directions")
        reported = trial.intermediate_values
        if not reported:
            return None
        trials = study.get_trials(deepcopy=False)
        length = curve_length(trials, self._max_steps)
        if length is None or not at_look(reported, length):
            return None
        engine = self._engine_for(trial)
        maximize = study.directions[0] is StudyDirection.MAXIMIZE
        curves = [] if engine is None else engine.curves(study, trials)
        step = max(reported)
        decided = _decide(engine, curves, {trial.number: float(reported[step])}, maximize, self._few)
        return {**decided[trial.number], "step": step}

    def cull(self, study: Study, trials: Sequence[FrozenTrial]) -> list[bool]:
        """Which of several trials that are trained together stop now: by the rules of :meth:`prune`, and one model.

        What was decided is stored with those that stop, as by :meth:`prune`.

        Args:
            study: The study.
            trials: Running trials of it, at the same point of their training, as they are to be seen: their curves may
                hold more than storage does.

        Raises:
            ValueError: If the study has several objectives.
        """
        if len(study.directions) > 1:
            raise ValueError(f"`study` must have one objective, got {len(study.directions)} directions")
        shown = {t.number: t for t in trials}
        every = [shown.get(t.number, t) for t in study.get_trials(deepcopy=False)]
        length = curve_length(every, self._max_steps)
        at = [
            t for t in trials if length is not None and t.intermediate_values and at_look(t.intermediate_values, length)
        ]
        engine = self._engine_for(at[0]) if at else None
        if engine is None:
            return [False] * len(trials)
        curves = engine.curves(study, every)
        maximize = study.directions[0] is StudyDirection.MAXIMIZE
        latest = {t.number: float(t.intermediate_values[max(t.intermediate_values)]) for t in at}
        decided = _decide(engine, curves, latest, maximize, self._few)
        stopped = {number: verdict for number, verdict in decided.items() if verdict.pop("stop")}
        for trial in at:
            if trial.number in stopped:
                reason = {**stopped[trial.number], "step": max(trial.intermediate_values)}
                study._storage.set_trial_user_attr(trial._trial_id, ATTRIBUTE, reason)
        return [t.number in stopped for t in trials]

    def _engine_for(self, trial: FrozenTrial) -> Engine | None:
        """The engine: the sampler's, or one of the given space, or one of what this trial holds."""
        space = self._space if self._space is not None else space_of(trial.distributions)
        if space is None:
            return None
        if self._engine is None or self._engine.space != space:
            self._engine = Engine(space, self._max_steps)
        return self._engine


def at_look(reported: Mapping[int, float], length: int) -> bool:
    """Whether the latest report is the first at or after one of the looks.

    Args:
        reported: A trial's reports so far, by step.
        length: The training step at which a complete curve ends.
    """
    steps = sorted(from_one(reported))
    passed = [look for look in looks(length) if look <= steps[-1]]
    return bool(passed) and (len(steps) == 1 or steps[-2] < passed[-1])


@one_blas_thread
def _decide(
    engine: Engine | None, curves: list[Curve], latest: Mapping[int, float], maximize: bool, few: bool
) -> dict[int, dict[str, Any]]:
    """The rule that holds for each of some trials, see the module's docstring; ``latest`` is their latest loss."""
    complete = [c for c in curves if c.final < math.inf and c.number not in latest]
    if engine is None or not complete:
        return {number: {"stop": False, "rule": "none complete"} for number in latest}
    verdicts: dict[int, dict[str, Any]] = {}
    open_curves: list[Curve] = []
    by_number = {c.number: c for c in curves}
    for number, loss in latest.items():
        if not math.isfinite(loss):
            verdicts[number] = {"stop": True, "rule": "diverged"}
        elif number not in by_number:  # it lacks a parameter of the space
            verdicts[number] = {"stop": False, "rule": "unknown parameters"}
        else:
            open_curves.append(by_number[number])
    if few and len(complete) < SETTLED:
        best_of = min(complete, key=lambda c: c.final)
        return verdicts | {c.number: {"stop": _is_behind(c, best_of), "rule": "behind"} for c in open_curves}
    finished = [c for c in curves if c.state is not TrialState.RUNNING and len(c.losses)]
    if len(finished) < START_UP:
        return verdicts | {c.number: {"stop": _is_outside(c, curves), "rule": "rung"} for c in open_curves}
    if not open_curves:
        return verdicts
    model = engine.model(curves)
    assert model is not None
    means, deviations = model.final(np.stack([c.unit for c in (*open_curves, *complete)]))
    sure = (SURE if len(complete) < SETTLED else SURE_LATE) + PATIENCE * _stopped_in_a_row(curves)
    best, sign = float(means[len(open_curves) :].min()), -1.0 if maximize else 1.0
    for curve, mean, deviation in zip(open_curves, map(float, means), WIDER * deviations, strict=False):
        ends = sign * model.compression.inverse(np.array([mean, best, mean - deviation, mean + deviation]))
        predicted = dict(zip(("mean", "best", "low", "high"), (float(v) for v in ends), strict=True))
        if maximize:
            predicted["low"], predicted["high"] = predicted["high"], predicted["low"]
        stop = bool(mean - sure * float(deviation) > best)
        verdicts[curve.number] = {"stop": stop, "rule": "predicted", **predicted}
    return verdicts


def _is_outside(this: Curve, curves: Sequence[Curve]) -> bool:
    """Whether a curve's latest loss is outside the best part of all at its point of the training."""
    rivals = [_at(c, float(this.fractions[-1])) for c in curves if c.number != this.number]
    losses = sorted([v for v in rivals if v is not None] + [float(this.losses[-1])])
    allowed = losses[math.ceil(_RUNG_PART * len(losses)) - 1]
    return bool(this.losses[-1] > allowed)


def _is_behind(curve: Curve, best: Curve) -> bool:
    """Whether a curve's latest loss is worse than the best trial's was after a BEHIND-th part of that training."""
    earlier = best.fractions <= curve.fractions[-1] - math.log(BEHIND) / math.log(SHORTEST) + 1e-9
    return bool(earlier.any() and curve.losses[-1] > best.losses[earlier][-1])


def _stopped_in_a_row(curves: list[Curve]) -> int:
    """How many trials were stopped since the last one that was complete, in the order of their numbers."""
    ended = [c for c in curves if c.state is not TrialState.RUNNING]
    complete = [i for i, c in enumerate(ended) if c.state is TrialState.COMPLETE]
    return len(ended) - 1 - complete[-1] if complete else len(ended)


def _at(curve: Curve, fraction: float) -> float | None:
    """A curve's loss at a training fraction, None where it was not read there; a diverged one is worst."""
    where = np.flatnonzero(np.abs(curve.fractions - fraction) < 1e-9)
    if not len(where):
        return None
    loss = float(curve.losses[where[0]])
    return loss if math.isfinite(loss) else math.inf


def space_of(distributions: Mapping[str, BaseDistribution]) -> SearchSpace | None:
    """A space, all in tier B, of the parameters that a trial holds; None where none of them can vary."""
    parameters: list[Parameter] = []
    for name, wide in sorted(distributions.items()):
        if wide.single():
            continue
        if isinstance(wide, FloatDistribution):
            scale = "log" if wide.log else "linear"
            parameters.append(Float(name, wide.low, wide.high, scale, "B", wide.low))
        elif isinstance(wide, IntDistribution):
            scale = "log" if wide.log else "linear"
            parameters.append(Int(name, wide.low, wide.high, scale, "B", wide.low))
        elif isinstance(wide, CategoricalDistribution):
            parameters.append(Choice(name, tuple(wide.choices), "B", wide.choices[0]))
    if not parameters:
        return None
    return SearchSpace(tuple(parameters), tuple(Entry(p.name, (p.name,)) for p in parameters))
