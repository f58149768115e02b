"""Which trials may be the best: those that the model cannot tell from the best one.

A study's best value is its luckiest training. The model knows better: it has seen the neighbours of each trial, and how
much a training scatters. Its few best candidates are worth training again on fresh seeds; the winner is then chosen by
the mean.

Trainings that repeat a configuration are trials like others, with the same parameters: the model's noise is fitted to
their differences, and a configuration counts with the mean of its trainings (:attr:`.CurveModel.best`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from lightning_hp.search.blas_threads import one_blas_thread
from lightning_hp.search.engine import Engine
from lightning_hp.search.pruner import WIDER


@dataclass(frozen=True)
class Candidate:
    """A configuration that may be the best.

    Attributes:
        trial: Its best complete trial.
        mean: Its expected final value, in the metric's units and direction.
        low: The expected value less one (widened) standard deviation.
        high: The expected value plus one.
        trainings: How many complete trials have these parameters.
    """

    trial: FrozenTrial
    mean: float
    low: float
    high: float
    trainings: int


@one_blas_thread
def winner_candidates(study: Study, engine: Engine, k: int = 3) -> list[Candidate]:
    """The configurations that may be the best, the most probable first, at most k.

    In are those whose expected final value, less a standard deviation, is within the noise of one training of the best
    expected one; the trial with the best value is always among them.

    Args:
        study: With one objective.
        engine: Of the study's space, as ``CoarseToFineSampler.engine``.
        k: The most candidates.

    Returns:
        Empty where no trial is complete.

    Raises:
        ValueError: If k is below 1.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k!r}")
    trials = {t.number: t for t in study.get_trials(deepcopy=False)}
    curves = engine.curves(study, list(trials.values()))
    model = engine.model(curves)
    groups: dict[bytes, list[int]] = {}
    complete = {c.number: c for c in curves if c.final < math.inf}
    for number, c in sorted(complete.items(), key=lambda item: (item[1].final, item[0])):
        groups.setdefault(np.round(c.unit, 6).tobytes(), []).append(number)
    if model is None or not groups:
        return []
    firsts = [numbers[0] for numbers in groups.values()]  # the best training of each, the best of all first
    means, deviations = model.final(np.stack([complete[n].unit for n in firsts]))
    deviations = WIDER * deviations
    near = means - deviations <= means.min() + model.noise
    near[0] = True
    order = [int(i) for i in np.argsort(means, kind="stable") if near[i]]
    chosen = order[:k]
    if 0 not in chosen:
        chosen[-1] = 0
    sign = -1.0 if study.directions[0] is StudyDirection.MAXIMIZE else 1.0
    result = []
    for i in chosen:
        ends = np.array([means[i], means[i] - deviations[i], means[i] + deviations[i]])
        mean, *interval = (sign * float(v) for v in model.compression.inverse(ends))
        number, repeats = firsts[i], list(groups.values())[i]
        result.append(Candidate(trials[number], mean, min(interval), max(interval), len(repeats)))
    return result
