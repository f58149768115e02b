"""A study goes on where it was: after it ended, after Ctrl-C, after kill -9, and with another process beside it."""

import os
import random
import signal

import pytest
import toy_project as toy
from optuna.trial import TrialState

from lightning_hp.ledger import records
from lightning_hp.project.build import PythonBuilder
from lightning_hp.study.leases import Leases, Worker
from lightning_hp.study.storage import StudyError
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.objective import trial_seed
from lightning_hp.tuning.runner import StudyRunner

COMPLETE, RUNNING = TrialState.COMPLETE, TrialState.RUNNING


def told(trials):
    """What must not depend on how a study came to its end."""
    keys = ("stage", "stage_index", "tier", "seed", "epochs")
    return [(t.number, t.state, t.value, t.params, t.intermediate_values, *map(t.user_attrs.get, keys)) for t in trials]


def lines(path):
    return path.read_bytes().count(b"\n")


def tuned_records(paths):
    return [r for r in records.read(paths.ledger).records if r["event"] == "tuned"]


# --- in turn ---


def test_the_seed_of_a_trial_is_its_own_and_repeats(studies):
    studies.run(trials=4, seed=7)
    seeds = [t.user_attrs["seed"] for t in studies.trials()]
    assert seeds == [trial_seed(7, n) for n in range(4)]
    assert len(set(seeds)) == 4
    assert all(0 <= s < 2**32 for s in (trial_seed(2**40, 10**6), trial_seed(0, 0)))
    studies.run("again", trials=4, seed=7)
    assert told(studies.trials("again")) == told(studies.trials())


def test_asking_again_changes_nothing(reported):
    first = reported.run(trials=4)
    paths = reported.paths()
    before = {p: p.read_bytes() for p in paths.root.rglob("*") if p.is_file()}
    second = reported.run(trials=4)
    assert {p: p.read_bytes() for p in paths.root.rglob("*") if p.is_file()} == before
    assert (second.trial, second.value, second.natural, second.test) == (
        first.trial,
        first.value,
        first.natural,
        first.test,
    )
    assert len(tuned_records(paths)) == 1


def test_asking_for_more_goes_on(studies):
    studies.run(trials=3)
    had = told(studies.trials())
    result = studies.run(trials=5)
    trials = studies.trials()
    assert told(trials)[:3] == had
    assert [t.number for t in trials] == list(range(5))
    assert result.value == min(t.value for t in trials)
    assert [r["trials"] for r in tuned_records(studies.paths())] == [3, 5]


def test_asking_for_fewer_than_there_are_runs_nothing(studies):
    studies.run(trials=4)
    studies.run(trials=2)
    assert len(studies.trials()) == 4
    assert len(tuned_records(studies.paths())) == 1


def test_a_report_that_is_missing_is_written_again(reported):
    reported.run(trials=2)
    reported.paths().report.unlink()
    assert reported.run(trials=2).report.is_file()
    assert len(tuned_records(reported.paths())) == 1


def test_an_end_that_was_cut_off_after_the_ledger_dates_it_once(studies):
    first = studies.run(trials=2)
    first_record = tuned_records(studies.paths())[0]
    studies.paths().result.unlink()
    second = studies.run(trials=2)
    assert second.trial == first.trial
    assert tuned_records(studies.paths()) == [first_record]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 3}, "seed was 0, is 3"),
        ({"mode": "max"}, "mode was 'min', is 'max'"),
        pytest.param({"plan": "tiers"}, "plan was 'default', is 'tiers'", marks=pytest.mark.slow),
        pytest.param({"monitor": "other"}, "monitor was 'val_loss', is 'other'", marks=pytest.mark.slow),
        ({"space": {"learning_rate": {"low": 1e-3, "high": 1.0, "tier": "A"}}}, "momentum is gone"),
    ],
)
def test_another_study_of_this_name_is_refused_and_untouched(studies, change, said):
    studies.run(trials=2)
    before = studies.paths().journal.read_bytes()
    with pytest.raises(
        StudyError, match=r"study 'toy' exists with another configuration: .*another `name`, or move the study aside"
    ) as e:
        studies.run(trials=2, **change)
    assert said in str(e.value)
    assert "\n" not in str(e.value)
    assert studies.paths().journal.read_bytes() == before
    assert len(studies.run(trials=3).study.trials) == 3


