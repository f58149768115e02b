"""How a training ended, and what the study makes of it."""

import math

import pytest
import torch
from optuna.trial import TrialState
from toy_project import SPACE

from lightning_hp.study.storage import StudyError
from lightning_hp.tuning.objective import is_disk_full, is_out_of_memory
from lightning_hp.tuning.runner import StudyRunner

COMPLETE, FAIL, RUNNING = TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING


def finite(trials):
    """All finite values that trials have ever reported."""
    return [v for t in trials for v in t.intermediate_values.values() if math.isfinite(v)]


# --- NaN ---


def test_nan_in_a_later_trial_is_the_worst_finite_value_so_far(studies):
    result = studies.run(faults="3:nan")
    trials = studies.trials()
    assert [t.state for t in trials] == [COMPLETE] * 6
    assert trials[3].user_attrs["diverged"] is True
    assert trials[3].value == max(finite(trials[:3]))
    assert [t.number for t in trials if "diverged" in t.user_attrs] == [3]
    assert result.trial != 3


def test_nan_after_a_good_start_is_never_the_best(studies):
    """In mode max the worst is the least, so a sign error would show."""
    result = studies.run(faults="0:nan_later 1:nan_later", mode="max", trials=4)
    trials = studies.trials()
    assert [t.state for t in trials] == [COMPLETE] * 4
    assert trials[0].value == min(finite(trials[:1]))
    assert trials[1].value == min(finite(trials[:2]))
    assert result.trial in (2, 3)
    assert result.value == max(trials[2].value, trials[3].value)


def test_a_diverged_trial_is_not_the_best_even_where_its_value_is(studies):
    """At the optimum until it diverges: the worst finite value so far is its own, and better than all that follow."""
    space = {**SPACE, "learning_rate": {**SPACE["learning_rate"], "default": 0.01}}
    result = studies.run(faults="0:nan_later", trials=3, space=space)
    values = [t.value for t in studies.trials()]
    assert values[0] == min(values)
    assert result.trial != 0
    assert result.value == min(values[1:])


def test_nan_in_the_first_trial_before_anything_finite(studies):
    result = studies.run(faults="0:nan", trials=3)
    first = studies.trials()[0]
    assert first.state is FAIL, "there is no worst finite value yet"
    assert first.user_attrs["diverged"] is True
    assert "NaN or infinite" in first.user_attrs["failure"]
    assert result.trial in (1, 2)


def test_a_study_of_nan_only_says_so(studies):
    with pytest.raises(
        StudyError, match="3 trials in a row failed with the same cause: NaN or infinite metric"
    ) as error:
        studies.run(faults="all:nan")
    assert "\n" not in str(error.value)
    assert len(studies.trials()) == 3


# --- exceptions ---


def test_an_exception_fails_its_trial_and_leaves_its_traceback(studies):
    result = studies.run(faults="1:crash", trials=4)
    trials = studies.trials()
    assert [t.state for t in trials] == [COMPLETE, FAIL, COMPLETE, COMPLETE]
    assert trials[1].user_attrs["failure"] == "RuntimeError: the toy broke"
    kept = trials[1].user_attrs["traceback"]
    whole = studies.paths().trial(1).error.read_text()
    assert whole.endswith(kept)
    assert "in training_step" in whole
    assert not studies.paths().trial(0).error.exists()
    assert result.trial != 1


def test_three_equal_failures_in_a_row_stop_the_study(studies):
    with pytest.raises(
        StudyError, match="3 trials in a row failed with the same cause: RuntimeError: the toy broke"
    ) as e:
        studies.run(faults="2:crash 3:crash 4:crash", trials=9)
    assert "\n" not in str(e.value)
    assert len(studies.trials()) == 5


