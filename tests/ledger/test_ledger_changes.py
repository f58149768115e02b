"""Changes are data: sentences are made from them, and nothing is read back out of a sentence."""

from datetime import UTC, datetime

import pytest

from lightning_hp.ledger import records
from lightning_hp.ledger.changes import Change, change_sentences, changes_of, summarise_changes

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def gone(*columns: str) -> Change:
    return Change("gone", columns)


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ([gone("3")], ["column 3: gone"]),
        ([gone("3"), gone("a b"), Change("new", ("3",))], ["columns 3, a b: gone", "column 3: new"]),
        ([gone(str(i)) for i in range(6)], ["columns 0, 1, 2 and 3 more: gone"]),
        ([Change("rows: 5 became 9"), Change("shifted"), Change("shifted")], ["rows: 5 became 9", "shifted"]),
        # a name that looks like the sentence of two columns, and a text that looks like one of a column
        ([gone("1: new, column 2")], ["column 1: new, column 2: gone"]),
        ([gone("5"), Change("column 3: gone")], ["column 5: gone", "column 3: gone"]),
        # a change that has been merged before
        ([Change("gone", ("0", "1", "2"), 3), gone("9")], ["columns 0, 1, 2 and 4 more: gone"]),
    ],
)
def test_columns_that_changed_in_the_same_way_share_a_sentence(changes: list[Change], sentences: list[str]) -> None:
    assert change_sentences(changes) == sentences


def test_a_summary_counts_what_it_leaves_out() -> None:
    changes = [Change("a"), Change("b", ("1",)), Change("b", ("2",)), Change("c"), Change("d")]
    assert summarise_changes(changes) == "a; columns 1, 2: b; and 2 more"
    assert summarise_changes(changes[:3]) == "a; columns 1, 2: b"
    assert summarise_changes(changes, most=3) == "a; columns 1, 2: b; c; and 1 more"


def test_an_event_gives_back_the_changes_that_it_was_made_of(tmp_path) -> None:
    changes = [Change("gone", ("a: b", "c"), 4), Change("rows: 5 became 9")]
    records.append(tmp_path / "ledger", records.drifted(name="n", kind="data", changes=changes, now=NOW))
    [event] = records.read(tmp_path / "ledger").records
    assert changes_of(event) == changes
    assert event["findings"] == ["columns a: b, c and 4 more: gone", "rows: 5 became 9"]
    assert changes_of(records.checked(name="n", kind="data", now=NOW)) == []


def test_an_event_of_earlier_has_sentences_only() -> None:
    event = records.drifted(name="n", kind="data", changes=[gone("3"), gone("5")], now=NOW)
    del event["changes"]
    assert change_sentences(changes_of(event)) == ["column 3: gone", "column 5: gone"]


@pytest.mark.parametrize("stored", ["gone", [{"text": "gone"}], [{"text": "gone", "columns": [3], "more_columns": 0}]])
def test_changes_that_cannot_be_read_are_refused_with_their_key(stored: object) -> None:
    event = records.drifted(name="n", kind="data", changes=[gone("3")], now=NOW)
    with pytest.raises(ValueError, match=r"`record.changes` must be changes with text, columns and more_columns, got "):
        records.check({**event, "changes": stored})
