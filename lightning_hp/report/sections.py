"""The parts of the report that are text and tables; each is a function from what was found to HTML.

Whatever comes from outside (names, errors, metrics) is escaped here, where it becomes HTML.
"""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Mapping
from typing import Any

from lightning_hp.ledger import dates
from lightning_hp.report import figures
from lightning_hp.report.audit_svg import audit_picture
from lightning_hp.report.axes import duration_text, number_text, value_text
from lightning_hp.report.funnel import reached
from lightning_hp.report.measured import NO_EFFECT, importances, sentences
from lightning_hp.report.page import Page, chip, table
from lightning_hp.report.style import short_reason
from lightning_hp.report.view import StudyView, finite, value_of
from lightning_hp.search.parameters import Choice, Parameter
from lightning_hp.study.paths import StudyPaths

SEVERITIES = ("ERROR", "WARN", "INFO")
#: status of the ledger -> how it is coloured
TONES = {"fresh": "good", "due": "warn", "stale": "bad", "invalid": "bad", "untuned": "dim", "replaced": "dim"}


def section(title: str, said: str, body: str) -> str:
    """A titled part of the page; ``said`` and ``body`` are HTML."""
    lead = f'<p class="sub">{said}</p>' if said else ""
    return f"<section><h2>{html.escape(title)}</h2>{lead}{body}</section>"


def metrics(result: Mapping[str, Any], split: str) -> dict[str, float]:
    """The winner's metrics on a split: names to numbers."""
    found = result.get(split)
    return {str(k): v for k, v in found.items() if finite(v)} if isinstance(found, Mapping) else {}


def head(view: StudyView, verdict: dates.Verdict | None) -> str:
    """Name, age and what is being done."""
    pill = ""
    if verdict is not None:
        tone = TONES.get(verdict.status, "dim")
        # a report is read later than it was written: the page itself notices that the date has passed
        coming = verdict.next_date if verdict.status == "fresh" else None
        due = f' data-due="{dates.to_text(coming)}"' if coming is not None else ""
        title, status = html.escape(verdict.reason, quote=True), html.escape(verdict.status)
        pill = f'<span class="pill {tone}" title="{title}"{due}>{status}</span>'
    description = view.description
    said = f"{'Minimise' if view.minimises else 'Maximise'} {html.escape(description.monitor)}"
    steps = f", {description.plan.max_steps} validations a trial" if description.plan.max_steps else ""
    stage = next((s for s in reversed(view.stages) if view.trials and s.first <= view.trials[-1].number), None)
    now = f" Last stage: {html.escape(stage.name).replace(' ', '&nbsp;')}." if stage else ""
    return (
        f"<header><h1>{html.escape(view.name)}</h1>{pill}</header>"
        f'<p class="sub">{said} over {len(view.space)} parameters in {description.plan.n_trials} planned trials{steps}.'
        f"{now}</p>"
    )


def winner(view: StudyView, paths: StudyPaths, result: Mapping[str, Any]) -> str:
    """The best values by tier, how good they are, and how to train with them."""
    best = view.best
    if best is None:
        finished = sum(t.state.is_finished() for t in view.trials)
        said = f"No trial of {finished} finished with a value, so there is nothing to recommend yet."
        return section("Best values", said, "")
    rows = []
    for parameter in sorted(view.space.parameters, key=lambda p: p.tier):
        if parameter.stored_name not in best.params:
            continue
        natural = parameter.natural(best.params[parameter.stored_name])
        off = parameter.name in (best.user_attrs.get("inactive") or [])
        value = f"{html.escape(value_text(parameter, natural))}"
        rows.append(
            [
                chip(parameter.tier),
                f'<td class="w">{html.escape(parameter.name)}</td>',
                f'<td class="v n">{value}</td>' if not off else '<td class="n dim">not in use</td>',
                _place(view, parameter, best.params[parameter.stored_name]),
                f'<td class="small dim nowrap">{html.escape(range_text(parameter))}</td>',
                f'<span class="dim">{html.escape(value_text(parameter, parameter.default))}</span>',
            ]
        )
    columns = [("Tier", False), ("Parameter", False), ("Best", True), ("Where in the range", False), ("Range", False)]
    body = table([*columns, ("Default", True)], rows) + _scores(view, result)
    file = result.get("best_yaml") or (str(paths.best) if paths.best.exists() else None)
    if file:
        command = result.get("fit_command") or f"lightning-hp fit {_quoted(str(file))}"
        body += f'<h3 class="gap">Train with these values</h3><pre>{html.escape(command)}</pre>'
    start = next((t for t in view.complete if t.number == 0), None)
    said = f"Trial {best.number} of {len(view.trials)}"
    if start is not None and start is not best:
        metric = html.escape(view.description.monitor)
        said += (
            f": {metric} {number_text(value_of(best))}, from {number_text(value_of(start))} with the defaults (trial 0)"
        )
    return section("Best values", said + ".", body)


