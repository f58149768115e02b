"""What the samplers of other tuners have in common: all parameters are asked for at once, from the second trial on."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState


class AskedSampler(optuna.samplers.BaseSampler):
    """The base of :class:`.AxSampler` and :class:`.SyneTuneSampler`.

    Args:
        seed: Of the tuner, and of what is drawn before a trial is complete.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters of the first trial that is complete."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return dict(complete[0].distributions) if complete else {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random: only before a trial is complete."""
        return optuna.samplers.RandomSampler(self.seed).sample_independent(study, trial, param_name, param_distribution)
