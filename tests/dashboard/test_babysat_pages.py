"""Pages of babysat runs over real HTTP: how a run stands, a person's command on its way to the run, and refusals."""

from __future__ import annotations

import http.client
import json
from datetime import UTC, datetime

import pytest
from decorated_studies import run, serving

from lightning_hp.callbacks.panda import control
from lightning_hp.callbacks.panda.journal import LOG, STATUS, WINDOWS
from lightning_hp.commands.dashboard import PandaFiles
from lightning_hp.dashboard.babysat import EVENTS_SHOWN, value_text
from lightning_hp.dashboard.server import make_server
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError

EVIL = "<img src=x onerror='window.hit=1'></script><script>window.hit=1</script>"


def write_run(folder, state="running", events=(), step=40):
    """The files that a babysitter leaves: a status, a log, and two windows of losses."""
    folder.mkdir(parents=True)
    begun = {"id": 0, "step": 0, "epoch": 0, "what": "training", "from": "new", "to": "running", "why": "begins"}
    rows = [{**begun, "numbers": {}, "rule": "", "by": "rule", "accepted": True}, *events]
    (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    windows = [
        {"step": at, "epoch": 0, "level": 1 / at, "noise": 0.01, "moved": 0.1, "values": {"learning_rate": rate}}
        for at, rate in ((20, 0.1), (40, 0.03))
    ]
    (folder / WINDOWS).write_text("".join(json.dumps(row) + "\n" for row in windows))
    status = {
        "state": state, "step": step, "epoch": 1, "planned": 160, "values": {"learning_rate": 0.03, "momentum": 0.9},
        "loss": 0.025, "interventions": 1, "pid": 1, "host": "h", "updated": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    (folder / STATUS).write_text(json.dumps(status))


def event(number, why="because", **more):
    row = {"id": number, "step": number, "epoch": 0, "what": "learning_rate", "from": 0.1, "to": 0.03, "why": why}
    return {**row, "numbers": {}, "rule": "plateau", "by": "rule", "accepted": True, **more}


@pytest.fixture
def folder(tmp_path):
    write_run(tmp_path / "live", events=[event(1, EVIL)])
    write_run(tmp_path / "old", state="ended")
    return tmp_path


def ask(port, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def test_a_button_leaves_the_command_that_the_run_reads(folder):
    with serving(folder, run_files=PandaFiles()) as port:
        body = json.dumps({"action": "nudge", "values": {"learning_rate": 0.003}, "why": "noisy"})
        status, _, text = ask(port, "/hp/babysat/live", body)
    (command,) = control.pending(folder / "live")
    assert (status, json.loads(text)["id"]) == (202, command.id)
    assert (command.action, command.values, command.why) == ("nudge", {"learning_rate": 0.003}, "noisy")
    assert control.pending(folder / "old") == []


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("old", '{"action": "pause"}', 400, "must be running, got 'old', which is ended"),
        ("other", '{"action": "pause"}', 404, "no babysat run 'other'"),
        ("../live", '{"action": "pause"}', 404, "no babysat run"),
        ("live", '{"action": "explode"}', 400, "must be one of nudge, pause, resume, undo, stop, got 'explode'"),
        ("live", '{"action": "nudge"}', 400, "must name a hyperparameter"),
        ("live", "[1]", 400, "must be JSON with `action`"),
        ("live", '{"action": "nudge", "values": 3}', 400, "must be JSON with `action`"),
        ("live", '{"why": "' + "x" * 20_000 + '"}', 400, "at most 10000 bytes"),
    ],
)
def test_a_command_that_cannot_be_left_is_refused_with_its_reason(folder, path, body, status, reason):
    with serving(folder, run_files=PandaFiles()) as port:
        answer = ask(port, f"/hp/babysat/{path}", body)
    assert answer[0] == status
    assert reason in json.loads(answer[2])["reason"]
    assert control.pending(folder / "live") == control.pending(folder / "old") == []


def test_commands_pass_the_guard(folder):
    body = '{"action": "stop"}'
    with serving(folder, run_files=PandaFiles(), read_only=True) as port:
        assert ask(port, "/hp/babysat/live", body)[0] == 403
        assert "read-only" in ask(port, "/hp/babysat/live")[2]
        assert "<form>" not in ask(port, "/hp/babysat/live")[2]
    with serving(folder, run_files=PandaFiles()) as port:
        assert ask(port, "/hp/babysat/live", body, Origin="http://evil.example")[0] == 403
    assert control.pending(folder / "live") == []


def test_the_page_says_how_the_run_stands_and_escapes_what_others_wrote(folder):
    with serving(folder, run_files=PandaFiles()) as port:
        status, _, page = ask(port, "/hp/babysat/live")
        ended = ask(port, "/hp/babysat/old")[2]
        start = ask(port, "/")
        overview = ask(port, "/hp/")[2]
    assert status == 200
    assert "step 40 of 160" in page
    assert 'name="momentum"' in page
    assert EVIL not in page
    assert "onerror=&#39;" in page
    assert "nothing to steer" in ended
    assert "<form>" not in ended
    assert start[1]["Location"] == "/hp/"
    assert overview.index("/hp/babysat/live") < overview.index("/hp/babysat/old"), "what trains comes first"


def test_the_newest_decisions_are_shown_and_routine_is_not(tmp_path):
    events = [event(number, f"reason {number}.") for number in range(1, EVENTS_SHOWN + 11)]
    back = event(1000, "back.", what="weights", **{"from": 90, "to": 60})
    write_run(tmp_path / "live", events=[*events, back, event(999, "routine", rule="wind_down")])
    with serving(tmp_path, run_files=PandaFiles()) as port:
        page = ask(port, "/hp/babysat/live")[2]
        assert ask(port, "/")[1]["Location"] == "/hp/babysat/live", "the only run is the start page"
    table = page.split('id="events"')[1].split("</section>")[0]
    assert f"reason {EVENTS_SHOWN + 10}." in table
    assert "step 90</td><td class=n>step 60</td>" in table
    assert "reason 12." in table
    assert "reason 11." not in table
    assert "routine" not in table
    assert "12 older lines are in panda.jsonl" in table


def test_a_run_is_found_beside_studies_and_by_its_own_folder(folder):
    run(StudyPaths(folder / "digits"), "digits", 3)
    with serving(folder, run_files=PandaFiles()) as port:
        overview = ask(port, "/hp/")[2]
        assert "/dashboard/studies/0" in overview
        assert "/hp/babysat/live" in overview
    with serving(folder / "live", run_files=PandaFiles()) as port:
        assert ask(port, "/hp/babysat/live")[0] == 200
    with pytest.raises(StudyError, match="must be a study folder"):
        make_server(folder / "live" / "nothing", run_files=PandaFiles())


def test_a_status_that_cannot_be_read_leaves_the_others(folder):
    (folder / "old" / STATUS).write_text("{")
    with serving(folder, run_files=PandaFiles()) as port:
        overview = ask(port, "/hp/")[2]
        assert ask(port, "/hp/babysat/old")[0] == 404
    assert "/hp/babysat/live" in overview
    assert "/hp/babysat/old" not in overview


@pytest.mark.parametrize(
    ("value", "text"), [(0.00312345, "0.003123"), (None, "–"), ("running", "running"), (float("inf"), "inf")]
)
def test_values_are_short(value, text):
    assert value_text(value) == text


@pytest.mark.browser
def test_a_person_steers_in_the_browser(chromium, folder):
    """Typed values go to the run, its answer comes back, and nothing that was written by others runs."""
    with serving(folder, run_files=PandaFiles()) as port:
        page = chromium.new_page()
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/hp/babysat/live")
        page.fill("input[name=learning_rate]", "3e-3")
        page.fill("[data-why]", "noisy")
        page.click("button[value=nudge]")
        page.get_by_text("Left for the next check").wait_for()
        (command,) = control.pending(folder / "live")
        assert (command.values, command.why) == ({"learning_rate": 0.003}, "noisy")
        page.fill("input[name=momentum]", "0.95")
        answered = event(2, "noisy", rule="nudge", by="person", command=command.id)
        with (folder / "live" / LOG).open("a") as log:
            log.write(json.dumps(answered) + "\n")
        page.get_by_text("Done, at step 2.").wait_for(timeout=20_000)
        assert page.input_value("input[name=momentum]") == "0.95", "news must not wipe what a person types"
        page.wait_for_function("(document.querySelector('.plot').data || []).length > 1")
        assert page.evaluate("window.hit") is None
        assert problems == []
        page.close()
