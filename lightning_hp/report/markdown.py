"""The notes of a study and of its trials, as Markdown (GitHub's, as the dashboard renders it: no HTML, no formulas).

Whatever comes from outside is escaped, so that it neither becomes markup nor breaks a table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from lightning_hp.ledger.dates import summarise
from lightning_hp.report.axes import duration_text, number_text, value_text
from lightning_hp.report.before_after import age_text, gain, scores, sides
from lightning_hp.report.funnel import reached
from lightning_hp.report.lineage import Lineage, story
from lightning_hp.report.measured import NO_EFFECT, sentences
from lightning_hp.report.sections import metrics, range_text
from lightning_hp.report.style import reason_of
from lightning_hp.report.view import StudyView, curve_of, finite, value_of
from lightning_hp.study.paths import StudyPaths

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&$@:])")
_GAP = "\u2003"
#: lines of a traceback, rows of an audit
_LINES = 15


def study_note(
    view: StudyView,
    paths: StudyPaths,
    evidence: Mapping[str, Any],
    result: Mapping[str, Any],
    lineage: Lineage | None,
    number: int,
    flagged: Sequence[FrozenTrial],
    now: datetime,
) -> str:
    """The note of a study.

    Args:
        view: The study.
        paths: Its folder.
        evidence: What mattered.
        result: The winner.
        lineage: Its place in its ledger, None where nothing is known.
        number: The study's number in its storage, for links.
        flagged: Trials to look at.
        now: The clock, with a time zone.
    """
    monitor = md(view.description.monitor)
    parts = [f"## {md(view.name)}"]
    best = view.best
    if best is None:
        parts.append("No trial is complete yet.")
    else:
        said = f"**{monitor} {number_text(value_of(best))}** in {link(number, best.number)}"
        test = metrics(result, "test")
        if test:
            said += "; test: " + ", ".join(f"{md(k)} {number_text(v)}" for k, v in test.items())
        parts.append(said + ".")
        parts.append(_values(view, best))
    if lineage is not None:
        parts += [_age(lineage, now), _refreshed(view, lineage)]
    parts.append(_stages(view, number))
    parts.append(_mattered(view, evidence))
    edges = sentences(evidence, "edges")
    if edges:
        parts.append("### At an edge\n\n" + bullets(edges))
    parts.append(_failures(view, number))
    if flagged:
        parts.append("**Look at**: " + ", ".join(link(number, t.number) for t in flagged))
    parts.append(f"Report: `{str(paths.report).replace('`', '')}`")
    return "\n\n".join(part for part in parts if part)


def trial_note(view: StudyView, trial: FrozenTrial, audit: Mapping[str, Any], picture: str | None) -> str:
    """The note of a trial.

    Args:
        view: Its study.
        trial: The trial.
        audit: The content of its ``audit.json``; empty where there is none.
        picture: Address of the audit's picture, None for none.
    """
    stage = view.stage_of(trial)
    monitor = md(view.description.monitor)
    parts = [f"## Trial {trial.number}" + (f", {md(stage.name)}" if stage else "")]
    if trial.user_attrs.get("diverged"):
        parts.append("**Diverged**: the loss was not finite. Its value stands for the worst seen.")
    elif trial.state is TrialState.FAIL or (trial.state is TrialState.COMPLETE and not finite(trial.value)):
        parts.append(f"**Failed**: {md(reason_of(trial))}")
        trace = str(trial.user_attrs.get("traceback") or "").strip().splitlines()[-_LINES:]
        if trace:
            parts.append("```text\n" + "\n".join(line.replace("```", "'''") for line in trace) + "\n```")
    elif finite(trial.value):
        rank = next((i for i, t in enumerate(view.ranked, start=1) if t.number == trial.number), None)
        said = f"**{monitor} {number_text(trial.value)}**"
        parts.append(said + (f", {_ordinal(rank)} of {len(view.ranked)}" if rank else "") + _curve(view, trial))
    if all(p.stored_name in trial.params for p in view.space.parameters):
        parts.append(_values(view, trial))
    if audit:
        parts.append(_audit(audit, picture))
    return "\n\n".join(parts)


def _values(view: StudyView, trial: FrozenTrial) -> str:
    rows = []
    off = trial.user_attrs.get("inactive") or []
    for p in sorted(view.space.parameters, key=lambda p: p.tier):
        if p.stored_name in trial.params:
            value = md(value_text(p, p.natural(trial.params[p.stored_name])))
            rows.append([p.tier, md(p.name), f"**{value}**" if p.name not in off else "not in use", md(range_text(p))])
    return grid(["tier", "hyperparameter", "value", "range"], rows, "llrl")


def _age(lineage: Lineage, now: datetime) -> str:
    """Age, next dates, and what happened since: checks, re-tests, postponements."""
    if lineage.own is None and lineage.older is not None:
        return ""
    verdict = lineage.verdict
    coming = ", ".join(f"{tier} {date:%Y-%m-%d}" for tier, date in sorted(verdict.dates.items()))
    said = f"**Age** (on {now:%Y-%m-%d}): {md(verdict.reason)}. {md(age_text(lineage))}"
    said += f" Re-test on: {coming}." if coming else ""
    if lineage.newer is not None:
        said += f" The newer values: {_report(lineage, lineage.newer)}, among [all studies](/hp/)."
    elif verdict.todo != "nothing":
        said += f" To do: {md(verdict.todo)}"
    return said + (f"\n\n### Checks and re-tests since\n\n{_story(lineage.since)}" if lineage.since else "")


def _refreshed(view: StudyView, lineage: Lineage) -> str:
    """Old best against new best, of a study that refreshes another one."""
    if lineage.older is None:
        return ""
    told = scores(view, lineage)
    metric = md(view.description.monitor)
    rows = [[md(what), f"**{number_text(value)}**"] for what, value in told]
    won = gain(view, told)
    said = f"It refreshes {_report(lineage, lineage.older)}, among [all studies](/hp/)"
    parts = [f"### Before and after\n\n{said}{': ' + md(won) if won else ''}.", grid([metric, "value"], rows, "lr")]
    moved = lineage.moved
    if moved is not None:
        did = summarise(moved, 4) if moved else "not moved beyond chance"
        parts.append(f"**Training data since**: {md(did)}.")
    values = [
        [side.tier, md(side.name), md(side.text(side.before)), f"**{md(side.text(side.after))}**", md(side.change)]
        for side in sides(view, lineage)
    ]
    parts.append(grid(["tier", "hyperparameter", "before", "after", "change"], values, "llrrr"))
    if lineage.before:
        parts.append("What led to it:\n\n" + _story(lineage.before))
    return "\n\n".join(parts)


def _report(lineage: Lineage, record: Mapping[str, Any]) -> str:
    """Another study of the ledger, by name; its page has a number that only the dashboard knows."""
    return f"**{md(lineage.study_of(record).root.name)}**"


def _story(events: Sequence[Mapping[str, Any]]) -> str:
    lines, more = story(events)
    older = f"\n\n{more} older lines are in the ledger." if more else ""
    return grid(["date", "what", "found"], [[day, md(what), md(found)] for day, what, found in lines], "lll") + older


def _stages(view: StudyView, number: int) -> str:
    rows = []
    states = [{t.number for t in group} for group in (view.complete, view.pruned, view.failed)]
    for stage in reached(view):
        mine = [t for t in view.trials if view.stage_of(t) is stage]
        ranked = [t for t in view.ranked if view.stage_of(t) is stage]
        counts = [len(numbers & {t.number for t in mine}) for numbers in states]
        top = f"{number_text(value_of(ranked[0]))} in {link(number, ranked[0].number)}" if ranked else "–"
        rows.append([md(stage.name), f"{stage.first} to {stage.last}", *map(str, counts), top])
    if not rows:
        return ""
    body = grid(["stage", "trials", "complete", "pruned", "failed", "best"], rows, "llrrrl")
    ranges = _ranges(view)
    return f"### Stages\n\n{body}" + (f"\n\nWhere they looked:\n\n{ranges}" if ranges else "")


def _ranges(view: StudyView) -> str:
    """Where each stage looked, a row a parameter."""
    stages = [s for s in reached(view) if s.box]
    rows = []
    for p in sorted(view.space.parameters, key=lambda p: p.tier):
        cells = []
        for stage in stages:
            if stage.tiers and p.tier not in stage.tiers:
                cells.append("default")
                continue
            low, high = stage.interval(p.stored_name)
            inset = 1e-9 if p.cardinality is not None else 0.0  # a whole number or a choice owns an interval
            ends = [md(value_text(p, p.natural(p.at(u)))) for u in (low + inset, high - inset)]  # type: ignore[arg-type]
            cells.append(" to ".join(dict.fromkeys(ends)))
        rows.append([p.tier, md(p.name), *cells])
    return grid(["tier", "searched", *(md(s.name) for s in stages)], rows, "l" * (2 + len(stages))) if stages else ""


def _mattered(view: StudyView, evidence: Mapping[str, Any]) -> str:
    found = evidence.get("parameters")
    known = {k: v for k, v in found.items() if isinstance(v, Mapping)} if isinstance(found, Mapping) else {}
    measured = {k: v for k, v in known.items() if finite(v.get("importance"))}
    rows = [
        [md(p.name), p.tier, str(measured[p.name].get("measured_tier") or "–"),
         f"{measured[p.name]['importance']:.0%}" if measured[p.name].get("effect") else "no more than chance"]
        for p in sorted(view.space.parameters, key=lambda p: -measured.get(p.name, {}).get("importance", 0.0))
        if p.name in measured
    ]  # fmt: skip
    disagree = sentences(evidence, "disagreements")
    if not rows and not disagree:
        why = evidence.get("why_not_measured")
        return f"### What mattered\n\n{md(str(why))}" if why else ""
    parts = ["### What mattered"]
    if not any(one.get("effect") for one in measured.values()):
        parts.append(NO_EFFECT)
    elif rows:
        parts.append(grid(["hyperparameter", "assumed tier", "measured", "part of the effect"], rows, "lllr"))
    if disagree:
        parts.append(bullets(disagree))
    return "\n\n".join(parts)


def _failures(view: StudyView, number: int) -> str:
    groups: dict[str, list[int]] = {}
    for trial in view.failed:
        groups.setdefault(reason_of(trial), []).append(trial.number)
    for trial in view.diverged:
        groups.setdefault("diverged", []).append(trial.number)
    rows = [
        [md(reason), str(len(numbers)), ", ".join(link(number, n) for n in numbers[:6]) + (", …" * (len(numbers) > 6))]
        for reason, numbers in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    return "### Failures\n\n" + grid(["reason", "trials", "which"], rows, "lrl") if rows else ""


def _audit(audit: Mapping[str, Any], picture: str | None) -> str:
    raw = audit.get("counts")
    counts: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
    total = ", ".join(f"{counts.get(kind, 0)} {kind}" for kind in ("ERROR", "WARN", "INFO"))
    parts = [f"### BatchNorm audit\n\n{md(total)}"]
    listed = audit.get("findings")
    findings = [f for f in listed if isinstance(f, Mapping)] if isinstance(listed, list) else []
    rows = [
        [md(str(f.get("severity", ""))), md(str(f.get("id", ""))), md(str(f.get("layer", ""))),
         md(f"{f.get('sentence', '')} {f.get('fix', '')}".strip())]
        for f in findings[:_LINES]
    ]  # fmt: skip
    if rows:
        parts.append(grid(["severity", "rule", "layer", "finding"], rows, "llll"))
    if picture:
        parts.append(f"![BatchNorm audit]({picture})")
    return "\n\n".join(parts)


def _curve(view: StudyView, trial: FrozenTrial) -> str:
    points = curve_of(trial)
    if not points:
        return ""
    pick = min if view.minimises else max
    step, value = pick(points, key=lambda point: point[1])
    seconds = trial.user_attrs.get("seconds")
    took = f", {duration_text(float(seconds))} of training" if finite(seconds) else ""
    return f"; best at validation {step} of {points[-1][0]} ({number_text(value)}){took}"


def link(study: int, trial: int) -> str:
    """A link to a trial's page."""
    return f"[trial {trial}](/dashboard/studies/{study}/trials?numbers={trial})"


def md(text: str) -> str:
    """Text from outside, so that it is text in Markdown; on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def bullets(lines: Sequence[str]) -> str:
    """Plain sentences as a list."""
    return "\n".join(f"- {md(line)}" for line in lines)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """A table; cells are Markdown. ``align`` has a letter a column: l or r.

    The dashboard draws tables without any space between columns, so an em space ends every cell but the last.
    """
    rule = "|".join("--:" if a == "r" else ":--" for a in align)
    lines = [f"| {f'{_GAP} | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
