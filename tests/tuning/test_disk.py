"""Half-written lines and full disks: what was stored stays, what was not is done again."""

import json
import os
import resource

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from lightning_hp.search.plan import SearchPlan
from lightning_hp.study.description import Description, open_study
from lightning_hp.study.paths import StudyPaths, write_text
from lightning_hp.study.storage import StudyError, open_storage, redacted

COMPLETE, RUNNING = TrialState.COMPLETE, TrialState.RUNNING


def lines_of(paths):
    return paths.journal.read_bytes().split(b"\n")


# --- the journal ---


def test_a_torn_last_line_is_cut_before_the_next_one_is_added(studies):
    studies.run("reference", trials=4)
    studies.run(trials=2)
    whole = studies.paths().journal.read_bytes()
    torn = whole.splitlines(keepends=True)[-1][:-9]
    with studies.paths().journal.open("ab") as file:
        file.write(torn)
    studies.run(trials=4)
    after = studies.paths().journal.read_bytes()
    assert after.startswith(whole)
    assert all(json.loads(line) for line in after.splitlines())
    values = [t.value for t in studies.trials()]
    assert values == [t.value for t in studies.trials("reference")]


def test_a_torn_line_longer_than_one_look_is_cut(tmp_path):
    paths = StudyPaths(tmp_path)
    open_storage("journal", paths)
    paths.journal.write_bytes(b'{"a":1}\n' + b"x" * 200_000)
    open_storage_of_any_content(paths)
    assert paths.journal.read_bytes() == b'{"a":1}\n'
    paths.journal.write_bytes(b"x" * 200_000)
    open_storage_of_any_content(paths)
    assert paths.journal.read_bytes() == b""


def open_storage_of_any_content(paths):
    from lightning_hp.study.journal import MendingJournal

    return MendingJournal(paths.journal)


@pytest.mark.parametrize("at", [pytest.param(3, marks=pytest.mark.slow), 17, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_a_write(studies, fork, at):
    """The process dies in its write number ``at``, with half of the line on disk."""
    studies.run("reference", trials=4)
    journal = studies.paths().journal

    def work():
        real, count = os.fsync, 0

        def torn(handle):
            nonlocal count
            real(handle)
            if os.path.samestat(os.fstat(handle), os.stat(journal)):
                count += 1
                if count == at:
                    os.ftruncate(handle, os.fstat(handle).st_size - 11)
                    os.kill(os.getpid(), 9)

        os.fsync = torn
        studies.run(trials=4)

    assert fork(work).wait() == -9
    assert not journal.read_bytes().endswith(b"\n"), "the test must leave a torn line"
    studies.run(trials=4)
    assert [(t.params, t.value) for t in studies.trials()] == [(t.params, t.value) for t in studies.trials("reference")]


def test_a_full_disk_while_the_journal_is_written(studies, fork):
    """A file-size limit stops every file of the child at so many bytes; the journal gets there amid a line."""
    studies.run("reference", trials=4)
    studies.run(trials=2)
    journal = studies.paths().journal
    before = journal.read_bytes()
    limit = len(before) + 1500

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            studies.run(trials=4)
        except (OSError, StudyError) as error:
            os.write(1, str(error).encode())
            return 1

    child = fork(work)
    assert child.wait() == 1
    assert "\n" not in child.output
    assert "File too large" in child.output
    after = journal.read_bytes()
    assert after.startswith(before)
    assert after.endswith(b"\n"), "what was half written is taken back"
    assert len(after) <= limit
    plain = optuna.load_study(study_name="toy", storage=JournalStorage(JournalFileBackend(str(journal))))
    assert [t.state for t in plain.trials[:2]] == [COMPLETE, COMPLETE], "Optuna itself reads it"
    studies.run(trials=4)
    assert [(t.params, t.value) for t in studies.trials()] == [(t.params, t.value) for t in studies.trials("reference")]


@pytest.mark.parametrize(
    "call", [1, pytest.param(6, marks=pytest.mark.slow), pytest.param(19, marks=pytest.mark.slow), 30]
)
def test_no_space_at_any_write_of_the_journal(studies, monkeypatch, call):
    studies.run("reference", trials=3)
    journal, real, count = studies.paths().journal, os.fsync, 0

    def full(handle):
        nonlocal count
        if journal.exists() and os.path.samestat(os.fstat(handle), os.stat(journal)):
            count += 1
            if count >= call:
                raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, StudyError), match="No space left on device") as error:
        studies.run(trials=3)
    assert "\n" not in str(error.value)
    content = journal.read_bytes()
    assert content == b"" or content.endswith(b"\n")
    monkeypatch.setattr(os, "fsync", real)
    studies.run(trials=3)
    assert [(t.number, t.state, t.value) for t in studies.trials()] == [
        (t.number, t.state, t.value) for t in studies.trials("reference")
    ]


