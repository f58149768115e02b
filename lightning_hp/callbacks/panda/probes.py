"""Probe mode: the rules, and short trainings of neighbouring values from one snapshot.

Where the training can be copied into a stack (`beside`), the training itself goes on with the present value for
`Settings.probe_windows` windows, and the neighbours train beside it on the same mini-batches; a neighbour that wins
hands over its state. Nothing of the training is thrown away, and each step of a neighbour counts as a step that was
spent, though in a stack it costs less than one.

Elsewhere a probe runs inside the ordinary training loop: the state is kept as "fork"; each candidate starts from it,
trains on the batches that come, and its end state is kept; then training goes on from the end state of the winner. So
every module, precision and strategy works, the winner's steps are not lost, and the cost is counted in the run's own
steps: two thirds of them are thrown away. A candidate wins only beyond noise; else the value stays. Momentum (tier B)
is probed where the last probe of the learning rate (tier A) kept it.

Everything is read from the history, so a training that is killed in the middle of a probe goes on in it.
"""

from __future__ import annotations

import math

from lightning_hp.callbacks.panda import rate_search, rules
from lightning_hp.callbacks.panda.history import GOOD, RATE, Done, History, Intervention, Window
from lightning_hp.callbacks.panda.policies import keep_good
from lightning_hp.callbacks.panda.settings import Settings

FORK = "fork"
#: factors of the candidates on the scale of the parameter; the present value runs first
FACTORS = (1.0, 2.0, 0.5)
#: shares of the planned steps after which a probe may begin
_MARKS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
#: what is probed, where its tier is open; a batch size would need another loader in the middle of an epoch
_PROBED = (RATE, "momentum", "beta1", "weight_decay")


