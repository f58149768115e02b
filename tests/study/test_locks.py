"""Locks of a shared folder, on file systems where the kernel's locks hold and where they do not."""

import multiprocessing
import os
import signal

import filelock
import pytest

from lightning_hp.study import locks
from lightning_hp.study.journal import MendingJournal
from lightning_hp.study.locks import FolderLock


@pytest.fixture
def network(monkeypatch):
    """A network file system mounted without locks: every machine is granted the kernel lock that it asks for."""
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda handle, operation: None)


def seconds_of(*values):
    """A clock that says these values one after the other, then the last for ever."""
    left = list(values)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_a_lock_excludes_and_is_free_again(tmp_path):
    first, second = FolderLock(tmp_path / "l"), FolderLock(tmp_path / "l")
    with first:
        assert first.is_held()
        with pytest.raises(TimeoutError, match="could not be acquired"):
            second.acquire(timeout=0)
    with second:
        assert not first.is_held()
    assert not os.path.lexists(tmp_path / "l.owner")


def test_without_kernel_locks_the_link_excludes(tmp_path, network):
    first, second = (FolderLock(tmp_path / "l", owner=owner) for owner in ("a", "b"))
    with first:
        assert filelock.FileLock(tmp_path / "l").acquire(timeout=0), "the file system of this test grants all"
        with pytest.raises(TimeoutError, match="could not be acquired"):
            second.acquire(timeout=0)
    with second:
        assert second.is_held()


def test_a_link_of_a_dead_process_of_this_machine_is_broken_at_once(tmp_path, fork):
    def die_with_the_lock():
        FolderLock(tmp_path / "l").acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    assert fork(die_with_the_lock).wait() == -signal.SIGKILL
    assert os.path.lexists(tmp_path / "l.owner")
    with FolderLock(tmp_path / "l", clock=lambda: 0.0) as lock:
        assert lock.is_held()


def test_a_link_of_another_machine_is_broken_when_it_does_not_change_for_long(tmp_path):
    os.symlink("far|1", tmp_path / "l.owner")
    waits = []
    lock = FolderLock(tmp_path / "l", 30.0, seconds_of(0, 0, 0, 29, 29, 31), waits.append)
    lock.acquire()
    assert lock.is_held()
    assert len(waits) == 2, "at 0 s and at 29 s"
    lock.release()


def test_a_link_that_changes_hands_is_waited_for_anew(tmp_path):
    os.symlink("far|1", tmp_path / "l.owner")

    def next_owner(_):
        os.unlink(tmp_path / "l.owner")
        os.symlink("far|2", tmp_path / "l.owner")

    lock = FolderLock(tmp_path / "l", 30.0, seconds_of(0, 0, 0, 20, 20, 20, 49, 49), next_owner)
    with pytest.raises(TimeoutError, match="could not be acquired"):
        lock.acquire(timeout=25)
    assert os.readlink(tmp_path / "l.owner") == "far|2"


def test_a_late_owner_sees_that_its_lock_was_broken_and_leaves_the_next_one_alone(tmp_path, network):
    late = FolderLock(tmp_path / "l", owner="a")
    late.acquire()
    hurried = FolderLock(tmp_path / "l", 30.0, seconds_of(0, 0, 0, 31), lambda _: None, owner="b")
    hurried.acquire(timeout=1000)
    assert (late.is_held(), hurried.is_held()) == (False, True)
    late.release()
    assert hurried.is_held()


@pytest.mark.parametrize("links", [True, False])
def test_a_file_system_without_symbolic_links_has_a_file(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(locks.os, "symlink", refuse)
    with FolderLock(tmp_path / "l") as lock:
        assert lock.is_held()
        assert os.path.islink(tmp_path / "l.owner") is links
        with pytest.raises(TimeoutError, match="could not be acquired"):
            FolderLock(tmp_path / "l").acquire(timeout=0)


@pytest.mark.parametrize("with_link", [True, False])
def test_machines_that_share_a_journal_do_not_write_into_each_other(tmp_path, network, monkeypatch, fork, with_link):
    """Appending as network file systems do it: the end is looked for, then written to, in pieces."""
    path = tmp_path / "journal.log"
    # without the link the three find the same end once for certain, however fast or slow the machine is
    all_found_the_end = multiprocessing.get_context("fork").Barrier(3)
    appended = []

    def append(self, file, lines):
        handle = os.open(self._path, os.O_WRONLY)
        end = os.path.getsize(self._path)
        if not with_link and not appended:
            all_found_the_end.wait(timeout=300)
        appended.append(end)
        for start in range(0, len(lines), 7):
            os.pwrite(handle, lines[start : start + 7], end + start)
            os.sched_yield()
        os.close(handle)

    monkeypatch.setattr(MendingJournal, "_append", append)
    if not with_link:
        monkeypatch.setattr(FolderLock, "_take_link", lambda self, begun, timeout: None)
    MendingJournal(path)

    def work(machine):
        monkeypatch.setattr(locks, "machine", lambda: f"machine {machine}")
        journal = MendingJournal(path)
        for number in range(60):
            journal.append_logs([{"machine": machine, "number": number, "text": "x" * 40}])

    children = [fork(lambda machine=machine: work(machine)) for machine in range(3)]
    codes = [child.wait() for child in children]
    lines = path.read_bytes().splitlines()
    whole = [line for line in lines if line.startswith(b'{"machine"') and line.endswith(b'"}')]
    if with_link:
        assert codes == [0, 0, 0]
        assert len(whole) == len(lines) == 180
    else:
        assert len(whole) < 180, "the test could not fail"
