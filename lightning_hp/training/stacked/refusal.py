"""Why a member cannot be trained in a stack: one exception, one line."""

from __future__ import annotations


class NotStackable(ValueError):
    """This model, optimizer, data set or Trainer cannot be part of a stack; the message says why, in one line.

    Whoever asked for the stack trains the member by an ordinary ``Trainer.fit`` instead.
    """

    def __init__(self, reason: str) -> None:
        """Keep the first line of the reason, of at most 300 characters."""
        super().__init__((reason.strip() or "no reason").splitlines()[0][:300])

    @property
    def reason(self) -> str:
        """The one line."""
        return str(self)
