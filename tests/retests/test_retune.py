"""Re-tests and refreshing studies on a parabola whose optimum can be moved."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import optuna
import pytest
import torch
import toy_project
from optuna.trial import TrialState
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.ledger import records
from lightning_hp.ledger.dates import verdict
from lightning_hp.project.build import PythonBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.retests.neighbours import neighbours
from lightning_hp.retests.race import BehindPruner
from lightning_hp.retests.refreshing import copy_retest_trials
from lightning_hp.retests.retest import clearly_better
from lightning_hp.retests.retune import retune_study
from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.description import describe
from lightning_hp.study.storage import StudyError, find_study
from lightning_hp.study.trials import best_trials
from lightning_hp.tuning.config import Budget, Confirmation, TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.listener import SilentListener
from lightning_hp.tuning.objective import trial_seed
from lightning_hp.tuning.runner import StudyRunner

SPACE = SearchSpace.from_dict({k: toy_project.SPACE[k] for k in ("learning_rate", "momentum")})


class Moved(toy_project.Toy):
    """The same model on data whose best learning rate is ten times higher."""

    def loss(self) -> float:
        return (math.log10(self.learning_rate) + 1) ** 2 + (self.momentum - 0.8) ** 2 + 0.5 + self.noise


class MovedData(toy_project.ToyData):
    """Rows of ones instead of zeros; the toys do not look at them, so what was best still is."""

    def _loader(self):
        return DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = _loader


class DataOfATrainer(toy_project.ToyData):
    """A loader that is made with what the Trainer says."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(8, 3)), batch_size=self.batch_size // self.trainer.world_size)


class DataOfAFit(toy_project.ToyData):
    """A loader that is made in a fit alone."""

    def train_dataloader(self):
        if not self.trainer.training:
            raise RuntimeError("no fit")
        return super().train_dataloader()


def builder(module=toy_project.Toy, data=toy_project.ToyData):
    return PythonBuilder(module, data, {"accelerator": "cpu", "max_epochs": 2})


def toy_config(tmp_path, **options):
    plan, budget = SearchPlan(space=SPACE, n_trials=12), Budget(TrainingLength(2))
    return TuneConfig("toy", None, plan, budget=budget, folder=tmp_path / "toy", prune=False, audit=False, **options)


@pytest.fixture
def tuned(tmp_path):
    config = toy_config(tmp_path)
    run(config, builder())
    return config


class Messages(SilentListener):
    def __init__(self):
        self.texts = []

    def message(self, text):
        self.texts.append(text)


def events(config):
    return [r["event"] for r in records.read(config.folder / "ledger.jsonl").records]


def test_an_unmoved_best_is_confirmed_with_its_old_value_and_dates_the_ledger_forward(tuned):
    later = datetime.now(UTC) + timedelta(days=40)
    before = records.read(tuned.folder / "ledger.jsonl")
    assert verdict(before.of("toy"), later).status == "due"

    done = retune_study(str(tuned.folder), tuned, builder(), k=3, now=later)

    assert done.test is not None
    assert done.test.confirmed
    assert done.test.now == pytest.approx(done.test.was, abs=1e-12)  # the seed of the tuning, so the very same loss
    assert done.result is None
    assert events(tuned) == ["tuned", "retested"]
    assert verdict(records.read(tuned.folder / "ledger.jsonl").of("toy"), later).status == "fresh"


def test_a_best_that_was_confirmed_on_fresh_seeds_gives_its_old_value_again(tmp_path):
    config = toy_config(tmp_path, confirm=Confirmation(candidates=2, seeds=1))
    result = run(config, builder())
    assert "confirms" in result.study.trials[result.trial].user_attrs
    done = retune_study(str(config.folder), config, builder(), k=1)
    assert done.test is not None
    assert done.test.now == pytest.approx(result.value, abs=1e-12)


