"""What a study has to say, as typed rows: built once, then rendered as a page, as notes and as attributes.

Nothing is text here that can be a value: templates turn numbers, durations and parameters into words.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from lightning_hp.report.age import Age, age_of
from lightning_hp.report.audits import Audit, SeverityRow, audited_trials, findings_of, severity_rows
from lightning_hp.report.axes import ends_text, value_text
from lightning_hp.report.before_after import Refresh, refresh_of
from lightning_hp.report.lineage import EventRow, Lineage, event_rows, lineage_of
from lightning_hp.report.measured import Measured
from lightning_hp.report.outcomes import reason_of, seconds_of
from lightning_hp.report.rows import FailureRow, LeaderRow, NewerStudy, ScoreRow, SearchedRow, StageRow, ValueRow
from lightning_hp.report.view import StageView, StudyView, finite, value_of
from lightning_hp.study.confirmed import confirmed
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.results import stored_fit_command

_log = logging.getLogger(__name__)
#: most trials in the table of the best
MOST_LEADERS = 8


@dataclass(frozen=True)
class Report:
    """A study, ready to be rendered.

    Attributes:
        view: The study and its trials.
        paths: Its folder.
        now: The clock, with a time zone.
        lineage: Its place in its ledger, None where nothing is known.
        measured: What mattered, and which ranges should be wider.
        result: The winner, as ``result.json`` has it; empty where there is none.
    """

    view: StudyView
    paths: StudyPaths
    now: datetime
    lineage: Lineage | None
    measured: Measured
    result: Mapping[str, Any]

    @property
    def monitor(self) -> str:
        """Name of the metric."""
        return self.view.description.monitor

    @property
    def planned(self) -> int:
        """Planned total of trials."""
        return self.view.description.plan.n_trials

    @property
    def steps(self) -> int | None:
        """Validations of a complete training, None where that is not known."""
        return self.view.description.plan.max_steps

    @property
    def seed(self) -> int:
        """The study's seed."""
        return self.view.description.plan.seed

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial."""
        return self.view.best

    @cached_property
    def confirmed(self) -> str:
        """The best configuration on several seeds, such as ``0.061 ± 0.004 on 3 seeds``; empty where it had but one."""
        on_seeds = confirmed(self.view.trials, self.view.minimises)
        return on_seeds[0].text() if on_seeds and self.best in on_seeds[0].trials else ""

    @property
    def start(self) -> FrozenTrial | None:
        """The trial of the defaults, where it is complete and another one is the best."""
        start = next((trial for trial in self.view.complete if trial.number == 0), None)
        return None if start is self.best else start

    @property
    def last_stage(self) -> StageView | None:
        """The stage that the last trial belongs to."""
        return self.view.reached[-1] if self.view.reached else None

    @property
    def seconds(self) -> float:
        """Time spent training, all trials together."""
        recorded = self.result.get("seconds")
        if finite(recorded):
            return float(recorded)
        return sum(trial.duration.total_seconds() for trial in self.view.trials if trial.duration is not None)

    @cached_property
    def values(self) -> list[ValueRow]:
        """The best values, tier A first; empty without a best trial."""
        return [] if self.best is None else self.values_of(self.best)

    def values_of(self, trial: FrozenTrial) -> list[ValueRow]:
        """The values of a trial, tier A first."""
        unused = trial.user_attrs.get("inactive") or []
        rows = []
        for parameter in self.view.by_tier:
            if parameter.stored_name not in trial.params:
                continue
            stored = trial.params[parameter.stored_name]
            stage = next((s for s in reversed(self.view.reached) if parameter.tier in s.tiers), None)
            position = float(parameter.unit([stored])[0])
            rows.append(ValueRow(parameter, parameter.natural(stored), parameter.name not in unused, position, stage))
        return rows

    @cached_property
    def scores(self) -> list[ScoreRow]:
        """The winner's metrics, validation beside test."""
        splits = {split: self.metrics(split) for split in ("validation", "test")}
        bare = {
            split: {name.removeprefix("val_").removeprefix("test_"): value for name, value in metrics.items()}
            for split, metrics in splits.items()
        }
        names = dict.fromkeys([*bare["validation"], *bare["test"]])
        return [ScoreRow(name, bare["validation"].get(name), bare["test"].get(name)) for name in names]

    def metrics(self, split: str) -> dict[str, float]:
        """The winner's metrics on a split, by name."""
        metrics = self.result.get(split)
        return {str(k): v for k, v in metrics.items() if finite(v)} if isinstance(metrics, Mapping) else {}

    @property
    def headline_tests(self) -> list[tuple[str, float]]:
        """The two test metrics that a reader sees first: losses last."""
        return sorted(self.metrics("test").items(), key=lambda metric: "loss" in metric[0])[:2]

    @property
    def fit_command(self) -> str:
        """The command that trains with the best values; empty where there is none."""
        return stored_fit_command(self.result, self.paths)

    @cached_property
    def stages(self) -> list[StageRow]:
        """The stages that have trials."""
        rows = []
        for stage in self.view.reached:
            complete, pruned, failed, ranked = (
                [trial for trial in trials if self.view.stage_of(trial) is stage]
                for trials in (self.view.complete, self.view.pruned, self.view.failed, self.view.ranked)
            )
            best = ranked[0] if ranked else None
            rows.append(StageRow(stage, len(complete), len(pruned), len(failed), best))
        return rows

    @cached_property
    def searched_stages(self) -> list[StageView]:
        """The stages whose boxes are known; the columns of :attr:`searched`."""
        return [stage for stage in self.view.reached if stage.box]

    @cached_property
    def searched(self) -> list[SearchedRow]:
        """Where each stage looked, a row a parameter, tier A first."""
        return [
            SearchedRow(
                parameter,
                tuple(
                    "default"
                    if stage.tiers and parameter.tier not in stage.tiers
                    else ends_text(parameter, *stage.interval(parameter.stored_name))
                    for stage in self.searched_stages
                ),
            )
            for parameter in self.view.by_tier
        ]

    @cached_property
    def leaders(self) -> list[LeaderRow]:
        """The best trials, best first."""
        return [
            LeaderRow(
                trial.number,
                value_of(trial),
                self.view.stage_of(trial),
                seconds_of(trial),
                tuple(
                    value_text(p, p.natural(trial.params[p.stored_name])) if p.stored_name in trial.params else None
                    for p in self.view.by_tier
                ),
            )
            for trial in self.view.ranked[:MOST_LEADERS]
        ]

    @cached_property
    def failures(self) -> list[FailureRow]:
        """Failed and diverged trials by reason, the most frequent first."""
        by_reason: dict[str, list[FrozenTrial]] = {}
        for trial in self.view.failed:
            by_reason.setdefault(reason_of(trial), []).append(trial)
        for trial in self.view.diverged:
            by_reason.setdefault("diverged: the loss was not finite", []).append(trial)
        return [
            FailureRow(
                reason,
                tuple(trial.number for trial in trials),
                next((str(t.user_attrs["traceback"]) for t in trials if t.user_attrs.get("traceback")), ""),
            )
            for reason, trials in sorted(by_reason.items(), key=lambda group: -len(group[1]))
        ]

    @property
    def audited(self) -> int:
        """How many trials were audited."""
        return len(audited_trials(self.view))

    @cached_property
    def audits(self) -> list[SeverityRow]:
        """Findings of the audits of all trials, by severity."""
        return severity_rows(self.view)

    def audit_of(self, trial: FrozenTrial) -> Audit:
        """The audit of a trial; an empty one where there is none."""
        return Audit.read(read_json(self.paths.trial(trial.number).audit))

    @cached_property
    def refresh(self) -> Refresh | None:
        """Before and after, of a study that refreshes another one."""
        return refresh_of(self.view, self.lineage)

    @cached_property
    def newer(self) -> NewerStudy | None:
        """The study that replaced this one's values."""
        if self.lineage is None or self.lineage.newer is None:
            return None
        record = self.lineage.newer
        value = float(record["value"]) if finite(record.get("value")) else None
        return NewerStudy(self.lineage.link_to(record), str(record["at"])[:10], str(record["metric"]), value)

    @cached_property
    def events_before(self) -> tuple[list[EventRow], int]:
        """What led to a refresh, newest first, and how many older events are left out."""
        return event_rows(() if self.lineage is None else self.lineage.before)

    @cached_property
    def events_since(self) -> tuple[list[EventRow], int]:
        """What happened to the values since they were found, likewise."""
        return event_rows(() if self.lineage is None else self.lineage.since)

    @cached_property
    def age(self) -> Age | None:
        """How old the values are."""
        return age_of(self.lineage, self.now)

    @cached_property
    def flagged(self) -> list[FrozenTrial]:
        """Trials that a person should see: failed, diverged, or with an error in the audit; by number."""
        lost = {trial.number for trial in (*self.view.failed, *self.view.diverged)}
        return [trial for trial in self.view.trials if trial.number in lost or findings_of(self.view, trial, "ERROR")]


def read_report(
    study: optuna.Study,
    paths: StudyPaths,
    evidence: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> Report:
    """Read all that a study has to say.

    Args:
        study: A study that lightning_hp made.
        paths: Its folder.
        evidence: What mattered, as ``search.evidence`` gives it; None reads ``evidence.json`` of the folder.
        result: The winner, as ``result.json`` has it; None reads that file.
        now: The clock, with a time zone; None is the current time.

    Raises:
        StudyError: If lightning_hp did not make the study.
    """
    now = now or datetime.now(UTC)
    view = StudyView.read(study)
    return Report(
        view,
        paths,
        now,
        lineage_of(paths, view.description.previous, now),
        Measured.read(view, read_json(paths.evidence) if evidence is None else evidence),
        read_json(paths.result) if result is None else result,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping from a file; empty where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        _log.warning("%s cannot be read", path, exc_info=True)
        return {}
    return content if isinstance(content, dict) else {}
