"""The rules of a babysitter: from a history to one intervention or none. Pure functions; the numbers come along.

The first rule that fires decides:

1. divergence: a loss that is not finite, far above its best, or an exploding gradient -> back, and a smaller rate
2. slow start: at the beginning the learning rate is raised while that makes the loss fall faster
3. overfitting: training falls, validation rises -> more weight decay, or the best validated state and the end
4. wind-down: over the last part of the training the learning rate falls to almost nothing
5. plateau: the loss has not fallen for a while -> a smaller rate, or larger mini-batches

The learning rate (tier A) comes first, and momentum (tier B) where a change of the rate has not helped: one whose
memory is longer than the training allows. A batch size (B) that leaves too few steps, or is far too small, goes before
both: a rate that was found for it says nothing of the next, and the search would take much of such a training.
"Beyond noise" is a difference of `Settings.z` standard errors, from the scatter of the steps inside the windows.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import replace

from lightning_hp.callbacks.panda import rate_search
from lightning_hp.callbacks.panda.history import BEST, GOOD, RATE, START, History, Intervention, Window
from lightning_hp.callbacks.panda.settings import Settings

#: share of the planned steps that momentum may remember (1 / (1 - momentum) steps)
MEMORY_SHARE = 0.04
#: steps that it may remember in any training: momentum 0.9 is never too long
LEAST_MEMORY = 10.5
#: rollbacks in a row after which training is given up, at the last good state
MOST_ROLLBACKS = 5
#: share of the first level above which nothing has been learned
UNTRAINED = 0.8
#: fewest optimiser steps of a training that was planned well
FEWEST_STEPS, ENOUGH_STEPS = 400, 600

Rule = Callable[[History, Settings], Intervention | None]


def decide(history: History, settings: Settings) -> Intervention | None:
    """Return the intervention of the first rule that fires, or None.

    Args:
        history: With at least the window that has just ended; nothing is decided without one.
        settings: Thresholds and bounds.
    """
    if not history.windows or history.paused or RATE not in history.values:
        return None
    start: tuple[Rule, ...] = (rate_search.search_rate, memory)
    if history.count("slow_start", "too_fast"):  # the rate was nudged first: now what it cannot mend
        start = (memory, rate_search.search_rate)
    for rule in (batch, *start, divergence, lost_start, overfitting, wind_down, plateau):
        intervention = rule(history, settings)
        if intervention is not None:
            return keep_values(intervention, history)
    return None


def begin_again(history: History) -> Intervention | None:
    """Begin again with the mini-batches that have just come, from the learning rate that training began with.

    Which rate is good depends on their size, so what was found before is forgotten; a rate that a person set stays.
    None where another rule than `batch`, or a person, asked for them: that training goes on.
    """
    new_size = next(
        done.what
        for done in reversed(history.done)
        if done.what.values.get("batch_size", done.before.get("batch_size")) != done.before.get("batch_size")
    )
    if new_size.rule != "batch" or new_size.restore != START:
        return None
    why = "the new mini-batches are in use: training begins again"
    by_person = any(RATE in done.what.values for done in history.done if done.what.rule in ("nudge", "undo"))
    first = {RATE: history.windows[0].values[RATE]} if history.windows and not by_person else {}
    return keep_values(Intervention("reload", why, values=first, restore=START), history)


def keep_values(intervention: Intervention, history: History) -> Intervention:
    """A restored snapshot brings its own hyperparameters; say that those of today stay unless they are changed."""
    if intervention.restore is None:
        return intervention
    return replace(intervention, values={**history.values, **intervention.values})


def is_good(history: History, settings: Settings) -> bool:
    """Whether the state after the last window is worth returning to: finite, and near the best level so far."""
    last, kept = history.windows[-1], history.kept()
    if not last.finite or not math.isfinite(last.level):
        return False
    best = _best(kept)
    return best is None or last.level <= best.level + settings.z * math.hypot(best.error, last.error)


def needs_distance(history: History, settings: Settings) -> bool:
    """Whether the way of the weights in the next window will be asked for: in the search, while nothing is learned."""
    if rate_search.searching(history, settings) or not history.windows:
        return True
    windows = history.since(history.loader_since)
    return not windows or not windows[-1].level <= UNTRAINED * windows[0].level


# --- 1: divergence ---


def divergence(history: History, settings: Settings) -> Intervention | None:
    """Go back to the last good snapshot, with a smaller learning rate, when the loss has exploded."""
    last = history.windows[-1]
    earlier = [window for window in history.kept() if window.step < last.step]
    reason = _diverged(last, earlier, history, settings)
    if reason is None:
        return None
    why, numbers = reason
    again = _rollbacks_in_a_row(history)
    if again and last.finite and not settings.may(RATE, history.hands_off):
        return None  # the rate that did it stays: to go back once more would not help
    if again >= MOST_ROLLBACKS:
        why = f"{why}, {again} times in a row: no learning rate helps"
        return Intervention("divergence", why, restore=GOOD, stop=True, numbers=numbers)
    values = _after_divergence(history, settings, again)
    return Intervention("divergence", why, values=values, restore=GOOD, numbers=numbers)


def _diverged(
    last: Window, earlier: list[Window], history: History, settings: Settings
) -> tuple[str, dict[str, float]] | None:
    if not last.finite or not math.isfinite(last.level):
        return "the loss or a weight is not finite", {}
    best = _best(earlier)
    initial = history.windows[0].first
    if best is None:
        return None
    recent = [window.noise for window in earlier[-5:]]
    limit = best.level + settings.deviations * max(statistics.median(recent), 0.01 * abs(initial - best.level))
    limit = max(limit, 2 * best.level if best.level > 0 else limit)
    if not settings.may(RATE, history.hands_off):  # what a large rate does it will do again
        limit = max(limit, 2 * initial)
    if last.level > limit:
        return "the loss is far above its best", {"level": last.level, "best": best.level, "limit": limit}
    if last.grad_norm is None or not last.level > best.level + settings.z * last.error:
        return None
    norms = [window.grad_norm for window in earlier if window.grad_norm is not None]
    if len(norms) >= 3:
        ceiling = settings.grad_factor * max(norms)
        if last.grad_norm > ceiling:
            return "the gradient exploded", {"grad_norm": last.grad_norm, "limit": ceiling}
    return None


def _after_divergence(history: History, settings: Settings, again: int) -> dict[str, float]:
    factor = settings.cut_factor if again else settings.decay_factor
    values = {}
    if settings.may(RATE, history.hands_off):
        values[RATE] = settings.bounds[RATE].clip(history.values[RATE] * factor)
    if again >= 1:  # the rate alone did not help
        values |= _shorter_memory(history, settings)
    return values


def _rollbacks_in_a_row(history: History) -> int:
    """Divergences so far, each within two windows of the next, and the last of the present one."""
    count, after = 0, history.step
    for done in reversed(history.done):
        if done.what.rule != "divergence" or sum(done.step < window.step < after for window in history.windows) > 2:
            break
        count, after = count + 1, done.step
    return count


# --- tier B, once the learning rate has been searched ---


def memory(history: History, settings: Settings) -> Intervention | None:
    """Shorten a momentum that remembers more steps than the training allows, and begin again with it."""
    if history.count("memory") or history.start_progress > settings.start_share:
        return None
    values = _shorter_memory(history, settings)
    if not values:
        return None
    name = next(iter(values))
    numbers = {"remembers": 1 / (1 - history.values[name]), "planned": float(history.planned or 0)}
    why = f"{name} remembers too many steps for a training of this length"
    return Intervention("memory", why, values=values, restore=START, numbers=numbers)


def batch(history: History, settings: Settings) -> Intervention | None:
    """Smaller mini-batches where too few steps are planned, larger ones where there are fewer rows than the bound."""
    size = history.values.get("batch_size")
    if size is None or not settings.may("batch_size") or history.count("batch") or not history.planned:
        return None
    if history.hands_off:  # the schedule was planned for as many steps as there are
        return None
    bounds = settings.bounds["batch_size"]
    wanted = bounds.clip(size * history.planned / ENOUGH_STEPS) if history.planned < FEWEST_STEPS else bounds.clip(size)
    if wanted == size:
        return None
    why = f"{history.planned} steps are too few" if wanted < size else f"{size:g} rows are fewer than {bounds.low:g}"
    numbers = {"planned": float(history.planned)}
    restore = START if history.progress <= settings.start_share else None
    return Intervention("batch", why, values={"batch_size": wanted}, restore=restore, numbers=numbers)


def lost_start(history: History, settings: Settings) -> Intervention | None:
    """Begin again with a smaller rate where the weights went far after the search, and nothing was learned by it."""
    last = history.last()
    if history.start_progress > settings.start_share or last is None or last.what.rule not in rate_search.SEARCH:
        return None
    windows = history.since(max(last.step, history.loader_since))
    if len(windows) < 4 or history.spent() >= settings.budget or not settings.may(RATE, history.hands_off):
        return None
    initial = history.since(history.loader_since)[0].level
    lowest = min(window.level for window in windows[-3:])
    moved = max(window.moved for window in windows)
    if not (lowest > UNTRAINED * initial > 0 and moved > rate_search.JUMPED):
        return None
    lower = settings.bounds[RATE].clip(history.values[RATE] * settings.decay_factor)
    why = "the weights went far and nothing was learned"
    numbers = {"lowest": lowest, "initial": initial, "moved": moved}
    return Intervention("too_fast", why, values={RATE: lower}, restore=START, numbers=numbers)


# --- 3: overfitting ---


def overfitting(history: History, settings: Settings) -> Intervention | None:
    """More weight decay, or the end, when validation rises beyond noise while training still falls."""
    if settings.on_overfitting is None or not _ready(history, settings, settings.cool_down):
        return None
    last_done = history.last("overfitting")
    since = -1 if last_done is None else last_done.step
    validations = [one for one in history.validations if one.step > since]
    values = [history.direction * one.value for one in validations]
    if len(values) < 6 or not math.isfinite(sum(values)):
        return None
    best = min(values)
    position = values.index(best)
    best_step, after = validations[position].step, values[position + 1 :]
    if len(after) < 4:
        return None
    rise = statistics.fmean(after[-2:]) - best
    if not rise > 0.1 * abs(best):
        return None
    slope, error = _slope(after)
    noise = _scatter(values)
    kept = history.kept()
    then = [window.level for window in kept if window.step <= best_step][-2:]
    now = [window.level for window in kept][-2:]
    falls = bool(then) and statistics.fmean(now) < statistics.fmean(then)
    if not (falls and slope > settings.z * error and rise > 3 * noise):
        return None
    numbers = {"best": best, "rise": rise, "noise": noise, "slope": slope}
    why = "the training loss falls and validation gets worse"
    decay = history.values.get("weight_decay")
    use_decay = settings.on_overfitting == "weight_decay" and settings.may("weight_decay") and decay is not None
    if use_decay and history.count("overfitting") < 2:
        more = settings.bounds["weight_decay"].clip(max(1e-3, 10 * (decay or 0.0)))
        if more > (decay or 0.0):
            return Intervention("overfitting", why, values={"weight_decay": more}, numbers=numbers)
    return Intervention("overfitting", why, restore=BEST, stop=True, numbers=numbers)


# --- 4: wind-down ---


def wind_down(history: History, settings: Settings) -> Intervention | None:
    """Let the learning rate fall linearly over the last part of the training, one step a window."""
    if not history.planned or not settings.wind_down_share or not settings.may(RATE, history.hands_off):
        return None
    begin = 1 - settings.wind_down_share
    if history.progress < begin:
        return None
    peak, begun = history.values[RATE], history.progress
    for done in reversed(history.done):
        if RATE not in done.what.values or done.step < begin * history.planned:
            continue
        if done.what.rule != "wind_down":
            break  # a person, or a divergence, set a new rate: the fall goes on from there
        peak, begun = done.before[RATE], done.step / history.planned
    window = history.windows[-1]
    middle = (window.step + window.steps / 2) / history.planned  # of the window to come
    share = max(0.0, (1 - middle) / (1 - begun)) if begun < 1 else 0.0
    target = settings.bounds[RATE].clip(peak * max(settings.wind_down_to, min(1.0, share)))
    if target >= history.values[RATE]:
        return None
    numbers = {"progress": history.progress, "peak": peak}
    return Intervention("wind_down", "the end of the training is near", values={RATE: target}, numbers=numbers)


# --- 5: plateau ---


def plateau(history: History, settings: Settings) -> Intervention | None:
    """Decay the learning rate when the loss has not fallen beyond noise for the patience."""
    if not _ready(history, settings, settings.cool_down) or not settings.may(RATE, history.hands_off):
        return None
    patience = settings.patience_windows
    if history.planned:
        patience = max(patience, math.ceil(settings.patience_share * history.planned / history.windows[-1].steps))
    last_done = history.last()
    windows = history.since(last_done.step if last_done is not None else -1)
    if len(windows) < patience:
        return None
    levels = [window.level for window in windows[-patience:]]
    slope, error = _slope(levels)
    if slope < -settings.z * error or levels[-1] < levels[0] - settings.z * windows[-1].error:
        return None
    numbers = {"slope": slope, "error": error, "windows": float(patience)}
    initial = history.windows[0].level
    untrained = min(levels[-2:]) > UNTRAINED * initial > 0  # so the distance was measured
    stood_still = max(window.moved for window in history.windows) < rate_search.WALKED
    if untrained and stood_still and windows[-1].moved < rate_search.STILL:
        higher = settings.bounds[RATE].clip(history.values[RATE] * settings.raise_factor)
        why = f"no progress since the beginning in {patience} windows, and the weights hardly move"
        return Intervention("raise", why, values={RATE: higher}, numbers=numbers | {"moved": windows[-1].moved})
    why = f"no progress beyond noise in {patience} windows"
    decays = history.count("plateau")
    if decays >= 2 or settings.on_plateau == "batch_growth":  # the rate alone no longer helps
        grown = _larger_batch(history, settings)
        if grown:
            return Intervention("plateau", why, values=grown, numbers=numbers)
    lower = settings.bounds[RATE].clip(history.values[RATE] * settings.decay_factor)
    values = {RATE: lower} | (_shorter_memory(history, settings) if decays >= 1 else {})
    if lower >= history.values[RATE] and len(values) == 1:
        return None
    return Intervention("plateau", why, values=values, numbers=numbers)


def _larger_batch(history: History, settings: Settings) -> dict[str, float]:
    size = history.values.get("batch_size")
    if size is None or not settings.may("batch_size"):
        return {}
    larger = settings.bounds["batch_size"].clip(2 * size)
    return {"batch_size": larger} if larger > size else {}


# --- shared ---


def _shorter_memory(history: History, settings: Settings) -> dict[str, float]:
    """A smaller momentum (or beta1), if its memory is longer than the planned training allows."""
    for name in ("momentum", "beta1"):
        value = history.values.get(name)
        if value is None or not history.planned or not settings.may(name, history.hands_off):
            continue
        longest = max(LEAST_MEMORY, MEMORY_SHARE * history.planned)
        if value < 1 and 1 / (1 - value) > longest:
            return {name: settings.bounds[name].clip(max(0.0, 1 - 1 / longest))}
    return {}


def _ready(history: History, settings: Settings, cool_down: int) -> bool:
    """Whether the cool-down is over and the budget is not spent."""
    last = history.last()
    return history.spent() < settings.budget and (last is None or len(history.since(last.step)) > cool_down)


def _best(windows: list[Window]) -> Window | None:
    finite = [window for window in windows if window.finite and math.isfinite(window.level)]
    return min(finite, key=lambda window: window.level, default=None)


def _slope(values: list[float]) -> tuple[float, float]:
    """Least-squares slope per position, and its standard error from the residuals."""
    n = len(values)
    centre, mean = (n - 1) / 2, statistics.fmean(values)
    spread = sum((i - centre) ** 2 for i in range(n))
    slope = sum((i - centre) * (value - mean) for i, value in enumerate(values)) / spread
    residual = sum((value - mean - slope * (i - centre)) ** 2 for i, value in enumerate(values))
    return slope, math.sqrt(residual / max(1, n - 2) / spread)


def _scatter(values: list[float]) -> float:
    """Noise of single values from successive differences (trend removed)."""
    differences = [(b - a) ** 2 for a, b in itertools.pairwise(values)]
    return math.sqrt(statistics.fmean(differences) / 2)