def test_a_study_without_a_result_makes_way(studies):
    with pytest.raises(StudyError, match="3 trials in a row"):
        studies.run(faults="all:crash")
    studies.run(trials=2, mode="max")
    assert [t.state for t in studies.trials()] == [COMPLETE, COMPLETE]


def test_a_study_without_a_result_does_not_make_way_while_somebody_works_on_it(studies, fork):
    with pytest.raises(StudyError, match="nothing more can be written"):
        studies.run(faults="0:disk_full")
    study = studies.open()
    with Leases(study, Worker(studies.paths().root)).hold(study.get_trials()[0]):
        child = fork(lambda: studies.run(mode="max"))
        assert child.wait() == 1
    assert "StudyError: study 'toy' exists with another configuration: mode was 'min', is 'max'" in child.output
    assert len(studies.trials()) == 1


def test_a_study_without_a_trial_does_not_make_way_while_somebody_is_about_to_begin_it(studies):
    """Between opening a study and asking for its first trial nothing but this shows who is at work."""
    builder = PythonBuilder(toy.Toy, toy.ToyData, {"accelerator": "cpu", "devices": 1})
    settings = {"name": "toy", "folder": str(studies.paths().root)}
    config = TuneConfig.from_arguments(toy.SPACE, {"trials": 2, "max_epochs": 2}, settings, builder)
    first = StudyRunner(config, builder)
    with pytest.raises(StudyError, match="exists with another configuration: mode was 'min', is 'max'"):
        studies.run(mode="max", trials=2)
    first.close()
    studies.run(mode="max", trials=2)
    assert studies.open().direction.name == "MAXIMIZE"


def test_of_two_studies_of_one_name_begun_at_once_one_is_refused_and_the_other_untouched(studies, fork):
    reading, writing = os.pipe()

    def begin(**options):
        os.close(writing)
        os.read(reading, 1)  # both wait for the pipe to be closed
        studies.run(trials=3, **options)

    other = {"learning_rate": {"low": 1e-3, "high": 0.1, "tier": "A", "scale": "log", "default": 0.05}}
    children = [fork(lambda: begin()), fork(lambda: begin(space=other))]
    os.close(writing)
    codes = [child.wait() for child in children]
    os.close(reading)
    assert sorted(codes) == [0, 1], [child.output for child in children]
    refused = children[codes.index(1)].output.splitlines()[-1]
    assert "StudyError: study 'toy' exists with another configuration: " in refused
    trials = studies.trials()
    assert [(t.number, t.state) for t in trials] == [(n, COMPLETE) for n in range(3)]
    names = set(toy.SPACE) if codes[0] == 0 else set(other)
    assert len(trials[0].params) == len(names)


# --- Ctrl-C ---


def test_ctrl_c_finishes_the_running_trial_and_the_next_run_goes_on(studies):
    reference = studies.run("reference", trials=5)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        studies.run(faults="1:sigint", trials=5)
    trials = studies.trials()
    assert [t.state for t in trials] == [COMPLETE, COMPLETE]
    assert trials[1].user_attrs["epochs"] == 2, "the running trial must be trained to its end"
    assert not studies.paths().result.exists()
    result = studies.run(trials=5)
    assert told(studies.trials()) == told(studies.trials("reference"))
    assert result.trial == reference.trial


def test_a_second_ctrl_c_leaves_at_once_and_nothing_is_lost(studies, fork):
    studies.run("reference", trials=4)
    child = fork(lambda: studies.run(faults="2:twice", trials=4))
    assert child.wait() == 130
    assert [t.state for t in studies.trials()] == [COMPLETE, COMPLETE, RUNNING]
    studies.run(trials=4)
    assert told(studies.trials()) == told(studies.trials("reference"))


# --- kill -9 ---


