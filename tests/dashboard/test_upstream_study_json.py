"""A study as our server sends it is what optuna-dashboard would send: at first, as it grows, and when it changes."""

import io
import json

import optuna
import pytest
from decorated_studies import SPACE, made_trial, run
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import TrialState, create_trial
from optuna_dashboard import save_note, save_plotly_graph_object, wsgi
from plotly import graph_objects as go

from lightning_hp.dashboard.application import application
from lightning_hp.dashboard.combined_storage import STUDY_STRIDE, CombinedStorage
from lightning_hp.dashboard.upstream import curve_limit as shown
from lightning_hp.dashboard.upstream import study_json as module
from lightning_hp.dashboard.upstream.study_json import StudyJson
from lightning_hp.study.paths import StudyPaths


def get(app, path, query="", **more):
    """One request to a WSGI application: status, headers, body."""
    started = []
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query, "SERVER_NAME": "x", "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "wsgi.url_scheme": "http", **more,
    }  # fmt: skip
    body = b"".join(app(environ, lambda status, headers, *rest: started.append((status, dict(headers)))))
    return started[0][0], started[0][1], body


def plain(combined, number, after=0):
    """What optuna-dashboard itself sends, figures and columns in order; a new one each time."""
    told = json.loads(get(wsgi(combined), f"/api/studies/{number}", f"after={after}")[2])
    told["plotly_graph_objects"].sort(key=lambda figure: figure["id"])
    told["union_user_attrs"].sort(key=lambda column: column["key"])
    return told


def ours(details, number, after=0):
    return json.loads(details.answer(number, after)[0])


@pytest.fixture(params=["memory", "journal", "sqlite"])
def study(request, tmp_path):
    """A study of all states, with notes, figures and artifacts."""
    if request.param == "memory":
        storage = optuna.storages.InMemoryStorage()
    elif request.param == "journal":
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(f"{tmp_path}/log"))
    else:
        storage = optuna.storages.get_storage(f"sqlite:///{tmp_path}/study.db")
    made = optuna.create_study(storage=storage, direction="maximize")
    for i in range(6):
        made.add_trial(made_trial(i / 6, float(i % 4), intermediate_values={1: 0.5, 2: float("nan")}))
    made.add_trial(made_trial(0.9, state=TrialState.FAIL, user_attrs={"failure": "out of memory", "audit": {"a": 1}}))
    made.add_trial(made_trial(0.3, state=TrialState.PRUNED, intermediate_values={1: 2.0}))
    running = made.ask()
    SPACE.suggest(running)
    running.report(1.5, 1)
    save_note(made, "# A study")
    for figure in ("hp-b", "hp-a"):
        save_plotly_graph_object(made, go.Figure(go.Scatter(y=[1, 2])), graph_object_id=figure)
    return made


def test_every_part_of_the_answer_is_the_dashboards_own(study):
    details, combined = StudyJson(CombinedStorage([(study._storage, {})])), CombinedStorage([(study._storage, {})])
    number = study._study_id
    for after in (0, 3, 8, 100):
        assert ours(details, number, after) == plain(combined, number, after)


def test_the_answer_follows_the_study(study, tmp_path):
    details, combined = StudyJson(CombinedStorage([(study._storage, {})])), CombinedStorage([(study._storage, {})])
    number = study._study_id
    marks = [details.answer(number, 0)[1]]

    def changed():
        told, mark = details.answer(number, 0)
        assert json.loads(told) == plain(combined, number)
        assert mark not in marks
        assert details.answer(number, 7)[1] == mark
        marks.append(mark)

    live = optuna.Trial(study, next(t for t in study.trials if t.state is TrialState.RUNNING)._trial_id)
    live.report(1.25, 2)
    changed()
    (tmp_path / "art").mkdir()
    (tmp_path / "a.txt").write_text("x")
    upload_artifact(artifact_store=FileSystemArtifactStore(tmp_path / "art"), file_path=str(tmp_path / "a.txt"),
                    study_or_trial=live)  # fmt: skip
    live.set_user_attr("extra", 0.5)
    study.tell(live, 9.0)
    changed()
    save_note(optuna.trial.Trial(study, study.trials[2]._trial_id), "a note on a finished trial")
    changed()
    study.add_trial(made_trial(0.1, 0.5, user_attrs={"extra": "text"}))
    changed()
    study.set_user_attr("stage", "2 fine AB")
    changed()


def test_numbers_are_moved_in_the_answers_of_a_second_folder(tmp_path):
    for name in ("first", "second"):
        made = run(StudyPaths(tmp_path / name), name, 6)
        save_note(optuna.trial.Trial(made, made.trials[3]._trial_id), f"see /dashboard/studies/0/trials of {name}")
    combined = CombinedStorage(folder=tmp_path)
    details = StudyJson(combined)
    for number in (0, STUDY_STRIDE):
        assert ours(details, number) == plain(combined, number)
        assert ours(details, number)["trials"][3]["note"]["body"].startswith(f"see /dashboard/studies/{number}/")


