"""Failures that stop a study, and the trials that they cost: those are run again once the cause is mended.

Three failures in a row with one cause are a fault of the configuration, not of the trials. The study remembers their
numbers in an attribute. The next run gives each of them another trial with the same values and seed; the failed ones
stay visible, and do not count against the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.space.space import SearchSpace
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError
from lightning_hp.study.upstream import stored_attributes
from lightning_hp.tuning.objective import OUT_OF_MEMORY, structure

#: this many failures in a row with one cause stop a study
SAME_FAILURES = 3
#: the study attribute that holds the numbers of trials whose failures stopped the study
STOPPED_BY = "lightning_hp:stopped_by"
#: the attribute of a trial that runs a failed one again: that one's number
RERUN_OF = "rerun_of"
#: begins the failure of a trial that was not trained, since its structure is known to run out of memory
SKIPPED = "skipped"


def not_counted(study: optuna.Study) -> set[int]:
    """Numbers of the trials whose failures stopped the study."""
    return set(stored_attributes(study).get(STOPPED_BY) or ())


def stop_on_same_failures(study: optuna.Study, paths: StudyPaths) -> None:
    """Stop where the last trials failed with one cause.

    Raises:
        StudyError: Naming the cause and a folder with the traceback.
    """
    past = not_counted(study)
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and t.number not in past]
    last = sorted(trials, key=lambda t: t.datetime_complete or datetime.min)[-SAME_FAILURES:]
    causes = {str(t.user_attrs.get("failure", "unknown")) for t in last if t.state is TrialState.FAIL}
    if len(last) < SAME_FAILURES or any(t.state is not TrialState.FAIL for t in last) or len(causes) != 1:
        return
    cause = causes.pop()
    if cause.startswith(SKIPPED):
        return
    if cause != OUT_OF_MEMORY:  # that is learned from: the same structures are not asked again
        study.set_user_attr(STOPPED_BY, sorted({*past, *(t.number for t in last)}))
    folder = paths.trial(last[-1].number).root
    raise StudyError(f"{SAME_FAILURES} trials in a row failed with the same cause: {cause} (see {folder})")


def out_of_memory(study: optuna.Study, space: SearchSpace, proposed: object) -> int | None:
    """Number of a trial of a structure that ran out of memory, None where there is none."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        if trial.user_attrs.get("failure") == OUT_OF_MEMORY and structure(space, trial.params) == proposed:
            return trial.number
    return None


def enqueue_reruns(study: optuna.Study) -> list[int]:
    """Ask for the trials whose failures stopped the study once more; the study's ask lock must be held.

    Returns:
        The numbers of the failed trials that are run again from now on.
    """
    trials = study.get_trials(deepcopy=False)
    done = {t.user_attrs.get(RERUN_OF) for t in trials}
    again = [t for t in trials if t.number in not_counted(study) and t.number not in done and t.params]
    for trial in again:
        attributes = {RERUN_OF: trial.number, "seed_number": _seed_number(trial)}
        if "seed" in trial.user_attrs:
            attributes["seed"] = trial.user_attrs["seed"]
        study.enqueue_trial(dict(trial.params), user_attrs=attributes)
    return [t.number for t in again]


def counted(trials: Sequence[FrozenTrial], study: optuna.Study) -> int:
    """How many trials of a study count against its budget: those that were begun, without those that stopped it."""
    past = not_counted(study)
    return sum(t.state is not TrialState.WAITING and t.number not in past for t in trials)


def _seed_number(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("seed_number", trial.number))
