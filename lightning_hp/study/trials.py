"""Which trial of a study is best, and how many ended how: one home for each of these questions."""

from __future__ import annotations

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


def best_trials(study: optuna.Study, n: int) -> list[FrozenTrial]:
    """The best n complete trials that did not diverge, best first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    good = [t for t in complete if not t.user_attrs.get("diverged") and t.value is not None]
    sign = 1.0 if study.direction is StudyDirection.MINIMIZE else -1.0
    return sorted(good, key=lambda t: (sign * (t.value or 0.0), t.number))[:n]


def no_best(study: optuna.Study) -> str:
    """Why a study has no best trial, in one line."""
    trials = study.get_trials(deepcopy=False)
    failures = [t.user_attrs.get("failure") for t in trials if t.user_attrs.get("failure")]
    why = f"; the last failure: {failures[-1]}" if failures else ""
    return f"study {study.study_name!r} has no complete trial yet ({len(trials)} trials{why})"


def count_states(study: optuna.Study) -> dict[str, int]:
    """How many trials are complete, pruned and failed."""
    trials = study.get_trials(deepcopy=False)
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    return {name: sum(t.state is state for t in trials) for name, state in states.items()}
