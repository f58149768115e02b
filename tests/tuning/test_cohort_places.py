"""The places of a cohort: who leaves early is replaced by a trial that is proposed with all results so far."""

import os
import signal

import optuna
import pytest
from cohort_studies import assert_as_alone, study
from optuna.trial import TrialState

from lightning_hp.study.confirmed import CONFIRMS
from lightning_hp.tuning import runner, together
from lightning_hp.tuning.runner import StudyRunner

#: eight trials share a structure, and four have places
PLACES = {"engine": "stacked", "structures": 1 / 8, "cohort": 4}


@pytest.fixture
def stops_many(monkeypatch):
    """A pruner that stops every trial that is not good after two epochs."""
    pruner = optuna.pruners.ThresholdPruner(upper=1.8, n_warmup_steps=2)
    monkeypatch.setattr(runner, "pruner_of", lambda *of: pruner)


def cohorts_of(trials):
    groups = {}
    for trial in trials:
        groups.setdefault(trial.user_attrs["cohort"], []).append(trial)
    return list(groups.values())


def test_free_places_are_taken_by_trials_that_know_what_became_of_the_others(studies, stops_many, tmp_path):
    study(studies, prune=True, trials=24, max_epochs=6, engine=PLACES)
    trials = studies.trials("digits")
    assert len(trials) == 24
    newcomers = []
    for cohort in cohorts_of([t for t in trials if CONFIRMS not in t.user_attrs]):
        assert len({t.params["hidden_units"] for t in cohort}) == 1
        assert len({t.user_attrs.get("stage") for t in cohort}) == 1
        assert len(cohort) <= 8
        for place, late in enumerate(cohort[4:], start=4):
            newcomers.append(late)
            assert sum(t.datetime_complete <= late.datetime_start for t in cohort) > place - 4, "told before"
    complete = [t for t in newcomers if t.state is TrialState.COMPLETE]
    assert complete, "else nothing is compared"
    for late in complete[:3]:
        assert_as_alone(late, tmp_path, max_epochs=6)


def test_an_enqueued_trial_that_comes_for_a_free_place_is_trained_after_the_cohort(studies, stops_many, monkeypatch):
    ask, wanted = StudyRunner.ask, {"learning_rate": 0.07, "one_minus_momentum": 0.2, "hidden_units": 11}

    def with_guest(runner, leases):
        if len(runner.study.get_trials(deepcopy=False)) == 16:  # in the last stage
            runner.study.enqueue_trial(wanted)
        return ask(runner, leases)

    monkeypatch.setattr(StudyRunner, "ask", with_guest)
    study(studies, prune=True, trials=24, max_epochs=6, engine=PLACES)
    trials = studies.trials("digits")
    (guest,) = [t for t in trials if t.params["hidden_units"] == 11 and t.params["learning_rate"] == 0.07]
    assert guest.state in (TrialState.COMPLETE, TrialState.PRUNED)
    assert guest.user_attrs["cohort"] == str(guest.number)
    assert all(t.state.is_finished() for t in trials)


def test_a_storage_that_fails_while_free_places_are_given_away_ends_the_study_after_the_cohort(
    studies, stops_many, monkeypatch
):
    companions, failed = together.Together._companions, []

    def fails(own, cohort, most, claims):
        if len(cohort) > 1 and not failed:
            failed.extend(one.trial.number for one in cohort)
            raise OSError("the storage is gone")
        return companions(own, cohort, most, claims)

    monkeypatch.setattr(together.Together, "_companions", fails)
    options = {"prune": True, "trials": 24, "max_epochs": 6, "engine": PLACES}
    with pytest.raises(OSError, match="the storage is gone"):
        study(studies, **options)
    trials = studies.trials("digits")
    assert failed
    assert all(trials[number].state.is_finished() for number in failed), "what was in training is not lost"
    study(studies, **options)
    assert all(t.state.is_finished() for t in studies.trials("digits"))


def test_a_study_that_is_killed_when_places_are_taken_goes_on(studies, fork, stops_many, monkeypatch):
    options = {"prune": True, "trials": 24, "max_epochs": 6, "engine": PLACES}
    companions = together.Together._companions

    def killed(own, cohort, most, claims):
        asked = companions(own, cohort, most, claims)
        if asked and len(cohort) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return asked

    def work():
        monkeypatch.setattr(together.Together, "_companions", killed)
        study(studies, **options)

    child = fork(work)
    assert child.wait() == -signal.SIGKILL
    before = studies.trials("digits")
    running = [t for t in before if t.state is TrialState.RUNNING]
    ended = [t for t in before if t.state.is_finished()]
    assert ended
    assert 0 < len(running) <= 5, "the cohort's places, and whoever was on the way"
    study(studies, **options)
    after = studies.trials("digits")
    assert all(t.state.is_finished() for t in after)
    assert [(t.params, t.value) for t in after if t.number in {e.number for e in ended}] == [
        (t.params, t.value) for t in ended
    ]
    assert [after[t.number].params for t in running] == [t.params for t in running]
