"""How the trials of a study are divided into cohorts: how many have places, who takes free ones, what they share.

Trials of one cohort share their structure, and those that are asked for at once learn nothing from each other: large
cohorts cost less a training and find less a trial. See :mod:`.cohorts`.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from lightning_hp.study.confirmed import CONFIRMS, RIVAL

#: A study is divided into so many cohorts, each of which learns from those before; a short one into fewer, so that
#: FEW members share what a step costs whoever is in it; but never into fewer than LEAST_ROUNDS.
ROUNDS, FEW, LEAST_ROUNDS = 24, 4, 5
#: Who leaves a cohort of more than FEW members early gives its place to another trial of the structure: a cohort trains
#: at most so many times the trials that it has places for, and free places are left empty where a study would come to
#: fewer structures than this. In small cohorts that costs more than it saves (benchmarks/cohorts.py).
TURNS, STRUCTURES = 2, 12
#: members of a cohort, unless the study says otherwise: at most
MOST_MEMBERS = 64


def cohort_size(n_trials: int, wanted: int | None, few: int = FEW, structures: float | None = None) -> int:
    """How many members a cohort has.

    Args:
        n_trials: Planned trials of the study.
        wanted: What the study says, None where it says nothing.
        few: How many it takes for stacking to pay.
        structures: The share of trials with a structure of their own, None where the study says nothing.
    """
    most = MOST_MEMBERS if structures is None else round(1 / structures)
    if wanted is not None:
        return min(wanted, most)
    return min(most, max(2, min(MOST_MEMBERS, max(few, n_trials // ROUNDS), n_trials // LEAST_ROUNDS)))


def newcomers(n_trials: int, size: int, structures: float | None = None) -> int:
    """How many trials may take free places of a cohort.

    Args:
        n_trials: Planned trials of the study.
        size: Members of the cohort.
        structures: As for :func:`cohort_size`.
    """
    if structures is not None:
        return max(0, round(1 / structures) - size)
    return min(size * (TURNS - 1), max(0, n_trials // STRUCTURES - size)) if size > FEW else 0


def repeats(trial: optuna.Trial) -> bool:
    """Whether a trial trains known values again: to confirm a winner, or in a re-test."""
    return not {CONFIRMS, RIVAL}.isdisjoint(trial.user_attrs)


def asks_for_companions(study: optuna.Study) -> bool:
    """Whether a cohort is asking the study for further members, see :func:`fixed_parameters`."""
    sampler = study.sampler
    return isinstance(sampler, optuna.samplers.PartialFixedSampler) or getattr(sampler, "group", None) is not None


def together_with(study: optuna.Study, workers: int) -> int:
    """How many trainings of known values a worker runs at once: its part of those that wait, or were left by a kill."""
    unfinished = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    return math.ceil(len(unfinished) / workers)


@contextlib.contextmanager
def fixed_parameters(study: optuna.Study, fixed: Mapping[str, Any], n: int) -> Iterator[None]:
    """Have a study ask ``n`` times with these values; its sampler proposes the others."""
    sampler: Any = study.sampler
    if sampler.base is None:
        with sampler.together(fixed, n):
            yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.PartialFixedSampler(dict(fixed), sampler)
    vars(study.sampler)["describe"] = sampler.describe  # by which a space stores the stage of a trial
    try:
        yield
    finally:
        study.sampler = sampler
