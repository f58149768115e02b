"""The rows that a report is made of: values by tier, scores, stages, leaders, failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from lightning_hp.report.axes import range_text, value_text
from lightning_hp.report.lineage import StudyLink
from lightning_hp.report.view import StageView
from lightning_hp.space.parameters import Parameter


@dataclass(frozen=True)
class ValueRow:
    """One hyperparameter of a trial.

    Attributes:
        parameter: It.
        natural: The value that the model was given.
        is_used: Whether it had an effect: a second layer's width has none in a net of one layer.
        position: Where it lies in the range, from 0 to 1.
        stage: The last stage that searched it, None if none did.
    """

    parameter: Parameter
    natural: Any
    is_used: bool
    position: float
    stage: StageView | None

    @property
    def text(self) -> str:
        """The value."""
        return value_text(self.parameter, self.natural)

    @property
    def default(self) -> str:
        """The default."""
        return value_text(self.parameter, self.parameter.default)

    @property
    def range(self) -> str:
        """The range and its scale."""
        return range_text(self.parameter)

    @property
    def box(self) -> tuple[float, float] | None:
        """Where the last stage searched, from 0 to 1; None for everywhere."""
        return self.stage.interval(self.parameter.stored_name) if self.stage is not None and self.stage.box else None


@dataclass(frozen=True)
class ScoreRow:
    """One metric of the winner on the two splits, None where it was not measured."""

    metric: str
    validation: float | None
    test: float | None


@dataclass(frozen=True)
class StageRow:
    """What became of one stage: how its trials ended, and its best."""

    stage: StageView
    complete: int
    pruned: int
    failed: int
    best: FrozenTrial | None


@dataclass(frozen=True)
class SearchedRow:
    """Where the stages looked for one parameter."""

    parameter: Parameter
    ranges: tuple[str, ...]


@dataclass(frozen=True)
class LeaderRow:
    """One of the best trials; a value is None where it lacks the parameter."""

    number: int
    value: float
    stage: StageView | None
    seconds: float | None
    values: tuple[str | None, ...]


@dataclass(frozen=True)
class FailureRow:
    """Trials that were lost for one reason; the traceback is that of the first of them, empty without one."""

    reason: str
    trials: tuple[int, ...]
    traceback: str


@dataclass(frozen=True)
class NewerStudy:
    """The study that replaced this one's values.

    Attributes:
        link: It.
        day: When, a date.
        metric: Name of its metric.
        value: What its values reached on the data of that day, None if not known.
    """

    link: StudyLink
    day: str
    metric: str
    value: float | None
