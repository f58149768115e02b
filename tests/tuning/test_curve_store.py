"""A thinned curve decides as the whole one does, keeps what matters, and stays small however long the training."""

import math

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from lightning_hp.search.curves import looks
from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.space.space import SearchSpace
from lightning_hp.tuning.curve_store import FEWEST, POINTS, RETEST_LOOKS, ThinCurve, kept_steps

SPACE = SearchSpace.from_dict(
    {
        "learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A"},
        "momentum": {"low": 0.5, "high": 0.99, "scale": "one_minus_log", "tier": "A"},
    }
)


@pytest.mark.parametrize("most", [1, 2, 12, 27, 30, 31, 45, 81, 100, 1000, 12345])
@pytest.mark.parametrize("points", [12, 13, 30, 100])
def test_as_many_steps_as_there_is_room_for_at_even_distances(most, points):
    kept = sorted(kept_steps(most, points))
    if most <= points:
        assert kept == list(range(1, most + 1))
        return
    assert points / 2 <= len(kept) <= points - 2
    assert {kept[0], kept[-1]} == {1, most}
    assert set(looks(most)) <= set(kept)
    assert {math.ceil(part * most) for part in RETEST_LOOKS} <= set(kept)
    if points >= 30:
        assert max(np.diff(kept)) <= 2.5 * most / points + 1


def test_fewer_points_than_curves_are_read_at_are_refused():
    with pytest.raises(ValueError, match=f"`points` must be a whole number of at least {FEWEST}, got 11"):
        kept_steps(100, 11)


def curve(values, steps):
    """A learning curve with noise, whose best point is not its last."""
    distance = (math.log10(values["learning_rate"]) + 2) ** 2 + (values["momentum"] - 0.8) ** 2
    rng = np.random.default_rng(int(1e9 * values["learning_rate"]))
    at = np.arange(1, steps + 1)
    return distance + 2 / at + 0.3 * (at / steps) ** 8 + 0.02 * rng.normal(size=steps)


def run(steps, trials, thinned, seed=0):
    """A study; what it gives its pruner is whole or thinned."""
    sampler = CoarseToFineSampler(SPACE, n_trials=trials, max_steps=steps, seed=seed)
    study = optuna.create_study(sampler=sampler, pruner=sampler.pruner())
    for _ in range(trials):
        trial = study.ask()
        values = curve(SPACE.suggest(trial), steps)
        thin = ThinCurve(trial, steps, thinned) if thinned else None
        state = TrialState.COMPLETE
        for step, value in enumerate(values, 1):
            if thin is not None:
                thin.report(value, step)
                stop = thin.should_prune()
            else:
                trial.report(value, step)
                stop = trial.should_prune()
            if stop:
                state = TrialState.PRUNED
                break
        if thin is not None:
            thin.close()
        study.tell(trial, values.min() if state is TrialState.COMPLETE else None, state)
    return study


@pytest.mark.parametrize("steps", [50, 333])
def test_a_study_of_thinned_curves_is_the_study_of_whole_ones(steps):
    whole, thin = run(steps, 16, None), run(steps, 16, POINTS)
    assert {t.state for t in whole.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for one, other in zip(whole.trials, thin.trials, strict=True):
        assert (one.params, one.state, one.value) == (other.params, other.state, other.value)
        assert one.user_attrs.get("stopped") == other.user_attrs.get("stopped")
        kept, all_of = other.intermediate_values, one.intermediate_values
        assert len(kept) <= POINTS + 1
        assert all(all_of[step] == value for step, value in kept.items())
        assert min(kept.values()) == min(all_of.values())
        assert max(kept.values()) == max(all_of.values())
        assert {min(all_of), max(all_of)} <= set(kept)


def test_short_curves_are_stored_whole():
    study = run(27, 3, POINTS)
    assert len(study.trials[0].intermediate_values) == 27


def thinned(length, most, points=POINTS, known=None):
    """Steps stored of a curve of some length."""
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    trial = study.ask()
    for step, value in (known or {}).items():
        trial.report(value, step)
    thin = ThinCurve(trial, most, points)
    for step in range(1, length + 1):
        thin.report(1.0 / step, step)
    before = len(study.trials[0].intermediate_values)
    thin.close()
    return before, study.trials[0].intermediate_values


def test_more_validations_than_epochs_grow_the_curve_slowly():
    for most in (27, 300):
        sizes = [len(thinned(most * times, most)[1]) for times in (1, 2, 4, 8, 16, 32)]
        assert max(np.diff(sizes)) <= POINTS / 2 + 2
        assert sizes[-1] <= 5 * POINTS


def test_points_are_stored_as_they_come_not_at_the_end():
    before, stored = thinned(300, 300)
    assert len(stored) - before <= 2


def test_all_is_stored_where_the_length_is_not_known():
    assert len(thinned(80, None)[1]) == 80


def test_what_an_interrupted_run_stored_stays():
    _, stored = thinned(300, 300, known={1: 7.0, 5: 9.0})
    assert stored[1] == 7.0
    assert stored[5] == 9.0


def test_a_long_training_is_stored_thin_and_judged_whole(studies):
    studies.run(trials=1, max_epochs=60, curve_points=12)
    (trial,) = studies.trials()
    kept = trial.intermediate_values
    assert 8 <= len(kept) <= 12
    assert {1, 60} <= set(kept)
    assert trial.value == min(kept.values()) == kept[60]


def test_the_pruner_is_shown_every_point():
    seen = []

    class Looking(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            seen.append(dict(trial.intermediate_values))
            return len(seen) == 77

    study = optuna.create_study(pruner=Looking())
    thin = ThinCurve(study.ask(), 300)
    answers = []
    for step in range(1, 78):
        thin.report(1.0 / step, step)
        answers.append(thin.should_prune())
    assert seen == [{s: 1.0 / s for s in range(1, step + 1)} for step in range(1, 78)]
    assert answers == [False] * 76 + [True]
    assert len(study.trials[0].intermediate_values) < 20


def test_points_that_wait_are_the_same_points_once_written():
    study = optuna.create_study()
    at_once, waiting = study.ask(), study.ask()
    one, other = ThinCurve(at_once, 100, 12), ThinCurve(waiting, 100, 12, deferred=True)
    for step in range(1, 101):
        one.report(abs(step - 41.5), step)
        other.report(abs(step - 41.5), step)
    one.close()
    other.close()
    assert other.shown().intermediate_values == one.shown().intermediate_values
    assert len(other.shown().intermediate_values) == 100
    assert not study.get_trials()[1].intermediate_values
    other.flush()
    stored = [trial.intermediate_values for trial in study.get_trials()]
    assert stored[0] == stored[1]
    assert {41, 100} < set(stored[1])
    other.flush()  # nothing is left to write
    assert study.get_trials()[1].intermediate_values == stored[1]