class ProbePolicy:
    """The rules of `RulesPolicy`, and probes at a few marks of the training."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()

    def decide(self, history: History) -> Intervention | None:
        """Go on with a probe that runs; else what the rules say; else begin a probe where one is due."""
        running = running_probe(history)
        if running:
            return None if history.paused else next_step(history, running, self.settings)
        decision = rules.decide(history, self.settings)
        return decision if decision is not None else begin(history, self.settings)

    def keep(self, history: History) -> tuple[str, ...]:
        """The last good state; none while a probe runs, whose states are kept by name."""
        return () if running_probe(history) else keep_good(history, self.settings)

    def window(self, history: History, usual: int, step: int) -> int:
        """As with the rules."""
        return min(usual, rate_search.START_STEPS) if rate_search.searching(history, self.settings) else usual


def running_probe(history: History) -> list[Done]:
    """The candidates that were started in the probe that runs; empty if none does."""
    candidates: list[Done] = []
    for done in reversed(history.done):
        if done.what.rule != "probe":
            break
        candidates.insert(0, done)
        if FORK in done.what.save:
            return candidates
    return []


def begin(history: History, settings: Settings) -> Intervention | None:
    """Begin a probe if one is due and affordable."""
    if history.paused or not history.planned or rate_search.searching(history, settings):
        return None
    if history.loader_pending:  # training may begin again with the mini-batches to come
        return None
    if RATE not in history.values or not settings.may(RATE, history.hands_off):
        return None
    finished = [done for done in history.done if done.what.rule == "probe_end"]
    marks = [mark for mark in _MARKS if mark <= 1 - settings.wind_down_share]
    if len(finished) >= len(marks) or history.progress < marks[len(finished)]:
        return None
    name = _next_name(history, finished, settings)
    candidates = _candidates(name, history, settings)
    if len(candidates) < 2:
        return None
    present, neighbours = candidates[0], tuple(candidates[1:])
    beside = neighbours if settings.stack_probes and not history.not_stacked else ()
    steps = history.windows[-1].steps * settings.probe_windows * len(beside or FACTORS)
    if probe_steps(history) + steps > settings.probe_share * history.planned:
        return None
    numbers = {f"candidate {index}": value for index, value in enumerate(candidates)}
    why = f"a probe of {name} begins with the present value"
    if beside:
        why += f", beside it {' and '.join(f'{value:g}' for value in beside)}"
    return Intervention("probe", why, {name: present}, (FORK,), numbers=numbers, by="probe", beside=beside)


def next_step(history: History, running: list[Done], settings: Settings) -> Intervention | None:
    """End a candidate whose windows are over: start the next one, or choose."""
    windows = history.since(running[-1].step)
    broken = not windows[-1].finite
    if len(windows) < settings.probe_windows and not broken:
        return None
    first = running[0].what
    (name,) = first.values
    candidates = [first.numbers[f"candidate {index}"] for index in range(len(first.numbers))]
    index = len(running) - 1
    fork = running[0].before
    if first.beside:
        return _choose(name, candidates, [windows[-1], *history.beside], fork, settings.z, beside=True)
    if index + 1 < len(candidates):
        value = candidates[index + 1]
        why = f"the probe of {name} goes on with {value:g}"
        values = {**fork, name: value}
        return Intervention("probe", why, values=values, save=(f"probe {index}",), restore=FORK, by="probe")
    return _choose(name, candidates, _measured(history, running), fork, settings.z, beside=False)


def _choose(
    name: str, candidates: list[float], measured: list[Window], fork: dict[str, float], z: float, beside: bool
) -> Intervention:
    """The winner is the lowest level, if it is below that of the present value by ``z`` standard errors.

    Args:
        name: What was probed.
        candidates: Its values, the present one first.
        measured: The last window of each; fewer if the neighbours beside had to be given up.
        fork: Values before the probe.
        z: Standard errors.
        beside: Whether the neighbours trained beside, so that the training's state is that of the present value.
    """
    levels = [window.level if window.finite and math.isfinite(window.level) else math.inf for window in measured]
    best = min(range(len(levels)), key=levels.__getitem__)
    error = math.hypot(measured[0].error, measured[best].error)
    beyond_noise = best != 0 and levels[0] - levels[best] > z * error
    winner = best if beyond_noise or not math.isfinite(levels[0]) else 0
    numbers = {f"loss at {value:g}": level for value, level in zip(candidates, levels, strict=False)}
    numbers = {key: value for key, value in numbers.items() if math.isfinite(value)} | {"error": error}
    restore: str | None = f"probe {winner}" if math.isfinite(levels[winner]) else FORK
    save = (f"probe {winner if beside else len(candidates) - 1}",)
    if math.isinf(levels[winner]):
        winner = 0
    elif beside and winner == 0:  # the training has that state
        save, restore = (GOOD,), None
    why = f"{name} {candidates[winner]:g} got furthest" if winner else f"no neighbour of {name} is better beyond noise"
    drop = (FORK, *(f"probe {number}" for number in range(len(candidates))))
    return Intervention(
        "probe_end",
        why,
        values={**fork, name: candidates[winner]},
        save=save,
        restore=restore,
        drop=drop,
        numbers=numbers,
        by="probe",
    )


def _measured(history: History, running: list[Done]) -> list[Window]:
    """The last window of every candidate."""
    ends = [done.step for done in running[1:]] + [history.step]
    last = {window.step: window for window in history.windows}
    return [last[end] for end in ends]


def probe_steps(history: History) -> int:
    """Optimiser steps spent on probes so far: of all candidates, or of the neighbours where they trained beside."""
    total, begun = 0, None
    for done in history.done:
        if done.what.rule == "probe" and FORK in done.what.save:
            begun = done
        elif done.what.rule == "probe_end" and begun is not None:
            total += (done.step - begun.step) * max(1, len(begun.what.beside))
            begun = None
    return total


def _next_name(history: History, finished: list[Done], settings: Settings) -> str:
    """The learning rate, unless its last probe kept it: then the next of tier B (and further open tiers), in turn."""
    open_names = [name for name in _PROBED if name in history.values and settings.may(name, history.hands_off)]
    names = [next(iter(_probed_name(history, done)), RATE) for done in finished]
    if not finished or names[-1] != RATE or "no neighbour" not in finished[-1].what.why or len(open_names) < 2:
        return RATE
    others = [name for name in open_names if name != RATE]
    return others[sum(name != RATE for name in names) % len(others)]


def _probed_name(history: History, end: Done) -> list[str]:
    begun = [done for done in history.done if FORK in done.what.save and done.step < end.step]
    return list(begun[-1].what.values) if begun else []


def _candidates(name: str, history: History, settings: Settings) -> list[float]:
    value, bounds = history.values[name], settings.bounds[name]
    candidates = [value]
    for factor in FACTORS[1:]:
        neighbour = bounds.moved(value, factor)
        if neighbour not in candidates:
            candidates.append(neighbour)
    return candidates
