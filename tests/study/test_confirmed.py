"""Configurations on several seeds: means, intervals, order."""

import math

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from scipy import stats

from lightning_hp.study.confirmed import CONFIRMS, confirmed
from lightning_hp.study.trials import ranked_trials


def trials_of(rows):
    """(value or state, number of the trial that it confirms or None) in order of number."""
    made = []
    for number, (value, root) in enumerate(rows):
        state = value if isinstance(value, TrialState) else TrialState.COMPLETE
        trial = create_trial(
            state=state,
            value=None if isinstance(value, TrialState) else value,
            params={"x": 0.1 * (number if root is None else root)},
            distributions={"x": FloatDistribution(0.0, 10.0)},
            user_attrs={} if root is None else {CONFIRMS: root},
        )
        trial.number = number
        made.append(trial)
    return made


ROWS = [(0.50, None), (0.40, None), (0.45, None), (0.60, 1), (0.47, 2), (0.56, 1), (0.46, 2)]


def test_the_mean_decides_and_the_best_training_stands_for_it():
    trials = trials_of(ROWS)
    first, second = confirmed(trials, minimises=True)
    assert (first.root, second.root) == (2, 1)
    assert first.mean == pytest.approx(np.mean([0.45, 0.47, 0.46]))
    assert first.best(minimises=True).number == 6, "of the fresh seeds, whose checkpoints are kept"
    order = ranked_trials(trials, minimises=True)
    assert order[0].number == 6, "trial 1 had the best single value, by luck"
    assert [t.number for t in order[1:3]] == [1, 2]
    assert ranked_trials(trials_of(ROWS[:3]), minimises=True)[0].number == 1


def test_the_interval_is_students_with_the_scatter_of_all_and_the_luck_of_the_first_trainings():
    trials = trials_of(ROWS)
    groups = [np.array([0.40, 0.60, 0.56]), np.array([0.45, 0.47, 0.46])]
    scatter = math.sqrt(sum(((g - g.mean()) ** 2).sum() for g in groups) / 4)
    luck = np.mean([g[1:].mean() - g[0] for g in groups])
    half = stats.t.ppf(0.95, 4) * scatter / math.sqrt(3) + luck / 3
    for one in confirmed(trials, minimises=True):
        assert one.interval == pytest.approx(half)
    assert confirmed(trials, minimises=True)[0].text() == f"0.46 ± {half:.2g} on 3 seeds"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.0651, 0.0701), "0.0676 ± "),
        ((11800.0, 12200.0), "12000 ± "),
        ((9999.8, 9999.9), "10000 ± "),
        ((2e7, 2.2e7), "2.1e+07 ± "),
    ],
)
def test_large_values_are_told_in_whole_numbers(values, text):
    trials = trials_of([(values[0], None), (values[1], 0)])
    (one,) = confirmed(trials, minimises=True)
    assert one.text().startswith(text)
    if one.mean < 1e6:
        assert "e+" not in one.text()


def test_first_trainings_that_were_not_lucky_widen_nothing():
    trials = trials_of([(0.5, None), (0.6, None), (0.4, 0), (0.5, 1)])
    half = stats.t.ppf(0.95, 2) * 0.1 / math.sqrt(2) / math.sqrt(2)
    assert [one.interval for one in confirmed(trials, minimises=True)] == pytest.approx([half, half])
    mirrored = trials_of([(-0.5, None), (-0.6, None), (-0.4, 0), (-0.5, 1)])
    wider = half + 0.1 / 2
    assert [one.interval for one in confirmed(mirrored, minimises=True)] == pytest.approx([wider, wider])
    assert [one.interval for one in confirmed(mirrored, minimises=False)] == pytest.approx([half, half])


@pytest.mark.parametrize("minimises", [True, False])
def test_the_interval_covers_what_new_seeds_give(minimises):
    """The three best of 28 nearly equal configurations, two fresh seeds each, the winner by the mean."""
    rng, sign, covered = np.random.default_rng(0), 1.0 if minimises else -1.0, 0
    for _ in range(300):
        means = 1 + 0.06 * rng.standard_normal(28)
        values = means + 0.12 * rng.standard_normal(28)
        order = np.argsort(values)[:3]
        again = [(sign * (means[i] + 0.12 * rng.standard_normal()), int(i)) for i in (*order, *order)]
        winner = confirmed(trials_of([*((sign * v, None) for v in values), *again]), minimises)[0]
        covered += abs(winner.mean - sign * means[winner.root]) <= winner.interval
    assert 0.85 < covered / 300 < 0.97, "said: 0.9"


def test_higher_may_be_better():
    trials = trials_of([(0.5, None), (0.6, None), (0.7, 0), (0.5, 1)])
    assert [one.root for one in confirmed(trials, minimises=False)] == [0, 1]
    assert ranked_trials(trials, minimises=False)[0].number == 2


@pytest.mark.parametrize("ending", [TrialState.FAIL, TrialState.PRUNED])
def test_a_configuration_that_failed_on_a_seed_comes_last(ending):
    trials = trials_of([(0.1, None), (0.5, None), (0.1, 0), (ending, 0), (0.5, 1)])
    assert [(one.root, one.failed) for one in confirmed(trials, minimises=True)] == [(1, False), (0, True)]
    assert ranked_trials(trials, minimises=True)[0].number == 4


def test_without_repeats_nothing_is_confirmed():
    assert confirmed(trials_of(ROWS[:3]), minimises=True) == []
    assert confirmed(trials_of([*ROWS[:3], (TrialState.RUNNING, 1)]), minimises=True) == []