def test_the_winner_of_a_refresh_is_confirmed_unless_turned_off(tuned):
    done = retune_study(str(tuned.folder), tuned, builder(data=MovedData), k=1, trials=9)
    assert done.result is not None
    repeats = [t for t in done.result.study.trials if "confirms" in t.user_attrs]
    assert 2 <= len(repeats) <= 3
    assert len(done.result.study.trials) <= len(done.test.study.trials) + 9
    assert done.result.confirmed is not None
    again = replace(tuned, confirm=None)
    plain = retune_study(str(tuned.folder), again, builder(data=MovedData), k=1, trials=9, test=False).result
    assert plain.confirmed is None


def test_what_is_not_known_of_the_data_is_not_called_unmoved(tmp_path):
    config = TuneConfig(
        "toy", None, SearchPlan(space=SPACE, n_trials=2), budget=Budget(TrainingLength(1)), folder=tmp_path / "toy"
    )
    run(config, builder(data=DataOfAFit))
    told = []
    for data in (DataOfAFit, toy_project.ToyData, DataOfATrainer):
        messages = Messages()
        retune_study(str(config.folder), config, builder(data=data), k=1, search=False, listener=messages)
        told.append([text for text in messages.texts if "training data" in text])
    assert told[0] == ["no fingerprint of the training data: RuntimeError: no fit"]
    assert told[1] == ["training data: not compared, there is no earlier fingerprint of them"]
    assert told[2] == ["training data: not moved"], "since the re-test before"


def test_loaders_that_ask_their_trainer_are_compared(tmp_path):
    config = TuneConfig(
        "toy", None, SearchPlan(space=SPACE, n_trials=2), budget=Budget(TrainingLength(1)), folder=tmp_path / "toy"
    )
    run(config, builder(data=DataOfATrainer))
    messages = Messages()
    retune_study(str(config.folder), config, builder(data=DataOfATrainer), k=1, search=False, listener=messages)
    assert "training data: not moved" in messages.texts


def test_a_moved_optimum_beats_the_recorded_best_and_the_new_study_is_linked(tuned):
    messages = Messages()
    done = retune_study(str(tuned.folder), tuned, builder(Moved), k=6, trials=8, listener=messages)

    assert done.test is not None
    assert not done.test.confirmed
    assert done.result is not None
    assert done.result.value <= done.test.best_value + 2e-3  # begins with the challenger; a seed's part is up to 1e-3
    assert events(tuned) == ["tuned", "retested", "retuned"]
    last = records.read(tuned.folder / "ledger.jsonl").records[-1]
    assert (last["name"], last["previous_study"], last["study"]) == ("toy", str(tuned.folder), str(done.result.folder))
    description = describe(done.result.study)
    assert description.previous == str(tuned.folder)
    assert description.plan.plan == "retune"
    assert len(description.plan.older) == 12
    assert len(done.result.study.trials) == len(done.test.study.trials) + 8
    assert any("beaten" in text for text in messages.texts)

    again = retune_study(str(done.result.folder), tuned, builder(Moved), k=2)  # named by its newest study
    assert again.test is not None
    assert again.test.was == pytest.approx(done.result.value)


def test_a_refreshing_study_that_was_stopped_goes_on_without_a_second_retest(tuned):
    class Stopped(Exception):
        pass

    class Stop(SilentListener):
        def trial_finished(self, trial):
            if trial.number == 3:
                raise Stopped("by hand")

    with pytest.raises(Stopped, match="by hand"):
        retune_study(str(tuned.folder), tuned, builder(Moved), trials=6, test=False, listener=Stop())
    done = retune_study(str(tuned.folder), tuned, builder(Moved))
    assert done.test is None
    assert done.result is not None
    assert [t.number for t in done.result.study.trials] == list(range(6))
    assert all(t.state is TrialState.COMPLETE for t in done.result.study.trials)
    assert events(tuned) == ["tuned", "retuned"]


