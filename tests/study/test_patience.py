"""A storage that does not answer for a while, a storage that stays away, and answers that were lost."""

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from lightning_hp.study import patience
from lightning_hp.study.database import QuickDatabase
from lightning_hp.study.patience import StorageAwayError, impatient, is_away, patient, patiently


class Away:
    """Fails so many times, as Optuna's database does when its server has gone; then answers."""

    def __init__(self, times, error=None):
        self.times, self.calls = times, 0
        self.error = error or OperationalError("COMMIT", {}, Exception("server closed the connection\nunexpectedly"))

    def __call__(self):
        self.calls += 1
        if self.calls <= self.times:
            raise StorageInternalError("An exception is raised during the commit.") from self.error
        return "answer"


class Time:
    def __init__(self):
        self.now, self.pauses = 0.0, []

    def sleep(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)

    def clock(self):
        return self.now


def test_it_is_asked_again_with_longer_and_longer_pauses():
    time, away = Time(), Away(6)
    assert patiently(away, time.sleep, time.clock) == "answer"
    assert away.calls == 7
    wanted = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
    assert all(0.5 * w <= pause <= 1.5 * w for pause, w in zip(time.pauses, wanted, strict=True))


def test_one_line_says_that_it_is_waited_for(monkeypatch):
    time, said = Time(), []
    monkeypatch.setattr(patience, "_last_away", -1.0)
    monkeypatch.setattr(patience.time, "monotonic", lambda: 77.0)
    assert patiently(Away(6), time.sleep, time.clock, say=said.append) == "answer"
    assert said == [
        "`storage` does not answer (server closed the connection unexpectedly); it is asked again for 120 s"
    ]
    assert patience.last_away() == 77.0


def test_a_storage_that_stays_away_is_an_error_of_one_line():
    time = Time()
    said = (
        r"`storage` has not answered for 1[12]\d s \(server closed the connection unexpectedly\); the same command goes"
    )
    with pytest.raises(StorageAwayError, match=said) as error:
        patiently(Away(10**6), time.sleep, time.clock)
    assert "\n" not in str(error.value)
    assert max(time.pauses) <= 1.5 * patience.LONGEST_PAUSE


def test_inside_nothing_is_asked_again():
    """A section under a lock is begun again as a whole, since the lock was lost with the storage."""
    time, inner = Time(), Away(1)
    sections = []

    def section():
        sections.append(inner.calls)
        return patiently(inner, time.sleep, time.clock)

    assert patiently(section, time.sleep, time.clock) == "answer"
    assert sections == [0, 1]
    assert len(time.pauses) == 1


def test_the_impatient_ask_once():
    away = Away(1)
    with impatient(), pytest.raises(StorageAwayError, match="has not answered for 0 s"):
        patiently(away, lambda _: pytest.fail("it waits"))
    assert away.calls == 1


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("no"), StorageInternalError("too long a value")])
def test_other_errors_pass(error):
    away = Away(0)
    away.error = error

    def ask():
        raise error

    with pytest.raises(type(error), match=r"no|too long"):
        patiently(ask, lambda _: pytest.fail("it waits"))
    assert not is_away(error)


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    return optuna.storages.get_storage(patient(QuickDatabase)(f"sqlite:///{tmp_path}/s.db"))


def lose_answer(monkeypatch, storage, name, times=1):
    """The method does what it shall, and its answer is lost so many times."""
    base, left = getattr(QuickDatabase, name), [times]

    def lossy(self, *args, **kwargs):
        result = base(self, *args, **kwargs)
        if left[0]:
            left[0] -= 1
            raise OperationalError("COMMIT", {}, Exception("server closed the connection"))
        return result

    lossy.__name__ = name
    monkeypatch.setattr(type(storage._backend), name, patience._patient(lossy))


def test_an_end_whose_answer_was_lost_is_an_end(storage, monkeypatch):
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    lose_answer(monkeypatch, storage, "set_trial_state_values")
    study.tell(trial, 3.0)
    assert [(t.state, t.value) for t in study.trials] == [(TrialState.COMPLETE, 3.0)]


def test_an_end_by_somebody_else_is_none_of_ours(storage, monkeypatch):
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    study.tell(trial.number, 1.0)
    with pytest.raises(UpdateFinishedTrialError, match="already finished"):
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [2.0])
    lose_answer(monkeypatch, storage, "get_study_user_attrs")
    assert study.user_attrs == {}


def test_a_trial_whose_creation_was_not_answered_is_one_that_runs_without_an_owner(storage, monkeypatch):
    study = optuna.create_study(storage=storage)
    lose_answer(monkeypatch, storage, "_create_new_trial")
    assert study.ask().number == 1
    assert [t.state for t in study.trials] == [TrialState.RUNNING] * 2
