"""The error of everything that has to do with a study on disk or in a database."""

from __future__ import annotations


class StudyError(Exception):
    """A study cannot be opened or continued in this way; the message is one line that says what to do."""
