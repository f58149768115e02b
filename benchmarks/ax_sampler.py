"""Ax's default strategy (Sobol points, then a Gaussian process) as an Optuna sampler, for comparisons.

    pip install -c constraints.txt ax-platform

Ax works on the same axes as every other peer: those that the space suggests to Optuna.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import optuna
from asked_sampler import AskedSampler
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

METRIC = "loss"


class AxSampler(AskedSampler):
    """Asks Ax for all parameters at once, from the second trial on.

    Args:
        seed: Of Ax's first, quasi-random trials and of torch, with which it maximises the acquisition.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._client: Any = None
        self._ax_index: dict[int, int] = {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Ax's next configuration."""
        if not search_space:
            return {}
        if self._client is None:
            self._client = self._start(search_space)
            for done in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                self._ax_index[done.number] = self._client.attach_trial(parameters=done.params)
                self._complete(done.number, done.values)
        ((index, parameters),) = self._client.get_next_trials(max_trials=1).items()
        self._ax_index[trial.number] = index
        return dict(parameters)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tell Ax the value."""
        if trial.number in self._ax_index:
            self._complete(trial.number, values)

    def _complete(self, number: int, values: Sequence[float] | None) -> None:
        index = self._ax_index[number]
        if values is None:
            self._client.mark_trial_abandoned(trial_index=index)
        else:
            self._client.complete_trial(trial_index=index, raw_data={METRIC: float(values[0])})

    def _start(self, search_space: dict[str, BaseDistribution]) -> Any:
        import torch
        from ax.api.client import Client
        from ax.api.configs import RangeParameterConfig

        for name in ("ax", "ax.api.client"):
            logging.getLogger(name).setLevel(logging.WARNING)
        torch.manual_seed(self.seed)
        client = Client(random_seed=self.seed)
        client.configure_experiment(
            parameters=[
                RangeParameterConfig(
                    name=name,
                    bounds=(axis.low, axis.high),  # type: ignore[attr-defined]
                    parameter_type="int" if isinstance(axis, IntDistribution) else "float",
                    scaling="log" if axis.log else "linear",  # type: ignore[attr-defined]
                )
                for name, axis in search_space.items()
            ]
        )
        client.configure_optimization(objective=f"-{METRIC}")
        client.configure_generation_strategy(initialization_random_seed=self.seed)
        return client