def _scores(view: StudyView, result: Mapping[str, Any]) -> str:
    """Validation and test metrics side by side."""
    splits = {split: metrics(result, split) for split in ("validation", "test")}
    if not any(splits.values()):
        return ""
    plain: dict[str, dict[str, float]] = {}
    for split, found in splits.items():
        for name, value in found.items():
            plain.setdefault(name.removeprefix("val_").removeprefix("test_"), {})[split] = value
    rows = [
        [html.escape(name), *(f"<b>{number_text(values[s])}</b>" if s in values else "–" for s in splits)]
        for name, values in plain.items()
    ]
    said = '<h3 class="gap">How good they are</h3>'
    note = '<p class="small dim">The test split was not looked at while tuning.</p>' if splits["test"] else ""
    scores = table([("Metric", False), ("Validation", True), ("Test", True)], rows)
    return f'<div class="narrow">{said}{note}{scores}</div>'


def range_text(parameter: Parameter) -> str:
    """The range of a parameter and its scale, as text."""
    if isinstance(parameter, Choice):
        shown = ", ".join(value_text(parameter, c) for c in parameter.choices[:6])
        return shown + (", …" if len(parameter.choices) > 6 else "")
    scale = {"log": "log", "one_minus_log": "log of 1 − value", "linear": "linear"}[parameter.scale]
    return f"{value_text(parameter, parameter.low)} to {value_text(parameter, parameter.high)}, {scale}"


def _place(view: StudyView, parameter: Parameter, stored: Any) -> str:
    """Where the best value lies in the range, over the last box, as a small picture."""
    at = float(parameter.unit([stored])[0])
    stage = next((s for s in reversed(reached(view)) if parameter.tier in s.tiers), None)
    box = ""
    if stage is not None and stage.box:
        low, high = stage.interval(parameter.stored_name)
        box = f'<i class="box" style="left:{low:.1%};right:{1 - high:.1%};background:{stage.colour}"></i>'
    text = f"{at:.0%} of the range"
    return f'<div class="range" title="{text}"><i></i>{box}<i class="at" style="left:{at:.1%}"></i></div>'


def mattered(view: StudyView, page: Page, evidence: Mapping[str, Any]) -> str:
    """Importance as measured beside the tiers as assumed, and where the two disagree."""
    by_stage, overall = importances(evidence), _overall(view, evidence)
    disagree = sentences(evidence, "disagreements")
    if not by_stage and not overall and not disagree:
        why = evidence.get("why_not_measured")
        return section("What mattered", html.escape(str(why)), "") if why else ""
    body = overall
    if disagree:
        body += f'<h3 class="gap">Where measurement and tiers disagree</h3>{bullets(disagree)}'
    elif overall:
        body += '<p class="small dim gap">Nothing measured speaks against the assumed tiers.</p>'
    if by_stage:
        drawn = page.plot(figures.importance(view, by_stage), "importance per stage")
        body += f'<h3 class="gap">Stage by stage</h3>{drawn}'
    said = (
        "The part of the difference between good and bad trials that each parameter explains, measured within the "
        "stages so that narrowing a range earns no credit, with the share that chance would get taken off."
    )
    return section("What mattered", said, body)


def _overall(view: StudyView, evidence: Mapping[str, Any]) -> str:
    """Assumed tier, measured tier and share of the effect, a row a parameter; empty where nothing was measured."""
    found = evidence.get("parameters")
    measured = {k: v for k, v in found.items() if finite(v.get("importance"))} if isinstance(found, Mapping) else {}
    if measured and not any(one.get("effect") for one in measured.values()):
        return f"<p>{NO_EFFECT}</p>"
    rows = []
    for p in sorted(view.space.parameters, key=lambda p: -measured.get(p.name, {}).get("importance", -1.0)):
        if p.name not in measured:
            continue
        one = measured[p.name]
        share = min(max(float(one["importance"]), 0.0), 1.0)
        colour = f"var(--{p.tier})" if one.get("effect") else "var(--line)"
        bar = f'<div class="bar"><i style="width:{share:.1%};background:{colour}"></i></div>'
        said = f"{share:.0%}" if one.get("effect") else '<span class="dim">no more than chance</span>'
        measured_tier = chip(str(one["measured_tier"])) if one.get("measured_tier") else "–"
        rows.append([f'<td class="w">{html.escape(p.name)}</td>', chip(p.tier), measured_tier, bar, said])
    head = [("Parameter", False), ("Assumed", False), ("Measured", False), ("Part of the effect", False), ("", True)]
    return table(head, rows) if rows else ""