def test_several_objectives_have_their_front(tmp_path):
    made = optuna.create_study(directions=["minimize", "maximize"])
    made.optimize(lambda t: (x := t.suggest_float("x", 0, 1), x * (1 - x)), n_trials=12)
    combined = CombinedStorage([(made._storage, {})])
    assert ours(StudyJson(combined), made._study_id) == plain(combined, made._study_id)


def test_of_a_big_study_some_curves_are_sent_and_a_trial_that_is_overtaken_loses_its_own(monkeypatch):
    monkeypatch.setattr(shown, "MANY", 10)
    monkeypatch.setattr(shown, "CURVES", 2)
    made = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    for i in range(12):
        made.add_trial(made_trial(0.5, float(10 - i % 10), intermediate_values={1: 1.0}))
    combined = CombinedStorage([(made._storage, {})])
    details = StudyJson(combined)

    def curves():
        told = ours(details, made._study_id)
        assert told == plain(combined, made._study_id)
        return {t["number"] for t in told["trials"] if t["intermediate_values"]}

    assert curves() == {8, 9, 10, 11}
    made.add_trial(made_trial(0.5, 0.0, intermediate_values={1: 1.0}))
    assert curves() == {9, 11, 12}


def test_another_study_under_the_number_of_a_deleted_one_starts_anew(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    storage = optuna.storages.RDBStorage(url)
    combined = CombinedStorage([(storage, {})])
    details = StudyJson(combined)
    for names, trials in (("ab", 3), ("c", 2)):
        made = optuna.create_study(storage=storage, study_name=names)
        for i in range(trials):
            ranges = {n: optuna.distributions.FloatDistribution(0, 1) for n in names}
            made.add_trial(create_trial(value=float(i), params=dict.fromkeys(names, 0.5), distributions=ranges))
        assert ours(details, 1) == plain(combined, 1)
        assert {p["name"] for p in ours(details, 1)["union_search_space"]} == set(names)
        optuna.delete_study(study_name=names, storage=storage)
    assert details.answer(1, 0) is None


def test_answers_of_a_few_studies_are_kept():
    storage = optuna.storages.InMemoryStorage()
    for _ in range(module.STUDIES_KEPT + 3):
        optuna.create_study(storage=storage)
    details = StudyJson(CombinedStorage([(storage, {})]))
    for study in storage.get_all_studies():
        details.answer(study._study_id, 0)
    assert len(details._kept) == module.STUDIES_KEPT


def test_a_finished_trial_is_turned_into_json_once(study):
    details = StudyJson(CombinedStorage([(study._storage, {})]))
    made = []
    serialize = details._trial
    details._trial = lambda number, trial, about: made.append(trial.number) or serialize(number, trial, about)
    details.answer(study._study_id, 0)
    assert sorted(made) == list(range(9))
    del made[:]
    details.answer(study._study_id, 0)
    assert sorted(made) == [8]


def test_the_server_answers_so_and_says_when_nothing_is_new(study):
    app = application(CombinedStorage([(study._storage, {})]))
    path = f"/api/studies/{study._study_id}"
    status, headers, body = get(app, path, "after=0")
    assert status == "200 OK"
    assert headers["Content-Type"] == "application/json"
    assert len(json.loads(body)["trials"]) == 9
    status, _, body = get(app, path, "after=4", HTTP_IF_NONE_MATCH=headers["ETag"])
    assert (status, body) == ("304 Not Modified", b"")
    study.set_user_attr("new", 1)
    status, _, body = get(app, path, "after=4", HTTP_IF_NONE_MATCH=headers["ETag"])
    assert status == "200 OK"
    assert len(json.loads(body)["trials"]) == 5
    assert get(app, "/api/studies/777")[0].startswith("404")
    assert get(app, path, "after=-1")[0].startswith("400")


def test_without_the_dashboards_private_functions_it_answers_for_itself(study, monkeypatch):
    import optuna_dashboard._serializer as serializer

    from lightning_hp.dashboard import application as server_application

    monkeypatch.delattr(serializer, "serialize_frozen_trial")
    assert server_application._study_json(CombinedStorage([(study._storage, {})])) is None
    monkeypatch.undo()

    def broken(*_):
        raise TypeError("another signature")

    monkeypatch.setattr(StudyJson, "answer", broken)
    status, headers, body = get(application(CombinedStorage([(study._storage, {})])), f"/api/studies/{study._study_id}")
    assert status.startswith("200")
    assert "ETag" not in headers
    assert len(json.loads(body)["trials"]) == 9
