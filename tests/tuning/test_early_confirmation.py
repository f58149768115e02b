"""A leader that stops all others is trained again at once; what a race leaves over goes back to the search."""

from pathlib import Path

import optuna
import pytest
import toy_project as toy
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from lightning_hp.search.engine import Engine
from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.search.stages import plan_stages
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.confirmed import AMONG, CONFIRMS, WITHIN
from lightning_hp.study.storage import quiet_optuna
from lightning_hp.study.trials import ranked_trials
from lightning_hp.tuning.cohort_plan import fixed_parameters
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.confirmation import enqueue_leader, enqueue_round, give_back, go_on, kept, left_to_search

SPACE = SearchSpace.from_dict({"x": {"low": 0.0, "high": 1.0}})


def config_of(trials=20, confirm=True):
    return TuneConfig.from_arguments(SPACE, {"trials": trials}, {"name": "s", "confirm": confirm})


def study_of(values, direction="minimize"):
    """A study with these values; a trial with None was stopped, one with ``...`` has failed."""
    with quiet_optuna():
        study = optuna.create_study(direction=direction)
    for i, value in enumerate(values):
        state = {None: TrialState.PRUNED, ...: TrialState.FAIL}.get(value, TrialState.COMPLETE)
        one = {"value": value} if state is TrialState.COMPLETE else {}
        study.add_trial(
            create_trial(state=state, params={"x": i / 20}, distributions={"x": FloatDistribution(0.0, 1.0)}, **one)
        )
    return study


def ask_for_leader(study, config=None):
    config = config or config_of()
    return enqueue_leader(study, plan_stages(SPACE, config.search.n_trials), config)


def train(study, value):
    """Run the next trial: one that waits, or a new one; a value of None is a failure, ``...`` is stopped."""
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    if value is None or value is ...:
        study.tell(trial, state=TrialState.FAIL if value is None else TrialState.PRUNED)
    else:
        study.tell(trial, value)
    return study.trials[-1]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_who_has_stopped_two_in_a_row_is_trained_again_on_a_fresh_seed(sign):
    values = [0.3, 0.5, 0.2, 0.6, None, None]
    study = study_of([v and sign * v for v in values], "minimize" if sign > 0 else "maximize")
    assert ask_for_leader(study) == 2
    trial = study.trials[-1]
    assert trial.state is TrialState.WAITING
    assert trial.user_attrs == {CONFIRMS: 2, WITHIN: 20, "seed_number": 1_000_002}
    assert ask_for_leader(study) is None, "one waits"
    assert train(study, sign * 0.5).params == {"x": 0.1}
    assert ask_for_leader(study) is None, "nothing was stopped since"
    train(study, ...)
    train(study, ...)
    assert ask_for_leader(study) == 0, "0.3 is better than 0.35, the mean of 0.2 and 0.5"


@pytest.mark.parametrize(
    "values",
    [
        [0.2, 0.3, None, None],  # the next trial is one of the five that explore
        [0.2, 0.3, 0.3, 0.3, None],
        [0.2, 0.3, 0.3, 0.3, None, 0.4],
        [None] * 6,
        [...] * 6,
    ],
)
def test_who_has_not_is_left_alone(values):
    study = study_of(values)
    assert ask_for_leader(study) is None
    assert len(study.trials) == len(values)


def test_in_a_longer_study_it_takes_more_stops_and_from_40_trials_on_the_end_confirms_alone():
    study, config = study_of([0.3, 0.5, 0.2, 0.6, None, None]), config_of(trials=39)
    assert ask_for_leader(study, config) is None
    train(study, ...)
    assert ask_for_leader(study, config_of(trials=40)) is None
    assert ask_for_leader(study, config) == 2


@pytest.mark.parametrize("base", [None, optuna.samplers.RandomSampler(seed=0)])
def test_no_cohort_is_cut_short(base):
    study = study_of([0.3, 0.5, 0.2, 0.6, None, None])
    study.sampler = CoarseToFineSampler(SPACE, n_trials=20, base=base)
    with fixed_parameters(study, {}, 2):
        assert ask_for_leader(study) is None
    assert ask_for_leader(study) == 2


