"""Several storages as one: numbers move up and back, notes and links with them, and nothing else changes."""

import shutil

import optuna
import pytest
from decorated_studies import made_trial, run
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note

from lightning_hp.dashboard import combined_storage as module
from lightning_hp.dashboard.combined_storage import (
    STUDY_STRIDE,
    TRIAL_STRIDE,
    CombinedArtifacts,
    CombinedStorage,
    study_folders,
)
from lightning_hp.dashboard.upstream import curve_limit as shown
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import open_storage, write_study_pointer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, trials in (("first", 3), ("second", 5)):
        run(StudyPaths(root / name), name, trials)
    (root / "no study").mkdir()
    return root


@pytest.fixture
def combined(folder, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(folder, tmp_path / "runs")
    return CombinedStorage(folder=tmp_path / "runs")


def load(combined, name):
    return optuna.load_study(study_name=name, storage=combined)


def alone(combined, name):
    paths = next(p.folders[name] for p in combined.mounts if name in p.folders)
    return optuna.load_study(study_name=name, storage=open_storage("journal", paths))


def test_folders_come_in_the_order_in_which_their_studies_began(folder):
    assert [p.name for p in study_folders(folder)] == ["first", "second"]
    assert study_folders(folder / "second") == [folder / "second"]
    assert study_folders(folder / "missing") == []


def test_numbers_are_moved_and_contents_are_not(combined):
    assert [(s._study_id, s.study_name) for s in combined.get_all_studies()] == [(0, "first"), (STUDY_STRIDE, "second")]
    for name, by in (("first", 0), ("second", TRIAL_STRIDE)):
        ours, plain = load(combined, name).trials, alone(combined, name).trials
        assert [t._trial_id for t in ours] == [t._trial_id + by for t in plain]
        for one, other in zip(ours, plain, strict=True):
            assert (one.number, one.params, one.values, one.user_attrs) == (
                other.number, other.params, other.values, other.user_attrs
            )  # fmt: skip
            assert combined.get_trial(one._trial_id).params == other.params
            assert combined.get_trial_id_from_study_id_trial_number(by and STUDY_STRIDE, one.number) == one._trial_id


def test_the_long_attribute_is_left_out_of_the_list_only(combined):
    for study in combined.get_all_studies():
        assert "lightning_hp" not in study.user_attrs
        assert "lightning_hp" in combined.get_study_user_attrs(study._study_id)


def test_writing_reaches_the_right_study(combined):
    study = load(combined, "second")
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("who", "me")
    trial.report(0.5, 1)
    study.tell(trial, 0.25)
    study.set_user_attr("colour", "green")
    plain = alone(combined, "second")
    last = plain.trials[-1]
    assert (last.number, last.value, last.user_attrs, last.intermediate_values) == (5, 0.25, {"who": "me"}, {1: 0.5})
    assert plain.user_attrs["colour"] == "green"
    assert len(alone(combined, "first").trials) == 3


@pytest.mark.parametrize("length", [1, 3000])
def test_notes_and_their_links_move_with_the_study(combined, length):
    plain = alone(combined, "second")
    filler = "x" * (2045 - 30)  # the link lies across the cut of a long note
    text = (
        filler if length > 1 else ""
    ) + " see /artifacts/0/4/ab-1 and /dashboard/studies/0/trials?numbers=4, /artifacts/0/cd"
    save_note(plain, text)
    trial = plain.trials[4]
    save_note(optuna.trial.Trial(plain, trial._trial_id), "trial note /dashboard/studies/0/note")
    study = load(combined, "second")
    moved = text.replace("/artifacts/0/4/", f"/artifacts/{STUDY_STRIDE}/{TRIAL_STRIDE + 4}/")
    moved = moved.replace("/studies/0/", f"/studies/{STUDY_STRIDE}/").replace(
        "/artifacts/0/cd", f"/artifacts/{STUDY_STRIDE}/cd"
    )
    assert get_note(study) == moved
    ours = optuna.trial.Trial(study, TRIAL_STRIDE + trial._trial_id)
    assert get_note(ours) == f"trial note /dashboard/studies/{STUDY_STRIDE}/note"
    save_note(ours, f"edited /dashboard/studies/{STUDY_STRIDE}/trials?numbers=1")
    assert get_note(optuna.trial.Trial(alone(combined, "second"), trial._trial_id)) == (
        "edited /dashboard/studies/0/trials?numbers=1"
    )


def test_unknown_numbers_are_refused(combined):
    for number in (2 * STUDY_STRIDE, -1):
        with pytest.raises(KeyError, match="no study or trial"):
            combined.get_study_name_from_id(number)
    with pytest.raises(KeyError, match="no study or trial"):
        combined.get_trial(5 * TRIAL_STRIDE)
    with pytest.raises(KeyError, match="no study named 'third'"):
        combined.get_study_id_from_name("third")


def test_studies_that_begin_later_appear(combined, folder, monkeypatch):
    assert len(combined.mounts) == 2
    root = combined.mounts[0].folders["first"].root.parent
    shutil.copytree(folder / "first", root / "third")
    assert len(combined.mounts) == 2  # not looked again so soon
    monkeypatch.setattr(module, "SCAN_EVERY", 0.0)
    names = [s.study_name for s in combined.get_all_studies()]
    assert names == ["first (first)", "second", "first (third)"]
    assert combined.folder_of(2 * STUDY_STRIDE).root.name == "third"


def test_a_folder_that_cannot_be_opened_is_left_out(combined, monkeypatch, caplog):
    root = combined.mounts[0].folders["first"].root.parent
    for name, text in (
        ("torn", '{"name":'),
        ("odd", '{"name": "x", "storage": "sqlite:////nowhere/at/all.db"}'),
        ("list", "[]"),
    ):
        (root / name).mkdir()
        (root / name / "study.json").write_text(text)
    monkeypatch.setattr(module, "SCAN_EVERY", 0.0)
    assert len(combined.get_all_studies()) == 2
    assert caplog.text.count("cannot be opened") >= 3


def test_folders_that_share_a_database_are_one_place(tmp_path):
    url = f"sqlite:///{tmp_path / 'all.db'}"
    storage = optuna.storages.get_storage(url)
    for name in ("a", "b"):
        optuna.create_study(study_name=name, storage=storage).add_trial(made_trial(0.5, 1.0))
        paths = StudyPaths(tmp_path / "runs" / name)
        write_study_pointer(paths, name, url)
    combined = CombinedStorage(folder=tmp_path / "runs")
    assert len(combined.mounts) == 1
    assert [(s.study_name, combined.folder_of(s._study_id).root.name) for s in combined.get_all_studies()] == [
        ("a", "a"),
        ("b", "b"),
    ]


def test_a_storage_that_stands_alone_keeps_any_number():
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage)
    combined = CombinedStorage([(storage, {})])
    assert combined.get_study_name_from_id(study._study_id) == study.study_name
    assert combined.folder_of(study._study_id) is None
    made = combined.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "new")
    assert storage.get_study_name_from_id(made) == "new"
    combined.delete_study(made)
    assert len(storage.get_all_studies()) == 1