@pytest.mark.slow
def test_killed_three_times_at_random_moments(studies, fork):
    """The journal's lines are the clock: the child is killed at drawn ones, and the sum must be as if never."""
    studies.run("reference", trials=12, max_epochs=3)
    journal, seed = studies.paths().journal, random.Random(5)
    span = lines(studies.paths("reference").journal)
    at = sorted(seed.sample(range(span // 10, span * 8 // 10), 3))
    interrupted = []
    for line in at:
        child = fork(lambda: studies.run(trials=12, max_epochs=3))
        child.until(lambda line=line: journal.exists() and lines(journal) >= line)
        child.kill(signal.SIGKILL)
        assert child.wait() == -9, child.output
        interrupted += [t for t in studies.trials() if t.state is RUNNING]
    assert interrupted, "no kill hit a running trial: draw other moments"
    studies.run(trials=12, max_epochs=3)
    trials = studies.trials()
    assert [t.number for t in trials] == list(range(12))
    assert told(trials) == told(studies.trials("reference"))
    for before in interrupted:
        assert before.params.items() <= trials[before.number].params.items()
    assert len(tuned_records(studies.paths())) == 1


def test_an_interrupted_trial_is_told_and_keeps_its_number(studies, fork):
    assert fork(lambda: studies.run(faults="1:sigkill", trials=3, model_options={"epochs": 1})).wait() == -9
    before = studies.trials()[1]
    assert before.state is RUNNING
    assert list(before.intermediate_values) == [1], "killed in its second epoch"
    studies.run(trials=3)
    after = studies.trials()
    assert [(t.number, t.state) for t in after] == [(n, COMPLETE) for n in range(3)]
    assert after[1].params == before.params
    assert after[1].intermediate_values[1] == before.intermediate_values[1], "same values and seed: same curve"
    assert after[1].user_attrs["deaths"] == 1


# --- two at once ---


def test_two_processes_share_one_study(studies, fork):
    children = [fork(lambda: studies.run(trials=14)) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0], [child.output for child in children]
    trials = studies.trials()
    assert [t.number for t in trials] == list(range(14))
    assert all(t.state is COMPLETE for t in trials)
    assert all(len(t.intermediate_values) == 2 for t in trials), "a trial run twice would have reported twice"
    assert len({t.params["learning_rate"] for t in trials}) == 14
    assert len(tuned_records(studies.paths())) == 1
    result = studies.run(trials=14)
    assert result.value == min(t.value for t in trials)


@pytest.mark.slow
def test_the_other_process_takes_over_what_a_killed_one_leaves(studies, fork):
    """Both start; the one whose trial 1 orders it dies, and the survivor, without faults, runs that trial."""
    doomed = fork(lambda: studies.run(faults="1:sigkill 2:sigkill 3:sigkill 4:sigkill", trials=8))
    assert doomed.wait() == -9
    survivor, late = (fork(lambda: studies.run(trials=8)) for _ in range(2))
    assert (survivor.wait(), late.wait()) == (0, 0), survivor.output + late.output
    trials = studies.trials()
    assert [(t.number, t.state) for t in trials] == [(n, COMPLETE) for n in range(8)]
    assert len(tuned_records(studies.paths())) == 1


def test_a_trial_that_is_asked_for_but_has_no_lease_yet_is_no_orphan(studies, monkeypatch):
    """`wait_for_others` must look under the lock that asking holds."""
    from lightning_hp.tuning.runner import StudyRunner

    seen = []
    real, is_free = StudyRunner.wait_for_others, Leases.is_free

    def watched(self, poll=0.5):
        lock = self.paths.ask_lock()

        def spied(leases, trial):
            with pytest.raises(TimeoutError, match="could not be acquired"):
                lock.acquire(timeout=0)
            seen.append(trial.number)
            return is_free(leases, trial)

        trial = self.study.ask()
        monkeypatch.setattr(Leases, "is_free", spied)
        assert real(self, poll) is False, "nobody has a lease: an orphan"
        monkeypatch.setattr(Leases, "is_free", is_free)
        self.study.tell(trial, state=TrialState.FAIL)
        return real(self, poll)

    monkeypatch.setattr(StudyRunner, "wait_for_others", watched)
    studies.run(trials=2)
    assert seen == [2]


def test_environment_of_a_child_is_not_ours(fork):
    """The helper itself: a child's exit code and words come back."""
    child = fork(lambda: os.write(1, b"hello") and 7)
    assert child.wait() == 7
    assert child.output == "hello"
