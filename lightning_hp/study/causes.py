"""An exception and what led to it: the same walk for everybody who asks what an exception says."""

from __future__ import annotations

from collections.abc import Iterator


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, then its cause (or what was handled when it was raised), then that one's, each of them once.

    An exception that is raised again while one that it caused is handled stands in its own chain.

    Args:
        error: The exception; None for nothing.
    """
    met: list[BaseException] = []
    while error is not None and not any(error is one for one in met):
        met.append(error)
        yield error
        error = error.__cause__ or error.__context__
