"""`status` and `postpone`: exit codes, table, JSON, schedules and calendar, with a clock that the test sets."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_hp.commands.postpone import postpone_command
from lightning_hp.commands.status import own_program, status_command
from lightning_hp.ledger import dates, records
from lightning_hp.ledger.calendar import to_ics
from lightning_hp.ledger.schedules import cron_line, github_action

START = datetime(2026, 1, 31, tzinfo=UTC)
DAY = timedelta(days=1)


def tune(path: Path, name: str, day: int = 0, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "name": name,
        "study": f"runs/{name}",
        "trials": 40,
        "hyperparameters_by_tier": {"A": {"learning_rate": 0.03}, "B": {"units": 64}, "C": {"layers": 2}},
        "metric": "val_loss",
        "value": 0.1,
        "now": START + day * DAY,
    }
    records.append(path, records.tuned(**{**arguments, **changes}))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    tune(tmp_path / "runs/digits/ledger.jsonl", "digits")
    tune(tmp_path / "runs/wine/ledger.jsonl", "wine", day=20)
    return tmp_path / "runs"


@pytest.mark.parametrize(("day", "due", "stale"), [(29, 0, 0), (30, 3, 0), (59, 3, 0), (60, 3, 3)])
def test_the_exit_code_follows_the_worst_and_the_threshold(runs: Path, day: int, due: int, stale: int) -> None:
    assert status_command([runs], now=START + day * DAY) == due
    assert status_command([runs], fail_on="stale", now=START + day * DAY) == stale


def test_json_says_all_of_it(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_command([runs], json=True, now=START + 31 * DAY) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["worst"], found["now"]) == ("due", "2026-03-03T00:00:00Z")
    digits, wine = found["tuned"]
    assert digits["ledger"] == str(runs / "digits/ledger.jsonl")
    assert (digits["name"], digits["status"], digits["age_days"]) == ("digits", "due", 31.0)
    assert digits["todo"] == "lightning-hp retune runs/digits"
    assert (wine["name"], wine["status"], wine["next"]) == ("wine", "fresh", "2026-03-22T00:00:00Z")
    assert found["errors"] == found["problems"] == []


def test_the_table_names_age_dates_reason_and_what_to_do(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    tune(runs / "odd/ledger.jsonl", "odd [bold]name[/]", day=31)
    status_command([runs], now=START + 31 * DAY)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("digits")]
    for text in ("due", "31 d", "2026-03-02 A", "due since 2026-03-02 (tier A)"):
        assert text in line
    assert "lightning-hp retune runs/digits" in out
    assert "2026-05-01 B C" in out
    assert "odd [bold]name[/]" in out


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_narrow_terminal_loses_no_word_of_the_reason(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    status_command([runs], now=START + 31 * DAY)
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(len(line) <= int(columns) for line in out.splitlines())


def test_a_bad_ledger_is_named_the_others_are_shown_and_nothing_changes(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, torn = runs / "bad/ledger.jsonl", runs / "wine/ledger.jsonl"
    bad.parent.mkdir()
    bad.write_text('{"schema": 7, "event": "tuned"}\n')
    with torn.open("a") as stream:
        stream.write('{"schema": 1, "ev')
    before = torn.read_bytes()
    assert status_command([runs], json=True, now=START + 1 * DAY + 20 * DAY) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["errors"] == [f"{bad}:1: schema 7 is newer than the 1 read here; upgrade lightning-hp"]
    assert found["problems"] == [f"{torn}:2: torn line ignored (a writer was stopped in the middle)"]
    assert [one["name"] for one in found["tuned"]] == ["digits", "wine"]
    status_command([runs], now=START + 21 * DAY)
    assert captured.err == ""
    assert [line.split(": ")[0] for line in capsys.readouterr().err.splitlines()] == [f"{torn}:2", f"{bad}:1"]
    assert (bad.read_text(), torn.read_bytes()) == ('{"schema": 7, "event": "tuned"}\n', before)


def test_a_clock_in_the_past_names_file_and_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_command([runs / "wine"], now=START) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{runs / 'wine/ledger.jsonl'}:1: 2026-02-20T00:00:00Z lies after the clock's 2026-01-31T")
    assert error.count("\n") == 1


def test_a_folder_without_a_ledger_is_an_error_not_a_green_light(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_command([tmp_path, tmp_path / "gone"], now=START) == 1
    assert (
        capsys.readouterr().err
        == f"{tmp_path}: no ledger.jsonl below it\n{tmp_path / 'gone'}: no such file or folder\n"
    )


@pytest.mark.parametrize("content", ["", '{"schema": 1, "ev'])
def test_a_ledger_without_a_record_is_no_green_light_either(
    runs: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = runs / "empty" / "ledger.jsonl"
    empty.parent.mkdir()
    empty.write_text(content)
    assert status_command([empty.parent], now=START) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == [f"{empty}: nothing is recorded in it", f"nothing tuned is recorded under {empty.parent}"]
    assert status_command([runs], now=START + 21 * DAY) == 0  # beside others it is only mentioned
    assert capsys.readouterr().err.splitlines()[-1] == f"{empty}: nothing is recorded in it"


def test_the_command_to_give_works_in_the_folder_it_is_shown_in(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def todo(*paths: str) -> str:
        status_command(paths, json=True, now=START + 31 * DAY)
        return json.loads(capsys.readouterr().out)["tuned"][0]["todo"]

    (runs / "digits/study.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert todo("runs/digits") == "lightning-hp retune runs/digits"
    (tmp_path / "else where").mkdir()
    monkeypatch.chdir(tmp_path / "else where")
    assert todo("../runs/digits") == "lightning-hp retune ../runs/digits"
    runs.rename(tmp_path / "else where" / "my runs")
    assert todo("my runs/digits") == "lightning-hp retune 'my runs/digits'"


def test_what_cannot_be_written_is_one_line_that_names_the_file(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"^`ics` must be a file that can be written, got .*digits: Is a directory$"):
        status_command([runs], ics=runs / "digits", now=START + DAY + 20 * DAY)
    before = (runs / "digits/ledger.jsonl").read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "ledger cannot be written: Permission denied", str(runs / "digits/ledger.jsonl"))

    monkeypatch.setattr(records, "append", refuse)
    with pytest.raises(ValueError, match=r"^.*digits/ledger.jsonl: ledger cannot be written: Permission denied$"):
        postpone_command("digits", "2026-03-20", "x", runs, by="Ada", now=START + 31 * DAY)
    assert (runs / "digits/ledger.jsonl").read_bytes() == before


def test_a_ledger_given_twice_is_shown_once_and_hidden_folders_are_left_out(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(runs / ".trash/ledger.jsonl", "old")
    monkeypatch.chdir(runs)
    status_command(["digits/ledger.jsonl", runs], json=True, now=START + 21 * DAY)
    status_command(json=True, now=START + 21 * DAY)
    first, second = capsys.readouterr().out.split("\n}\n")[:2]
    for text in (first, second):
        assert [one["name"] for one in json.loads(text + "}")["tuned"]] == ["digits", "wine"]


def test_a_threshold_that_does_not_exist_is_refused(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"`fail_on` must be due or stale, got 'never'"):
        status_command([runs], fail_on="never")


def test_status_loads_neither_torch_nor_lightning_nor_optuna(runs: Path) -> None:
    code = (
        "import sys; from lightning_hp.commands.status import status_command\n"
        f"status_command([{str(runs)!r}], json=True)\n"
        "sys.exit(sorted({'torch', 'lightning', 'optuna', 'numpy'} & set(sys.modules)).__repr__()"
        " if {'torch', 'lightning', 'optuna', 'numpy'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- postpone


def test_postponing_moves_the_date_and_is_shown(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = START + 31 * DAY
    assert status_command([runs], now=now) == 3
    assert postpone_command("digits", "2026-03-20", "release freeze", runs, by="Ada", now=now) == 0
    capsys.readouterr()
    assert status_command([runs], json=True, now=now) == 0
    (digits,) = [one for one in json.loads(capsys.readouterr().out)["tuned"] if one["name"] == "digits"]
    assert digits["reason"].endswith("postponed until 2026-03-20 by Ada: release freeze")
    assert digits["dates"] == {
        "A": "2026-03-20T00:00:00Z", "B": "2026-05-01T00:00:00Z", "C": "2026-05-01T00:00:00Z",
    }  # fmt: skip
    assert len(records.read(runs / "wine/ledger.jsonl").records) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nobody", "2026-03-20", "x"), r"`name` must be a name tuned under .* \(digits, wine\), got 'nobody'"),
        (("digits", "soon", "x"), "`until` must be a date or a time in ISO 8601"),
        (("digits", "2026-02-20", "x"), "`until` must be after now"),
        (("digits", "2026-03-20", " "), "`why` must be a reason, not empty"),
    ],
)
def test_a_postponement_that_cannot_be_is_refused(runs: Path, arguments: tuple[str, str, str], message: str) -> None:
    before = (runs / "digits/ledger.jsonl").read_bytes()
    with pytest.raises(ValueError, match=message):
        postpone_command(*arguments, runs, by="Ada", now=START + 31 * DAY)
    assert (runs / "digits/ledger.jsonl").read_bytes() == before


def test_a_name_in_two_ledgers_needs_the_file(runs: Path) -> None:
    tune(runs / "copy/ledger.jsonl", "digits")
    now = START + 31 * DAY
    with pytest.raises(ValueError, match=r"`ledger` must be one of those that hold 'digits' \(.*copy.*, .*digits"):
        postpone_command("digits", "2026-03-20", "x", runs, now=now)
    assert postpone_command("digits", "2026-03-20", "x", runs / "copy/ledger.jsonl", now=now) == 0


# --- schedules


@pytest.mark.parametrize("code", [0, 3])
def test_the_crontab_line_runs_in_a_shell_and_speaks_only_when_needed(tmp_path: Path, code: int) -> None:
    folder = tmp_path / "it's 100% odd"
    folder.mkdir()
    program = tmp_path / "lightning hp"
    program.write_text(f'#!/bin/sh\necho "$PWD" "$@"\nexit {code}\n')
    program.chmod(0o755)
    line = cron_line(["runs one"], str(folder), "stale", [str(program)])
    when, command = re.fullmatch(r"((?:\S+ ){5})(.*)\n", line).groups()  # type: ignore[union-attr]
    assert re.fullmatch(r"[0-5]?\d [0-2]?\d \* \* [0-6] ", when)
    assert "%" not in command.replace("\\%", "")
    done = subprocess.run(["/bin/sh", "-c", command.replace("\\%", "%")], capture_output=True, text=True, check=False)
    assert done.stdout == ("" if code == 0 else f"{folder} status runs one --fail-on stale\n")


def test_the_crontab_line_finds_the_command_without_any_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # an environment that was never activated
    assert status_command(["runs"], write_cron=True) == 0
    command = capsys.readouterr().out.split(" ", 5)[5].replace("\\%", "%")
    paths = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **paths}
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, env=environment)
    assert "runs: no such file or folder" in done.stdout  # what `status` says, and not that the shell found nothing


def test_without_a_script_the_module_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/somewhere/bin/python")
    assert own_program() == ["/somewhere/bin/python", "-m", "lightning_hp"]


def test_the_workflow_is_yaml_and_runs_the_command() -> None:
    found = yaml.safe_load(github_action(["runs: a", "it's"], "stale"))
    steps = found["jobs"]["status"]["steps"]
    assert shlex.split(steps[-1]["run"]) == ["lightning-hp", "status", "runs: a", "it's", "--fail-on", "stale"]
    assert found[True]["schedule"][0]["cron"].count(" ") == 4  # YAML 1.1 reads the key `on` as true
    assert found["permissions"] == {"contents": "read"}
    for bad in ("a\nb", "${{ secrets.TOKEN }}"):
        with pytest.raises(ValueError, match=r"`paths` must"):
            github_action([bad])


def test_the_schedules_are_printed_without_looking_for_ledgers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_command(["runs"], write_cron=True, write_github_action=True) == 0
    out = capsys.readouterr().out
    assert f"cd {tmp_path} && " in out
    assert "actions/checkout" in out


# --- calendar


def parse(text: str) -> list[dict[str, str]]:
    assert all(len(line.encode()) <= 75 for line in text.split("\r\n"))
    assert "\n" not in text.replace("\r\n", "")
    events: list[dict[str, str]] = []
    for line in text.replace("\r\n ", "").split("\r\n"):
        if line == "BEGIN:VEVENT":
            events.append({})
        elif events and ":" in line:
            key, value = line.split(":", 1)
            events[-1][key] = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], value)
    return events


def test_the_calendar_has_one_event_a_name_and_date(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "re-tests.ics"
    assert status_command([runs], ics=path, now=START + 21 * DAY) == 0
    text = path.read_bytes().decode()
    assert text.startswith("BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:")
    assert text.endswith("END:VCALENDAR\r\n")
    events = parse(text)
    assert [(event["SUMMARY"], event["DTSTART;VALUE=DATE"], event["DTEND;VALUE=DATE"]) for event in events] == [
        ("Re-test digits (tier A)", "20260302", "20260303"),
        ("Re-test digits (tier B, C)", "20260501", "20260502"),
        ("Re-test wine (tier A)", "20260322", "20260323"),
        ("Re-test wine (tier B, C)", "20260521", "20260522"),
    ]
    assert len({event["UID"] for event in events}) == 4


def test_an_event_keeps_its_identity_when_its_date_moves(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    tune(ledger, "a, b; c\\d " + "größe " * 20, retune_after="30d")

    def event(day: int) -> dict[str, str]:
        content = records.read(ledger)
        now = START + day * DAY
        (found,) = parse(to_ics([(str(ledger), dates.verdict(content.of(content.names[0]), now))], now))
        return found

    first = event(1)
    assert first["SUMMARY"] == "Re-test a, b; c\\d " + "größe " * 20 + " (tier A, B, C)"
    overdue = event(40)
    assert overdue["DTSTART;VALUE=DATE"] == "20260312"
    assert (overdue["UID"], int(overdue["SEQUENCE"]) > int(first["SEQUENCE"])) == (first["UID"], True)


@pytest.mark.parametrize("shift", range(3))
def test_long_lines_are_folded_by_bytes_wherever_a_character_falls(tmp_path: Path, shift: int) -> None:
    ledger = tmp_path / "ledger.jsonl"
    name = "a" * shift + "ß漢" * 60
    tune(ledger, name, retune_after="30d")
    text = to_ics([("x", dates.verdict(records.read(ledger).of(name), START))], START)
    assert parse(text)[0]["SUMMARY"] == f"Re-test {name} (tier A, B, C)"
