"""Syne Tune's ASHA with conformal quantile regression as an Optuna sampler with its pruner, for comparisons.

    pip install syne-tune==0.16.0 huggingface_hub      # in an environment of its own, since it brings XGBoost

Successive halving stops trials, and every new point is drawn from quantiles that are regressed on the latest loss of
each trial (Salinas et al. 2023). Syne Tune works on the same axes as every other peer: those that the space suggests to
Optuna.
"""

from __future__ import annotations

import datetime
from typing import Any

import optuna
from asked_sampler import AskedSampler
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

METRIC, EPOCH = "loss", "epoch"


class SyneTuneSampler(AskedSampler):
    """Asks Syne Tune for all parameters at once, from the second trial on.

    Args:
        seed: Of Syne Tune's random points and models.
        steps: The step of a complete training.
    """

    def __init__(self, seed: int, steps: int) -> None:
        super().__init__(seed)
        self.steps = steps
        self._scheduler: Any = None
        self._trials: dict[int, Any] = {}

    def pruner(self) -> optuna.pruners.BasePruner:
        """The halving that belongs to this sampler."""
        return _Halving(self)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Syne Tune's next configuration."""
        if not search_space:
            return {}
        if self._scheduler is None:
            self._start(search_space)
            for done in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                self._add(done.number, dict(done.params))
                for step, loss in done.intermediate_values.items():
                    self.goes_on(done.number, step, loss)
        config = dict(self._scheduler.suggest().config)
        self._add(trial.number, config)
        return config

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: list[float] | None
    ) -> None:
        """Tell Syne Tune the last value of a complete trial, which no pruner was asked about."""
        if state is TrialState.COMPLETE and trial.number in self._trials and values is not None:
            self.goes_on(trial.number, self.steps, values[0])

    def goes_on(self, number: int, step: int, loss: float) -> bool:
        """Tell Syne Tune a loss; whether it lets the trial go on."""
        result = {METRIC: float(loss), EPOCH: step}
        return str(self._scheduler.on_trial_result(self._trials[number], result)) == "CONTINUE"

    def _add(self, number: int, config: dict[str, Any]) -> None:
        from syne_tune.backend.trial_status import Trial

        self._trials[number] = Trial(number, config, datetime.datetime.now())
        self._scheduler.on_trial_add(self._trials[number])

    def _start(self, search_space: dict[str, BaseDistribution]) -> None:
        from syne_tune import config_space
        from syne_tune.optimizer.baselines import ASHACQR

        axes = {}
        for name, axis in search_space.items():
            kind = "randint" if isinstance(axis, IntDistribution) else "uniform"
            axis_of = getattr(config_space, f"log{kind}" if axis.log else kind)  # type: ignore[attr-defined]
            axes[name] = axis_of(axis.low, axis.high)  # type: ignore[attr-defined]
        self._scheduler = ASHACQR(axes, metric=METRIC, time_attr=EPOCH, max_t=self.steps, random_seed=self.seed)


class _Halving(optuna.pruners.BasePruner):
    def __init__(self, sampler: SyneTuneSampler) -> None:
        self._sampler = sampler

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether Syne Tune stops the trial at its latest report."""
        if trial.number not in self._sampler._trials:  # the first one, before Syne Tune knows the space
            return False
        step = max(trial.intermediate_values)
        return not self._sampler.goes_on(trial.number, step, trial.intermediate_values[step])