def test_a_folder_takes_no_study_from_the_page(combined):
    with pytest.raises(RuntimeError, match="lightning-hp tune"):
        combined.create_new_study([optuna.study.StudyDirection.MINIMIZE], "new")


def test_artifacts_are_found_in_any_folder(combined, tmp_path):
    ids = []
    for name in ("first", "second"):
        study = alone(combined, name)
        paths = combined.folder_of(combined.get_study_id_from_name(name))
        paths.artifacts.mkdir()
        (tmp_path / "file.txt").write_text(name)
        store = FileSystemArtifactStore(paths.artifacts)
        ids.append(upload_artifact(artifact_store=store, file_path=str(tmp_path / "file.txt"), study_or_trial=study))
    store = CombinedArtifacts(combined)
    for artifact, said in zip(ids, (b"first", b"second"), strict=True):
        with store.open_reader(artifact) as file:
            assert file.read() == said
    store.remove(ids[1])
    with pytest.raises(optuna.artifacts.exceptions.ArtifactNotFound, match=ids[1]):
        store.open_reader(ids[1])
    with pytest.raises(ValueError, match="Invalid artifact_id"):
        store.open_reader("../../study.json")


def test_a_sampler_may_work_through_it(combined):
    study = load(combined, "second")
    study.sampler = optuna.samplers.RandomSampler(seed=1)
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=2)
    assert [t.state for t in alone(combined, "second").trials[-2:]] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize("mode", ["minimize", "maximize"])
def test_a_big_study_keeps_the_curves_of_its_best_and_last_trials(mode, monkeypatch):
    monkeypatch.setattr(shown, "MANY", 20)
    monkeypatch.setattr(shown, "CURVES", 5)
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, direction=mode)
    curve = {1: 2.0, 2: 1.0}
    for number in range(20):
        study.add_trial(made_trial(0.5, (number * 7 % 20) / 20, intermediate_values=curve))
    combined = CombinedStorage([(storage, {})])
    assert all(t.intermediate_values == curve for t in combined.get_all_trials(study._study_id))
    study.add_trial(made_trial(0.5, 0.5, TrialState.PRUNED, intermediate_values=curve))
    study.add_trial(made_trial(0.5, state=TrialState.RUNNING, intermediate_values=curve))
    trials = combined.get_all_trials(study._study_id)
    best = sorted(range(20), key=lambda n: study.trials[n].value, reverse=mode == "maximize")[:5]
    assert {t.number for t in trials if t.intermediate_values} == {*best, *range(17, 22)}
    assert [t.params for t in trials] == [t.params for t in study.trials]
    assert all(t.intermediate_values == curve for t in study.trials)
