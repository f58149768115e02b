"""The race of the best configurations on fresh seeds, in whole studies and round by round."""

from types import SimpleNamespace

import optuna
import pytest
import toy_project as toy
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.search.engine import Engine
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.confirmed import CONFIRMS
from lightning_hp.study.storage import quiet_optuna
from lightning_hp.tuning.config import Confirmation, TuneConfig
from lightning_hp.tuning.confirmation import enqueue_round, reserved


def study_of(values, direction="minimize"):
    with quiet_optuna():
        study = optuna.create_study(direction=direction)
    for i, value in enumerate(values):
        study.add_trial(
            create_trial(value=value, params={"x": i / 10}, distributions={"x": FloatDistribution(0.0, 1.0)})
        )
    return study


SPACE = SearchSpace.from_dict({"x": {"low": 0.0, "high": 1.0}})


def run_round(study, loss, wanted):
    """Ask for a round, and give every trial of it the loss that ``loss(x, round)`` says."""
    numbers = enqueue_round(study, Engine(SPACE, None), wanted)
    for _ in numbers:
        trial = study.ask()
        x = trial.suggest_float("x", 0.0, 1.0)
        value = loss(x, trial.user_attrs["seed_number"] // 1_000_000)
        if value is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, value)
    return numbers


def test_what_may_be_the_best_is_trained_on_seeds_of_its_own():
    study = study_of([0.5, 0.3, 0.4, 0.2, 0.9])
    wanted = Confirmation(candidates=3, seeds=2)
    racing = run_round(study, lambda x, _: x, wanted)
    assert len(set(racing)) == 3
    assert 3 in racing, "the best value is always in the race"
    assert 4 not in racing, "the worst is not"
    repeats = study.trials[5:]
    assert [t.user_attrs[CONFIRMS] for t in repeats] == racing
    assert [t.params["x"] for t in repeats] == pytest.approx([root / 10 for root in racing])
    assert len({t.user_attrs["seed_number"] for t in repeats}) == 3


def test_a_race_that_is_over_stays_over_and_nobody_gets_more_than_the_wanted_seeds():
    study = study_of([0.10, 0.11, 0.101])
    wanted = Confirmation(candidates=3, seeds=3)
    rounds = 0
    while run_round(study, lambda x, _: 0.1 + x / 100, wanted):
        rounds += 1
    counts = [sum(t.user_attrs.get(CONFIRMS) == root for t in study.trials) for root in range(3)]
    assert max(counts) == 3
    assert rounds == 3
    assert enqueue_round(study, Engine(SPACE, None), wanted) == []


def test_noise_far_below_the_gap_stops_the_loser_after_one_seed():
    study = study_of([0.100, 0.150, 0.101, 0.9])
    wanted = Confirmation(candidates=3, seeds=2)
    run_round(study, lambda x, _: {0.0: 0.1001, 0.1: 0.1501, 0.2: 0.1011}[round(x, 1)], wanted)
    assert 1 not in run_round(study, lambda x, _: 0.1, wanted)


def test_a_failed_training_takes_its_configuration_out():
    study = study_of([0.10, 0.13, 0.11, 0.12])
    wanted = Confirmation(candidates=2, seeds=2)
    racing = run_round(study, lambda x, _: None if x < 0.05 else 0.12, wanted)
    assert len(racing) == 2
    assert 0 in racing
    other = next(root for root in racing if root)
    assert run_round(study, lambda x, _: 0.12, wanted) == [other]
    assert run_round(study, lambda x, _: 0.12, wanted) == []


def test_one_candidate_is_trained_again_for_its_scatter():
    study = study_of([0.1])
    wanted = Confirmation(candidates=3, seeds=2)
    assert [run_round(study, lambda x, _: 0.11, wanted) for _ in range(3)] == [[0], [0], []]
    assert enqueue_round(study_of([]), Engine(SPACE, None), wanted) == []


