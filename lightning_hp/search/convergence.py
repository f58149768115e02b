"""Whether a study has anything left to gain: what the rest of its budget may improve, against the noise of the metric.

Two expectations, of which the larger counts:

* the model's: the most improvement that it expects of one more trial anywhere;
* the record's: the second half of the trials, those that explored included, improved the best expected value by so
  much. This is where the model's being too sure of itself is doubted: what exploring found against its word counts.
  Gains fall with the logarithm of the trials at best, so the rest of the budget is expected to improve it by as
  much for each doubling of the number of trials.

Where that is less than what one training scatters around its own mean, nobody could tell the gain from luck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from lightning_hp.search.blas_threads import one_blas_thread
from lightning_hp.search.engine import Engine
from lightning_hp.search.proposal import candidates, far_candidates, log_expected_improvement
from lightning_hp.search.pruner import WIDER, space_of
from lightning_hp.search.sampler import CoarseToFineSampler

#: Never before so many trials are complete.
FEWEST = 15
#: The study's user attribute that says why it was ended.
ATTRIBUTE = "converged"


@dataclass(frozen=True)
class Convergence:
    """What a study has left to gain.

    Attributes:
        finished: Finished trials.
        left: Trials that the budget has left.
        gain: What these are expected to improve the best final value by, in units of the metric, at least 0.
        noise: Standard deviation of one training's final value around its mean, in units of the metric.
        sure: Probability that not even the most promising point improves the best by more than the noise.
    """

    finished: int
    left: int
    gain: float
    noise: float
    sure: float

    @property
    def converged(self) -> bool:
        """Whether the gain is below the noise."""
        return self.gain < self.noise

    def __str__(self) -> str:
        """What is left to gain, in a sentence."""
        than = "less" if self.gain < self.noise else "more"
        return (
            f"after {self.finished} of {self.finished + self.left} trials the other {self.left} are expected to gain "
            f"{self.gain:.3g}, {than} than one training scatters ({self.noise:.3g}); {self.sure:.0%} sure"
        )


@one_blas_thread
def convergence(study: Study, engine: Engine, n_trials: int) -> Convergence | None:
    """What the rest of a study's budget may gain; None with fewer than FEWEST complete trials, or nothing left.

    Args:
        study: With one objective.
        engine: Of the study's space, as ``CoarseToFineSampler.engine``.
        n_trials: Planned total number of trials.
    """
    trials = study.get_trials(deepcopy=False)
    finished = [t for t in trials if t.state.is_finished()]
    curves = engine.curves(study, finished)
    left = n_trials - len(finished)
    complete = [c for c in curves if c.final < math.inf]
    if left <= 0 or len(complete) < FEWEST:
        return None
    model = engine.model(curves)
    assert model is not None
    sides = np.tile([0.0, 1.0], (len(engine.space), 1))
    rng = np.random.default_rng([len(complete), len(finished)])
    promising = model.promising()
    units = np.concatenate(
        [candidates(engine.space, sides, promising, rng), far_candidates(engine.space, sides, promising, rng)]
    )
    means, _ = model.final(np.stack([c.unit for c in complete]))
    best, number = float(means.min()), np.array([c.number for c in complete])
    before = means[number < sorted(t.number for t in finished)[len(finished) // 2]]
    expected, deviation = model.final(units)
    improved = best - np.exp(log_expected_improvement(expected, deviation, best).max())
    values = np.array([improved, best, best + model.noise, float(before.min()) if len(before) else best])
    reached, now, scattered, earlier = (float(v) for v in model.compression.inverse(values))
    doublings = math.log2(n_trials / len(finished))
    gain, noise = max(now - reached, (earlier - now) * doublings), scattered - now
    hoped = float(model.compression(now - noise))
    sure = float(ndtr(((expected - hoped) / (WIDER * deviation)).min()))
    return Convergence(len(finished), left, gain, noise, sure)


class StopWhenConverged:
    """Ends ``study.optimize`` when the rest of the budget is expected to gain less than one training scatters.

    For any Optuna script with one objective::

        study.optimize(objective, n_trials=200, callbacks=[StopWhenConverged(n_trials=200)])

    Never before 15 trials are complete. What was saved, and how sure that is, is kept as the study's user attribute
    ``converged``, as a sentence. The study can be continued: give it trials again, without this callback.

    Args:
        n_trials: Planned total number of trials; None for that of the study's :class:`CoarseToFineSampler`.

    Raises:
        ValueError: If ``n_trials`` is below 1.
    """

    def __init__(self, n_trials: int | None = None) -> None:
        if n_trials is not None and (isinstance(n_trials, bool) or not isinstance(n_trials, int) or n_trials < 1):
            raise ValueError(f"`n_trials` must be a whole number of at least 1 or None, got {n_trials!r}")
        self._n_trials = n_trials
        self._engine: Engine | None = None

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Called by Optuna after each trial.

        Raises:
            ValueError: If the number of trials is not known.
        """
        if trial.state is not TrialState.COMPLETE:
            return
        engine, n_trials = self._engine_for(study, trial)
        if engine is None:
            return
        result = convergence(study, engine, n_trials)
        if result is not None and result.converged:
            study.set_user_attr(ATTRIBUTE, str(result))
            study.stop()

    def _engine_for(self, study: Study, trial: FrozenTrial) -> tuple[Engine | None, int]:
        sampler = study.sampler
        ours = sampler if isinstance(sampler, CoarseToFineSampler) else None
        n_trials = self._n_trials if self._n_trials is not None else ours.n_trials if ours is not None else None
        if n_trials is None:
            raise ValueError("`n_trials` must be given where the study's sampler has no number of trials, got None")
        if ours is not None:
            return ours.engine, n_trials
        space = space_of(trial.distributions)
        if space is not None and (self._engine is None or self._engine.space != space):
            self._engine = Engine(space, None)
        return (self._engine if space is not None else None), n_trials


def keep_convergence(study: Study, result: Convergence) -> bool:
    """Keep with a study why it was ended; False where that is known already."""
    if study.user_attrs.get(ATTRIBUTE) == str(result):
        return False
    study.set_user_attr(ATTRIBUTE, str(result))
    return True