def bullets(lines: list[str]) -> str:
    """Plain sentences as a list."""
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def leaders(view: StudyView, most: int = 8) -> str:
    """The best trials side by side."""
    if len(view.ranked) < 2:
        return ""
    parameters = sorted(view.space.parameters, key=lambda p: p.tier)
    head = [("Trial", True), (view.description.monitor, True), ("Stage", False), ("Time", True)]
    head += [(p.name, True) for p in parameters]
    rows = []
    for trial in view.ranked[:most]:
        stage = view.stage_of(trial)
        label = (
            f'<i class="dot" style="background:{view.colour_of(trial)}"></i>{html.escape(stage.name if stage else "–")}'
        )
        seconds = trial.user_attrs.get("seconds") or (trial.duration.total_seconds() if trial.duration else None)
        naturals = [
            html.escape(value_text(p, p.natural(trial.params[p.stored_name]))) if p.stored_name in trial.params else "–"
            for p in parameters
        ]
        value = f'<td class="v n">{number_text(value_of(trial))}</td>'
        stage_cell = f'<td class="nowrap">{label}</td>'
        rows.append(
            [str(trial.number), value, stage_cell, duration_text(seconds if finite(seconds) else None), *naturals]
        )
    return section("Best trials", "", f'<div class="tight">{table(head, rows)}</div>')


def advice(evidence: Mapping[str, Any]) -> str:
    """Edges that the best trials lie at."""
    lines = sentences(evidence, "edges")
    if not lines:
        return ""
    return section(
        "At the edge", "The best values lie at the end of what was allowed; better ones may lie beyond.", bullets(lines)
    )


def failures(view: StudyView, paths: StudyPaths) -> str:
    """Failed and diverged trials by reason."""
    groups: dict[str, list[Any]] = {}
    for trial in view.failed:
        groups.setdefault(short_reason(trial), []).append(trial)
    for trial in view.diverged:
        groups.setdefault("diverged: the loss was not finite", []).append(trial)
    if not groups:
        return ""
    rows = []
    for reason, trials in sorted(groups.items(), key=lambda item: -len(item[1])):
        trace = next((t.user_attrs["traceback"] for t in trials if t.user_attrs.get("traceback")), "")
        numbers = ", ".join(str(t.number) for t in trials[:12]) + (", …" if len(trials) > 12 else "")
        tail = "\n".join(str(trace).strip().splitlines()[-12:])
        more = f"<details><summary>last lines</summary><pre>{html.escape(tail)}</pre></details>" if trace else ""
        rows.append([f'<td class="w">{reason}{more}</td>', str(len(trials)), f'<td class="w small">{numbers}</td>'])
    lost = len(view.failed) + len(view.diverged)
    said = f"{lost} of {len(view.trials)} trials."
    if view.diverged:
        said += " A diverged trial counts as the worst value seen, so that its corner is avoided."
    return section("Failures", said, table([("Reason", False), ("Trials", True), ("Numbers", False)], rows))


def audits(view: StudyView, paths: StudyPaths) -> str:
    """BatchNorm findings: how many trials have which, and those of the winner."""
    audited = [t for t in view.trials if isinstance(t.user_attrs.get("audit"), Mapping)]
    if not audited:
        return ""
    rows = []
    for severity in SEVERITIES:
        counts = [int(t.user_attrs["audit"].get(severity, 0)) for t in audited]
        having = [(c, t.number) for c, t in zip(counts, audited, strict=True) if c]
        numbers = ", ".join(str(n) for _, n in having[:12]) + (", …" if len(having) > 12 else "")
        tone = {"ERROR": "bad", "WARN": "warn"}.get(severity, "dim")
        name = f'<span class="{tone}">{severity}</span>'
        rows.append([name, str(sum(counts)), str(len(having)), f'<td class="w small">{numbers or "–"}</td>'])
    body = table([("Severity", False), ("Findings", True), ("Trials", True), ("Numbers", False)], rows)
    if view.best is not None:
        audit = _audit(paths, view.best.number)
        lines, picture = _findings(audit), audit_picture(audit)
        if lines or picture:
            body += f'<h3 class="gap">In the winner, trial {view.best.number}</h3>{bullets(lines) if lines else ""}'
            body += f'<div class="scroll">{picture or ""}</div>'
    return section("BatchNorm audit", f"{len(audited)} of {len(view.trials)} trials were audited.", body)


def _audit(paths: StudyPaths, number: int) -> Mapping[str, Any]:
    try:
        found = json.loads(paths.trial(number).audit.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {"findings": found}


def _findings(found: Mapping[str, Any]) -> list[str]:
    listed = found.get("findings", [])
    lines = []
    for finding in listed if isinstance(listed, list) else []:
        if isinstance(finding, Mapping):
            parts = [str(finding.get(k)) for k in ("severity", "id", "layer") if finding.get(k)]
            text = " ".join(str(finding.get(k)) for k in ("sentence", "fix") if finding.get(k))
            lines.append(f"{' '.join(parts)}: {text}" if text else " ".join(parts))
    return lines[:20]


def _quoted(path: str) -> str:
    """A path as a shell takes it."""
    return shlex.quote(path)
