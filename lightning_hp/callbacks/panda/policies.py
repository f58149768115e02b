"""Policies: what is asked at every check for an intervention and for snapshots to keep. Their state is the history."""

from __future__ import annotations

from typing import Protocol

from lightning_hp.callbacks.panda import rate_search, rules
from lightning_hp.callbacks.panda.history import GOOD, History, Intervention
from lightning_hp.callbacks.panda.settings import Settings


class Policy(Protocol):
    """What `PandaBabysitter` asks at every check."""

    settings: Settings

    def decide(self, history: History) -> Intervention | None:
        """Return what to do now, or None."""
        ...

    def keep(self, history: History) -> tuple[str, ...]:
        """Names under which the state at this check is saved, before an intervention without a restore."""
        ...

    def window(self, history: History, usual: int, step: int) -> int:
        """Optimiser steps of the next window."""
        ...


#: fewest optimiser steps between two snapshots of the last good state: what they cost is a small part of so many
#: steps; and how many are kept, at most, over a training that is longer
GOOD_EVERY, GOOD_STATES = 50, 30


def keep_good(history: History, settings: Settings) -> tuple[str, ...]:
    """The last good state: at good checks that cross a multiple of 50 steps (or of a thirtieth of the training)."""
    if not history.windows or not rules.is_good(history, settings):
        return ()
    last, every = history.windows[-1], max(GOOD_EVERY, (history.planned or 0) // GOOD_STATES)
    due = last.step // every > max(0, last.step - last.steps) // every
    return (GOOD,) if due or rate_search.searching(history, settings) else ()


class RulesPolicy:
    """The rules of `lightning_hp.callbacks.panda.rules`."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()

    def decide(self, history: History) -> Intervention | None:
        """See `rules.decide`."""
        return rules.decide(history, self.settings)

    def keep(self, history: History) -> tuple[str, ...]:
        """The last good state, see `keep_good`."""
        return keep_good(history, self.settings)

    def window(self, history: History, usual: int, step: int) -> int:
        """Short windows while the learning rate is searched, the usual ones after that."""
        return min(usual, rate_search.START_STEPS) if rate_search.searching(history, self.settings) else usual
