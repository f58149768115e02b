"""The parts of the report about time: what a refreshed study changed, and what happened to the values since.

Before and after are the two records of the ledger, side by side: the metric when tuned, what the old values reach on
today's data (from the re-test), and what the new ones reach; and every hyperparameter by tier.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from lightning_hp.ledger import dates
from lightning_hp.report.axes import number_text, value_text
from lightning_hp.report.lineage import Lineage, story
from lightning_hp.report.page import chip, table
from lightning_hp.report.sections import TONES, bullets, section
from lightning_hp.report.view import StudyView, finite, value_of
from lightning_hp.search.parameters import Choice, Parameter

#: sentences on the data, events in a table
_SENTENCES, _EVENTS = 8, 12


@dataclass(frozen=True)
class Side:
    """One hyperparameter before and after.

    Attributes:
        tier: Its tier.
        name: Its name.
        parameter: Of this study's space, None where that has no such parameter.
        before: The older best's value, None where it was not in use.
        after: The newer best's value, likewise.
    """

    tier: str
    name: str
    parameter: Parameter | None
    before: Any
    after: Any

    def text(self, value: Any) -> str:
        """A value as text."""
        if value is None:
            return "not in use"
        return str(value) if self.parameter is None else value_text(self.parameter, value)

    @property
    def change(self) -> str:
        """Such as ``x 3.2``, ``+64``, ``same``; empty where the two cannot be compared."""
        before, after = self.before, self.after
        if before == after or self.text(before) == self.text(after):
            return "same"
        if not (_number(before) and _number(after)):
            return ""
        if self.parameter is not None and self.parameter.scale in ("log", "one_minus_log"):
            one = 1.0 if self.parameter.scale == "one_minus_log" else 0.0
            was, now = abs(one - before), abs(one - after)
            if was > 0 and now > 0:
                return f"{'1 − value ' if one else ''}× {number_text(now / was, 2)}"
        return f"{'+' if after > before else '−'}{number_text(abs(after - before), 3)}"

    def places(self) -> list[float]:
        """Positions of both in the range, from 0 to 1; empty where one has none."""
        both = (self.before, self.after)
        if self.parameter is None or None in both:
            return []
        if isinstance(self.parameter, Choice) and not all(self.parameter.holds(value) for value in both):
            return []
        try:
            return [min(max(float(u), 0.0), 1.0) for u in self.parameter.unit([self.parameter.store(v) for v in both])]
        except (ValueError, TypeError):  # another kind of value than today's
            return []


def sides(view: StudyView, lineage: Lineage) -> list[Side]:
    """All hyperparameters of either record, by tier."""
    older = {} if lineage.older is None else _flat(lineage.older["hyperparameters"])
    if lineage.own is not None:
        newer = _flat(lineage.own["hyperparameters"])
    elif view.best is not None:
        stored = view.best.params
        newer = {
            p.name: (p.tier, p.natural(stored[p.stored_name])) for p in view.space.parameters if p.stored_name in stored
        }
    else:
        newer = {}
    parameters = {p.name: p for p in view.space.parameters}
    names = sorted({**newer, **older}, key=lambda n: newer.get(n, older.get(n, ("", None)))[0])
    return [
        Side(
            newer.get(n, older.get(n, ("?", None)))[0],
            n,
            parameters.get(n),
            older.get(n, ("", None))[1],
            newer.get(n, ("", None))[1],
        )
        for n in names
    ]


def scores(view: StudyView, lineage: Lineage) -> list[tuple[str, float | None]]:
    """The metric before, the same values on today's data, and after; each with what it is. None where not known."""
    assert lineage.older is not None
    best = lineage.own["value"] if lineage.own is not None else value_of(view.best) if view.best is not None else None
    retest = lineage.retest
    on = f", re-tested {retest['at'][:10]}" if retest is not None else ""
    return [
        (f"old values, when tuned {lineage.older['tuned_at'][:10]}", lineage.older["value"]),
        (f"old values on today's data{on}", lineage.retested_value()),
        ("new values" + ("" if lineage.own is not None else ", so far"), best),
    ]


def gain(view: StudyView, told: list[tuple[str, float | None]]) -> str:
    """What the refresh brought against the old values on today's data; empty where that is not known."""
    was, now = told[1][1], told[2][1]
    if was is None or now is None or not was:
        return ""
    better = now < was if view.minimises else now > was
    share = abs(now - was) / abs(was)
    word = "better" if better else "worse"
    return f"{share:.0%} {word} than the old values on today's data" if share >= 0.005 else "as good as the old values"


def before_after(view: StudyView, lineage: Lineage | None) -> str:
    """Old best against new best, of a study that refreshes another one."""
    if lineage is None or lineage.older is None:
        return ""
    told = scores(view, lineage)
    tiles = "".join(
        f'<div class="tile"><b>{number_text(value)}</b><span>{html.escape(what)}</span></div>' for what, value in told
    )
    name = html.escape(lineage.study_of(lineage.older).root.name)
    address = lineage.link_to(lineage.older)
    linked = f'<a class="file" href="{html.escape(address, quote=True)}">{name}</a>' if address else name
    metric = html.escape(view.description.monitor)
    won = gain(view, told)
    said = f"This study refreshes {linked}. {metric}, {'lower' if view.minimises else 'higher'} is better"
    said += f": {html.escape(won)}." if won else "."
    rows = [
        [
            chip(side.tier),
            f'<td class="w">{html.escape(side.name)}</td>',
            f'<td class="n dim">{html.escape(side.text(side.before))}</td>',
            f'<td class="v n">{html.escape(side.text(side.after))}</td>',
            _places(side),
            f'<td class="n small dim">{html.escape(side.change)}</td>',
        ]
        for side in sides(view, lineage)
    ]
    head = [("Tier", False), ("Parameter", False), ("Before", True), ("After", True), ("From ○ to ●", False)]
    luck = f"The new value is the best of {len(view.complete)} complete trials, the re-tested one of one training"
    note = f'<p class="small dim">{luck}: part of a small gain is luck.</p>' if won else ""
    body = f'<div class="tiles flat">{tiles}</div>{note}' + table([*head, ("Change", True)], rows) + _why(lineage)
    return section("Before and after", said, body)


