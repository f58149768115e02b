"""From the history of a babysat run to the stretches of its study, and to the values that it learned."""

from __future__ import annotations

from lightning_hp.callbacks.panda.history import RATE, Done, History, Values
from lightning_hp.study.lineage import Stretch

#: one stretch each would be a trial a window
_ONE_STRETCH = "wind_down"


def stretches_of(history: History) -> list[Stretch]:
    """Cut a history at its interventions; a wind-down is one stretch, and what lasted no window is left out."""
    cuts = [done for index, done in enumerate(history.done) if not _continues(history.done, index)]
    stretches: list[Stretch] = []
    ends: list[int] = []
    for begin, end in zip([None, *cuts], [*cuts, None], strict=True):
        first = begin.step if begin is not None else -1
        last = end.step if end is not None else history.step
        windows = [window for window in history.windows if first < window.step <= last]
        if not windows:
            continue
        validations = [one for one in history.validations if first < one.step <= last]
        back = end.back_to if end is not None else None
        stretches.append(
            Stretch(
                values=windows[0].values,
                curve={window.step: window.level for window in windows},
                value=validations[-1].value if validations else None,
                parent=_parent(begin, ends),
                kept=back is None or back >= last,
                rule=begin.what.rule if begin is not None else "start",
                why=begin.what.why if begin is not None else "the values of the configuration",
                by=begin.what.by if begin is not None else "person",
            )
        )
        ends.append(last)
    return stretches


def _continues(done: list[Done], index: int) -> bool:
    return index > 0 and done[index].what.rule == _ONE_STRETCH == done[index - 1].what.rule


def _parent(begin: Done | None, ends: list[int]) -> int | None:
    """The stretch before, or that in which the restored snapshot was taken; None for the beginning of all."""
    if begin is None or not ends:
        return None
    if begin.back_to is None:
        return len(ends) - 1
    return next((number for number, end in enumerate(ends) if 0 < begin.back_to <= end), None)


def learned_values(history: History) -> Values:
    """The final values, with the learning rate from before the wind-down: a study's defaults."""
    values = dict(history.values)
    first = next((done for done in history.done if done.what.rule == _ONE_STRETCH), None)
    if first is not None:
        values[RATE] = first.before[RATE]
    return values
