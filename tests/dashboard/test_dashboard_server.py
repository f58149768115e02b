"""The server over real HTTP: the right studies, the right refusals, our pages, and Optuna's page with our line."""

from __future__ import annotations

import base64
import http.client
import json
from datetime import UTC, datetime, timedelta

import optuna
import pytest
from decorated_studies import made_trial, run, serving
from optuna.trial import TrialState

from lightning_hp.dashboard import application
from lightning_hp.dashboard.combined_storage import STUDY_STRIDE
from lightning_hp.dashboard.overview import ago_text, size_of, size_text
from lightning_hp.dashboard.server import combined_storage_of, make_server, read_password, serve_command
from lightning_hp.ledger import events, records
from lightning_hp.report.html_report import write_report
from lightning_hp.report.model import read_report
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, trials in (("old", 6), ("new", 12)):
        study = run(StudyPaths(root / name), name, trials)
        write_report(read_report(study, StudyPaths(root / name), {}, {}))
    given = {"A": {"learning_rate": 0.1}}
    record = events.tuned(
        name="old", study="old", trials=6, hyperparameters_by_tier=given, metric="val_loss", value=1.0,
        now=datetime(2020, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    records.append(root / "old" / "ledger.jsonl", record)
    return root


def ask(port, path, method="GET", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def port(folder):
    with serving(folder) as number:
        yield number


def test_all_studies_of_the_folder_are_listed(port):
    listed = json.loads(ask(port, "/api/studies")[2])["study_summaries"]
    assert [(s["study_id"], s["study_name"]) for s in listed] == [(0, "old"), (STUDY_STRIDE, "new")]
    detail = json.loads(ask(port, f"/api/studies/{STUDY_STRIDE}")[2])
    assert len(detail["trials"]) == 12


def test_the_page_holds_our_script_once_and_is_never_stale(port):
    status, headers, body = ask(port, "/dashboard/studies/0", **{"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"})
    assert status == 200
    assert body.count('<script defer src="/hp/banner.js"></script></body>') == 1
    assert int(headers["Content-Length"]) == len(body.encode())
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert ask(port, "/hp/banner.js")[1]["Content-Type"].startswith("text/javascript")


def test_status_says_stage_best_and_age(port):
    told = json.loads(ask(port, "/hp/status/0")[2])
    assert told["name"] == "old"
    assert told["tone"] == "bad"
    assert "; stale since 2020-03-01" in told["line"]
    assert ", best 0." in told["line"]
    assert json.loads(ask(port, f"/hp/status/{STUDY_STRIDE}")[2])["tone"] == "dim"
    assert ask(port, "/hp/status/77")[0] == 404
    assert ask(port, "/hp/status/x")[0] == 404


def test_overview_lists_every_study_the_latest_first(port):
    _, headers, body = ask(port, "/hp/")
    assert body.index(f'href="/dashboard/studies/{STUDY_STRIDE}">new<') < body.index('href="/dashboard/studies/0">old<')
    assert "2 studies, 1 stale." in body
    assert 'href="/hp/report/0"' in body
    assert headers["Cache-Control"] == "no-store"


def test_report_is_served_in_a_sandbox(port, folder):
    _, headers, body = ask(port, "/hp/report/0")
    assert body == (folder / "old" / "report.html").read_text()
    assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts")
    assert ask(port, "/hp/report/12345")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/artifacts/0/../../../../etc/passwd",
        "/artifacts/0/..%2f..%2f..%2fetc%2fpasswd",
        "/artifacts/0/%2e%2e/study.json",
        "/artifacts/0/0/..%5c..%5cstudy.json",
        "/artifacts/0/00000000-0000-0000-0000-000000000000",
        "/static/../../../../../etc/passwd",
        "/static/..%2f..%2f_app.py",
        "/hp/report/../../study.json",
        "/hp/report/0/../../study.json",
    ],
)
def test_paths_lead_nowhere(port, path):
    status, _, body = ask(port, path)
    assert status in (403, 404)
    assert "root:" not in body
    assert "storage" not in body


def test_host_password_and_read_only_over_http(folder):
    with serving(folder, password="open sesame", read_only=True) as port:
        assert ask(port, "/api/studies", Host="evil.example.org")[0] == 421
        assert ask(port, "/api/studies")[0] == 401
        assert ask(port, "/api/studies", Authorization="Basic b25lOnR3bw==")[0] == 401
        known = {"Authorization": "Basic " + base64.b64encode(b"x:open sesame").decode()}
        assert ask(port, "/api/studies", **known)[0] == 200
        status, _, body = ask(port, "/api/studies/0", "DELETE", **known)
        assert (status, json.loads(body)["reason"]) == (403, "read-only dashboard: nothing can be changed here")
        assert len(json.loads(ask(port, "/api/studies", **known)[2])["study_summaries"]) == 2


def test_a_single_study_is_the_start_page_and_several_are_the_overview(port, folder):
    assert ask(port, "/")[1]["Location"].endswith("/hp/")
    with serving(folder / "new") as alone:
        assert ask(alone, "/")[1]["Location"].endswith("/dashboard/studies/0")


def test_a_page_without_an_end_is_passed_on_unchanged():
    def odd(environ, start_response):
        start_response("200 OK", [("Content-Length", "4")])
        return [b"odd!"]

    seen = []
    assert application._with_banner(odd, b"x", {}, lambda status, headers: seen.append(headers)) == [b"odd!"]
    assert seen == [[("Content-Length", "4")]]


# --- what is served ---


def test_targets(folder, tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'one.db'}"
    optuna.create_study(study_name="sql", storage=url).add_trial(made_trial(0.5, 1.0))
    monkeypatch.chdir(folder.parent)
    (folder.parent / "runs").symlink_to(folder) if folder.name != "runs" else None

    def names(target):
        return [s.study_name for s in combined_storage_of(target).get_all_studies()]

    assert names(folder) == ["old", "new"]
    assert names(folder / "new") == ["new"]
    assert names("new") == ["new"]
    assert names(folder / "new" / "journal.log") == ["new"]
    assert names(url) == ["sql"]
    assert names(tmp_path / "one.db") == ["sql"]
    assert names(optuna.storages.get_storage(url)) == ["sql"]


@pytest.mark.parametrize("target", ["nowhere", "", "a.txt"])
def test_no_study_is_said_in_one_line(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(StudyError, match="`study` must be a study folder"):
        combined_storage_of(target)


def test_the_network_is_open_with_a_password_only(folder):
    with pytest.raises(
        ValueError, match=r"`host` must be this machine's own .* got '0.0.0.0'; set LIGHTNING_HP_PASSWORD"
    ):
        make_server(folder, host="0.0.0.0")


def test_a_taken_port_is_said_in_one_line(folder, port):
    with pytest.raises(ValueError, match=f"`port` must be free on 127.0.0.1, got {port}"):
        serve_command(str(folder), port=port)


def test_password_from_environment_or_file(tmp_path, monkeypatch):
    monkeypatch.delenv("LIGHTNING_HP_PASSWORD", raising=False)
    assert read_password(None) is None
    monkeypatch.setenv("LIGHTNING_HP_PASSWORD", "from env")
    assert read_password(None) == "from env"
    (tmp_path / "secret").write_text("from file\nsecond line\n")
    assert read_password(str(tmp_path / "secret")) == "from file"
    monkeypatch.setenv("LIGHTNING_HP_PASSWORD", "")
    with pytest.raises(ValueError, match="`LIGHTNING_HP_PASSWORD` must have at least one character"):
        read_password(None)
    (tmp_path / "secret").write_text("\n")
    with pytest.raises(ValueError, match="`password_file` must hold the password in its first line"):
        read_password(str(tmp_path / "secret"))
    with pytest.raises(ValueError, match="`password_file` must be a file that can be read"):
        read_password(str(tmp_path / "missing"))


# --- small things of the overview ---


def test_texts():
    now = datetime(2026, 1, 10, tzinfo=UTC)
    gone = [timedelta(seconds=5), timedelta(minutes=12), timedelta(hours=3), timedelta(hours=47), timedelta(days=5)]
    assert [ago_text(now - g, now) for g in gone] == ["just now", "12 min ago", "3 h ago", "47 h ago", "5 days ago"]
    assert [size_text(s) for s in (None, 0, 812_000, 3_400_000, 2_500_000_000)] == [
        "–",
        "0 kB",
        "812 kB",
        "3.4 MB",
        "2.5 GB",
    ]


def test_size_counts_files_and_follows_no_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"x" * 1000)
    (tmp_path / "big").write_bytes(b"x" * 5000)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "big")
    assert 1000 <= size_of(tmp_path / "a") < 1500


def test_a_plain_optuna_study_and_a_poor_one_are_listed_too():
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="<b>plain</b>", storage=storage, directions=["minimize", "maximize"])
    poor = optuna.create_study(study_name="poor", storage=storage)
    poor.add_trial(made_trial(0.5, state=TrialState.FAIL))
    with serving(storage) as port:
        body = ask(port, "/hp/")[2]
        assert "&lt;b&gt;plain&lt;/b&gt;" in body
        assert "<b>plain" not in body
        assert json.loads(ask(port, f"/hp/status/{poor._study_id}")[2])["line"] == "1 trials, none complete"
