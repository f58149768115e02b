"""What a study has found so far, read from storage and its folder; imports neither torch nor lightning."""

from __future__ import annotations

import json
import logging
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.evidence import evidence
from lightning_hp.search.presets import OPENS_FROM
from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.tuning.paths import StudyPaths, write_text
from lightning_hp.tuning.storage import Description, StudyError, describe, find_study

_log = logging.getLogger(__name__)


def sampler_for(description: Description) -> CoarseToFineSampler:
    """The sampler that a study was described with."""
    return CoarseToFineSampler(
        description.space,
        n_trials=description.n_trials,
        max_steps=description.max_steps,
        seed=description.seed,
        plan=description.plan,
        opens_from=description.opens_from or OPENS_FROM.get(description.preset or ""),
        older=description.older,
    )


def best_trials(study: optuna.Study, n: int) -> list[FrozenTrial]:
    """The best n complete trials that did not diverge, best first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    good = [t for t in complete if not t.user_attrs.get("diverged") and t.value is not None]
    sign = 1.0 if study.direction is StudyDirection.MINIMIZE else -1.0
    return sorted(good, key=lambda t: (sign * (t.value or 0.0), t.number))[:n]


def no_best(study: optuna.Study) -> str:
    """Why a study has no best trial, in one line."""
    trials = study.get_trials(deepcopy=False)
    failures = [t.user_attrs.get("failure") for t in trials if t.user_attrs.get("failure")]
    why = f"; the last failure: {failures[-1]}" if failures else ""
    return f"study {study.study_name!r} has no complete trial yet ({len(trials)} trials{why})"


def count_states(study: optuna.Study) -> dict[str, int]:
    """How many trials are complete, pruned and failed."""
    trials = study.get_trials(deepcopy=False)
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    return {name: sum(t.state is state for t in trials) for name, state in states.items()}


def read_result(paths: StudyPaths) -> dict[str, Any] | None:
    """``result.json`` of a study, None if there is none yet."""
    try:
        found = json.loads(paths.result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def measure(study: optuna.Study) -> dict[str, Any]:
    """The evidence of a study: what mattered in each stage, which tiers disagree, which ranges to widen."""
    description = describe(study)
    direction = "minimize" if description.mode == "min" else "maximize"
    stages = sampler_for(description).stages(study)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return evidence(description.space, study.get_trials(deepcopy=False), direction, stages)


def write_reports(study: optuna.Study, paths: StudyPaths, now: datetime | None = None) -> Path:
    """Write ``evidence.json``, ``report.html`` and the dashboard's notes.

    Args:
        study: A study that lightning_hp made.
        paths: Its folder.
        now: The clock that ages are counted to, with a time zone; None is the current time.

    Returns:
        The report's path.
    """
    from lightning_hp.dashboard.notes import decorate
    from lightning_hp.dashboard.report import write_report

    measured = measure(study)
    write_text(paths.evidence, json.dumps(measured, indent=1))
    found = read_result(paths)
    written = write_report(study, paths, evidence=measured, result=found, now=now)
    decorate(study, paths, evidence=measured, result=found, force=True, now=now)
    return written


def write_older_reports(paths: StudyPaths, previous: str, now: datetime | None = None) -> None:
    """Bring the pages of the study that another one has replaced up to date: they then say by what, and link to it.

    What goes wrong is logged: the new study is whole without it.

    Args:
        paths: The folder of the new study.
        previous: The folder of the first study, as the new one's description names it.
        now: As for :func:`write_reports`.
    """
    from lightning_hp.dashboard.lineage import lineage_of

    lineage = lineage_of(paths, previous, now or datetime.now(UTC))
    if lineage is None or lineage.older is None:
        return
    try:
        write_reports(*find_study(str(lineage.study_of(lineage.older).root)), now)
    except (StudyError, OSError, ValueError):
        _log.warning("the pages of the study that %s replaces could not be renewed", paths.root.name, exc_info=True)
