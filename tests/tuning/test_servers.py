"""Studies in PostgreSQL and behind the gRPC proxy: several workers, a server that goes away, and passwords."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import toy_project as toy
from optuna.trial import TrialState
from postgres import PASSWORD

from lightning_hp.study import patience, study_lock
from lightning_hp.study.leases import lease_of
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.patience import StorageAwayError
from lightning_hp.study.storage import StudyError, find_study, open_storage

COMPLETE = TrialState.COMPLETE
pytestmark = pytest.mark.slow


def told(trials):
    return [(t.number, t.state, t.params, t.value) for t in trials]


def test_two_processes_share_a_study_in_a_database(studies, fork, postgres):
    run = {"trials": 8, "name": "two", "storage": postgres.url}
    children = [fork(lambda: studies.run(**run)) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0], [child.output for child in children]
    trials = find_study(str(studies.paths("two").root))[0].trials
    assert [(t.number, t.state) for t in trials] == [(n, COMPLETE) for n in range(8)]
    assert len({lease_of(t).worker for t in trials}) == 2, "both have worked"


def test_a_password_is_nowhere_to_be_read(studies, postgres):
    with_password = postgres.url.replace("@127", f":{PASSWORD.replace('/', '%2F').replace('@', '%40')}@127")
    studies.run(trials=2, name="secretive", storage=with_password, engine="local", workers=1)
    for file in studies.paths("secretive").root.rglob("*"):
        if file.is_file():
            text = file.read_bytes()
            assert PASSWORD.encode() not in text, file
            assert b"%2Fp%40ss" not in text, file
    study = find_study(str(studies.paths("secretive").root))[0]
    assert "secret/" not in json.dumps([study.user_attrs, *(t.user_attrs for t in study.trials)])


def test_a_wrong_password_is_said_in_one_line(studies, postgres, monkeypatch):
    monkeypatch.setenv("LIGHTNING_HP_STORAGE_PASSWORD", "wrong")
    with pytest.raises(StudyError, match=r"`storage` must be a database that answers, got .*\*\*\*@127") as error:
        studies.run(trials=1, storage=postgres.url)
    assert "\n" not in str(error.value)
    assert "wrong" not in str(error.value)


class Outage:
    """Stops the server when a trial reports for the n-th time, and starts it when a storage is waited for."""

    def __init__(self, postgres, monkeypatch, at, starts=True):
        self.postgres, self.waits, self.count = postgres, 0, 0
        real = optuna.Trial.report

        def report(trial, value, step):
            self.count += 1
            if self.count == at:
                postgres.stop()
            real(trial, value, step)

        def sleep(seconds):
            self.waits += 1
            if self.waits == 2 and starts:
                postgres.start()

        monkeypatch.setattr(optuna.Trial, "report", report)
        monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
        real_patiently = patience.patiently

        def patiently(ask, sleep=sleep, **options):
            return real_patiently(ask, sleep, **options)

        monkeypatch.setattr(patience, "patiently", patiently)
        from lightning_hp.tuning import runner

        monkeypatch.setattr(runner, "patiently", patiently)


@pytest.mark.parametrize("at", [3, 4])
def test_a_training_goes_on_while_its_storage_is_away(studies, postgres, monkeypatch, at):
    studies.run("reference", trials=4)
    outage = Outage(postgres, monkeypatch, at)
    study = studies.run(f"outage{at}", trials=4, storage=postgres.url).study
    assert outage.waits >= 2
    assert told(study.trials) == told(studies.trials("reference"))
    curves = [t.intermediate_values for t in studies.trials("reference")]
    assert [t.intermediate_values for t in study.trials] == curves, "points wait until they can be stored"


def test_a_result_is_kept_when_the_storage_stays_away_and_stored_when_it_is_back(studies, postgres, monkeypatch):
    trained = []

    class Counted(toy.Toy):
        def on_fit_start(self):
            trained.append(Path(self.trainer.default_root_dir).name)

    studies.run("reference", trials=4)
    Outage(postgres, monkeypatch, 3, starts=False)
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    with pytest.raises(StorageAwayError, match=r"the result of trial 1 is kept in .*0001/outcome\.json") as error:
        studies.run("away", trials=4, storage=postgres.url, model=Counted)
    assert "\n" not in str(error.value)
    kept = json.loads(studies.paths("away").trial(1).outcome.read_text())
    assert (kept["state"], kept["turn"]) == ("complete", 0)
    monkeypatch.undo()
    monkeypatch.setenv("LIGHTNING_HP_STORAGE_PASSWORD", PASSWORD)
    from lightning_hp.tuning import finish

    monkeypatch.setattr(finish, "write_reports", lambda study, paths, now: paths.report.touch())
    postgres.start()
    study = studies.run("away", trials=4, storage=postgres.url, model=Counted).study
    assert told(study.trials) == told(studies.trials("reference"))
    assert trained == ["0000", "0001", "0002", "0003"], "it was not trained again"
    assert not studies.paths("away").trial(1).outcome.exists()


@pytest.mark.parametrize("when", ["opening", "locking"])
def test_a_worker_that_starts_while_its_storage_is_away_waits_for_it(studies, postgres, monkeypatch, when, capsys):
    run = {"name": "waiting", "trials": 2, "storage": postgres.url}
    studies.run(**run)
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            postgres.start()

    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    monkeypatch.setattr(patience.patiently, "__defaults__", (sleep, *patience.patiently.__defaults__[1:]))
    real, locks = study_lock._database_lock, []

    def stopped_in_between(engine, study):
        if not locks:
            postgres.stop()
        locks.append(study)
        return real(engine, study)

    if when == "opening":
        postgres.stop()
    else:
        monkeypatch.setattr(study_lock, "_database_lock", stopped_in_between)
    study = studies.run(**{**run, "trials": 4}).study
    assert [(t.number, t.state) for t in study.trials] == [(n, COMPLETE) for n in range(4)]
    assert len(pauses) >= 2
    said = [line for line in capsys.readouterr().err.splitlines() if "`storage` does not answer" in line]
    assert len(said) == 1


def test_a_wrong_password_is_not_waited_for(postgres, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_HP_STORAGE_PASSWORD", "wrong")
    wrong = r"`storage` must be a database that answers, .*password authentication failed"
    with pytest.raises(StudyError, match=wrong):
        open_storage(postgres.url, StudyPaths(tmp_path), say=lambda text: pytest.fail(text))


def test_the_lock_of_a_database_excludes_and_goes_with_its_owner(postgres, tmp_path):
    first, second = (open_storage(postgres.url, StudyPaths(tmp_path)) for _ in range(2))
    entered = threading.Event()

    def enter():
        with study_lock.study_lock(second, StudyPaths(tmp_path), "s"):
            entered.set()

    thread = threading.Thread(target=enter)
    with study_lock.study_lock(first, StudyPaths(tmp_path), "s"):
        thread.start()
        with study_lock.study_lock(second, StudyPaths(tmp_path), "another study"):
            assert not entered.is_set()
    assert entered.wait(60)
    thread.join()


@pytest.fixture
def proxy(postgres):
    """Optuna's gRPC proxy in front of the database; gives its URL."""
    pytest.importorskip("grpc", reason="grpcio is not installed")
    from optuna.storages._grpc.server import make_server

    behind = open_storage(postgres.url, StudyPaths(postgres.folder))
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = make_server(behind, "127.0.0.1", port)
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_study_behind_the_proxy(studies, proxy):
    studies.run("reference", trials=4)
    study = studies.run("proxied", trials=4, storage=proxy, engine="local", workers=2).study
    assert [(t.number, t.state) for t in study.trials] == [(n, COMPLETE) for n in range(4)]
    assert sorted(t.user_attrs["seed"] for t in study.trials) == sorted(
        t.user_attrs["seed"] for t in studies.trials("reference")
    )