def test_trials_that_stopped_a_study_cost_nothing_once_the_cause_is_mended(studies, capsys):
    """The slip takes trials 0 to 2; afterwards the budget is whole and the defaults run, with their own seed."""
    with pytest.raises(StudyError, match="3 trials in a row"):
        studies.run(faults="all:crash", trials=4)
    lost = studies.trials()
    capsys.readouterr()
    result = studies.run(trials=4)
    told = [line.split()[:3] for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert told == [[f"[{i + 1}/4]", "trial", str(i + 3)] for i in range(4)], "the failed ones are not counted"
    trials = studies.trials()
    assert [t.state for t in trials] == [FAIL] * 3 + [COMPLETE] * 4
    for failed, again in zip(lost, trials[3:6], strict=True):
        assert again.user_attrs["rerun_of"] == failed.number
        assert (again.params, again.user_attrs["seed"]) == (failed.params, failed.user_attrs["seed"])
    assert trials[3].params["learning_rate"] == SPACE["learning_rate"]["default"]
    assert "rerun_of" not in trials[6].user_attrs
    assert len(studies.run(trials=4).study.trials) == 7, "nothing is run a second time"
    reference = studies.run("reference", trials=4).study.trials
    assert trials[3].value == reference[0].value
    assert result.trial >= 3


def test_reruns_that_stop_the_study_again_are_run_again_too(studies):
    for _ in range(2):
        with pytest.raises(StudyError, match="3 trials in a row"):
            studies.run(faults="all:crash", trials=4)
    studies.run(trials=4)
    assert [t.state for t in studies.trials()] == [FAIL] * 6 + [COMPLETE] * 4


def test_failures_in_the_middle_of_a_study_are_run_again(studies):
    with pytest.raises(StudyError, match="3 trials in a row"):
        studies.run(faults="2:crash 3:crash 4:crash", trials=6)
    studies.run(trials=6)
    trials = studies.trials()
    assert [t.state for t in trials] == [COMPLETE] * 2 + [FAIL] * 3 + [COMPLETE] * 4
    assert [t.user_attrs.get("rerun_of") for t in trials[5:]] == [2, 3, 4, None]


def test_three_failures_that_are_not_in_a_row_do_not(studies):
    studies.run(faults="1:crash 2:crash 4:crash 5:crash", trials=6)
    assert [t.state for t in studies.trials()] == [COMPLETE, FAIL, FAIL, COMPLETE, FAIL, FAIL]


def test_three_different_failures_in_a_row_do_not(studies):
    studies.run(faults="1:crash_unlike 2:crash_unlike 3:crash_unlike", trials=5)
    assert [t.state for t in studies.trials()] == [COMPLETE, FAIL, FAIL, FAIL, COMPLETE]


def test_a_point_that_failed_is_not_tried_again(studies):
    """It teaches the sampler's model nothing, so only a look at failed trials keeps it from being proposed again."""
    studies.run(faults="1:crash 2:crash 4:crash 5:crash", trials=7)
    rates = [t.params["learning_rate"] for t in studies.trials()]
    assert len(set(rates)) == 7


def test_a_study_that_was_stopped_goes_on_once_the_cause_is_gone(studies):
    with pytest.raises(StudyError, match="3 trials in a row"):
        studies.run(faults="all:crash", trials=5)
    studies.run(trials=5)
    assert [t.state for t in studies.trials()] == [FAIL] * 3 + [COMPLETE] * 5


def test_a_suggestion_that_fails_leaves_no_zombie(studies, monkeypatch):
    from lightning_hp.search.sampler import CoarseToFineSampler

    real = CoarseToFineSampler._point

    def broken(self, study, trial):
        if trial.number == 2:
            raise ArithmeticError("no such point")
        return real(self, study, trial)

    monkeypatch.setattr(CoarseToFineSampler, "_point", broken)
    with pytest.raises(ArithmeticError, match="no such point"):
        studies.run()
    assert [t.state for t in studies.trials()] == [COMPLETE, COMPLETE, FAIL]
    monkeypatch.undo()
    studies.run()
    assert [t.state for t in studies.trials()] == [COMPLETE, COMPLETE, FAIL, COMPLETE, COMPLETE, COMPLETE]


# --- out of memory ---


@pytest.mark.parametrize("kind", ["oom_torch", "oom_cuda", "oom_host"])
def test_out_of_memory_is_not_met_twice_with_one_structure(studies, kind):
    space = {
        "learning_rate": {"low": 1e-3, "high": 1.0, "tier": "A"},
        "batch_size": {"choices": [2, 4], "tier": "A", "default": 4},
    }
    studies.run(faults=f"0:{kind}", trials=8, space=space)
    trials = studies.trials()
    assert trials[0].user_attrs["failure"] == "out of memory"
    same = [t for t in trials[1:] if t.params["batch_size"] == 4]
    assert same, "the test needs a proposal of the structure that ran out"
    assert all(t.state is FAIL and "seconds" not in t.user_attrs for t in same)
    assert all("trial 0 ran out of memory with this structure" in t.user_attrs["failure"] for t in same)
    other = [t for t in trials[1:] if t.params["batch_size"] == 2]
    assert other
    assert all(t.state is COMPLETE for t in other)


def test_a_structure_that_never_fits_stops_the_study(studies):
    space = {"learning_rate": {"low": 1e-3, "high": 1.0, "tier": "A"}}
    with pytest.raises(StudyError, match="20 proposals in a row have a structure that runs out of memory"):
        studies.run(faults="0:oom_torch", trials=40, space=space)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("CUDA out of memory. Tried"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory is what I say"), False),
    ],
)
def test_what_out_of_memory_is(error, expected):
    assert is_out_of_memory(error) is expected