def test_the_mean_says_who_leads():
    study = study_of([0.2, 0.3, 0.5, 0.5, None, None])
    assert ask_for_leader(study) == 0
    train(study, 0.6)
    train(study, ...)
    train(study, ...)
    assert ask_for_leader(study) == 1, "0.3 is better than 0.4, the mean of 0.2 and 0.6"


def test_a_configuration_that_fails_on_a_fresh_seed_leads_no_more():
    study = study_of([0.2, 0.3, 0.5, 0.5, None, None])
    assert ask_for_leader(study) == 0
    train(study, None)
    assert ask_for_leader(study) == 1


def test_half_of_the_kept_trials_are_for_the_end():
    study, config = study_of([0.2, 0.3, 0.5, 0.5]), config_of()
    for _ in range(8):
        train(study, ...)
        train(study, ...)
        if ask_for_leader(study, config) is not None:
            train(study, 0.2)
    repeats = [t for t in study.trials if CONFIRMS in t.user_attrs]
    assert [t.user_attrs[CONFIRMS] for t in repeats] == [0, 0], "two fresh seeds are all that a configuration gets"
    study = study_of([0.2, 0.3, 0.4, 0.5, None, None])
    while ask_for_leader(study, config) is not None:
        train(study, 0.9)
        train(study, ...)
        train(study, ...)
    assert [t.user_attrs[CONFIRMS] for t in study.trials if CONFIRMS in t.user_attrs] == [0, 1, 2]
    assert kept(study, study.trials, config) == 3
    assert left_to_search(study, study.trials, config) == 20 - 3 - len(study.trials)


def test_without_confirmation_nothing_is_trained_again():
    study = study_of([0.2, None, None, None, None, None])
    assert ask_for_leader(study, config_of(confirm=False)) is None
    assert ask_for_leader(study, config_of(trials=19)) is None
    assert len(study.trials) == 6


def run_to_the_end(study, config, loss):
    """Run what is left of a study whose first trials are given; ``loss`` takes x and the training's seed number."""
    engine = Engine(SPACE, None)
    while True:
        while left_to_search(study, study.trials, config) > 0:
            trial = study.ask()
            study.tell(trial, loss(trial.suggest_float("x", 0.0, 1.0), trial.number))
        numbers, more = go_on(study, engine, config, at_once=False)
        if not numbers and not more:
            return
        assert not (numbers and more)
        for _ in numbers:
            trial = study.ask()
            study.tell(trial, loss(trial.suggest_float("x", 0.0, 1.0), trial.user_attrs["seed_number"]))


def test_what_a_race_leaves_over_goes_back_to_the_search():
    """One complete trial alone is confirmed twice; of the four trials left two search, and what they bring is raced."""
    study, config = study_of([0.4, *[None] * 13]), config_of()
    run_to_the_end(study, config, lambda x, seed: 0.1 if seed < 1_000_000 else 0.1 + x / 1000 if x else 0.4)
    trials = study.trials
    assert len(trials) == 20
    assert [t.user_attrs.get(CONFIRMS) for t in trials[14:18]] == [0, 0, None, None]
    assert {t.user_attrs[CONFIRMS] for t in trials[18:]} <= {16, 17}
    assert all({16, 17} & set(t.user_attrs[AMONG]) for t in trials[18:]), "the second race is another one"
    best = ranked_trials(trials, minimises=True)[0]
    assert best.user_attrs[CONFIRMS] in (16, 17)
    assert give_back(study, config) == 0, "nothing is left"


