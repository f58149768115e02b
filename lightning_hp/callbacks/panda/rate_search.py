"""The search for a learning rate at the beginning of a training. Pure functions.

Every attempt is one short window from the same start, so attempts can be compared; a few dozen steps are all it costs.
What is measured is how far the loss falls, and how far the weights go relative to their norm: a rate that is ten times
too low moves them ten times less, one that is far too high makes them jump, whatever the optimizer.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from lightning_hp.callbacks.panda.history import RATE, START, History, Intervention
from lightning_hp.callbacks.panda.settings import Settings

#: rules of the search
SEARCH = ("slow_start", "too_fast", "memory", "batch", "reload")
#: relative distance that the weights go in a window of the start (`START_STEPS` steps): they hardly move below the
#: first, walk below the second, jump above the third; a changed rate aims at the last
STILL, WALKED, JUMPED, WANTED = 0.02, 0.3, 0.5, 0.1
#: optimiser steps in a window while the learning rate is searched
START_STEPS = 10
#: fall of the loss in such a window, on the log scale, that is not slow; and factor that a raise must gain
FAST, FASTER = 0.4, 1.25


def search_rate(history: History, settings: Settings) -> Intervention | None:
    """Find a learning rate with which training begins well: every attempt is one short window from the same start.

    Too high: the loss is not finite or rises, the weights jump, or a lower rate got further. Too low: the loss falls
    slowly and the weights hardly move. Anything else is taken.
    """
    if not searching(history, settings) or not history.spent() < settings.budget:
        return None
    attempts = _attempts(history)
    rate, bounds, now = history.values[RATE], settings.bounds[RATE], attempts[-1]
    too_high = [one.rate for one in attempts if one.broke]
    ceiling = min(too_high, default=math.inf)
    lower = [one for one in attempts if one.rate < min(rate, ceiling)]
    best = max(lower, key=lambda one: one.progress, default=None)
    numbers = {"progress": now.progress, "error": now.error, "moved": now.moved}
    worse = _clearly_worse(now, best, settings)
    if now.broke or worse:
        if best is None:
            target = rate * max(settings.cut_factor, min(settings.decay_factor, WANTED / now.moved))
        elif now.rate <= 3.5 * best.rate:
            target = best.rate
        else:
            target = math.sqrt(best.rate * now.rate)
        why = "a lower learning rate got further" if worse else now.why
        return _attempt("too_fast", why, bounds.clip(target), rate, numbers)
    fast = now.progress >= max(FAST, settings.z * now.error)
    if fast or now.moved >= WALKED or _tried_enough(attempts):
        return None
    factor = min(settings.raise_factor**2, max(settings.raise_factor, WANTED / max(now.moved, 1e-9)))
    target = rate * factor
    if target >= ceiling:
        target = math.sqrt(rate * ceiling)
        if target < 1.8 * rate:
            return None
    why = "the loss falls slowly and the weights hardly move"
    return _attempt("slow_start", why, bounds.clip(target), rate, numbers)


def _attempt(rule: str, why: str, target: float, rate: float, numbers: dict[str, float]) -> Intervention | None:
    if target == rate:
        return None
    return Intervention(rule, why, values={RATE: target}, restore=START, numbers=numbers)


@dataclass(frozen=True)
class Attempt:
    """One window from the start: its learning rate, how far the loss fell (log scale), how far the weights went."""

    rate: float
    progress: float
    error: float
    moved: float
    why: str

    @property
    def broke(self) -> bool:
        """Whether the rate is too high whatever another one does."""
        return bool(self.why)


def _attempts(history: History) -> list[Attempt]:
    begin = max((done.step for done in history.done if done.what.rule in ("memory", "batch", "reload")), default=-1)
    windows = history.since(max(begin, history.loader_since))
    firsts = [window.first for window in windows if math.isfinite(window.first)]
    before = statistics.fmean(firsts) if firsts else math.nan
    attempts = []
    for window in windows:
        progress = _progress(before, window.level)
        error = math.hypot(_relative(window.error, window.level), _relative(window.noise / len(windows) ** 0.5, before))
        why = ""
        if not window.finite:
            why, progress = "the loss or a weight is not finite", -math.inf
        elif window.moved > JUMPED:
            why = "the weights jump"
        elif window.moved > STILL and progress < -2 * max(error, 0.05):
            why = "the loss rises from the first step"
        moved = window.moved if math.isfinite(window.moved) else math.inf
        attempts.append(Attempt(window.values[RATE], progress, error, moved, why))
    return attempts


def _clearly_worse(now: Attempt, best: Attempt | None, settings: Settings) -> bool:
    """Whether a lower rate got further, beyond noise."""
    if best is None:
        return False
    return best.progress - now.progress > settings.z * math.hypot(best.error, now.error)


def _tried_enough(attempts: list[Attempt]) -> bool:
    """At most eight windows are spent on the search."""
    return len(attempts) >= 8


def searching(history: History, settings: Settings) -> bool:
    """Whether the last window was an attempt to find a learning rate (or the next one will be)."""
    if not settings.start_share or not settings.may(RATE, history.hands_off) or history.loader_pending:
        return False
    if history.start_progress > settings.start_share:
        return False
    last = history.last()
    if last is not None and last.what.rule not in SEARCH:
        return False
    begin = max(last.step if last is not None else -1, history.loader_since)
    return len(history.since(begin)) <= 1


def _progress(before: float, after: float) -> float:
    """Fall of a positive loss on the log scale; the plain difference where a loss is not positive."""
    return math.log(before / after) if before > 0 and after > 0 else before - after


def _relative(error: float, value: float) -> float:
    return error / value if value > 0 else error
