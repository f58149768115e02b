"""A babysat training as a study of one lineage: every stretch between two interventions is a trial with its parent.

So the dashboard shows it as any study: values, curves, and for each trial what began it and why. A stretch that was
rolled back is a pruned trial; its child continues the trial in which the restored snapshot was taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import open_storage, quiet_optuna, write_study_pointer


@dataclass(frozen=True)
class Stretch:
    """Training between two interventions.

    Attributes:
        values: Hyperparameters by name.
        curve: Training loss by optimiser step; not empty.
        value: The monitored metric at its end, or None where it was not validated.
        parent: Number of the stretch that it continues, or None for the first.
        kept: Whether it was not rolled back.
        rule: What began it.
        why: The reason in words.
        by: Who began it.
    """

    values: Mapping[str, float]
    curve: Mapping[int, float]
    value: float | None
    parent: int | None
    kept: bool
    rule: str
    why: str
    by: str


def record_lineage(
    paths: StudyPaths,
    name: str,
    stretches: Sequence[Stretch],
    ranges: Mapping[str, tuple[float, float]],
    monitor: str,
    minimise: bool = True,
) -> optuna.Study:
    """Write a study of these stretches, in the place of an earlier one of the same folder.

    Args:
        paths: Folder of the study.
        name: Its name.
        stretches: In order; a parent comes before its children.
        ranges: Range of every hyperparameter; it is widened where a value lies outside.
        monitor: Name of the metric.
        minimise: Whether a smaller metric is better.

    Returns:
        The study.
    """
    paths.journal.unlink(missing_ok=True)
    with quiet_optuna():
        direction = StudyDirection.MINIMIZE if minimise else StudyDirection.MAXIMIZE
        study = optuna.create_study(storage=open_storage("journal", paths), study_name=name, direction=direction)
        study.set_metric_names([monitor])
        distributions = _distributions(stretches, ranges)
        study.add_trials([_trial(stretch, distributions) for stretch in stretches])
    write_study_pointer(paths, name, "journal")
    return study


def _distributions(
    stretches: Sequence[Stretch], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, BaseDistribution]:
    distributions: dict[str, BaseDistribution] = {}
    for name in sorted({name for stretch in stretches for name in stretch.values}):
        values = [stretch.values[name] for stretch in stretches if name in stretch.values]
        low, high = ranges.get(name, (min(values), max(values)))
        low, high = min([low, *values]), max([high, *values])
        distributions[name] = FloatDistribution(low, high, log=low > 0 and high > 10 * low)
    return distributions


def _trial(stretch: Stretch, distributions: Mapping[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    finite = {step: loss for step, loss in stretch.curve.items() if math.isfinite(loss)}
    value = stretch.value if stretch.value is not None and math.isfinite(stretch.value) else None
    complete = stretch.kept and value is not None
    steps = sorted(stretch.curve)
    attributes = {"why": stretch.why, "rule": stretch.rule, "by": stretch.by, "parent": stretch.parent}
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        value=value if complete else None,
        params=dict(stretch.values),
        distributions={name: distributions[name] for name in stretch.values},
        intermediate_values=finite,
        user_attrs={**attributes, "steps": f"{steps[0]} to {steps[-1]}"},
    )
