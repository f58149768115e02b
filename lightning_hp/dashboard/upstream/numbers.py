"""Studies and trials with other numbers in storage: Optuna keeps the numbers in private attributes.

A copy is made, since what a storage answers with is shared. Without the private attributes there is no such copy: the
studies of several folders can then not be told apart, and Optuna's error says what is missing.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from lightning_hp.study.upstream import study_number, trial_number

if TYPE_CHECKING:
    from optuna.study._frozen import FrozenStudy as FrozenStudy  # what storages answer with; Optuna does not export it


def moved_trial(trial: FrozenTrial, by: int) -> FrozenTrial:
    """The trial with its number in storage moved up; the trial given is not changed."""
    if not by:
        return trial
    moved = copy.copy(trial)
    moved._trial_id = trial_number(trial) + by
    return moved


def moved_study(
    study: FrozenStudy, by: int, system_attributes: dict[str, Any], user_attributes: dict[str, Any]
) -> FrozenStudy:
    """The study with its number in storage moved up and other attributes; the study given is not changed."""
    moved = copy.copy(study)
    moved._study_id = study_number(study) + by
    moved.system_attrs = system_attributes
    moved.user_attrs = user_attributes
    return moved
