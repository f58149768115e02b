"""What a running study tells whoever watches it: a display, a test, a person's own code."""

from __future__ import annotations

from typing import Protocol

from optuna.trial import FrozenTrial


class StudyListener(Protocol):
    """Is called by a study as it runs, in the process that runs it."""

    def study_planned(self, n_trials: int) -> None:
        """A study begins, or another one after a re-test; it will have so many trials."""
        ...

    def trial_known(self, trial: FrozenTrial) -> None:
        """A trial had been finished before, or was by another process."""
        ...

    def trial_started(self, trial: FrozenTrial) -> None:
        """A trial starts."""
        ...

    def trial_resumed(self, trial: FrozenTrial) -> None:
        """A trial whose process died is run again, with the same values."""
        ...

    def trial_progressed(self, number: int, step: int, steps: int | None, value: float) -> None:
        """A running trial has reported a value.

        Args:
            number: Of the trial.
            step: Of its curve.
            steps: The step of a complete training; None where it is not known.
            value: Of the metric.
        """
        ...

    def trial_finished(self, trial: FrozenTrial) -> None:
        """A trial has ended, in whatever state."""
        ...

    def message(self, text: str) -> None:
        """One line for a person."""
        ...


class SilentListener:
    """Does nothing; a base for listeners that care for some events only."""

    def study_planned(self, n_trials: int) -> None:
        """Do nothing."""

    def trial_known(self, trial: FrozenTrial) -> None:
        """Do nothing."""

    def trial_started(self, trial: FrozenTrial) -> None:
        """Do nothing."""

    def trial_resumed(self, trial: FrozenTrial) -> None:
        """Do nothing."""

    def trial_progressed(self, number: int, step: int, steps: int | None, value: float) -> None:
        """Do nothing."""

    def trial_finished(self, trial: FrozenTrial) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""