def _why(lineage: Lineage) -> str:
    """What the data did, and what the re-test said."""
    parts = []
    moved = None if lineage.moved is None else dates.together(lineage.moved)
    if moved is not None:
        parts.append('<h3 class="gap">What the training data did since</h3>')
        more = [f"and {len(moved) - _SENTENCES} more"] if len(moved) > _SENTENCES else []
        parts.append(bullets([*moved[:_SENTENCES], *more]) if moved else "<p>Nothing beyond what chance does.</p>")
    if lineage.before:
        parts.append('<h3 class="gap">What led to it</h3>' + _events(lineage.before))
    return "".join(parts)


def replaced(lineage: Lineage | None) -> str:
    """On the page of a study that was refreshed: by which, and a link."""
    if lineage is None or lineage.newer is None:
        return ""
    newer = lineage.newer
    name, address = html.escape(lineage.study_of(newer).root.name), lineage.link_to(newer)
    linked = f'<a class="file strong" href="{html.escape(address, quote=True)}">{name}</a>' if address else name
    value = number_text(newer["value"]) if finite(newer.get("value")) else "–"
    return (
        f'<p class="callout">These values were replaced by those of {linked} on {html.escape(newer["at"][:10])}: '
        f"{html.escape(str(newer['metric']))} {value} on the data of that day.</p>"
    )


def life(lineage: Lineage | None, now: datetime) -> str:
    """Age, next dates, and what happened since: checks, re-tests, postponements."""
    if lineage is None or (lineage.own is None and lineage.older is not None):
        return ""
    verdict = lineage.verdict
    tone = TONES.get(verdict.status, "dim")
    said = f'<span class="{tone}">{html.escape(verdict.reason[:1].upper() + verdict.reason[1:])}</span>.'
    if verdict.todo and verdict.todo != "nothing":
        said += f" To do: <code>{html.escape(verdict.todo)}</code>"
    ago = ""
    if verdict.tuned_at is not None and lineage.newer is None:
        since = dates.to_text(verdict.tuned_at)
        ago = f' That was <span data-since="{since}">{_ago(now - verdict.tuned_at)}</span>.'
    body = f'<p class="small dim">{html.escape(age_text(lineage))}{ago}</p>'
    if verdict.dates:
        rows = [
            [chip(tier), html.escape(_interval(lineage.own, tier)), date.strftime("%Y-%m-%d"), _left(date, now)]
            for tier, date in sorted(verdict.dates.items())
        ]
        head = [("Tier", False), ("Every", False), ("Re-test on", False), ("", True)]
        body += f'<div class="narrow">{table(head, rows)}</div>'
    if lineage.since:
        body += '<h3 class="gap">Checks and re-tests since</h3>' + _events(lineage.since)
    return section("When to look again", said, body)


def age_text(lineage: Lineage) -> str:
    """When the values were found, and when they were last confirmed; dates only, since a page is read later."""
    own = lineage.own
    if own is None:
        return "Not tuned to its end yet."
    text = f"Tuned on {str(own['tuned_at'])[:10]}"
    confirmed = lineage.verdict.confirmed_at if lineage.newer is None else None
    return text + (f"; confirmed by a re-test on {confirmed:%Y-%m-%d}." if confirmed is not None else ".")


def _events(events: Any) -> str:
    lines, more = story(events, _EVENTS)
    rows = [
        [f'<td class="nowrap">{html.escape(day)}</td>', f'<td>{html.escape(what)}</td>',
         f'<td class="w">{html.escape(found)}</td>']
        for day, what, found in lines
    ]  # fmt: skip
    older = f'<p class="small dim">{more} older lines are in the ledger.</p>' if more else ""
    return table([("Date", False), ("What", False), ("Found", False)], rows) + older


def _places(side: Side) -> str:
    """Both values in the range, as a small picture."""
    places = side.places()
    if not places:
        return ""
    before, after = places
    low, high = min(places), max(places)
    return (
        f'<div class="range" title="from {before:.0%} to {after:.0%} of the range"><i></i>'
        f'<i class="way" style="left:{low:.1%};right:{1 - high:.1%}"></i>'
        f'<i class="was" style="left:{before:.1%}"></i><i class="is" style="left:{after:.1%}"></i></div>'
    )


def _flat(by_tier: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, Any]]:
    return {name: (tier, value) for tier, values in by_tier.items() for name, value in values.items()}


def _number(value: Any) -> bool:
    return finite(value) and not isinstance(value, bool)


def _interval(record: Mapping[str, Any] | None, tier: str) -> str:
    return str((record or {}).get("retune_after", {}).get(tier, "–"))


def _left(date: datetime, now: datetime) -> str:
    """Days left, or over; the page counts them anew whenever it is opened."""
    tone, said = (
        ("dim", f"in {_days((date - now).days)}") if date > now else ("warn", f"{_days((now - date).days)} over")
    )
    return f'<span class="{tone}" data-until="{dates.to_text(date)}">{said}</span>'


def _ago(gone: timedelta) -> str:
    return f"{_days(gone.days)} ago" if gone.days > 0 else "today"


def _days(days: int) -> str:
    return "1 day" if days == 1 else f"{max(days, 0)} days"
