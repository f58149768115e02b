"""Intervals against the calendar, and verdicts at every edge of their dates, with a clock that the test sets."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from lightning_hp.ledger import dates, records
from lightning_hp.ledger.calendar import to_ics
from lightning_hp.ledger.changes import Change

START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def tuned(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "name": "digits",
        "study": "runs/digits",
        "trials": 40,
        "hyperparameters_by_tier": {tier: {f"p_{tier}": 1.0} for tier in "ABCD"},
        "metric": "val_loss",
        "value": 0.1,
        "now": START,
    }
    return records.tuned(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("start", "text", "end"),
    [
        ("2026-01-31", "1mo", "2026-02-28"),
        ("2028-01-31", "1mo", "2028-02-29"),
        ("2026-01-31", "2mo", "2026-03-31"),
        ("2026-08-31", "3mo", "2026-11-30"),
        ("2026-12-31", "2mo", "2027-02-28"),
        ("2028-02-29", "1y", "2029-02-28"),
        ("2028-02-29", "4y", "2032-02-29"),
        ("2096-02-29", "4y", "2100-02-28"),
        ("2026-11-30", "13mo", "2027-12-30"),
        ("2026-01-31", "30d", "2026-03-02"),
        ("2028-02-15", "2w", "2028-02-29"),
    ],
)
def test_intervals_end_on_the_day_the_calendar_has(start: str, text: str, end: str) -> None:
    assert dates.parse_interval(text).after(dates.from_text(start)) == dates.from_text(end)


def test_months_agree_with_a_walk_through_the_calendar() -> None:
    moment = datetime(2027, 1, 31, 5, tzinfo=UTC)
    year, month = 2027, 1
    for count in range(1, 60):
        month += 1
        if month == 13:
            year, month = year + 1, 1
        last = max(day for day in calendar.Calendar().itermonthdays(year, month) if day)
        assert dates.Interval(months=1).after(moment, count) == datetime(year, month, last, 5, tzinfo=UTC)


@pytest.mark.parametrize("text", ["30", "30 d", "0d", "-3d", "1m", "1.5w", "", "3MO", 30, None, {}, "٣d", "101y"])
def test_an_interval_that_cannot_be_read_is_refused_in_one_line(text: object) -> None:
    with pytest.raises(ValueError, match=r"`retune_after` must be (an interval such as|at most 100 years)") as caught:
        dates.parse_interval(text)
    assert "\n" not in str(caught.value)


def test_intervals_by_tier_fill_up_with_the_defaults() -> None:
    assert dates.intervals_by_tier() == {"A": "30d", "B": "90d", "C": "90d", "D": "1y"}
    assert dates.intervals_by_tier("2w") == dict.fromkeys("ABCD", "2w")
    assert dates.intervals_by_tier({"B": "6mo"}) == {"A": "30d", "B": "6mo", "C": "90d", "D": "1y"}
    with pytest.raises(ValueError, match=r"`retune_after` must have tiers A, B, C, D as keys, got 'E'"):
        dates.intervals_by_tier({"E": "6mo"})
    with pytest.raises(ValueError, match=r"`retune_after.A` must be an interval such as .*, got 30"):
        dates.intervals_by_tier({"A": 30})


def test_instants_are_utc_whatever_the_offset() -> None:
    assert dates.from_text("2026-11-21T10:30:00+01:00") == datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
    assert dates.from_text("2026-11-21") == datetime(2026, 11, 21, tzinfo=UTC)
    assert dates.to_text(datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T22:30:00Z"
    for bad in ("2026-11-21T10:30:00", "2026-02-30", "soon", 5, None):
        with pytest.raises(ValueError, match=r"`at` must be a date or a time in ISO 8601 with its offset"):
            dates.from_text(bad)
    with pytest.raises(ValueError, match=r"`now` must be a datetime with a time zone"):
        dates.verdict([tuned()], datetime(2026, 2, 1))


def test_a_record_is_fresh_due_and_stale_from_its_dates_on() -> None:
    record = tuned()
    second = timedelta(seconds=1)
    for moment, status in [
        (START, "fresh"),
        (START + 29 * DAY, "fresh"),
        (START + 30 * DAY - second, "fresh"),
        (START + 30 * DAY, "due"),
        (START + 31 * DAY, "due"),
        (START + 60 * DAY - second, "due"),
        (START + 60 * DAY, "stale"),
    ]:
        assert dates.verdict([record], moment).status == status, moment
    found = dates.verdict([record], START + 31 * DAY)
    assert found.reason == "due since 2026-03-02 (tier A)"
    assert found.todo == "lightning-hp retune runs/digits"
    assert found.age == 31 * DAY
    assert {tier: date - START for tier, date in found.dates.items()} == {
        "A": 30 * DAY, "B": 90 * DAY, "C": 90 * DAY, "D": 365 * DAY,
    }  # fmt: skip


def test_stale_is_twice_the_interval_in_months_not_days() -> None:
    record = tuned(retune_after="1mo")  # due 28 February, stale 31 March
    assert dates.verdict([record], datetime(2026, 3, 30, 12, tzinfo=UTC)).status == "due"
    assert dates.verdict([record], datetime(2026, 3, 31, 12, tzinfo=UTC)).status == "stale"


def test_only_tiers_that_hold_something_have_a_date() -> None:
    record = tuned(hyperparameters_by_tier={"A": {}, "C": {"layers": 3}})
    found = dates.verdict([record], START + 40 * DAY)
    assert (found.status, list(found.dates)) == ("fresh", ["C"])


def test_the_same_instant_in_another_time_zone_gives_the_same_verdict() -> None:
    moment = START + 30 * DAY
    assert dates.verdict([tuned()], moment.astimezone(timezone(timedelta(hours=-11)))) == dates.verdict(
        [tuned()], moment
    )


def test_nothing_tuned_is_said() -> None:
    assert dates.verdict([], START).status == "untuned"
    assert dates.verdict([records.checked(name="a", kind="data", now=START)], START).status == "untuned"


def test_a_clock_in_the_past_is_an_error_that_names_the_line() -> None:
    record = records.Record(tuned())
    record.where = "runs/ledger.jsonl:7"
    assert dates.verdict([record], START - timedelta(minutes=4)).age == timedelta(0)
    with pytest.raises(
        ValueError, match=r"^runs/ledger.jsonl:7: 2026-01-31T12:00:00Z lies after the clock's 2026-01-30"
    ):
        dates.verdict([record], START - DAY)


def test_records_of_two_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`records` must be of one name, got digits, other"):
        dates.verdict([tuned(), tuned(name="other")], START)


def drift(kind: str = "moments", day: int = 1, **more: Any) -> dict[str, Any]:
    return records.drifted(name="digits", kind=kind, changes=[Change("layer 1 shifted")], now=START + day * DAY, **more)


def passed(kind: str = "moments", day: int = 2) -> dict[str, Any]:
    return records.checked(name="digits", kind=kind, now=START + day * DAY)


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([drift()], "fresh"),
        ([drift(), drift(day=2)], "due"),
        ([drift(), passed(), drift(day=3)], "fresh"),
        ([drift(), passed("data"), drift(day=3)], "due"),
        ([drift(), drift(day=2), passed(day=3)], "fresh"),
        ([drift("data")], "due"),
        ([drift("data"), passed("data")], "fresh"),
        ([drift("data", structural=True)], "invalid"),
        ([drift("model")], "invalid"),
        ([drift("space"), passed("model")], "invalid"),
        ([drift("space"), passed("space")], "fresh"),
    ],
)
def test_what_checks_make_of_a_fresh_record(events: list[dict[str, Any]], status: str) -> None:
    found = dates.verdict([tuned(), *events], START + 5 * DAY)
    assert found.status == status
    assert ("layer 1 shifted" in found.reason) == (status != "fresh" or "due at 2 in a row" in found.reason)


def test_a_first_shifted_check_is_told_until_one_that_is_not() -> None:
    told = dates.verdict([tuned(), drift()], START + 2 * DAY)
    assert told.reason == "fresh until 2026-03-02 (tier A); shifted in 1 check, due at 2 in a row: layer 1 shifted"
    assert "shifted" not in dates.verdict([tuned(), drift(), passed()], START + 2 * DAY).reason


def test_two_shifted_checks_give_the_reason() -> None:
    found = dates.verdict([tuned(), drift(), drift(day=2)], START + 3 * DAY)
    assert found.reason == "shifted in 2 checks in a row: layer 1 shifted"


def test_a_tuning_after_the_drift_ends_it() -> None:
    again = records.retuned(
        previous_study="runs/digits", name="digits", study="runs/digits-2", trials=9, metric="m", value=1.0,
        hyperparameters_by_tier={"A": {"lr": 1.0}}, now=START + 4 * DAY,
    )  # fmt: skip
    found = dates.verdict([tuned(), drift("data"), again], START + 5 * DAY)
    assert (found.status, found.study, found.age) == ("fresh", "runs/digits-2", DAY)


def test_a_retest_that_confirms_dates_forward_and_one_that_does_not_is_due() -> None:
    confirmed = records.retested(name="digits", outcome="confirmed", now=START + 31 * DAY)
    found = dates.verdict([tuned(), drift("data", day=3), confirmed], START + 60 * DAY)
    assert (found.status, found.confirmed_at, found.tuned_at) == ("fresh", START + 31 * DAY, START)
    assert found.dates["A"] == START + 61 * DAY
    beaten = records.retested(name="digits", outcome="beaten", now=START + 2 * DAY)
    found = dates.verdict([tuned(), beaten], START + 3 * DAY)
    assert (found.status, found.reason) == ("due", "re-test of 2026-02-02 found better values")


def postponed(until: str, day: int) -> dict[str, Any]:
    return records.postponed(name="digits", until=until, why="release freeze", by="Ada", now=START + day * DAY)


def test_a_postponement_moves_the_date_and_names_person_and_reason() -> None:
    events = [tuned(), postponed("2026-03-20", 31)]
    found = dates.verdict(events, START + 32 * DAY)
    assert (found.status, found.dates["A"]) == ("fresh", datetime(2026, 3, 20, tzinfo=UTC))
    assert found.reason == "fresh until 2026-03-20 (tier A); postponed until 2026-03-20 by Ada: release freeze"
    assert dates.verdict(events, datetime(2026, 3, 20, tzinfo=UTC)).status == "due"
    assert dates.verdict(events, datetime(2026, 4, 18, tzinfo=UTC)).status == "due"
    assert dates.verdict(events, datetime(2026, 4, 19, tzinfo=UTC)).status == "stale"
    # the last one counts, and none makes a date earlier
    early = [*events, postponed("2026-03-04", 31)]
    assert dates.verdict(early, datetime(2026, 3, 5, tzinfo=UTC)).status == "due"
    assert dates.verdict([tuned(), postponed("2026-02-03", 1)], START + DAY).dates["A"] == START + 30 * DAY


def test_a_postponement_excuses_drift_until_its_date_but_no_other_model() -> None:
    until = postponed("2026-02-20", 2)
    shifted = [tuned(), drift("data"), until, drift("data", day=4)]
    assert dates.verdict(shifted, START + 5 * DAY).status == "fresh"
    assert dates.verdict(shifted, datetime(2026, 2, 20, tzinfo=UTC)).status == "due"
    assert dates.verdict([tuned(), until, drift("model", day=4)], START + 5 * DAY).status == "invalid"


def data(mean: float = 0.0, name: str = "age") -> dict[str, Any]:
    spread = [mean - 2 + 4 * k / 20 for k in range(21)]
    column = {
        "dtype": "float32",
        "count": 900,
        "missing": 0,
        "mean": mean,
        "sd": 1.0,
        "kurtosis": 3.0,
        "quantiles": spread,
    }
    return {"schema": 1, "rows": 900, "rows_exact": True, "sampled": 900, "sample": "", "columns": {name: column}}


def test_current_fingerprints_are_compared_with_the_record() -> None:
    events = [tuned(model_fingerprint="m.Net(a)", space_fingerprint="s", data_fingerprint=data())]
    now = START + DAY

    def judge(**current: Any) -> tuple[str, str]:
        found = dates.verdict(events, now, current)
        return found.status, found.reason

    assert judge(model="m.Net(a)", space="s", data=data(0.1))[0] == "fresh"
    assert judge() == judge(model="m.Net(a)")
    assert judge(model="m.Net(b)") == ("invalid", "model changed: was m.Net(a), is m.Net(b)")
    assert judge(space="t")[0] == "invalid"
    assert judge(data=data(0.8)) == ("due", "column age: mean moved by 0.8 sd")
    assert judge(data=data(0.0, "size"))[0] == "invalid"
    assert judge(model="m.Net(b)", data=data(0.8))[1].endswith("; column age: mean moved by 0.8 sd")


def test_a_current_comparison_overrules_the_last_recorded_one() -> None:
    events = [tuned(model_fingerprint="m.Net(a)", data_fingerprint=data()), drift("data"), drift("model")]
    assert dates.verdict(events, START + 5 * DAY).status == "invalid"
    assert dates.verdict(events, START + 5 * DAY, {"model": "m.Net(a)", "data": data()}).status == "fresh"


def test_a_confirmed_retest_makes_its_data_the_one_to_compare_with() -> None:
    confirmed = records.retested(name="digits", outcome="confirmed", data_fingerprint=data(0.8), now=START + 2 * DAY)
    events = [tuned(data_fingerprint=data()), confirmed]
    assert dates.verdict(events, START + 3 * DAY, {"data": data(0.8)}).status == "fresh"
    assert dates.verdict(events, START + 3 * DAY, {"data": data(0.0)}).status == "due"


def test_a_verdict_is_json() -> None:
    found = dates.verdict([tuned()], START + 31 * DAY).to_dict()
    assert (found["next"], found["age_days"], found["status"]) == ("2026-03-02T12:00:00Z", 31.0, "due")
    assert found["dates"]["D"] == "2027-01-31T12:00:00Z"


def test_a_study_with_a_space_in_its_path_is_quoted_in_the_command() -> None:
    assert (
        dates.verdict([tuned(study="my runs/digits")], START + 40 * DAY).todo == "lightning-hp retune 'my runs/digits'"
    )


def test_an_undecided_re_test_changes_nothing() -> None:
    undecided = records.retested(name="digits", outcome="undecided", summary="ahead", now=START + 2 * DAY)
    for before, day in (([], 3), ([drift("data")], 3), ([], 31)):
        known = [tuned(), *before]
        assert dates.verdict([*known, undecided], START + day * DAY) == dates.verdict(known, START + day * DAY)


# --- the last date there is


@pytest.mark.parametrize("until", ["9999-12-31", "9999-12-31T23:59:59+00:00", "9990-01-01"])
@pytest.mark.parametrize("interval", ["30d", "3mo", "1y"])
def test_never_is_a_date_like_any_other(until: str, interval: str) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    record = tuned(now=now, retune_after=interval)
    event = records.postponed(name="digits", until=until, why="frozen", now=now)
    for clock in (now, datetime(2300, 1, 1, tzinfo=UTC)):
        verdict = dates.verdict([record, event], clock)
        assert verdict.status == "fresh"
        assert verdict.next_date == dates.from_text(until)
        text = to_ics([("ledger", verdict)], clock)
        assert f"DTSTART;VALUE=DATE:{until[:10].replace('-', '')}" in text
        assert ("DTEND" in text) is (not until.startswith("9999-12-31"))


def test_an_interval_ends_at_the_last_date() -> None:
    late = datetime(9999, 6, 1, tzinfo=UTC)
    for interval in (dates.Interval(days=400), dates.Interval(months=12), dates.Interval(months=1, days=300)):
        assert interval.after(late) == dates.LAST
    assert dates.Interval(days=3).after(late) == datetime(9999, 6, 4, tzinfo=UTC)


@pytest.mark.parametrize("text", ["9999-12-31T23:00:00-05:00", "0001-01-01T00:00:00+05:00"])
def test_a_date_that_utc_does_not_have_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"`until` must be a date in UTC from the year 1 to 9999, got "):
        dates.from_text(text, "until")
    with pytest.raises(ValueError, match=r"`now` must be a date in UTC from the year 1 to 9999, got "):
        dates.as_utc(datetime.fromisoformat(text))
