"""Leases of running trials: on every storage, by a clock that the test turns, and by the kernel where it can tell."""

import os
import signal
from datetime import UTC, datetime, timedelta

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from lightning_hp.study.leases import Lease, Leases, Worker, is_alive, lease_of
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import load_study, open_storage

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Seconds since it was made; the test turns it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


@pytest.fixture(params=["journal", "sqlite"])
def storage(request, tmp_path):
    return "journal" if request.param == "journal" else f"sqlite:///{tmp_path}/s.db"


@pytest.fixture
def clock():
    return Clock()


class Party:
    """One worker, with its own opening of the study and, unless it is a neighbour, a machine of its own."""

    def __init__(self, storage, folder, clock, name, elsewhere=True):
        opened = open_storage(storage, StudyPaths(folder))
        names = [s.study_name for s in opened.get_all_studies()]
        self.study = load_study("s", opened) if names else optuna.create_study(study_name="s", storage=opened)
        self.worker = Worker(folder, name)
        if elsewhere:
            self.worker.place = f"{name}'s machine"
        self.leases = Leases(self.study, self.worker, 60.0, clock, clock.now)

    def trial(self, number=0):
        return self.study.get_trials(deepcopy=False)[number]


@pytest.fixture
def party(storage, tmp_path, clock):
    return lambda name, **options: Party(storage, tmp_path, clock, name, **options)


def test_a_lease_expires_when_it_is_not_renewed_for_its_length(party, clock):
    first, second = party("first"), party("second")
    trial = first.study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    with first.leases.hold(trial):
        assert not second.leases.is_free(second.trial())
        clock.seconds = 59
        first.leases.renew()
        assert not second.leases.is_free(second.trial())
        clock.seconds = 118
        assert not second.leases.is_free(second.trial()), "59 s since its last change was seen"
        clock.seconds = 120
        assert second.leases.is_free(second.trial())
        with second.leases.hold(second.trial()):
            assert (lease_of(second.trial()).worker, lease_of(second.trial()).turn) == ("second", 1)
            assert second.trial().params == trial.params


def test_who_comes_new_watches_for_a_whole_length_whatever_the_clocks_of_others(party, clock):
    first = party("first")
    first.leases._now = lambda: START - timedelta(days=9)
    with first.leases.hold(first.study.ask()):
        clock.seconds = 1e6
        second = party("second")
        assert not second.leases.is_free(second.trial())
        clock.seconds += 60
        assert not second.leases.is_free(second.trial())
        clock.seconds += 1
        assert second.leases.is_free(second.trial())


def test_while_the_storage_is_away_no_lease_expires(party, clock):
    """Nobody can renew one then: who is back first must not take the others' trials."""
    first, second = party("first"), party("second")
    away = [-1.0]
    second.leases._away = lambda: away[0]
    trial = first.study.ask()
    with first.leases.hold(trial):
        assert not second.leases.is_free(second.trial())
        away[0] = clock.seconds = 100.0  # it was away until now
        assert not second.leases.is_free(second.trial())
        clock.seconds = 159.0
        assert not second.leases.is_free(second.trial())
        clock.seconds = 161.0
        assert second.leases.is_free(second.trial())


def test_a_late_worker_learns_who_has_its_trial_and_nothing_counts_twice(party, clock):
    first, second = party("first"), party("second")
    trial = first.study.ask()
    with first.leases.hold(trial):
        assert not first.leases.is_lost(trial)
        assert not second.leases.is_free(second.trial())
        clock.seconds = 100
        assert second.leases.is_free(second.trial())
        with second.leases.hold(second.trial()):
            assert first.leases.is_lost(trial), "it asks storage, since it stood still for longer than its lease"
            assert first.leases.present_owner(trial) == "second"
            first.leases.renew()
            assert lease_of(second.trial()).worker == "second", "a late renewal takes nothing back"
            second.study.tell(0, 1.0)
    with pytest.raises(UpdateFinishedTrialError, match="finished"):
        first.study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [2.0])
    assert [(t.number, t.state, t.value) for t in first.study.get_trials()] == [(0, TrialState.COMPLETE, 1.0)]


def test_a_late_worker_that_is_asked_only_at_its_end(party, clock):
    first, second = party("first"), party("second")
    trial = first.study.ask()
    with first.leases.hold(trial):
        second.leases.is_free(second.trial())
        clock.seconds = 61
        with second.leases.hold(second.trial()):
            assert first.leases.present_owner(trial) == "second"
            assert second.leases.present_owner(second.trial()) is None


def test_a_trial_that_is_handed_back_is_free_at_once(party, clock):
    first, second = party("first"), party("second")
    with first.leases.hold(first.study.ask()):
        assert not second.leases.is_free(second.trial())
    assert second.leases.is_free(second.trial())
    assert lease_of(second.trial()).worker == ""
    with first.leases.hold(first.trial()):
        assert not second.leases.is_free(second.trial())
        assert lease_of(second.trial()).turn == 1
        first.study.tell(0, 1.0)
    assert lease_of(second.trial()).worker == "first", "who finished a trial stays known"


def test_a_trial_without_a_lease_is_free(party):
    first, second = party("first"), party("second")
    first.study.ask()
    assert second.leases.is_free(second.trial())


def test_renewing_writes_only_what_is_due(party, clock):
    first = party("first")
    with first.leases.hold(first.study.ask()):
        for seconds, beat in ((5, 0), (19, 0), (20, 1), (39, 1), (40, 2)):
            clock.seconds = seconds
            first.leases.renew(always=False)
            assert lease_of(first.trial()).beat == beat
        assert lease_of(first.trial()).at == "2026-01-01T00:00:40+00:00"


def test_a_neighbour_that_was_killed_is_known_to_be_dead_at_once(party, clock, fork):
    read, write = os.pipe()
    survivor = party("survivor", elsewhere=False)
    survivor.study.ask()

    def hold_a_trial():
        doomed = party("doomed", elsewhere=False)
        with doomed.leases.hold(doomed.trial()):
            os.write(write, b"x")
            signal.pause()

    child = fork(hold_a_trial)
    os.read(read, 1)
    assert not survivor.leases.is_free(survivor.trial())
    assert is_alive(lease_of(survivor.trial()), survivor.worker._folder, clock.now() + timedelta(days=1))
    child.kill(signal.SIGKILL)
    child.wait()
    assert survivor.leases.is_free(survivor.trial())
    assert not is_alive(lease_of(survivor.trial()), survivor.worker._folder, clock.now())


def test_at_first_sight_a_distant_worker_is_judged_by_the_time_of_day(tmp_path):
    lease = Lease("far", "elsewhere", 0, 4, 60.0, START.isoformat())
    assert is_alive(lease, tmp_path, START + timedelta(seconds=119))
    assert not is_alive(lease, tmp_path, START + timedelta(seconds=121))
    assert not is_alive(Lease("", "elsewhere", 0, 4, 60.0, START.isoformat()), tmp_path, START)


def test_a_worker_that_ends_leaves_no_file(tmp_path):
    worker = Worker(tmp_path, "w")
    assert (tmp_path / "locks" / "workers" / "w.lock").exists()
    worker.close()
    assert list((tmp_path / "locks" / "workers").iterdir()) == []
