"""Opening and moving what a person names."""

import optuna
import pytest

from lightning_hp.dashboard.server import combined_storage_of
from lightning_hp.study.aside import move_aside
from lightning_hp.study.leases import Leases, Worker
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError, open_storage


def test_a_database_that_is_not_there_is_not_created_by_looking(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for target in ("sqlite:///typo.db", f"sqlite:///{tmp_path}/typo.db"):
        with pytest.raises(StudyError, match=r"must be a database that answers, .*there is no file .*typo\.db"):
            combined_storage_of(target)
    assert list(tmp_path.iterdir()) == []
    open_storage("sqlite:///new.db", StudyPaths(tmp_path))
    assert (tmp_path / "new.db").is_file()
    assert combined_storage_of("sqlite:///new.db").get_all_studies() == []


def test_a_folder_is_moved_aside_under_the_next_free_name(tmp_path):
    folder = tmp_path / "s"
    assert move_aside(folder, "s", "journal") is None
    for number in (1, 2):
        folder.mkdir()
        (folder / "x").write_text(str(number))
        assert move_aside(folder, "s", "journal") == tmp_path / f"s.old-{number}"
    assert (tmp_path / "s.old-1" / "x").read_text() == "1"
    folder.mkdir()
    with pytest.raises(StudyError, match="`--restart` must be used with a study in its own folder"):
        move_aside(folder, "s", "sqlite:///x.db")


def test_a_running_study_is_not_moved(tmp_path):
    paths = StudyPaths(tmp_path / "s")
    study = optuna.create_study(study_name="s", storage=open_storage("journal", paths))
    worker = Worker(paths.root, "w1")
    study.ask()
    with Leases(study, worker).hold(study.ask()):
        with pytest.raises(StudyError, match="study 's' is running: trial 1 belongs to w1"):
            move_aside(paths.root, "s", "journal")
        assert paths.root.is_dir()
    assert move_aside(paths.root, "s", "journal") == tmp_path / "s.old-1", "handed back: nobody runs it"


def test_a_study_whose_journal_cannot_be_read_is_moved(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "journal.log").write_bytes(b"no journal\n")
    assert move_aside(folder, "s", "journal") == tmp_path / "s.old-1"
