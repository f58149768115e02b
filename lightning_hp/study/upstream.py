"""Every use of private parts of Optuna and optuna-dashboard by which a study is reached.

Optuna's public classes hide the storage of a study and the numbers of studies and trials in it, which links and
storages need. What can be had in public instead is the fallback.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from lightning_hp.study.storage import StudyError

if TYPE_CHECKING:
    from optuna.study._frozen import FrozenStudy

#: under these keys optuna-dashboard keeps figures, in pieces, among the system attributes of a study
_FIGURES = "dashboard:plot_data:"


def storage_of(study: optuna.Study) -> BaseStorage:
    """The storage that a study is in.

    Raises:
        StudyError: If this version of Optuna keeps it elsewhere; there is no public way.
    """
    storage: BaseStorage | None = getattr(study, "_storage", None)
    if storage is None:
        raise StudyError(f"`optuna` must be of version 5, got {optuna.__version__}: it hides the storage of a study")
    return storage


def study_number(study: optuna.Study | FrozenStudy) -> int:
    """The number of a study in its storage, as in the dashboard's links."""
    number = getattr(study, "_study_id", None)
    if number is None and isinstance(study, optuna.Study):
        number = storage_of(study).get_study_id_from_name(study.study_name)
    return int(number)  # type: ignore[arg-type]


def trial_number(trial: FrozenTrial | optuna.Trial) -> int:
    """The number of a trial in its storage; ``trial.number`` is that in its study."""
    return int(trial._trial_id)


def stored_trial(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> FrozenTrial:
    """A trial of a study as storage holds it now."""
    return storage_of(study).get_trial(trial_number(trial))


def stored_attributes(study: optuna.Study) -> dict[str, Any]:
    """The user attributes of a study as storage holds them now, not copied as ``study.user_attrs`` copies them."""
    return storage_of(study).get_study_user_attrs(study_number(study))


def system_attributes(study: optuna.Study) -> dict[str, Any]:
    """The attributes that Optuna and its dashboard keep with a study, from storage."""
    return storage_of(study).get_study_system_attrs(study_number(study))


def note_target(study: optuna.Study, trial: FrozenTrial | None) -> Any:
    """What ``get_note`` and ``save_note`` of optuna-dashboard take: the study, or a trial of it that may have ended.

    They read three attributes of a trial. A live ``Trial`` has them too, but making one asks the sampler again.
    """
    if trial is None:
        return study
    return SimpleNamespace(storage=storage_of(study), study=study, _trial_id=trial_number(trial))


def stored_figures(study: optuna.Study, prefix: str) -> dict[str, Any]:
    """The Plotly figures that the dashboard shows of a study, as plain JSON; None where one cannot be read.

    A figure that is missing here, since the dashboard keeps it elsewhere, is written again: that costs time only.

    Args:
        study: The study.
        prefix: Of the identifiers.
    """
    pieces: dict[str, dict[int, str]] = {}
    for key, piece in system_attributes(study).items():
        name, _, place = key.removeprefix(_FIGURES).rpartition(":")
        if key.startswith(_FIGURES + prefix) and isinstance(piece, str) and place.isdecimal():
            pieces.setdefault(name, {})[int(place)] = piece
    return {name: _json_or_none("".join(parts[i] for i in sorted(parts))) for name, parts in pieces.items()}


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