def test_moved_data_are_searched_although_nothing_is_ahead_and_the_retest_is_the_beginning(tuned):
    done = retune_study(str(tuned.folder), tuned, builder(data=MovedData), k=2, trials=6)

    assert done.drift
    assert done.test is not None
    assert done.test.confirmed
    assert done.result is not None
    known = records.read(tuned.folder / "ledger.jsonl").records
    assert [(r["event"], r.get("outcome")) for r in known] == [
        ("tuned", None),
        ("retested", "undecided"),
        ("retuned", None),
    ]
    old, new = done.test.study.trials, done.result.study.trials
    assert len(new) == len(old) + 6
    for before, brought in zip(old, new, strict=False):
        assert brought.params == before.params
        assert brought.intermediate_values == before.intermediate_values
        assert (brought.state, brought.user_attrs["seed"]) == (before.state, before.user_attrs["seed"])
        assert brought.user_attrs["retest"] == before.number
    assert "retest" not in new[len(old)].user_attrs
    assert done.result.checkpoint.is_file()
    assert done.result.value == min(t.value for t in new if t.state is TrialState.COMPLETE)


def test_the_seed_of_a_brought_trial_is_the_one_it_was_trained_with(tuned):
    other = replace(tuned, search=replace(tuned.search, seed=5))
    done = retune_study(str(tuned.folder), other, builder(data=MovedData), k=1, trials=1)
    assert done.result is not None
    runner = StudyRunner(replace(other, **_as_described(done.result)), builder())
    first = done.result.study.trials[0]
    assert first.user_attrs["retest"] == 0
    best = best_trials(find_study(str(tuned.folder))[0], 1)[0]
    assert runner.seed_of(first) == best.user_attrs["seed"] == trial_seed(0, best.number)


def _as_described(result):
    description = describe(result.study)
    return {
        "name": result.study.study_name,
        "folder": result.folder,
        "search": description.plan,
        "previous": description.previous,
        "accept_changes": True,  # the builder of these tests is another one
    }


def test_a_search_that_was_stopped_goes_on_after_the_trials_of_the_retest(tuned):
    class Stopped(Exception):
        pass

    class Stop(SilentListener):
        def trial_finished(self, trial):
            if trial.number == 5 and "retest" not in trial.user_attrs:
                raise Stopped("by hand")

    with pytest.raises(Stopped, match="by hand"):
        retune_study(str(tuned.folder), tuned, builder(data=MovedData), k=2, trials=6, listener=Stop())
    done = retune_study(str(tuned.folder), tuned, builder(data=MovedData))
    assert done.test is None
    assert done.result is not None
    marks = [t.user_attrs.get("retest") for t in done.result.study.trials]
    brought = sum(mark is not None for mark in marks)
    assert marks == [*range(brought), *[None] * 6]
    assert 0 < brought <= 4