def test_a_race_that_needs_all_gives_nothing_back():
    study, config = study_of([0.5, 0.3, 0.4, 0.2, 0.9, *[None] * 9]), config_of()
    run_to_the_end(study, config, lambda x, seed: 0.3 + 0.05 * (seed // 1_000_000 == 1))
    assert [CONFIRMS in t.user_attrs for t in study.trials] == [False] * 14 + [True] * 6


@pytest.mark.parametrize(("places", "first", "then"), [(6, [3, 3], 0), (None, [3, 3], 0), (4, [3], 1), (2, [2], 0)])
def test_all_seeds_are_one_round_only_where_all_have_places(places, first, then):
    """Else the second seed is for those that the first one leaves in the race."""
    study, wanted = study_of([0.5, 0.3, 0.4, 0.2, 0.9]), config_of().confirm
    racing = enqueue_round(study, Engine(SPACE, None), wanted, at_once=True, places=places)
    waiting = [t for t in study.trials if t.state is TrialState.WAITING]
    seeds = [t.user_attrs["seed_number"] // 1_000_000 for t in waiting]
    assert [seeds.count(seed) for seed in sorted(set(seeds))] == first
    assert len(racing) == first[0]
    for _ in waiting:
        train(study, 0.3)
    again = enqueue_round(study, Engine(SPACE, None), wanted, at_once=True, places=then)
    assert len(again or []) == then


@pytest.mark.parametrize("trials", [20, 26, 40])
def test_no_budget_is_exceeded_and_a_larger_one_is_used_as_before(trials):
    study = study_of([0.4, *[None] * 13])
    run_to_the_end(study, config_of(20), lambda x, seed: abs(x - 0.4) + (seed % 11) / 100)
    before = len(study.trials)
    assert before in (19, 20)
    config = config_of(trials)
    assert kept(study, study.trials, config) == min(6, trials - before)
    run_to_the_end(study, config, lambda x, seed: abs(x - 0.4) + (seed % 11) / 100)
    assert trials - 1 <= len(study.trials) <= trials
    if trials == 40:
        assert not any(CONFIRMS in t.user_attrs for t in study.trials[before:34])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_while_the_search_goes_on_a_lucky_leader_counts_with_its_mean(sign):
    study = study_of([sign * v for v in (0.2, 0.35, 0.5)], "minimize" if sign > 0 else "maximize")

    def train_again(value, **marks):
        study.enqueue_trial({"x": 0.0}, user_attrs={CONFIRMS: 0, WITHIN: 20, **marks})
        train(study, sign * value)

    train_again(0.6)
    ranked = [t.number for t in ranked_trials(study.trials, minimises=sign > 0)]
    assert ranked[0] == 1, "0.35 is better than 0.4, the mean of 0.2 and 0.6"
    assert sorted(ranked) == [0, 1, 2, 3]
    train_again(0.1)
    assert ranked_trials(study.trials, minimises=sign > 0)[0].number == 4, "0.3, by the best fresh training"
    train_again(0.9, **{AMONG: [0]})
    assert ranked_trials(study.trials, minimises=sign > 0)[0].number == 4, "after a race its best mean leads"


class Lucky(toy.Toy):
    """The first trial's training is far better than its values are, whatever the others do."""

    def loss(self) -> float:
        return super().loss() - 5.0 * (Path(self.trainer.default_root_dir).name.strip("0") == "")


def test_a_study_whose_first_training_was_lucky_finds_better_values(studies, fork):
    options = {"model": Lucky, "trials": 20, "max_epochs": 4, "prune": True}
    reference = studies.run("reference", **options)
    trials = studies.trials("reference")
    repeats = [t.number for t in trials if CONFIRMS in t.user_attrs and AMONG not in t.user_attrs]
    assert repeats, "it stopped all others"
    assert 5 <= repeats[0] < 14
    assert trials[repeats[0]].user_attrs[CONFIRMS] == 0
    assert len(trials) == 20
    assert reference.confirmed["left"] == 0
    assert trials[reference.trial].user_attrs[CONFIRMS] != 0
    child = fork(lambda: studies.run(faults=f"{repeats[0]}:sigkill", **options))
    assert child.wait() < 0
    assert studies.run(**options).confirmed == reference.confirmed
    assert [(t.state, t.value, t.params) for t in studies.trials()] == [(t.state, t.value, t.params) for t in trials]