# --- what says nothing about the trial ---


def test_a_full_disk_ends_the_run_and_the_trial_is_run_again(studies):
    with pytest.raises(StudyError, match=r"nothing more can be written .*No space left on device") as error:
        studies.run(faults="2:disk_full", trials=4)
    assert "\n" not in str(error.value)
    before = studies.trials()
    assert [t.state for t in before] == [COMPLETE, COMPLETE, RUNNING]
    studies.run(trials=4)
    after = studies.trials()
    assert [t.state for t in after] == [COMPLETE] * 4
    assert after[2].params == before[2].params


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (OSError(27, "File too large"), True),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0"),
            True,
        ),
        (OSError(2, "No such file or directory"), False),
        (RuntimeError("the toy broke"), False),
    ],
)
def test_what_a_full_disk_is(error, expected):
    assert is_disk_full(error) is expected
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = error
    assert is_disk_full(wrapped) is expected


@pytest.mark.slow
def test_a_trial_that_kills_its_process_is_given_up(studies, fork):
    """A fault that kills (memory, a driver) would otherwise kill every resumed run for ever."""
    codes = [fork(lambda: studies.run(faults="1:sigkill", trials=3)).wait() for _ in range(6)]
    assert codes == [-9, -9, -9, -9, -9, 0]
    trials = studies.trials()
    assert [t.state for t in trials] == [COMPLETE, FAIL, COMPLETE]
    assert trials[1].user_attrs["failure"] == "its process died 5 times"


def test_max_mode_seeks_the_largest(studies):
    result = studies.run(mode="max", trials=5)
    trials = studies.trials()
    assert all(t.value == max(t.intermediate_values.values()) for t in trials)
    assert result.value == max(t.value for t in trials)


def test_a_metric_that_is_never_logged_stops_the_study_after_the_first_validation(studies):
    from lightning_hp.project.yaml_file import ConfigError

    with pytest.raises(
        ConfigError, match=r"`monitor` must be a metric that the model logs \(val_loss\), got 'val_los'"
    ):
        studies.run(monitor="val_los")
    assert len(studies.trials()) == 1
    assert studies.run(trials=2).trial in (0, 1), "a mended name goes on in the same folder: nothing was lost"


def test_a_pruned_trial_keeps_its_curve_and_why(studies, monkeypatch):
    real = StudyRunner.__init__

    def with_harsh_pruner(self, *args, **kwargs):
        import optuna

        real(self, *args, **kwargs)
        self.study.pruner = optuna.pruners.ThresholdPruner(upper=2.0)

    monkeypatch.setattr(StudyRunner, "__init__", with_harsh_pruner)
    studies.run(prune=True, max_epochs=4)
    trials = studies.trials()
    for trial in trials:
        assert (trial.state is TrialState.PRUNED) == any(v > 2.0 for v in trial.intermediate_values.values())
        assert trial.user_attrs["epochs"] == len(trial.intermediate_values)
    assert {t.state for t in trials} == {COMPLETE, TrialState.PRUNED}
