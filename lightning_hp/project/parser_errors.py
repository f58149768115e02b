"""What a LightningCLI says when something of a project fails, without the parser's own words around it.

Behind a type that allows several things (``LightningModule | None``) jsonargparse reports an exception of the project's
class as a ``ValueError`` about all of them, with the values of the trial in its text. Then a missing package or a full
memory is not recognised, and no two trials fail alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_OF_THE_PARSER = ("Does not validate against any of the Union", "Problem with given class_path")
#: complaints about the other things that a type allows
_OTHER_TYPES = ("Expected a", "Not a valid subclass", "Does not validate", "a class path (str)", "a dict with")


def parser_error(text: str) -> str:
    """What an argument parser says, as one line, without what does not help."""
    complaints: list[str] = []
    depth: int | None = None  # of the complaint that the line may go on with
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith("- "):
            complaint = line.strip()[2:]
            depth = None if complaint.startswith(_OTHER_TYPES) else indent
            if depth is not None:
                complaints.append(complaint)
        elif depth is not None and indent > depth:
            complaints[-1] += f" {line.strip()}"
        else:
            depth = None
    if complaints and _OF_THE_PARSER[0] in text:
        before = text.partition(_OF_THE_PARSER[0])[0]
        return " ".join(f"{before} {'; '.join(complaints)}".split())
    line = " ".join(text.split())
    line = re.sub(r"Does not validate against any of the Union subtypes.*?Errors: - ", "", line)
    return re.sub(r"\s*(- Expected a <class 'NoneType'>.*|Given value type: .*)$", "", line)


def raised_by_project(error: ValueError) -> BaseException:
    """The exception of the project behind one of the parser that makes its objects.

    Returns:
        The project's own, where the parser names it as the cause. Where it keeps the words only (older versions, and
        types whose first member is another one) a ``RuntimeError`` with these; an exception that is none of the
        parser's as it is.
    """
    inner: BaseException | None = error
    while isinstance(inner, ValueError) and str(inner).startswith(_OF_THE_PARSER):
        inner = inner.__cause__
    if inner is None or (inner is not error and str(inner).startswith(_OTHER_TYPES)):
        return RuntimeError(parser_error(str(error)))
    return inner


@contextmanager
def as_raised() -> Iterator[None]:
    """Exceptions of a project's classes come out as they were raised."""
    try:
        yield
    except ValueError as error:
        own = raised_by_project(error)
        if own is error:
            raise
        raise own from own.__cause__
