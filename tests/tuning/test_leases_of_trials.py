"""What a study does with trials whose worker is silent, late or has handed them back."""

import contextlib
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy_project as toy
from optuna.trial import TrialState

from lightning_hp.callbacks import unfinished
from lightning_hp.project.quiet import suppress_repeated_warnings
from lightning_hp.study.leases import Leases, Worker, lease_of
from lightning_hp.study.upstream import stored_trial
from lightning_hp.tuning import runner as runner_module
from lightning_hp.tuning.checkpoints import can_go_on
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.listener import SilentListener
from lightning_hp.tuning.objective import Outcome
from lightning_hp.tuning.runner import StudyRunner
from lightning_hp.tuning.workers.keeper import LeaseGuard, TrialTakenError, renewed

COMPLETE = TrialState.COMPLETE


class Listener(SilentListener):
    """Keeps what it is told."""

    def __init__(self):
        self.messages, self.resumed = [], []

    def message(self, text):
        self.messages.append(text)

    def trial_resumed(self, trial):
        self.resumed.append(trial.number)


@pytest.fixture
def runner(studies, monkeypatch):
    """Makes runners of one study that count as workers of different machines, with a clock that the test turns."""
    from lightning_hp.project.build import PythonBuilder

    def make(name, clock, trials=4):
        builder = PythonBuilder(toy.Toy, toy.ToyData, {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0})
        settings = {"name": "toy", "folder": str(studies.paths().root), "prune": False}
        config = TuneConfig.from_arguments(toy.SPACE, {"trials": trials, "max_epochs": 2}, settings, builder)
        one = StudyRunner(config, builder, Listener())
        worker = Worker(config.folder, name)
        worker.place = f"{name}'s machine"
        one.leases = Leases(one.study, worker, 60.0, clock)
        return one

    return make


def test_an_expired_trial_is_run_again_with_its_values_and_a_late_result_does_not_count(studies, runner):
    seconds = [0.0]
    late, other = (runner(name, lambda: seconds[0]) for name in ("late", "other"))
    with contextlib.ExitStack() as leases:
        trial, arguments = late.ask(leases)
        with contextlib.ExitStack() as more:
            assert other.ask(more)[0].number == 1, "trial 0 has a lease"
        seconds[0] = 61.0
        with contextlib.ExitStack() as more:
            again, same = other.ask(more)
            assert (again.number, same) == (0, arguments)
            assert again.user_attrs["deaths"] == 1
            late.tell(trial, Outcome("complete", 99.0, attributes={"seconds": 1e9}))
            assert stored_trial(other.study, again).state is TrialState.RUNNING
            with suppress_repeated_warnings():
                other.run_alone(again, same)
        late.tell(trial, Outcome("fail", attributes={"failure": "late"}))
    lost = "trial 0 was given to other, since nothing was heard of this worker for 60 s"
    assert late.listener.messages == [f"{lost}; what this worker made of it is not counted"] * 2
    done = studies.trials()[0]
    assert (done.state, done.user_attrs.get("failure")) == (COMPLETE, None)
    assert done.value < 99
    assert done.user_attrs["seconds"] < 1e9
    assert lease_of(done).worker == "other"


def test_a_trial_that_is_given_away_while_it_trains_ends_there(studies, runner):
    """The other worker takes it at the first step: nothing more is written into its folder."""
    seconds = [0.0]
    late, other = (runner(name, lambda: seconds[0]) for name in ("late", "other"))
    with contextlib.ExitStack() as leases:
        trial, arguments = late.ask(leases)
        assert not other.leases.is_free(stored_trial(other.study, trial))
        seconds[0] = 61.0
        with other.leases.hold(stored_trial(other.study, trial)):
            with suppress_repeated_warnings():
                late.run_alone(trial, arguments)
            assert stored_trial(other.study, trial).state is TrialState.RUNNING
    folder = studies.paths().trial(0).root
    assert not list(folder.rglob("*.ckpt"))
    assert not (folder / "error.txt").exists()
    assert "was given to other" in late.listener.messages[0]


def test_a_trial_that_was_handed_back_is_no_death(studies, runner):
    first, second = (runner(name, lambda: 0.0) for name in ("first", "second"))
    with contextlib.ExitStack() as leases:
        first.ask(leases)
    with contextlib.ExitStack() as leases:
        trial, _ = second.ask(leases)
        assert trial.number == 0
        assert "deaths" not in trial.user_attrs
        assert second.listener.resumed == [0]
        assert studies.paths().trial(0).root.is_dir(), "a project may write there before anything else does"


def test_an_old_study_whose_trials_have_no_leases_goes_on(studies, runner):
    study = runner("first", lambda: 0.0).study
    study.ask()
    studies.run(trials=4)
    assert [(t.number, t.state) for t in studies.trials()] == [(n, COMPLETE) for n in range(4)]