# --- the other files ---


def test_write_text_keeps_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "result.json"
    write_text(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path], "nothing half-written lies about"
    monkeypatch.undo()
    write_text(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "name", ["result.json", "ledger.jsonl", "report.html", pytest.param("evidence.json", marks=pytest.mark.slow)]
)
def test_a_full_disk_at_the_end_loses_nothing(reported, monkeypatch, name):
    """The end is written again by the next run, and dated once."""
    real = os.replace

    def full(source, target):
        if str(target).endswith(name):
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    real_write = os.write

    def full_write(handle, data):
        if name == "ledger.jsonl" and b'"tuned"' in data:
            raise OSError(28, "No space left on device")
        return real_write(handle, data)

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(os, "write", full_write)
    with pytest.raises(OSError, match="No space left on device"):
        reported.run(trials=2)
    monkeypatch.undo()
    paths = reported.paths()
    assert not (paths.root / name).exists() or name == "ledger.jsonl"
    result = reported.run(trials=2)
    assert result.report.is_file()
    assert paths.evidence.is_file()
    assert paths.result.is_file()
    assert len([line for line in paths.ledger.read_text().splitlines() if '"tuned"' in line]) == 1


# --- opening ---


@pytest.mark.parametrize("content", [b"no journal\n", b'{"op_code": 99}\n', b"[1, 2]\n", b'{"a": 1}\n'])
def test_a_file_that_is_no_journal_is_said_in_one_line(tmp_path, content):
    paths = StudyPaths(tmp_path)
    paths.journal.write_bytes(content)
    with pytest.raises(StudyError, match=r"`storage` cannot be opened: .*journal\.log") as error:
        open_storage("journal", paths)
    assert "\n" not in str(error.value)
    assert paths.journal.read_bytes() == content


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////no/such/folder/study.db",
        "postgresql://me:secret@localhost:1/none",
        "nonsense://me:secret@localhost",
        "mysql://me:secret@localhost:1/none",
    ],
)
def test_a_storage_that_does_not_answer_is_said_in_one_line_without_its_password(tmp_path, url):
    with pytest.raises(StudyError, match="`storage` must be a database that answers, got ") as error:
        open_storage(url, StudyPaths(tmp_path))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql://me:secret@host/db", "mysql://me:***@host/db"),
        ("mysql://me@host/db", "mysql://me:***@host/db"),
        ("mysql://me:p@ss@host/db", "mysql://me:***@host/db"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("journal", "journal"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    assert redacted(url) == shown


def test_a_study_that_others_made_is_left_alone(tmp_path):
    from lightning_hp import SearchSpace

    storage = open_storage("journal", StudyPaths(tmp_path))
    theirs = optuna.create_study(study_name="x", storage=storage)
    theirs.add_trial(optuna.trial.create_trial(value=1.0))
    space = SearchSpace.from_dict({"learning_rate": {"low": 1e-3, "high": 1.0}})
    wanted = Description(SearchPlan(space=space, n_trials=3, max_steps=2), monitor="m", mode="min")
    with pytest.raises(StudyError, match="a study named 'x' exists that lightning_hp did not make"):
        open_study("x", storage, wanted, StudyPaths(tmp_path))


def test_a_study_of_a_newer_version_is_not_read(studies):
    from lightning_hp.study.description import ATTRIBUTE, describe

    studies.run(trials=2)
    study = studies.open()
    study.set_user_attr(ATTRIBUTE, {**study.user_attrs[ATTRIBUTE], "schema": 99})
    with pytest.raises(StudyError, match=r"written by a newer lightning_hp .schema 99, this version reads 1"):
        describe(study)
    with pytest.raises(StudyError, match="upgrade lightning_hp"):
        studies.run(trials=3)


@pytest.mark.slow
def test_sqlite_serves_as_well(studies, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    first = studies.run(trials=3, storage=url)
    second = studies.run(trials=4, storage=url)
    assert not studies.paths().journal.exists()
    assert len(second.study.trials) == 4
    assert second.value <= first.value
