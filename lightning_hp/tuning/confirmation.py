"""A winner one can believe: the best configurations of a study are trained again on fresh seeds, and compared by mean.

Candidates are the configurations that the model of the study cannot tell from the best one
(:mod:`lightning_hp.search.winner`). The trainings are part of the budget: the search leaves them free
(:func:`reserved`). They are raced seed by seed:
after each, what is behind the best mean by more than noise explains is not trained any more. All state is in storage: a
trial that confirms another one names it, so a study that was stopped goes on in the middle of a race.

A leader that was lucky has all later trials stopped, and nothing but itself to confirm. So one that has stopped a few
in a row is trained again while the search goes on (:func:`enqueue_leader`); and what a race leaves over goes back to
the search (:func:`give_back`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.engine import Engine
from lightning_hp.search.stages import Stage, stage_at
from lightning_hp.search.winner import winner_candidates
from lightning_hp.study.confirmed import AMONG, CONFIRMS, WITHIN, Confirmed, confirmed, has_value
from lightning_hp.study.trials import first_of_project
from lightning_hp.study.upstream import stored_attributes
from lightning_hp.tuning.cohort_plan import asks_for_companions
from lightning_hp.tuning.config import Confirmation, TuneConfig
from lightning_hp.tuning.failures import counted

#: A confirmation may take this part of a study's trials; smaller studies have none to spare for it.
MOST = 0.3
#: A configuration leaves the race when its mean is behind the best by so many standard errors of the difference.
BEHIND = 2.0
#: the study attribute that holds how many kept trials were given back to the search, by the budget's number of trials
RETURNED = "lightning_hp:returned"
#: The leader is trained again, before the search has ended, when so many trials in a row were stopped as worse than it:
#: two, or this part of the budget's where that is more (in a long study two are stopped in a row all the time).
LEAST_IN_A_ROW, IN_A_ROW = 2, 0.1
#: At most this part of the kept trials serves for that, and only in studies of fewer trials than LONG: at 20 trials the
#: winners are better, at 40 nothing is gained that could be told from noise (benchmarks/short_studies.py, winner.py).
EARLY, LONG = 0.5, 40
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


def kept(study: optuna.Study, trials: Sequence[FrozenTrial], config: TuneConfig) -> int:
    """How many of the budget's trials are kept for confirmations that were not asked for yet."""
    used = sum(t.user_attrs.get(WITHIN) == config.search.n_trials for t in trials)
    left: int = reserved(config) - used - _returned(study).get(str(config.search.n_trials), 0)
    unasked: int = config.search.n_trials - _asked(study, trials)
    return max(0, min(left, unasked))


def _asked(study: optuna.Study, trials: Sequence[FrozenTrial]) -> int:
    """How many trials of the budget are begun or promised."""
    waiting = sum(t.state is TrialState.WAITING and CONFIRMS in t.user_attrs for t in trials)
    return counted(trials, study) + waiting


def _returned(study: optuna.Study) -> dict[str, int]:
    return dict(stored_attributes(study).get(RETURNED) or {})


def left_to_search(study: optuna.Study, trials: Sequence[FrozenTrial], config: TuneConfig) -> int:
    """How many more trials the search may ask for."""
    return config.search.n_trials - kept(study, trials, config) - _asked(study, trials)


