"""Workers that died with a trial: each is counted once, and after too many of them the trial is given up.

A trial may well be what kills its workers (memory, a driver). One that gets further with every worker is not. Where
workers are killed all the time, whatever they run, a trial may lose many and still come to its end: it is given up when
so many in a row would be bad luck of fewer than one trial in a thousand, as far as the study's other trials tell.
"""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.study.leases import lease_of
from lightning_hp.study.upstream import storage_of, trial_number

#: a trial that so many workers died with in a row, none of which brought it further, is given up
MOST_DEATHS = 5
#: so many however many workers die with other trials
MOST_AMONG_OTHERS = 25
#: a trial is given up when so many deaths in a row would come with this probability if others died as often
BY_CHANCE = 1e-3
#: system attribute of a trial: the turn of the owner that died last, how far the trial was, and how many died there
_KEY = "lightning_hp:deaths"


def count_death(study: optuna.Study, trial: FrozenTrial, worker: str) -> int:
    """Count the death of a trial's last owner, if it died and was not counted yet.

    Args:
        study: The study.
        trial: A trial that runs and is free, as storage has it now; the study's lock must be held.
        worker: Name of who takes it over.

    Returns:
        How many workers in a row have died with the trial without bringing it further.
    """
    lease, last = lease_of(trial), _last(trial)
    # nobody has begun it, or its owner lives: it has handed the trial back, or asked for it and lost its storage
    if lease is None or lease.worker in ("", worker):
        return 0
    if last["turn"] == lease.turn:
        return int(last["deaths"])
    step = max(trial.intermediate_values, default=0)
    if step > last["step"] or not last["deaths"]:
        last = {**last, "deaths": 0}
    number, storage, deaths = trial_number(trial), storage_of(study), int(last["deaths"]) + 1
    storage.set_trial_user_attr(number, "deaths", trial.user_attrs.get("deaths", 0) + 1)
    storage.set_trial_system_attr(number, _KEY, {**last, "turn": lease.turn, "step": step, "deaths": deaths})
    return deaths


def is_to_blame(study: optuna.Study, trial: FrozenTrial, deaths: int) -> bool:
    """Whether a trial is given up, since it seems to be what kills its workers.

    Args:
        study: The study.
        trial: A trial of it.
        deaths: See :func:`count_death`.
    """
    if deaths < MOST_DEATHS:
        return False
    mean = _deaths_of_others(study, trial)
    # deaths that come whatever a trial does: so many before its next step with probability (mean / (1 + mean))^deaths
    return deaths >= MOST_AMONG_OTHERS or (mean / (1 + mean)) ** deaths < BY_CHANCE


def _deaths_of_others(study: optuna.Study, trial: FrozenTrial) -> float:
    """How many workers died with another trial, on average over those that were begun and have not failed."""
    deaths = [
        int(other.user_attrs.get("deaths", 0))
        for other in study.get_trials(deepcopy=False)
        if other.number != trial.number and other.state not in (TrialState.WAITING, TrialState.FAIL)
    ]
    return sum(deaths) / len(deaths) if deaths else 0.0


def forget_deaths(study: optuna.Study, trial: optuna.Trial) -> None:
    """A trial whose training stopped for a cause outside of it begins its count anew."""
    stored = storage_of(study).get_trial(trial_number(trial))
    if _KEY in stored.system_attrs:
        storage_of(study).set_trial_user_attr(trial_number(trial), "deaths", 0)
        storage_of(study).set_trial_system_attr(trial_number(trial), _KEY, {**_last(stored), "deaths": 0})


def _last(trial: FrozenTrial) -> dict[str, Any]:
    last: dict[str, Any] = trial.system_attrs.get(_KEY, {"turn": -1, "step": 0, "deaths": 0})
    return last
