"""The lock of a study behind a proxy: tickets in turn."""

import optuna
import pytest
from optuna.trial import TrialState

from lightning_hp.study.study_lock import ticket


class Time:
    def __init__(self):
        self.now = 0.0

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += 10.0


@pytest.fixture
def storage():
    return optuna.storages.InMemoryStorage()


def states(storage):
    turns = storage.get_study_id_from_name("s turns")
    return [t.state for t in storage.get_all_trials(turns)]


def test_the_lowest_running_ticket_has_the_lock(storage):
    time = Time()
    with ticket(storage, "s", time.clock, time.sleep):
        with (
            pytest.raises(TimeoutError, match="could not be acquired"),
            ticket(storage, "s", time.clock, time.sleep, timeout=5),
        ):
            pytest.fail("there is somebody before us")
        with ticket(storage, "another", time.clock, time.sleep):
            pass
    assert states(storage) == [TrialState.FAIL] * 2, "both tickets are ended"
    with ticket(storage, "s", time.clock, time.sleep):
        assert states(storage)[-1] is TrialState.RUNNING


def test_a_ticket_of_one_who_is_silent_is_ended_by_the_next(storage):
    time = Time()
    silent = ticket(storage, "s", time.clock, time.sleep)
    silent.__enter__()
    with ticket(storage, "s", time.clock, time.sleep):
        assert time.now > 30
        assert states(storage) == [TrialState.FAIL, TrialState.RUNNING]
    silent.__exit__(None, None, None)  # late, and harmless
    assert states(storage) == [TrialState.FAIL, TrialState.FAIL]
