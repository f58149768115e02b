"""What was refreshed by what, before against after, and what happened since: in the report and in the note."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest
from decorated_studies import SPACE, made_trial
from optuna_dashboard import get_note
from test_html_report import Reader

from lightning_hp.ledger import records
from lightning_hp.ledger.changes import Change
from lightning_hp.report.before_after import ValueChange
from lightning_hp.report.html_report import write_report
from lightning_hp.report.lineage import event_rows, lineage_of
from lightning_hp.report.model import read_report
from lightning_hp.report.notes import decorate
from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.description import Description, open_study
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import open_storage, write_study_pointer

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
OLD = {"A": {"learning_rate": 0.01}, "B": {"momentum": 0.9, "batch_size": 64}}
NEW = {"A": {"learning_rate": 0.05}, "B": {"momentum": 0.99, "dropout": 0.1}}
COLUMN = {"dtype": "float32", "count": 500, "missing": 0, "mean": 0.0, "sd": 1.0, "kurtosis": 3.0,
          "quantiles": [i / 10 - 1.0 for i in range(21)]}  # fmt: skip


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def data(mean: float) -> dict:
    columns = {name: {**COLUMN, "mean": mean, "quantiles": [q + mean for q in COLUMN["quantiles"]]} for name in "123"}
    return {"schema": 1, "rows": 500, "rows_exact": True, "sampled": 500, "sample": "x", "columns": columns}


def tuned(study: Path, number: float, values: dict, value: float, mean: float = 0.0, **more):
    make = records.retuned if "previous_study" in more else records.tuned
    return make(
        name="digits", study=str(study), trials=9, hyperparameters_by_tier=values, metric="val_loss", value=value,
        data_fingerprint=data(mean), now=day(number), **more,
    )  # fmt: skip


PLAN = SearchPlan(space=SPACE, n_trials=3, max_steps=9, seed=3)


def study_in(folder: Path, previous: str | None = None, value: float = 0.2) -> tuple[optuna.Study, StudyPaths]:
    paths = StudyPaths(folder)
    description = Description(PLAN, "val_loss", "min", previous=previous)
    study = open_study(folder.name, open_storage("journal", paths), description, paths)
    write_study_pointer(paths, folder.name, "journal")
    study.add_trials([made_trial(0.5, value), made_trial(0.4, value + 1)])
    return study, paths


def retested(folder: Path, value: float) -> None:
    """The study of a re-test: the recorded best comes first."""
    paths = StudyPaths(folder)
    study = open_study(folder.name, open_storage("journal", paths), Description(PLAN, "val_loss", "min"), paths)
    write_study_pointer(paths, folder.name, "journal")
    study.add_trials([made_trial(0.5, value), made_trial(0.1, value / 2)])


@pytest.fixture
def runs(tmp_path):
    """Tuned, checked, re-tested and refreshed on day 41."""
    old, new, test = tmp_path / "digits", tmp_path / "digits-r2", tmp_path / "digits" / "retests" / "digits-0"
    ledger = old / "ledger.jsonl"
    for event in (
        tuned(old, 0, OLD, 0.11),
        records.checked(name="digits", kind="data", now=day(5)),
        records.checked(name="digits", kind="moments", now=day(6)),
        records.checked(name="digits", kind="data", now=day(7)),
        records.drifted(name="digits", kind="data", changes=[Change("mean moved by 0.8 sd", ("2",))], now=day(20)),
        records.postponed(name="digits", until=day(40), why="freeze <b>", by="ada", now=day(21)),
        records.retested(name="digits", outcome="beaten", study=str(test), summary="beaten: 0.2 | 0.4", now=day(41)),
        tuned(new, 41, NEW, 0.25, mean=0.8, previous_study=str(old)),
    ):
        records.append(ledger, event)
    retested(test, 0.5)
    return tmp_path


def shown(folder: Path, previous: str | None = None, number: float = 50) -> tuple[str, Reader]:
    study, paths = study_in(folder, previous, 0.25 if previous else 0.11)
    text = write_report(read_report(study, paths, {}, {}, day(number))).read_text()
    return text, Reader(text)


def test_the_new_studys_report_puts_old_and_new_side_by_side(runs):
    study_in(runs / "digits")
    StudyPaths(runs / "digits").report.touch()
    text, page = shown(runs / "digits-r2", str(runs / "digits"))
    assert "0.11 old values, when tuned 2026-01-31" in page.seen
    assert "0.5 old values on today's data, re-tested 2026-03-13" in page.seen
    assert "0.25 new values" in page.seen
    assert "50% better than the old values on today's data" in page.seen
    rows = re.findall(r"<tr>(.*?)</tr>", text[text.index("Before and after") : text.index("What the training")], re.S)
    cells = [[" ".join(Reader(c).seen.split()) for c in re.findall(r"<td.*?</td>", row)] for row in rows[1:]]
    assert [(c[0], c[1], c[2], c[3], c[5]) for c in cells] == [
        ("A", "learning_rate", "0.01", "0.05", "× 5"),
        ("B", "momentum", "0.9", "0.99", "1 − value × 0.1"),
        ("B", "dropout", "not in use", "0.1", ""),
        ("B", "batch_size", "64", "not in use", ""),
    ]
    assert "columns 1, 2, 3: mean moved by 0.8 sd" in page.seen
    assert "2026-03-13 re-test beaten: 0.2 | 0.4" in page.seen
    assert "2026-02-21 postponed until 2026-03-12 by ada: freeze <b>" in page.seen
    assert "2026-02-07 check of training data nothing new, 2 times" in page.seen
    assert "../digits/report.html" in page.addresses
    assert "Fresh until 2026-04-12 (tier A)" in page.seen  # its own age, from the ledger of the first study


def test_the_old_studys_report_says_what_replaced_it(runs):
    study_in(runs / "digits-r2", str(runs / "digits"))
    StudyPaths(runs / "digits-r2").report.touch()
    _, page = shown(runs / "digits")
    assert "digits replaced" in page.seen
    assert "These values were replaced by those of digits-r2 on 2026-03-13: val_loss 0.25" in page.seen
    assert "../digits-r2/report.html" in page.addresses
    assert "Before and after" not in page.seen
    assert "Re-test on" not in page.seen  # nothing is to be re-tested any more
    assert "2026-02-20 check of training data column 2: mean moved by 0.8 sd" in page.seen


def test_folders_that_moved_are_found_beside_the_ledger(runs, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "runs"
    runs.rename(moved)
    _, page = shown(moved / "digits-r2", str(runs / "digits"))
    assert "0.5 old values on today's data" in page.seen
    assert "This study refreshes digits" in page.seen


def test_what_is_not_known_is_left_open(runs):
    (runs / "digits" / "retests" / "digits-0" / "journal.log").write_text("")
    _, page = shown(runs / "digits-r2", str(runs / "digits"))
    assert "– old values on today's data" in page.seen
    assert "better than" not in page.seen
    assert lineage_of(StudyPaths(runs / "nowhere"), None, START) is None


def test_a_refreshing_study_that_runs_still_shows_its_best_so_far(tmp_path):
    old = tmp_path / "digits"
    records.append(old / "ledger.jsonl", tuned(old, 0, OLD, 0.11))
    _, page = shown(tmp_path / "digits-r2", str(old))
    assert "0.25 new values, so far" in page.seen
    assert "When to look again" not in page.seen  # the dates are those of the values in use


def test_a_confirmed_record_shows_its_retest_and_the_dates_counted_from_it(tmp_path):
    old = tmp_path / "digits"
    records.append(old / "ledger.jsonl", tuned(old, 0, OLD, 0.11))
    event = records.retested(name="digits", outcome="confirmed", summary="still the best: 0.11 now", now=day(31))
    records.append(old / "ledger.jsonl", event)
    _, page = shown(old, number=32)
    assert "Fresh until 2026-04-02 (tier A)" in page.seen
    assert "Tuned on 2026-01-31; confirmed by a re-test on 2026-03-03." in page.seen
    assert "2026-03-03 re-test confirmed: still the best: 0.11 now" in page.seen
    assert "A 30d 2026-04-02 in 29 days" in page.seen
    _, page = shown(old, number=63)
    assert "A 30d 2026-04-02 2 days over" in page.seen


def test_the_notes_tell_the_same(runs):
    for folder, previous, said in (
        ("digits-r2", str(runs / "digits"), [
            "### Before and after", "refreshes **digits**", "50% better",
            "| A\u2003 | learning_rate\u2003 | 0.01\u2003 | **0.05**",
            "columns 1, 2, 3: mean moved by 0.8 sd", "beaten: 0.2 | 0.4", "fresh until 2026-04-12",
            "Re-test on: A 2026-04-12, B 2026-06-11",
        ]),
        ("digits", None, ["replaced by digits-r2 on 2026-03-13", "**digits-r2**", "freeze <b>"]),
    ):  # fmt: skip
        study, paths = study_in(runs / folder, previous, 0.25 if previous else 0.11)
        assert decorate(study, paths, report=read_report(study, paths, {}, {}, day(50)), force=True)
        note = get_note(study).replace("\\", "")
        for one in said:
            assert one in note
    assert study.user_attrs["stale_after"] == "replaced by digits-r2 on 2026-03-13"


def test_events_are_newest_first_with_quiet_checks_together_and_the_rest_counted():
    quiet = [records.checked(name="n", kind="data", now=day(i)) for i in (1, 2, 3)]
    loud = records.drifted(name="n", kind="data", changes=[Change(text) for text in "abc"], now=day(4))
    again = [records.checked(name="n", kind="data", now=day(i)) for i in (5, 6, 7)]
    other = records.checked(name="n", kind="moments", now=day(6.5))
    lines, more = event_rows([*quiet, loud, *again[:2], other, again[2]])
    assert lines == [
        ("2026-02-07", "check of training data", "nothing new, 3 times"),
        ("2026-02-07", "check of shifted inputs", "nothing new"),
        ("2026-02-04", "check of training data", "a; b; and 1 more"),
        ("2026-02-03", "check of training data", "nothing new, 3 times"),
    ]
    assert more == 0
    assert event_rows([*quiet, loud, *again], most=1) == (lines[:1], 2)
    assert event_rows([]) == ([], 0)


@pytest.mark.parametrize(
    ("name", "before", "after", "change", "places"),
    [
        ("learning_rate", 1e-3, 1e-1, "× 100", [0.25, 0.75]),
        ("units", 64, 128, "+64", [0.25, 0.5]),
        ("units", 128, 64, "−64", [0.5, 0.25]),
        ("kind", "relu", "tanh", "", [0.25, 0.75]),
        ("kind", "relu", "gone", "", []),
        ("units", 64, 64.0, "same", [0.25, 0.25]),
        ("units", None, 64, "", []),
    ],
)
def test_a_change_is_said_on_the_parameters_scale(name, before, after, change, places):
    space = SearchSpace.from_dict(
        {
            "learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A", "default": 0.1},
            "units": {"low": 1, "high": 256, "type": "float", "tier": "B", "default": 64},
            "kind": {"choices": ["relu", "tanh"], "tier": "C", "default": "relu"},
        }
    )
    side = ValueChange("A", name, next(p for p in space.parameters if p.name == name), before, after)
    assert side.change == change
    assert side.places() == pytest.approx(places, abs=0.01)


@pytest.mark.browser
@pytest.mark.parametrize(("number", "status", "left"), [(3, "fresh", "in 26 days"), (35, "due", "5 days over")])
def test_a_report_that_is_opened_later_knows_that_its_date_has_passed(chromium, tmp_path, number, status, left):
    old = tmp_path / "digits"
    records.append(old / "ledger.jsonl", tuned(old, 0, OLD, 0.11))
    study, paths = study_in(old)
    address = write_report(read_report(study, paths, {}, {}, day(0))).as_uri()
    page = chromium.new_page()
    page.clock.install(time=day(number + 0.01))  # the clock runs on
    page.goto(address)
    assert page.locator("header .pill").text_content() == status
    assert page.locator("[data-until]").first.text_content() == left
    assert page.locator("[data-since]").first.text_content() == f"{number} days ago"
    page.close()
