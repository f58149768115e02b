"""Which trial of a study is best, and how many ended how: one home for each of these questions."""

from __future__ import annotations

import math
from collections.abc import Iterable

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.study.confirmed import AMONG, WITHIN, confirmed

#: the study user attribute that holds the description
ATTRIBUTE = "lightning_hp"


def ranked_trials(trials: Iterable[FrozenTrial], minimises: bool) -> list[FrozenTrial]:
    """Complete trials with a finite value that did not diverge, best first; ties by number.

    Where configurations were trained on several seeds, the one with the best mean comes first, by its best training.
    While the search goes on, and some were trained again to see whether they were lucky, each of them counts with its
    mean, and those that were trained once with their value.

    Args:
        trials: Trials of one study, of any state.
        minimises: Whether smaller is better.
    """
    trials = list(trials)
    counted = [
        (trial.values[0] if minimises else -trial.values[0], trial.number, trial)
        for trial in trials
        if trial.state is TrialState.COMPLETE
        and math.isfinite(trial.values[0])
        and not trial.user_attrs.get("diverged")
    ]
    by_value = [trial for _, _, trial in sorted(counted, key=lambda entry: entry[:2])]
    on_several_seeds = confirmed(trials, minimises)
    if not on_several_seeds or on_several_seeds[0].failed:
        return by_value
    if not any(AMONG in trial.user_attrs for trial in trials) and any(WITHIN in t.user_attrs for t in trials):
        means = {trial.number: one.mean for one in on_several_seeds for trial in one.trials}
        by_value = sorted(by_value, key=lambda t: means.get(t.number, t.value or 0.0) * (1.0 if minimises else -1.0))
        if by_value[0].number not in means:
            return by_value
    winner = on_several_seeds[0].best(minimises)
    return [winner, *(trial for trial in by_value if trial.number != winner.number)]


def ranked_since(trials: Iterable[FrozenTrial], minimises: bool, since: int) -> list[FrozenTrial]:
    """The same of the present project only, where it has a complete trial.

    Args:
        trials: Trials of one study, of any state.
        minimises: Whether smaller is better.
        since: Number of the first trial of the present project, see :class:`.Description`.
    """
    trials = list(trials)
    present = ranked_trials((t for t in trials if t.number >= since), minimises)
    return present or ranked_trials(trials, minimises)


def best_trials(study: optuna.Study, n: int) -> list[FrozenTrial]:
    """The best n complete trials of the present project that did not diverge, best first."""
    minimises = study.direction is StudyDirection.MINIMIZE
    return ranked_since(study.get_trials(deepcopy=False), minimises, first_of_project(study))[:n]


def first_of_project(study: optuna.Study) -> int:
    """Number of the first trial of the present project, 0 where the project has not changed."""
    return int((study.user_attrs.get(ATTRIBUTE) or {}).get("since", 0))


def no_best_message(study: optuna.Study) -> str:
    """The error message of a study without a best trial: how many trials there are, and the last failure."""
    trials = study.get_trials(deepcopy=False)
    failures = [t.user_attrs.get("failure") for t in trials if t.user_attrs.get("failure")]
    why = f"; the last failure: {failures[-1]}" if failures else ""
    return f"study {study.study_name!r} has no complete trial yet ({len(trials)} trials{why})"


def count_states(study: optuna.Study) -> dict[str, int]:
    """How many trials are complete, pruned and failed."""
    trials = study.get_trials(deepcopy=False)
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    return {name: sum(t.state is state for t in trials) for name, state in states.items()}
