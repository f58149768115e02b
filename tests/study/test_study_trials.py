"""Which trial is best: complete, finite, not diverged, in the study's direction; ties by number."""

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from lightning_hp.study.trials import best_trials, count_states, ranked_trials


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_ranked_trials_are_those_of_a_second_computation(direction):
    study = optuna.create_study(direction=direction)
    values = [2.0, float("inf"), 1.0, 1.0, float("-inf"), 3.0, -5.0]
    for number, value in enumerate(values):
        study.add_trial(create_trial(value=value, user_attrs={"diverged": True} if number == 6 else {}))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.add_trial(create_trial(state=TrialState.PRUNED, value=0.0, intermediate_values={1: 0.0}))
    study.ask()
    finite = [number for number, value in enumerate(values[:6]) if np.isfinite(value)]
    sign = 1 if direction == "minimize" else -1
    expected = [finite[i] for i in np.argsort([sign * values[number] for number in finite], kind="stable")]
    assert [t.number for t in ranked_trials(study.get_trials(), direction == "minimize")] == expected
    assert [t.number for t in best_trials(study, 2)] == expected[:2]
    assert count_states(study) == {"complete": 7, "pruned": 1, "failed": 1}