def test_who_is_killed_leaves_trials_to_all_that_come(studies, fork):
    for faults in ("1:sigkill", "2:sigkill"):
        assert fork(lambda faults=faults: studies.run(faults=faults, trials=4)).wait() == -signal.SIGKILL
    studies.run(trials=4)
    trials = studies.trials()
    assert [(t.number, t.state) for t in trials] == [(n, COMPLETE) for n in range(4)]
    assert [t.user_attrs.get("deaths") for t in trials] == [None, 1, 1, None]
    assert len({lease_of(t).worker for t in trials}) == 3
    workers = studies.paths().root / "locks" / "workers"
    assert not list(workers.iterdir()), "files of dead workers are cleared away when they are found dead"


def test_the_thread_renews_until_the_work_is_done():
    beats = []

    class Renewing:
        seconds = 60.0
        worker = SimpleNamespace(name="w")

        def renew(self, always):
            beats.append(always)
            if len(beats) == 2:
                raise OSError("the storage is away")

    waits, fourth = [], threading.Event()

    def wait(ended, seconds):
        waits.append(seconds)
        if len(waits) < 4:
            return False
        fourth.set()
        return ended.wait()

    with renewed(Renewing(), wait):
        assert fourth.wait(60)
    assert beats == [False] * 3
    assert waits == [10.0] * 4


def test_a_guard_looks_before_every_step_and_before_checkpoints_are_written():
    lost = [False]
    guard = LeaseGuard(lambda: lost[0])
    hooks = [guard.on_train_batch_start, guard.on_validation_batch_start]
    hooks += [guard.on_validation_end, guard.on_train_epoch_end]
    for hook in hooks:
        hook(None, None, None, 0)
    lost[0] = True
    for hook in hooks:
        with pytest.raises(TrialTakenError, match=r"^$"):
            hook(None, None, None, 0)
    assert not issubclass(TrialTakenError, Exception)


def test_a_trial_goes_on_from_its_last_checkpoint(studies, fork, monkeypatch):
    monkeypatch.setattr(unfinished, "SHARE", 1e9)  # epochs of the toy are too short for a checkpoint to be worth it
    options = {"trials": 2, "max_epochs": 6}
    killed = fork(lambda: studies.run(faults="1:sigkill", model_options={"epochs": 3}, **options))
    assert killed.wait() == -signal.SIGKILL
    assert studies.paths().trial(1).unfinished.is_file()
    studies.run(**options)
    trial = studies.trials()[1]
    assert trial.user_attrs["went_on_from_epoch"] == 3
    assert sorted(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]
    assert trial.value == min(trial.intermediate_values.values())
    assert not studies.paths().trial(1).unfinished.exists()
    assert "went_on_from_epoch" not in studies.trials()[0].user_attrs


@pytest.mark.parametrize("prune", [False, True])
def test_a_process_that_is_killed_before_the_study_is_told_costs_an_epoch_at_most(studies, fork, monkeypatch, prune):
    """Between the end of a training and the study's learning of it."""
    monkeypatch.setattr(unfinished, "SHARE", 1e9)
    epochs = studies.folder / "epochs"

    class Counted(toy.Toy):
        def on_train_epoch_start(self):
            with epochs.open("a") as file:
                file.write(f"{Path(self.trainer.default_root_dir).name} {self.current_epoch}\n")

    class AfterThree:
        def prune(self, study, trial):
            return trial.number == 1 and trial.last_step >= 3

    monkeypatch.setattr(runner_module, "pruner_of", lambda *_: AfterThree())
    options = {"trials": 3, "max_epochs": 6, "model": Counted, "prune": prune}

    def killed_before_telling():
        real = runner_module.store
        with monkeypatch.context() as once:
            once.setattr(
                runner_module,
                "store",
                lambda study, trial, *more: (
                    os.kill(os.getpid(), signal.SIGKILL) if trial.number == 1 else real(study, trial, *more)
                ),
            )
            studies.run(**options)

    assert fork(killed_before_telling).wait() == -signal.SIGKILL
    studies.run(**options)
    trained = [line.split() for line in epochs.read_text().splitlines()]
    last = 2 if prune else 5
    assert [int(epoch) for trial, epoch in trained if trial == "0001"] == [*range(last + 1), last]
    plain = studies.run("plain", **options).study.trials
    trials = studies.trials()
    assert [(t.state, t.value, t.intermediate_values) for t in trials] == [
        (t.state, t.value, t.intermediate_values) for t in plain
    ]
    assert not list(studies.paths().root.rglob("*unfinished*"))


def test_a_checkpoint_that_is_torn_or_of_other_values_is_not_gone_on_from(studies, fork, monkeypatch):
    monkeypatch.setattr(unfinished, "SHARE", 1e9)
    options = {"trials": 2, "max_epochs": 6}
    killed = fork(lambda: studies.run(faults="1:sigkill", model_options={"epochs": 3}, **options))
    assert killed.wait() == -signal.SIGKILL
    file = studies.paths().trial(1).unfinished
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    studies.run("torn", trials=1, max_epochs=6)
    assert not can_go_on(file, lambda checkpoint: True)
    file.write_bytes(whole)
    assert can_go_on(file, lambda checkpoint: True)
    other = studies.paths("other").trial(0).unfinished
    other.parent.mkdir(parents=True)
    other.write_bytes(whole)
    studies.run("other", trials=1, max_epochs=6)
    assert "went_on_from_epoch" not in studies.trials("other")[0].user_attrs
