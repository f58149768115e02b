"""CurvePruner in studies of few trials: it stops what is slower than the best by a factor, and nothing else."""

import optuna
import pytest
from optuna.trial import TrialState

from lightning_hp.search import CoarseToFineSampler, SearchSpace
from lightning_hp.search.curves import CurveReader, curves_to_dicts
from lightning_hp.search.pruner import ATTRIBUTE, FEW, CurvePruner

STEPS = 64
SPACE = SearchSpace.from_dict({"slowness": {"low": 0.5, "high": 32.0, "scale": "log", "tier": "A", "default": 1.0}})


def slow(trial: optuna.Trial, sign: float = 1.0) -> float:
    """A curve that takes so many times longer for everything; the faster one ends a little better."""
    slowness = SPACE.suggest(trial)["slowness"]
    for step in range(1, STEPS + 1):
        trial.report(sign / (1.0 + step / slowness), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return sign * (0.01 + 0.001 * slowness)


def after_the_default(slowness, n_trials, direction="minimize", older=()):
    """A study of two trials: slowness 1, and the given one; gives the second."""
    sampler = CoarseToFineSampler(
        SPACE, n_trials=n_trials, max_steps=STEPS, plan="retune" if older else "default", older=older
    )
    study = optuna.create_study(sampler=sampler, pruner=sampler.pruner(), direction=direction)
    for value in (1.0, slowness):
        SPACE.enqueue(study, {"slowness": value})
    study.optimize(lambda trial: slow(trial, -1.0 if direction == "maximize" else 1.0), n_trials=2)
    return study.trials[1]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("slowness", [0.5, 1.5, 3.9, 4.2, 12.0])
def test_what_is_four_times_slower_is_stopped_after_a_quarter(slowness, direction):
    trial = after_the_default(slowness, 6, direction)
    if slowness < 4:
        assert trial.state is TrialState.COMPLETE
        assert ATTRIBUTE not in trial.user_attrs
    else:
        assert trial.state is TrialState.PRUNED
        assert trial.user_attrs[ATTRIBUTE] == {"rule": "behind", "step": STEPS // 4}


@pytest.mark.parametrize(("n_trials", "state"), [(FEW - 1, TrialState.COMPLETE), (FEW, TrialState.PRUNED)])
def test_only_studies_that_are_planned_with_few_trials_are_spared(n_trials, state):
    """A trial that is 1.5 times slower than the only other one: in longer studies it is no third of the best."""
    assert after_the_default(1.5, n_trials).state is state


def test_the_curves_of_an_older_study_count():
    """A study of a few trials that refreshes a long one knows enough."""
    older = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=FEW, max_steps=STEPS))
    older.optimize(slow, n_trials=FEW)
    curves = curves_to_dicts(CurveReader(SPACE, STEPS, maximize=False).read(older.trials))
    assert after_the_default(1.5, 6, older=curves).state is TrialState.PRUNED


def test_a_small_study_completes_its_neighbours():
    """Six trials, all within a factor of 2 of the default: with the rule of longer studies most are stopped."""

    def run(pruner):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
        for slowness in (1.0, 1.9, 1.3, 1.6, 1.1, 0.8):
            SPACE.enqueue(study, {"slowness": slowness})
        study.optimize(slow, n_trials=6)
        return [t.state for t in study.trials]

    assert run(CurvePruner(SPACE, STEPS, n_trials=6)) == [TrialState.COMPLETE] * 6
    assert run(CurvePruner(SPACE, STEPS)).count(TrialState.PRUNED) >= 3


def test_from_ten_complete_trials_on_it_predicts():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.pruner = CurvePruner(SPACE, STEPS, n_trials=FEW - 1)
    for i in range(10):
        SPACE.enqueue(study, {"slowness": 0.6 + 0.05 * i})
    study.optimize(slow, n_trials=10)
    SPACE.enqueue(study, {"slowness": 30.0})
    study.optimize(slow, n_trials=1)
    assert study.trials[-1].user_attrs[ATTRIBUTE]["rule"] == "predicted"


@pytest.mark.parametrize("n_trials", [0, True, 2.5])
def test_a_number_of_trials_that_is_none_is_refused(n_trials):
    with pytest.raises(ValueError, match=f"`n_trials` must be a whole number of at least 1 or None, got {n_trials}"):
        CurvePruner(SPACE, STEPS, n_trials=n_trials)
