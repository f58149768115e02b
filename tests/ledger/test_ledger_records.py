"""The ledger file: what comes back, several writers, kills in the middle of a write, and bad files left untouched."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_hp.ledger import lock, records

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)


def tuned(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "name": "digits",
        "study": "runs/digits",
        "trials": 40,
        "hyperparameters_by_tier": {"A": {"learning_rate": np.float32(0.5)}, "B": {"units": [np.int64(64), 32]}},
        "metric": "val_loss",
        "value": np.float64(0.25),
        "space_fingerprint": "s",
        "model_fingerprint": "m.Net(a)",
        "versions": {"torch": "2.13.0"},
        "now": NOW,
    }
    return records.tuned(**{**arguments, **changes})


def checked(name: str = "digits", minutes: int = 1) -> dict[str, Any]:
    return records.checked(name=name, kind="data", now=NOW + timedelta(minutes=minutes))


def test_what_is_appended_comes_back_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.jsonl"
    events = [tuned(), checked(), tuned(name="größe", study="a\nb")]
    for event in events:
        records.append(path, event)
    ledger = records.read(path)
    assert [dict(record) for record in ledger.records] == events
    assert [record.where for record in ledger.records] == [f"{path}:{n}" for n in (1, 2, 3)]
    assert ledger.problems == ()
    assert ledger.names == ["digits", "größe"]
    assert ledger.of("digits") == events[:2]
    assert ledger.latest("digits") == events[0]
    assert ledger.latest("nobody") is None
    # readable by any other program, and by a person
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == events
    assert '"größe"' in path.read_text("utf-8")


def test_a_tuned_event_holds_plain_numbers_and_its_dates() -> None:
    event = tuned(retune_after={"A": "1mo"})
    assert event["hyperparameters"] == {"A": {"learning_rate": 0.5}, "B": {"units": [64, 32]}}
    assert type(event["value"]) is float
    assert event["retune_after"] == {"A": "1mo", "B": "90d"}
    assert event["retest_at"] == {"A": "2026-12-21T09:30:00Z", "B": "2027-02-19T09:30:00Z"}
    assert event["at"] == event["tuned_at"] == "2026-11-21T09:30:00Z"
    assert event["fingerprints"] == {"space": "s", "model": "m.Net(a)"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "`record.name` must be a text, not empty, got ' '"),
        ({"trials": -1}, "`trials` must be a whole number from 0, got -1"),
        ({"mode": "up"}, "`mode` must be min or max, got 'up'"),
        ({"value": float("nan")}, "`value` must be a finite number, got nan"),
        ({"value": True}, "`value` must be a finite number, got True"),
        ({"hyperparameters_by_tier": {"E": {}}}, "`hyperparameters_by_tier` must have tiers A to D as keys, got 'E'"),
        ({"hyperparameters_by_tier": {"A": {"f": print}}}, r"`hyperparameters_by_tier.A.f` must be made of JSON types"),
        ({"now": datetime(2026, 1, 1)}, "`now` must be a datetime with a time zone"),
        ({"retune_after": "soon"}, "`retune_after` must be an interval such as"),
    ],
)
def test_an_event_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuned(**changes)


def test_later_events_are_checked() -> None:
    with pytest.raises(
        ValueError, match=r"`until` must be after now \(2026-11-21T09:30:00Z\), got 2026-11-21T00:00:00Z"
    ):
        records.postponed(name="digits", until="2026-11-21", why="x", now=NOW)
    with pytest.raises(ValueError, match=r"`why` must be a reason, not empty"):
        records.postponed(name="digits", until="2026-12-21", why=" ", now=NOW)
    with pytest.raises(ValueError, match=r"`record.kind` must be one of data, moments, model, space, got 'luck'"):
        records.checked(name="digits", kind="luck", now=NOW)
    with pytest.raises(ValueError, match=r"`record.findings` must be a list, empty unless drifted"):
        records.drifted(name="digits", kind="data", changes=[], now=NOW)
    with pytest.raises(ValueError, match=r"`record.outcome` must be one of confirmed, undecided, beaten"):
        records.retested(name="digits", outcome="maybe", now=NOW)


def test_a_missing_ledger_is_empty(tmp_path: Path) -> None:
    assert records.read(tmp_path / "none.jsonl").records == ()


# --- kills


def cuts(line: bytes) -> list[int]:
    return [1, 5, 11, 12, 30, len(line) // 2, len(line) - 3, len(line) - 2]


def test_a_line_cut_anywhere_is_ignored_reported_and_never_grown_onto(tmp_path: Path) -> None:
    record = tuned(name='a "quoted} {name" \\ größe')
    whole = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    for cut in cuts(whole):
        path = tmp_path / f"{cut}.jsonl"
        records.append(path, checked())
        with path.open("ab") as stream:
            stream.write(whole[:cut])
        ledger = records.read(path)
        assert len(ledger.records) == 1, cut
        assert ledger.problems == (f"{path}:2: torn line ignored (a writer was stopped in the middle)",)
        records.append(path, checked(minutes=2))
        ledger = records.read(path)
        assert [record["at"] for record in ledger.records] == ["2026-11-21T09:31:00Z", "2026-11-21T09:32:00Z"]
        assert len(ledger.problems) == 1
        assert path.read_bytes().count(b"\n") == 3


def test_a_first_line_cut_short_still_takes_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"sch')
    records.append(path, checked())
    assert len(records.read(path).records) == 1


def test_a_whole_line_that_lost_its_end_of_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(tuned()))
    assert len(records.read(path).records) == 1
    records.append(path, checked())
    assert (len(records.read(path).records), records.read(path).problems) == (2, ())


def test_zero_bytes_left_by_a_power_cut_are_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    records.append(path, tuned())
    with path.open("ab") as stream:
        stream.write(b"\0" * 100)
    records.append(path, checked())
    ledger = records.read(path)
    assert (len(ledger.records), len(ledger.problems)) == (2, 1)


KILLED = """
import os, signal, sys
from lightning_hp.ledger import records
def write(descriptor, data, real=os.write):
    real(descriptor, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
os.write = write
records.append(sys.argv[1], records.checked(name="killed", kind="data"))
"""


def test_kill_9_in_the_middle_of_a_write_leaves_the_file_readable_and_unlocked(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    records.append(path, tuned())
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    ledger = records.read(path)
    assert ([record["name"] for record in ledger.records], len(ledger.problems)) == (["digits"], 1)
    records.append(path, checked("after"))
    assert records.read(path).names == ["digits", "after"]


WRITER = """
import sys
from lightning_hp.ledger import records
for count in range(500):
    records.append(sys.argv[1], records.checked(name=f"{sys.argv[2]}-{count}", kind="data"))
"""


def test_two_writers_and_a_reader_lose_and_tear_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("a", "b")]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        ledger = records.read(path)
        assert ledger.problems == ()
        assert len(ledger.records) >= seen
        seen = len(ledger.records)
    assert [writer.wait() for writer in writers] == [0, 0]
    names = [record["name"] for record in records.read(path).records]
    for writer in "ab":
        assert [name for name in names if name.startswith(writer)] == [f"{writer}-{count}" for count in range(500)]


# --- bad files: one line with file and line, and not a byte changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,value\n1,2\n", ":1: not a ledger line: 'name,value'"),
        ("[1, 2]\n", ":1: a ledger line must be a JSON object, got list"),
        ('{"schema": 2, "event": "sung", "name": "x"}\n', ":1: schema 2 is newer than the 1 read here; upgrade"),
        ('{"schema": "1"}\n', ":1: `record.schema` must be 1, got '1'"),
        ('{"schema": true}\n', ":1: `record.schema` must be 1, got True"),
        ('{"schema": 1, "event": "sung"}\n', ":1: `record.event` must be one of tuned, "),
        ('{"schema": 1, "event": "checked", "name": "x", "at": "soon"}\n', ":1: `record.at` must be a date or a time"),
        ('{"schema": 1, "event" "checked"}\n', ":1: not a ledger line"),
        ('{"schema": 1, "value": NaN}\n', ":1: not a ledger line"),
        ('{"schema": 1, "event": ["a"]}\n', ":1: `record.event` must be one of"),
        ("\x00\x01PK\n", ":1: not a ledger line"),
    ],
)
def test_a_bad_line_is_a_one_line_error_that_names_it(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"ledger.jsonl" + message.replace("[", r"\[")) as caught:
        records.read(path)
    assert "\n" not in str(caught.value)
    good = tmp_path / "good.jsonl"
    records.append(good, tuned())
    good.write_text(good.read_text() + content)
    with pytest.raises(ValueError, match=r"good.jsonl" + message.replace(":1:", ":2:").replace("[", r"\[")):
        records.read(good)
    assert path.read_text() == content


@pytest.mark.parametrize("content", [b"PK\x03\x04 a checkpoint", b"name,value\n1,2\n", b"[]"])
def test_nothing_is_appended_to_a_file_that_is_no_ledger(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last.ckpt:1: not a ledger, nothing was appended"):
        records.append(path, tuned())
    assert path.read_bytes() == content


def test_an_invalid_record_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(ValueError, match=r"`record.event` must be one of"):
        records.append(path, {**tuned(), "event": "sung"})
    with pytest.raises(ValueError, match=r"Out of range float values are not JSON compliant"):
        records.append(path, {**tuned(), "note": float("inf")})
    assert not path.exists()


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Gives up root's power to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be made read-only this way")
def test_a_read_only_folder_is_a_one_line_error(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    (tmp_path / "locked").mkdir(mode=0o555)
    path = tmp_path / "locked" / "ledger.jsonl"
    with nobody(), pytest.raises(PermissionError, match=r"ledger cannot be written: Permission denied: .*ledger.jsonl"):
        records.append(path, tuned())
    assert not path.exists()


def test_a_folder_in_the_place_of_the_file_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"ledger cannot be written: Is a directory"):
        records.append(tmp_path, tuned())
    with pytest.raises(IsADirectoryError, match=r"ledger cannot be read: Is a directory"):
        records.read(tmp_path)


def test_a_full_disk_takes_back_the_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    records.append(path, tuned())
    before = path.read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:20]))
    with pytest.raises(OSError, match=r"ledger cannot be written: no space left on device") as caught:
        records.append(path, checked())
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before


# --- the lock where the system has no flock


def test_without_flock_a_lock_file_keeps_others_out_and_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    path = tmp_path / "ledger.jsonl"
    beside = tmp_path / "ledger.jsonl.lock"
    records.append(path, tuned())
    assert not beside.exists()
    assert len(records.read(path).records) == 1
    beside.touch()
    with (
        path.open() as stream,
        pytest.raises(TimeoutError, match=r"is locked: remove .*ledger.jsonl.lock if no process writes to it"),
        lock.locked(stream.fileno(), path, timeout=0.0),
    ):
        pass
    beside.unlink()
    with path.open() as stream:
        with lock.locked(stream.fileno(), path):
            assert beside.exists()
        assert not beside.exists()


@pytest.mark.skipif(lock.fcntl is None, reason="no flock on this system")
def test_append_and_read_wait_for_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    records.append(path, tuned())
    monkeypatch.setattr(records, "locked", functools.partial(lock.locked, timeout=0.0))
    with path.open() as stream, lock.locked(stream.fileno(), path):
        with pytest.raises(TimeoutError, match=r"is locked by another process"):
            records.append(path, checked())
        with pytest.raises(TimeoutError, match=r"is locked by another process"):
            records.read(path)
    assert len(records.read(path).records) == 1


@pytest.mark.skipif(lock.fcntl is None, reason="no flock on this system")
def test_a_held_lock_times_out_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.touch()
    with path.open() as one, path.open() as two:
        with (
            lock.locked(one.fileno(), path),
            pytest.raises(TimeoutError, match=r"ledger .* is locked by another process"),
            lock.locked(two.fileno(), path, timeout=0.0),
        ):
            pass
        with lock.locked(one.fileno(), path, shared=True), lock.locked(two.fileno(), path, shared=True):
            pass