def test_a_study_leaves_the_trials_free_and_the_winner_is_the_best_mean(studies):
    class Noisy(toy.Toy):
        """The seed's part is as large as the differences between good configurations."""

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.noise *= 300

    result = studies.run(model=Noisy, trials=24, max_epochs=1)
    trials = studies.trials()
    repeats = [t for t in trials if CONFIRMS in t.user_attrs]
    assert len(trials) <= 24
    assert len(trials) >= 18 + 3
    assert all(CONFIRMS not in t.user_attrs for t in trials[:18])
    by_root = {}
    for t in repeats:
        by_root.setdefault(t.user_attrs[CONFIRMS], [trials[t.user_attrs[CONFIRMS]].value]).append(t.value)
    means = {root: sum(values) / len(values) for root, values in by_root.items()}
    root = min(means, key=means.get)
    assert result.confirmed["mean"] == pytest.approx(means[root])
    assert result.value == min(by_root[root][1:])
    assert result.checkpoint.is_file()
    assert set(result.validation) == {"val_loss"}
    assert f"on {len(by_root[root])} seeds" in result.confirmed["text"]
    assert result.confirmed["left"] == 24 - len(trials)
    assert len({t.user_attrs["seed"] for t in trials}) == len(trials)
    assert len(studies.run(model=Noisy, trials=24, max_epochs=1).study.trials) == len(trials), "nothing more to do"


def test_a_race_that_was_killed_goes_on(studies, fork):
    reference = studies.run("reference", trials=22, max_epochs=1)
    child = fork(lambda: studies.run(trials=22, max_epochs=1, faults="17:sigkill"))
    assert child.wait() < 0
    result = studies.run(trials=22, max_epochs=1)
    assert result.confirmed == reference.confirmed
    assert [t.value for t in studies.trials()] == [t.value for t in studies.trials("reference")]


@pytest.mark.parametrize(
    ("trials", "confirm", "kept"),
    [
        (40, True, 6),
        (40, False, 0),
        (20, True, 6),
        (19, True, 0),
        (30, {"candidates": 2, "seeds": 4}, 8),
        (10, {"candidates": 3, "seeds": 1}, 3),
    ],
)
def test_what_the_search_leaves_free(trials, confirm, kept):
    space = {"x": {"low": 0.0, "high": 1.0}}
    assert reserved(TuneConfig.from_arguments(space, {"trials": trials}, {"name": "s", "confirm": confirm})) == kept


@pytest.mark.parametrize(
    ("confirm", "message"),
    [
        ({"candidates": 1}, r"`confirm\.candidates` must be a whole number of at least 2, got 1"),
        ({"seed": 1}, r"`confirm\.seed` is not a known key"),
        (3, "`confirm` must be a mapping with the keys candidates, seeds, got 3"),
    ],
)
def test_confirm_that_is_refused(confirm, message):
    with pytest.raises(ConfigError, match=message):
        TuneConfig.from_arguments({"x": {"low": 0.0, "high": 1.0}}, {}, {"name": "s", "confirm": confirm})


def test_a_study_ends_when_nothing_is_left_to_gain(studies, monkeypatch):
    """The toy's loss depends on two values, and noise is small: 60 trials are far more than it takes."""
    read = TuneConfig.from_arguments.__func__

    def until_converged(cls, space, budget, given, project=None):
        return read(cls, space, {**budget, "until": "converged"}, given, project)

    monkeypatch.setattr(TuneConfig, "from_arguments", classmethod(until_converged))
    result = studies.run(trials=60, max_epochs=1, confirm=False)
    trials = studies.trials()
    assert 15 <= len(trials) < 60
    assert "are expected to gain" in result.study.user_attrs["converged"]
    assert len(studies.run(trials=60, max_epochs=1, confirm=False).study.trials) == len(trials), "it stays ended"


def test_until_is_converged_or_nothing():
    with pytest.raises(ConfigError, match=r"`until` must be one of spent, converged, got 'done'"):
        TuneConfig.from_arguments({"x": {"low": 0.0, "high": 1.0}}, {"until": "done"}, {"name": "s"})


def test_the_winner_has_its_checkpoint_whatever_was_kept_while_it_was_searched(studies, monkeypatch):
    """The model may prefer a configuration whose first training is not among those that keep their checkpoints."""
    import lightning_hp.tuning.confirmation as module

    def worst_first(study, engine, k):
        complete = [t for t in study.trials if t.state is TrialState.COMPLETE]
        return [SimpleNamespace(trial=t) for t in sorted(complete, key=lambda t: -t.value)[:k]]

    monkeypatch.setattr(module, "winner_candidates", worst_first)
    result = studies.run(trials=20, max_epochs=1, keep_checkpoints=1)
    root = studies.trials()[result.trial].user_attrs[CONFIRMS]
    assert not studies.paths().trial(root).best_checkpoint.exists()
    assert result.checkpoint.is_file()
    assert set(result.validation) == {"val_loss"}
