"""Re-tests whose trials are trained together: they are those that a Trainer each would have made."""

import os
import signal
from dataclasses import replace

import pytest
from cohort_studies import SPACE, TRAINER, Digits, study
from optuna.trial import TrialState

from lightning_hp.project.build import PythonBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.retests import retest
from lightning_hp.retests.retune import retune_study
from lightning_hp.search.plan import SearchPlan
from lightning_hp.training import BatchNormClassifier
from lightning_hp.tuning import choose_engine, cohorts
from lightning_hp.tuning.caviar import Caviar
from lightning_hp.tuning.config import Budget, TuneConfig
from lightning_hp.tuning.listener import SilentListener

PLAN = SearchPlan.of(SPACE, paths=False, n_trials=8, seed=0, plan="default")
GOOD = {"learning_rate": 0.1, "one_minus_momentum": 0.1, "hidden_units": 8}
POOR = {"learning_rate": 0.001, "one_minus_momentum": 0.5, "hidden_units": 8}


class Messages(SilentListener):
    def __init__(self, stop_after=None):
        self.texts, self.stop_after = [], stop_after

    def message(self, text):
        self.texts.append(text)

    def trial_finished(self, trial):
        if trial.number == self.stop_after:
            raise KeyboardInterrupt


class Prints(BatchNormClassifier):
    """Needs a Trainer."""

    def on_train_epoch_end(self):
        assert self.trainer.current_epoch >= 0


def tried(folder, engine, best, module=BatchNormClassifier, listener=None, epochs=8):
    """A re-test of ``best`` with three neighbours."""
    config = TuneConfig(
        "retest", None, PLAN, budget=Budget(TrainingLength(epochs)), folder=folder, caviar=Caviar(engine)
    )
    return retest.retest(config, PythonBuilder(module, Digits, TRAINER), best, 1.0, 5, 3, listener=listener)


@pytest.fixture
def same_structure(monkeypatch):
    """Neighbours are those of a stack, whatever the engine."""
    neighbours = retest.neighbours
    monkeypatch.setattr(retest, "neighbours", lambda *arguments: neighbours(*arguments[:5], True))


@pytest.mark.parametrize("best", [GOOD, POOR], ids=["stays", "is beaten"])
def test_a_retest_in_a_stack_is_the_one_after_another(tmp_path, same_structure, best):
    together, alone = (tried(tmp_path / engine, engine, best) for engine in ("stacked", "in_process"))
    trials, single = (done.study.get_trials(deepcopy=False) for done in (together, alone))
    assert not any("cohort" in t.user_attrs for t in single)
    assert {t.user_attrs["cohort"] for t in trials[:5]} == {"0"}, "the heat is one stack"
    assert [t.state for t in trials[: len(single)]] == [t.state for t in single]
    assert any(t.state is TrialState.PRUNED for t in single) is (best is GOOD), "else no verdict is compared"
    for ours, theirs in zip(trials, single, strict=False):
        assert ours.params == theirs.params
        assert ours.value == pytest.approx(theirs.value, rel=1e-4)
        assert ours.intermediate_values == pytest.approx(theirs.intermediate_values, rel=1e-4)
        assert [ours.user_attrs[key] for key in ("seed", "epochs")] == [
            theirs.user_attrs[k] for k in ("seed", "epochs")
        ]
    assert (together.confirmed, together.best) == (alone.confirmed, alone.best)
    assert together.confirmed is (best is GOOD)
    assert together.now == pytest.approx(alone.now, rel=1e-4)
    assert together.best_value == pytest.approx(alone.best_value, rel=1e-4)


def test_all_further_seeds_are_one_stack(tmp_path):
    done = tried(tmp_path / "retest", "stacked", POOR)
    further = done.study.get_trials(deepcopy=False)[5:]
    assert len(further) == 4, "two settings, two more seeds"
    assert {t.user_attrs["cohort"] for t in further} == {"5"}
    assert len({t.user_attrs["seed"] for t in further}) == 2


def test_a_neighbour_has_the_structure_of_the_best_in_a_stack_alone():
    space = PLAN.space
    moved, held = (retest.neighbours(space, GOOD, 6, 0, None, same) for same in (False, True))
    assert {point["hidden_units"] for point in held} == {8}
    assert {point["hidden_units"] for point in moved} != {8}
    assert len({point["learning_rate"] for point in held}) == 6


def test_what_cannot_be_stacked_is_retested_one_after_another(tmp_path):
    listener = Messages()
    done = tried(tmp_path / "retest", "stacked", POOR, Prints, listener, epochs=4)
    (line,) = listener.texts  # once, not for every heat
    assert line.startswith("trials are trained one after another: Prints overrides on_train_epoch_")
    assert not done.confirmed
    assert not any("cohort" in t.user_attrs for t in done.study.get_trials(deepcopy=False))


def test_auto_is_decided_once_and_a_stopped_retest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(choose_engine, "step_seconds", lambda stack, kept: (1e-4, 5e-4))
    listener = Messages(stop_after=2)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        tried(tmp_path / "retest", "auto", GOOD, listener=listener)
    assert [text.split(":")[0] for text in listener.texts] == ["engine stacked"]
    whole = tried(tmp_path / "whole", "stacked", GOOD)
    monkeypatch.setattr(choose_engine, "_measured", None)
    done = tried(tmp_path / "retest", "auto", GOOD)
    assert [(t.params, t.value) for t in done.study.trials] == [(t.params, t.value) for t in whole.study.trials]


def test_a_killed_heat_is_one_stack_again(tmp_path, fork, monkeypatch):
    def killed(members, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        monkeypatch.setattr(cohorts, "train_stacked", killed)
        tried(tmp_path / "retest", "stacked", GOOD)

    assert fork(work).wait() == -signal.SIGKILL
    done = tried(tmp_path / "retest", "stacked", GOOD)
    whole = tried(tmp_path / "whole", "stacked", GOOD)
    assert {t.user_attrs["cohort"] for t in done.study.trials[:5]} == {"0"}
    assert [(t.params, t.value) for t in done.study.trials] == [(t.params, t.value) for t in whole.study.trials]


def test_a_refreshing_study_follows_the_engine(studies):
    study(studies, trials=8)
    settings = {"name": "digits", "folder": str(studies.folder / "digits"), "caviar": {"engine": "stacked"}}
    config = TuneConfig.from_arguments(SPACE, {"trials": 8}, settings)
    builder = PythonBuilder(BatchNormClassifier, Digits, TRAINER)
    config = replace(config, confirm=None)
    done = retune_study(str(studies.folder / "digits"), config, builder, k=2, trials=4, test=False)
    assert done.result is not None
    trained_with = [t.user_attrs["cohort"] for t in done.result.study.get_trials(deepcopy=False)]
    assert len(trained_with) == 4
    assert len(set(trained_with)) < 4
