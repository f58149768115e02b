"""A winner one can believe: the best configurations of a study are trained again on fresh seeds, and compared by mean.

Candidates are the configurations that the model of the study cannot tell from the best one
(:mod:`lightning_hp.search.winner`). The trainings are part of the budget: the search leaves them free
(:func:`reserved`). They are raced seed by seed:
after each, what is behind the best mean by more than noise explains is not trained any more. All state is in storage: a
trial that confirms another one names it, so a study that was stopped goes on in the middle of a race.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.engine import Engine
from lightning_hp.search.winner import winner_candidates
from lightning_hp.study.confirmed import CONFIRMS, Confirmed, confirmed
from lightning_hp.study.trials import first_of_project
from lightning_hp.tuning.config import Confirmation, TuneConfig

#: A confirmation may take this part of a study's trials; smaller studies have none to spare for it.
MOST = 0.3
#: A configuration leaves the race when its mean is behind the best by so many standard errors of the difference.
BEHIND = 2.0
#: the attribute of a confirming trial that names all configurations of its race, so that a race that is cut off while
#: its first trainings are asked for is the same race afterwards
AMONG = "confirms_among"
#: Seed numbers of confirmations are this far from those of the study's trials, and each round this far from the next.
_SEEDS_APART = 1_000_000


def reserved(config: TuneConfig) -> int:
    """How many of the budget's trials the search leaves to the confirmation."""
    wanted = config.confirm
    # with a limit of time nobody knows how many trials there will be
    if wanted is None or config.budget.seconds is not None:
        return 0
    trainings = wanted.candidates * wanted.seeds
    return trainings if trainings <= MOST * config.search.n_trials else 0


def enqueue_round(study: optuna.Study, engine: Engine, wanted: Confirmation, at_once: bool = False) -> list[int] | None:
    """Ask for the next trainings of the race; the study's ask lock must be held.

    Trainings of the round that wait already, since whoever asked for them was cut off in the middle, are not asked for
    again.

    Args:
        study: A study whose search has ended.
        engine: Of its sampler; knows which configurations noise may have put behind the best.
        wanted: How many configurations, on how many fresh seeds.
        at_once: Whether all seeds are asked for in one round, which is cheaper where they are trained together.

    Returns:
        Numbers of the trials whose values are trained again; empty when the race is over and nothing waits; None
        while trials run, or others wait.
    """
    trials = study.get_trials(deepcopy=False)
    if not _is_settled(trials):
        return None
    roots = _candidates(study, trials, engine, wanted)
    results = {one.root: one for one in confirmed(trials, study.direction is StudyDirection.MINIMIZE)}
    confirming = [t for t in trials if CONFIRMS in t.user_attrs]
    ended = [t.user_attrs[CONFIRMS] for t in confirming if t.state is not TrialState.WAITING]
    waiting = {t.user_attrs.get("seed_number"): t for t in confirming if t.state is TrialState.WAITING}
    trained = {root: ended.count(root) for root in roots}
    lacking = [root for root in roots if trained[root] < wanted.seeds and _in_race(root, results, trained)]
    if not lacking:
        return list(dict.fromkeys(t.user_attrs[CONFIRMS] for t in waiting.values()))
    fewest = min(trained[root] for root in lacking)
    racing = [root for root in lacking if trained[root] == fewest]
    for root in racing:
        first = int(trials[root].user_attrs.get("seed_number", root))
        for seed in range(fewest, wanted.seeds if at_once else fewest + 1):
            attributes = {CONFIRMS: root, AMONG: roots, "seed_number": (seed + 1) * _SEEDS_APART + first}
            if attributes["seed_number"] not in waiting:
                study.enqueue_trial(dict(trials[root].params), user_attrs=attributes)
    return racing


def _candidates(study: optuna.Study, trials: Sequence[FrozenTrial], engine: Engine, wanted: Confirmation) -> list[int]:
    """The trials whose values race: those that the race began with, unless the search has gone on since."""
    begun = [t for t in trials if CONFIRMS in t.user_attrs]
    searched = [t.number for t in trials if CONFIRMS not in t.user_attrs and t.state is TrialState.COMPLETE]
    if begun and (not searched or max(searched) < min(t.number for t in begun[-wanted.candidates * wanted.seeds :])):
        among: Sequence[int] | None = begun[-1].user_attrs.get(AMONG)  # None in a study of an earlier version
        return list(among or dict.fromkeys(t.user_attrs[CONFIRMS] for t in begun[-wanted.candidates * wanted.seeds :]))
    since = first_of_project(study)
    chosen = [candidate.trial for candidate in winner_candidates(study, engine, wanted.candidates)]
    numbers = [int(trial.user_attrs.get(CONFIRMS, trial.number)) for trial in chosen if _is_good(trial)]
    present = [number for number in numbers if number >= since]
    return list(dict.fromkeys(present or numbers))


def _is_good(trial: FrozenTrial) -> bool:
    return not trial.user_attrs.get("diverged")


def _in_race(root: int, results: Mapping[int, Confirmed], trained: Mapping[int, int]) -> bool:
    """Whether a configuration is not yet behind the best mean by more than noise explains."""
    own = results.get(root)
    if own is None:
        return trained[root] == 0  # else its training on a fresh seed has failed
    good = [one for one in results.values() if not one.failed]
    if own.failed:
        return False
    best = good[0]  # the best mean comes first
    deviations = [value - one.mean for one in good for value in one.values]
    freedom = sum(len(one.values) - 1 for one in good)
    scatter = math.sqrt(sum(d * d for d in deviations) / freedom)
    error = scatter * math.sqrt(1 / len(own.values) + 1 / len(best.values))
    return abs(own.mean - best.mean) <= BEHIND * error


def _is_settled(trials: Sequence[FrozenTrial]) -> bool:
    """Whether no trial runs, and none waits but trainings of the race."""
    return all(t.state.is_finished() or (t.state is TrialState.WAITING and CONFIRMS in t.user_attrs) for t in trials)