def give_back(study: optuna.Study, config: TuneConfig) -> int:
    """Give trials that a race left over back to the search; the study's ask lock must be held.

    Some are kept, so that what the search brings can be confirmed.

    Returns:
        How many; 0 where the search has trials anyway, or too few are left for both.
    """
    trials = study.get_trials(deepcopy=False)
    left, wanted = kept(study, trials, config), config.confirm
    if wanted is None or left < 2 or left_to_search(study, trials, config) > 0:
        return 0
    more = left - min(wanted.seeds, left // 2)
    returned, budget = _returned(study), str(config.search.n_trials)
    study.set_user_attr(RETURNED, {**returned, budget: returned.get(budget, 0) + more})
    return more


def enqueue_leader(study: optuna.Study, planned: Sequence[Stage], config: TuneConfig) -> int | None:
    """Ask for a training of the leader on a fresh seed if it has stopped all others lately, which may be its luck.

    The study's ask lock must be held. The training is one of those that are kept for the race. The trials of a coarse
    stage, which explore, are not made fewer, and no cohort is cut short.

    Args:
        study: A study whose search goes on.
        planned: Its stages.
        config: Of the study.

    Returns:
        Number of the trial whose values are trained again, None where nothing is asked for.
    """
    trials, budget, wanted = study.get_trials(deepcopy=False), config.search.n_trials, config.confirm
    used = sum(t.user_attrs.get(WITHIN) == budget for t in trials)
    if wanted is None or budget >= LONG:
        return None
    if not kept(study, trials, config) or used + 1 > EARLY * reserved(config):
        return None
    if stage_at(planned, len(trials)).kind == "coarse" or asks_for_companions(study):
        return None
    ended = (t.state for t in reversed(trials) if t.state in (TrialState.COMPLETE, TrialState.PRUNED))
    in_a_row = max(LEAST_IN_A_ROW, int(IN_A_ROW * budget))
    if [*islice(ended, in_a_row)] != [TrialState.PRUNED] * in_a_row:
        return None
    confirming = [t for t in trials if CONFIRMS in t.user_attrs]
    if not all(t.state.is_finished() for t in confirming):
        return None
    since, failed = first_of_project(study), {t.user_attrs[CONFIRMS] for t in confirming if not has_value(t)}
    trainings: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        root = int(trial.user_attrs.get(CONFIRMS, trial.number))
        if has_value(trial) and root >= since and root not in failed:
            trainings.setdefault(root, []).append(trial)
    if not trainings:
        return None
    sign = 1.0 if study.direction is StudyDirection.MINIMIZE else -1.0
    leader = min(trainings, key=lambda root: (sign * fmean(t.value or 0.0 for t in trainings[root]), root))
    if len(trainings[leader]) > wanted.seeds:
        return None
    _enqueue(study, trials[leader], len(trainings[leader]) - 1, {WITHIN: budget})
    return leader


def _enqueue(study: optuna.Study, root: FrozenTrial, seed: int, attributes: Mapping[str, Any]) -> None:
    """Ask for a training of a trial's values on a fresh seed, counted from 0."""
    seed_number = _seed_number(root, seed)
    marks = {CONFIRMS: root.number, "seed_number": seed_number, **attributes}
    study.enqueue_trial(dict(root.params), user_attrs=marks)


def _seed_number(root: FrozenTrial, seed: int) -> int:
    return (seed + 1) * _SEEDS_APART + int(root.user_attrs.get("seed_number", root.number))


def go_on(study: optuna.Study, engine: Engine, config: TuneConfig, at_once: bool) -> tuple[list[int] | None, int]:
    """What comes when the search has ended: the next trainings of the race, or a return to the search.

    The study's ask lock must be held.

    Returns:
        What :func:`enqueue_round` gives, and what :func:`give_back` gives where the race is over.
    """
    if config.confirm is None or not reserved(config):
        return [], 0
    places = kept(study, study.get_trials(deepcopy=False), config)
    numbers = enqueue_round(study, engine, config.confirm, at_once, places, config.search.n_trials)
    return numbers, give_back(study, config) if numbers == [] else 0


def enqueue_round(
    study: optuna.Study,
    engine: Engine,
    wanted: Confirmation,
    at_once: bool = False,
    places: int | None = None,
    budget: int | None = None,
) -> list[int] | None:
    """Ask for the next trainings of the race; the study's ask lock must be held.

    Trainings of the round that wait already, since whoever asked for them was cut off in the middle, are not asked for
    again.

    Args:
        study: A study whose search has ended.
        engine: Of its sampler; knows which configurations noise may have put behind the best.
        wanted: How many configurations, on how many fresh seeds.
        at_once: Whether all seeds are asked for in one round, which is cheaper where they are trained together.
        places: How many trainings may be asked for, None for any number.
        budget: Number of trials of the budget that they are part of, None where nobody counts.

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
    racing: list[int] = list(dict.fromkeys(t.user_attrs[CONFIRMS] for t in waiting.values()))
    fewest = min((trained[root] for root in lacking), default=0)
    all_seeds = [(trials[root], s) for s in range(fewest, wanted.seeds) for root in lacking if trained[root] <= s]
    # where not all have places, the second round is for those that the first one leaves in the race
    whole = at_once and (places is None or len(all_seeds) <= places + len(waiting))
    round_of = all_seeds if whole else [(root, seed) for root, seed in all_seeds if seed == fewest]
    new = [(root, seed) for root, seed in round_of if _seed_number(root, seed) not in waiting]
    for root, seed in new[:places]:
        marks: dict[str, Any] = {AMONG: roots} if budget is None else {AMONG: roots, WITHIN: budget}
        _enqueue(study, root, seed, marks)
    in_round = {*racing, *(root.number for root, _ in new[:places])}
    return [root for root in roots if root in in_round] + [root for root in racing if root not in roots]


def _candidates(study: optuna.Study, trials: Sequence[FrozenTrial], engine: Engine, wanted: Confirmation) -> list[int]:
    """The trials whose values race: those that the race began with, unless the search has gone on since."""
    searched = [t.number for t in trials if CONFIRMS not in t.user_attrs and t.state is TrialState.COMPLETE]
    begun = [t for t in trials if AMONG in t.user_attrs and t.number > max(searched, default=-1)]
    if begun:
        return list(begun[-1].user_attrs[AMONG])
    since = first_of_project(study)
    chosen = [candidate.trial for candidate in winner_candidates(study, engine, wanted.candidates)]
    numbers = [int(t.user_attrs.get(CONFIRMS, t.number)) for t in chosen if not t.user_attrs.get("diverged")]
    present = [number for number in numbers if number >= since]
    return list(dict.fromkeys(present or numbers))


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
