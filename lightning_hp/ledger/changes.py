"""The changes that a check found, as data, and the sentences that are made from them. Standard library only.

A sentence is never parsed: what a change is about stands in its fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Columns that a sentence names; further ones are counted.
_NAMED_COLUMNS = 3


@dataclass(frozen=True)
class Change:
    """One difference.

    Args:
        text: What changed, in words and without the column, such as ``mean moved by 0.8 sd``.
        columns: Names of the columns of the data that changed in this way; empty if it is not about a column.
        more_columns: Number of further columns that changed in this way and are not named.
    """

    text: str
    columns: tuple[str, ...] = ()
    more_columns: int = 0

    @property
    def sentence(self) -> str:
        """The change in words, such as ``columns 3, 5: gone``; a name that is a mere number has the word before it."""
        if not self.columns:
            return self.text
        noun = "column" if len(self.columns) == 1 and not self.more_columns else "columns"
        more = f" and {self.more_columns} more" if self.more_columns else ""
        return f"{noun} {', '.join(self.columns)}{more}: {self.text}"

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {"text": self.text, "columns": list(self.columns), "more_columns": self.more_columns}


def changes_of(event: Mapping[str, Any]) -> list[Change]:
    """The changes of an event of a ledger.

    Args:
        event: An event. One that was written before changes were kept as data has sentences only; each is one change.
    """
    stored = event.get("changes")
    if stored is None:
        return [Change(str(sentence)) for sentence in event.get("findings") or ()]
    return [Change(c["text"], tuple(c["columns"]), c["more_columns"]) for c in stored]


def check_changes(stored: object, name: str) -> None:
    """Checks the changes of an event that was read.

    Args:
        stored: What the event holds.
        name: The key that an error names.

    Raises:
        ValueError: If it is no list of changes.
    """
    for change in stored if isinstance(stored, list) else [stored]:
        if not (
            isinstance(change, Mapping)
            and isinstance(change.get("text"), str)
            and isinstance(change.get("columns"), list)
            and all(isinstance(column, str) for column in change["columns"])
            and isinstance(change.get("more_columns"), int)
        ):
            raise ValueError(f"`{name}` must be changes with text, columns and more_columns, got {change!r}")


def merge_columns(changes: Sequence[Change]) -> list[Change]:
    """Merge changes that differ in their column only; the order stays.

    Returns:
        Changes that name at most three columns each and count the others.
    """
    columns_by_text: dict[tuple[str, bool], list[str]] = {}
    counted: dict[tuple[str, bool], int] = {}
    for change in changes:
        key = (change.text, bool(change.columns))
        columns_by_text.setdefault(key, []).extend(change.columns)
        counted[key] = counted.get(key, 0) + change.more_columns
    return [
        Change(text, tuple(columns[:_NAMED_COLUMNS]), counted[text, about] + max(0, len(columns) - _NAMED_COLUMNS))
        for (text, about), columns in columns_by_text.items()
    ]


def change_sentences(changes: Sequence[Change]) -> list[str]:
    """A sentence a change; columns that changed in the same way share one."""
    return [change.sentence for change in merge_columns(changes)]


def summarise_changes(changes: Sequence[Change], most: int = 2) -> str:
    """The first sentences in one line, and how many more there are.

    Args:
        changes: The changes.
        most: Sentences that are written out.
    """
    sentences = change_sentences(changes)
    text = "; ".join(sentences[:most])
    return text if len(sentences) <= most else f"{text}; and {len(sentences) - most} more"