def test_bringing_that_was_stopped_halfway_goes_on(tuned, monkeypatch):
    done = retune_study(str(tuned.folder), tuned, builder(), k=3, search=False)
    assert done.test is not None
    runner = StudyRunner(replace(tuned, name="next", folder=tuned.folder.parent / "next"), builder())
    add, added = runner.study.add_trial, []

    def break_at_the_third(trial):
        if len(added) == 2:
            raise OSError("disk full")
        added.append(trial)
        add(trial)

    monkeypatch.setattr(runner.study, "add_trial", break_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        copy_retest_trials(runner, done.test.study, done.test.folder)
    monkeypatch.undo()
    for _ in range(2):  # the second time there is nothing left to do
        copy_retest_trials(runner, done.test.study, done.test.folder)
    assert [t.user_attrs["retest"] for t in runner.study.trials] == [t.number for t in done.test.study.trials]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_what_is_behind_the_first_trial_at_a_look_is_stopped(direction):
    sign = 1 if direction == "minimize" else -1
    study = optuna.create_study(
        direction=direction, pruner=BehindPruner(12, dict.fromkeys(range(1, 5), 0))
    )  # looks at 3, 6 and 9
    stopped = []
    first = [5, 4, 3, 3, 3, 2, 2, 2, 1, 1]
    for curve in (first, [9, 9, 2, 9, 9, 1, 9, 9, 1, 9], [1, 1, 3.1], [1, 1, 3, 1, 1, 2.1], [*first[:8], 1.5, 0]):
        trial = study.ask()
        steps = []
        for step, value in enumerate(curve, start=1):
            trial.report(sign * value, step)
            if trial.should_prune():
                steps.append(step)
        stopped.append(steps)
        study.tell(trial, sign * curve[-1])
    assert stopped == [[], [], [3], [6], [9]]


def test_only_a_retest_runs_no_study(tuned):
    done = retune_study(str(tuned.folder), tuned, builder(Moved), k=6, search=False)
    assert done.result is None
    assert events(tuned)[-1] == "retested"
    assert not (tuned.folder.parent / "toy-r2").exists()
    (kept,) = (tuned.folder / "retests").glob("*/done")
    assert json.loads(kept.read_text())["outcome"] == "beaten"


def test_other_parameters_are_refused_with_what_differs(tuned):
    space = SearchSpace.from_dict({"learning_rate": toy_project.SPACE["learning_rate"]})
    other = replace(tuned, search=replace(tuned.search, space=space))
    with pytest.raises(ConfigError, match=r"`space` must have the parameters of the study.*momentum is gone"):
        retune_study(str(tuned.folder), other, builder())


def test_a_study_without_a_record_is_refused(tuned):
    (tuned.folder / "ledger.jsonl").unlink()
    with pytest.raises(StudyError, match="has not been tuned to its end"):
        retune_study(str(tuned.folder), tuned, builder())


def test_neighbours_are_the_moves_that_are_expected_to_be_best():
    best = SPACE.defaults()

    def expected(units):
        return units[:, 0]  # the lower the learning rate, the better

    found = SPACE.unit(neighbours(SPACE, best, 6, seed=3, expected=expected))[:, 0]
    centre = SPACE.unit([best])[0, 0]
    # the lowest of 32 normal draws lies 2.07 standard deviations below their mean
    assert np.mean((centre - found)[0::2]) == pytest.approx(2.07 * 0.1, rel=0.3)
    assert np.mean((centre - found)[1::2]) == pytest.approx(2.07 * 0.25, rel=0.3)


def test_neighbours_differ_and_stay_in_range():
    best = SPACE.stored({"learning_rate": 1.0, "momentum": 0.99})  # both at an end
    found = neighbours(SPACE, best, 20, seed=3)
    units = SPACE.unit(found)
    assert len({tuple(point.values()) for point in found}) == 20
    assert np.all((units >= 0) & (units <= 1))
    away = np.abs(units - SPACE.unit([best])[0])
    assert 0.03 < np.median(away[0::2]) < 0.12  # the median of |N(0, s)| is 0.67 s: 0.067 for the near ones
    assert 0.10 < np.median(away[1::2]) < 0.27  # 0.17 for the far ones


@pytest.mark.parametrize(
    ("challenger", "recorded", "sign", "better"),
    [
        ([0.9, 0.9, 0.9], [1.0, 1.0, 1.0], 1.0, True),
        ([0.9, 0.9, 1.1], [1.0, 1.0, 1.0], 1.0, False),  # loses on a seed
        ([0.99, 0.5, 0.99], [1.0, 1.0, 1.0], 1.0, False),  # one lucky seed: scatter larger than the mean
        ([0.9, 0.9, 0.9], [1.0, 1.0, 1.0], -1.0, False),
        ([1.1, 1.2, 1.1], [1.0, 1.0, 1.0], -1.0, True),
        ([0.5], [1.0], 1.0, False),  # one seed proves nothing
        ([0.5, math.inf, 0.5], [1.0, 1.0, 1.0], 1.0, False),
    ],
)
def test_better_means_on_every_seed_and_beyond_their_scatter(challenger, recorded, sign, better):
    assert clearly_better(challenger, recorded, sign) is better


def test_a_retest_that_failed_is_made_anew_after_the_repair(tuned):
    class Broken(toy_project.Toy):
        def training_step(self, batch):
            raise RuntimeError("a bad file")

    with pytest.raises(StudyError, match="a bad file"):
        retune_study(str(tuned.folder), tuned, builder(Broken), k=1)
    done = retune_study(str(tuned.folder), tuned, builder(), k=1)
    assert done.test is not None
    assert done.test.confirmed
    assert [p.name for p in sorted((tuned.folder / "retests").iterdir())] == ["toy-0", "toy-0.old-1"]
