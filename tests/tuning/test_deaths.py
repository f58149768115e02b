"""When a trial whose workers die is given up: each death once, and only while none brings it further."""

import optuna
import pytest
from optuna.trial import TrialState

from lightning_hp.study.leases import Leases, Worker
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import open_storage
from lightning_hp.tuning.deaths import MOST_AMONG_OTHERS, MOST_DEATHS, count_death, forget_deaths, is_to_blame


class Party:
    """A study with one running trial, whose owners die one after the other."""

    def __init__(self, folder):
        self.folder, self.held = folder, []  # what is in the list is not handed back
        self.study = optuna.create_study(storage=open_storage("journal", StudyPaths(folder)))
        self.trial = self.study.ask()

    @property
    def stored(self):
        return self.study.get_trials()[0]

    def lose(self, name):
        """A worker takes the trial and is never heard of again."""
        hold = Leases(self.study, Worker(self.folder, name), 60.0, lambda: 0.0).hold(self.trial)
        hold.__enter__()
        self.held.append(hold)

    def count(self, worker="next"):
        return count_death(self.study, self.stored, worker)


@pytest.fixture
def party(tmp_path):
    return Party(tmp_path)


def test_each_worker_that_dies_with_a_trial_counts_once(party):
    for number in range(1, MOST_DEATHS + 1):
        party.lose(f"worker {number}")
        assert [party.count(), party.count()] == [number, number], "who asks again, after its storage was away"
    assert party.stored.user_attrs["deaths"] == MOST_DEATHS


def test_a_trial_that_gets_further_with_every_worker_is_not_to_blame(party):
    for step in range(1, 3 * MOST_DEATHS):
        party.lose(f"worker {step}")
        party.trial.report(1.0, step)
        assert party.count() == 1
    assert party.stored.user_attrs["deaths"] == 3 * MOST_DEATHS - 1, "all are kept for people"
    for number in range(2, MOST_DEATHS + 1):
        party.lose(f"stuck {number}")
        assert party.count() == number


@pytest.mark.parametrize(
    ("of_others", "given_up_after"),
    # with a mean of m deaths a trial, n in a row come by chance with probability (m / (1 + m))^n
    [([], 5), ([0, 0], 5), ([1, 0, 0, 0], 5), ([1, 0], 7), ([1, 1], 10), ([0, 5], 21), ([100], MOST_AMONG_OTHERS)],
)
def test_a_trial_is_to_blame_only_if_its_neighbours_fare_better(party, of_others, given_up_after):
    for deaths in of_others:
        neighbour = party.study.ask()
        party.study._storage.set_trial_user_attr(neighbour._trial_id, "deaths", deaths)
    for number in range(1, given_up_after + 1):
        party.lose(f"worker {number}")
        assert is_to_blame(party.study, party.stored, party.count()) == (number == given_up_after)


def test_trials_that_kill_their_workers_do_not_excuse_each_other(party):
    killer = party.study.ask()
    party.study._storage.set_trial_user_attr(killer._trial_id, "deaths", MOST_DEATHS)
    party.study.tell(killer, state=TrialState.FAIL)
    party.study.enqueue_trial({})
    for number in range(1, MOST_DEATHS + 1):
        party.lose(f"worker {number}")
        assert is_to_blame(party.study, party.stored, party.count()) == (number == MOST_DEATHS)


def test_who_lives_is_no_death(party):
    assert party.count() == 0, "a trial that was asked for, and not begun"
    party.lose("mine")
    assert party.count("mine") == 0, "its own, asked for when the storage went away"
    leases = Leases(party.study, Worker(party.folder, "polite"), 60.0, lambda: 0.0)
    with leases.hold(party.trial):
        pass
    assert party.count() == 0, "handed back"
    assert "deaths" not in party.stored.user_attrs


def test_a_cause_outside_of_the_trial_begins_the_count_anew(party):
    party.lose("first")
    assert party.count() == 1
    forget_deaths(party.study, party.trial)
    assert party.stored.user_attrs["deaths"] == 0
    party.lose("second")
    assert party.count() == 1


def test_a_try_that_failed_leaves_no_trial_behind(studies, monkeypatch):
    """The lease of a trial that was asked for when the storage went away is handed back, and the trial is trained."""
    real, tries = optuna.Trial.suggest_float, []

    def suggest(trial, *args, **kwargs):
        tries.append(trial.number)
        if len(tries) == 3:
            raise ConnectionError("gone")
        return real(trial, *args, **kwargs)

    monkeypatch.setattr(optuna.Trial, "suggest_float", suggest)
    studies.run(trials=3)
    trials = studies.trials()
    assert [(t.number, t.state) for t in trials] == [(n, TrialState.COMPLETE) for n in range(3)]
    assert all("deaths" not in t.user_attrs for t in trials)
