"""The small study that holds the questions which a study asks a person: how it is called, and what is open in it.

Each question is a trial of a study ``NAME gate`` in the same storage, since the dashboard shows a form on the page of a
running trial.
"""

from __future__ import annotations

from collections.abc import Container

from optuna.storages import BaseStorage
from optuna.trial import TrialState

_NAMED = " gate"


def gate_name(study: str) -> str:
    """The name of the small study that holds a study's questions."""
    return study + _NAMED


def tuned_name(gate: str) -> str:
    """The inverse of :func:`gate_name`; a name that is none of a gate stays."""
    return gate.removesuffix(_NAMED)


def is_gate(study: str, studies: Container[str]) -> bool:
    """Whether a study holds the questions of another one.

    Args:
        study: Its name.
        studies: The names of all studies.
    """
    return study.endswith(_NAMED) and tuned_name(study) in studies


def open_question(storage: BaseStorage, study: str) -> tuple[int, int] | None:
    """The study and the trial number of a question that waits for its answer, None if there is none.

    Args:
        storage: Where the study that is tuned is.
        study: Its name, or that of its gate.
    """
    try:
        gate = storage.get_study_id_from_name(gate_name(tuned_name(study)))
    except KeyError:
        return None
    waiting = storage.get_all_trials(gate, deepcopy=False, states=(TrialState.RUNNING,))
    return (gate, waiting[-1].number) if waiting else None
