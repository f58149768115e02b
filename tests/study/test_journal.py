"""Writes to the journal in few large operations."""

import os
import signal
import threading

import optuna
import pytest

from lightning_hp.study import journal
from lightning_hp.study.journal import MendingJournal, in_one_go


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.log"


def opened(path):
    storage = optuna.storages.JournalStorage(MendingJournal(path))
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True), storage


def ask(study, number):
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("number", number)
    return trial


def test_what_is_written_in_one_go_is_read_at_once_and_waits_for_the_disk_once(path, monkeypatch):
    waits = []
    sync = os.fsync
    monkeypatch.setattr(journal.os, "fsync", lambda descriptor: (waits.append(1), sync(descriptor)))
    study, storage = opened(path)
    waits.clear()
    with in_one_go(storage), in_one_go(storage):
        trials = [ask(study, number) for number in range(3)]
        assert [t.user_attrs for t in study.get_trials()] == [{"number": n} for n in range(3)]
        for trial in trials:
            study.tell(trial, 1.0)
    assert len(waits) == 1
    other, _ = opened(path)
    assert [t.params for t in other.get_trials()] == [t.params for t in study.get_trials()]
    assert [t.value for t in other.get_trials()] == [1.0] * 3


def test_two_processes_write_in_turns(path, fork):
    study, storage = opened(path)

    def write():
        mine, own = opened(path)
        for number in range(20):
            with in_one_go(own):
                ask(mine, number)

    child = fork(write)
    for number in range(20):
        with in_one_go(storage):
            ask(study, number)
    assert child.wait() == 0
    read, _ = opened(path)
    assert [t.number for t in read.get_trials()] == list(range(40))
    assert all(t.params and "number" in t.user_attrs for t in read.get_trials())


def test_a_process_that_is_killed_in_between_leaves_a_journal_that_goes_on(path, fork):
    def die_in_between():
        study, storage = opened(path)
        with in_one_go(storage):
            ask(study, 0)
            os.kill(os.getpid(), signal.SIGKILL)

    assert fork(die_in_between).wait() == -signal.SIGKILL
    study, _ = opened(path)
    ask(study, 1)
    assert [t.user_attrs["number"] for t in study.get_trials()] == [0, 1]


def test_another_storage_is_written_as_always():
    storage = optuna.storages.InMemoryStorage()
    with in_one_go(storage):
        optuna.create_study(study_name="other", storage=storage).ask()
        assert len(optuna.load_study(study_name="other", storage=storage).trials) == 1


def test_a_thread_writes_into_what_another_has_opened(path):
    """As the thread does that renews leases while trials are told in one go; it neither waits for ever nor is lost."""
    study, storage = opened(path)
    trials = [ask(study, number) for number in range(2)]
    inside, done = threading.Event(), threading.Event()

    def renew():
        inside.wait()
        for beat in range(50):
            storage.set_trial_system_attr(trials[0]._trial_id, "beat", beat)
        done.set()

    thread = threading.Thread(target=renew)
    thread.start()
    for number in range(200):
        with in_one_go(storage):
            inside.set()
            trials[1].set_user_attr("number", number)
    thread.join()
    assert done.is_set()
    read, _ = opened(path)
    assert read.get_trials()[0].system_attrs["beat"] == 49
    assert read.get_trials()[1].user_attrs["number"] == 199
