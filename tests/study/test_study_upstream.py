"""The private parts by which a study is reached give what the public functions and optuna-dashboard's own give."""

import json

import optuna
import plotly.graph_objects as go
import pytest
from optuna.trial import Trial, create_trial
from optuna_dashboard import get_note, save_note, save_plotly_graph_object
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from lightning_hp.study.storage import StudyError
from lightning_hp.study.upstream import (
    note_target,
    storage_of,
    stored_attributes,
    stored_figures,
    stored_trial,
    study_number,
    system_attributes,
    trial_number,
)


@pytest.fixture(params=["memory", "journal", "sqlite"])
def study(request, tmp_path):
    """The second study of its storage, with two trials."""
    if request.param == "memory":
        storage = optuna.storages.InMemoryStorage()
    elif request.param == "journal":
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(f"{tmp_path}/log"))
    else:
        storage = optuna.storages.get_storage(f"sqlite:///{tmp_path}/study.db")
    optuna.create_study(study_name="first", storage=storage).add_trial(create_trial(value=1.0))
    study = optuna.create_study(study_name="second", storage=storage)
    study.add_trials([create_trial(value=0.5), create_trial(value=0.25)])
    return study


def test_numbers_are_those_that_the_storage_gives(study):
    storage = storage_of(study)
    number = storage.get_study_id_from_name("second")
    assert study_number(study) == number
    frozen = next(one for one in storage.get_all_studies() if one.study_name == "second")
    assert study_number(frozen) == number
    for trial in study.trials:
        assert trial_number(trial) == storage.get_trial_id_from_study_id_trial_number(number, trial.number)


def test_trials_and_attributes_are_those_that_the_study_shows(study):
    study.set_user_attr("stage", "1 coarse A")
    assert stored_attributes(study) == study.user_attrs == {"stage": "1 coarse A"}
    for trial in study.trials:
        assert stored_trial(study, trial) == trial
    running = study.ask()
    running.set_user_attr("late", 1)
    assert stored_trial(study, running).user_attrs == {"late": 1}


def test_without_the_private_number_the_name_is_looked_up(study, monkeypatch):
    expected = study_number(study)
    monkeypatch.delattr(study, "_study_id")
    assert study_number(study) == expected


def test_without_the_private_storage_the_error_says_which_version_is_needed(study, monkeypatch):
    monkeypatch.delattr(study, "_storage")
    with pytest.raises(StudyError, match=r"`optuna` must be of version 5, got \d"):
        storage_of(study)


def test_notes_of_ended_trials_are_those_of_a_live_trial(study):
    ended = study.trials[1]
    save_note(note_target(study, ended), "words")
    assert get_note(Trial(study, trial_number(ended))) == "words"
    assert get_note(note_target(study, study.trials[0])) == ""
    save_note(note_target(study, None), "of the study")
    assert get_note(study) == "of the study"


def test_stored_figures_are_those_that_the_dashboard_reads(study):
    long = go.Figure(go.Scatter(y=list(range(2000))))  # stored in several pieces
    for name, figure in (("ours-a", long), ("ours-b", go.Figure()), ("theirs", go.Figure())):
        save_plotly_graph_object(study, figure, graph_object_id=name)
    save_plotly_graph_object(study, go.Figure(go.Scatter(y=[1, 2])), graph_object_id="ours-a")  # fewer pieces now
    upstream = {name: json.loads(text) for name, text in get_plotly_graph_objects(system_attributes(study)).items()}
    assert stored_figures(study, "ours-") == {name: upstream[name] for name in ("ours-a", "ours-b")}
    storage_of(study).set_study_system_attr(study_number(study), "dashboard:plot_data:ours-b:0", "{broken")
    assert stored_figures(study, "ours-")["ours-b"] is None
