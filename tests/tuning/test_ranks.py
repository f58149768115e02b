"""Trials on two devices (gloo, two processes): one trial a job, the same values on all ranks, one verdict."""

import json
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import toy_project as toy
import yaml
from optuna.trial import TrialState

from lightning_hp import cli
from lightning_hp.callbacks.pruning import UnknownMetricError
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.storage import StudyError, find_study
from lightning_hp.tuning import finish
from lightning_hp.tuning.workers.keeper import TrialTakenError
from lightning_hp.tuning.workers.ranks import RankError, _serve, needs_ranks

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


class Wide(toy.Toy):
    """Writes, on every rank, what it was given and how far it came."""

    def on_train_end(self):
        folder = Path(self.trainer.default_root_dir)
        facts = {"values": [self.learning_rate, self.momentum], "epochs": self.trainer.current_epoch}
        facts |= {"world": self.trainer.world_size, "process": os.getpid(), "noise": self.noise}
        (folder / f"rank{self.global_rank}.json").write_text(json.dumps(facts))

    def validation_step(self, batch, batch_idx):
        self.log(self.monitor, self.loss(), sync_dist=True)


def ranks_of(studies, number, name="toy"):
    folder = studies.paths(name).trial(number).root
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_a_trial_has_two_ranks_and_the_study_one_trial(studies, strategy):
    studies.run("reference", trials=2, model=Wide)
    result = studies.run(trials=2, model=Wide, trainer={"devices": 2, "strategy": strategy})
    trials = studies.trials()
    assert [(t.number, t.state, t.user_attrs["ranks"]) for t in trials] == [(n, COMPLETE, 2) for n in range(2)]
    for trial in trials:
        first, second = ranks_of(studies, trial.number)
        assert first["values"] == second["values"]
        assert first["noise"] == second["noise"], "the same seed, so the same weights"
        assert (first["world"], second["world"]) == (2, 2)
        assert len({first["process"], second["process"], os.getpid()}) == 3
    told = [(t.params, t.value, t.intermediate_values) for t in trials]
    assert told == [(t.params, t.value, t.intermediate_values) for t in studies.trials("reference")]
    assert result.checkpoint.is_file()
    assert result.validation["val_loss"] == pytest.approx(result.value, abs=1.1)
    assert not studies.paths().trial(0).unfinished.exists()


@pytest.mark.slow
def test_all_ranks_stop_when_the_pruner_says_so(studies, monkeypatch):
    from lightning_hp.tuning.curve_store import ThinCurve

    monkeypatch.setattr(ThinCurve, "should_prune", lambda self: max(self._curve) == 2)
    with pytest.raises(StudyError, match="has no complete trial yet"):
        studies.run(trials=1, max_epochs=5, prune=True, trainer={"devices": 2, "strategy": "ddp"}, model=Wide)
    (trial,) = studies.trials()
    assert trial.state is PRUNED
    assert list(trial.intermediate_values) == [1, 2]
    assert [rank["epochs"] for rank in ranks_of(studies, 0)] == [2, 2]


@pytest.mark.slow
def test_a_rank_that_crashes_fails_its_trial_only(studies):
    with pytest.raises(StudyError, match=r"has no complete trial yet .*the last failure: RuntimeError: the toy"):
        studies.run(trials=1, faults="0:crash", trainer={"devices": 2, "strategy": "ddp"}, model=Wide)
    (trial,) = studies.trials()
    assert trial.state is FAIL
    assert trial.user_attrs["failure"] == "RuntimeError: the toy broke"
    assert "in fault" in trial.user_attrs["traceback"]


@pytest.mark.slow
def test_a_lightning_cli_project_on_two_devices_with_batchnorm(tmp_path, monkeypatch):
    """The command itself is not run again by a launcher; the auditor works in the ranks."""
    monkeypatch.setattr(finish, "write_reports", lambda study, paths, now: paths.report.touch())
    monkeypatch.chdir(tmp_path)
    train = {
        "model": {"class_path": "lightning_hp.training.BatchNormClassifier", "init_args": {"num_layers": 1}},
        "data": {"class_path": "lightning_hp.training.DigitsDataModule"},
        "trainer": {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 1, "logger": False,
                    "num_sanity_val_steps": 0},
    }  # fmt: skip
    tune = {"name": "d", "config": "train.yaml", "budget": {"trials": 2}, "prune": False,
            "space": {"model.init_args.learning_rate": {"low": 1e-3, "high": 0.1, "default": 0.01}}}  # fmt: skip
    Path("train.yaml").write_text(yaml.safe_dump(train))
    Path("tune.yaml").write_text(yaml.safe_dump(tune))
    assert cli.main(["tune", "tune.yaml"]) == 0
    trials = find_study("d")[0].trials
    assert [(t.number, t.state) for t in trials] == [(0, COMPLETE), (1, COMPLETE)]
    assert "audit" in trials[0].user_attrs
    assert Path("runs/d/trials/0000/audit.json").is_file()


# --- what the worker does with what rank 0 says, without processes ---


class Pipe:
    """Says what it is given, then that the other end is closed."""

    def __init__(self, *words):
        self.words, self.answers = list(words), []

    def poll(self, seconds):
        return True

    def recv(self):
        if not self.words:
            raise EOFError
        return self.words.pop(0)

    def send(self, answer):
        self.answers.append(answer)


class Process:
    def __init__(self, code=0):
        self.code = code

    def poll(self):
        return self.code

    wait = lambda self, timeout=None: self.code  # noqa: E731


class Curve:
    def __init__(self):
        self.points = {}

    def report(self, value, step):
        self.points[step] = value

    def should_prune(self):
        return len(self.points) > 1


def test_the_worker_answers_rank_0():
    curve = Curve()
    pipe = Pipe(
        ("report", (0.5, 1)), ("prune?", None), ("report", (0.4, 2)), ("prune?", None), ("ended", {"epochs": 2})
    )
    assert _serve(pipe, [Process()], curve, lambda: None) == {"epochs": 2}
    assert curve.points == {1: 0.5, 2: 0.4}
    assert pipe.answers == [False, True]


@pytest.mark.parametrize(
    ("words", "code", "error", "said"),
    [
        ([("failed", ("RuntimeError: no", "traceback", None))], 0, RankError, "RuntimeError: no"),
        ([("unknown metric", "`monitor` must be")], 0, UnknownMetricError, "`monitor` must be"),
        ([], -9, RankError, "rank 0 ended with exit code -9"),
        ([], 0, RankError, "rank 0 ended without a word"),
    ],
)
def test_a_rank_that_fails_is_an_error(words, code, error, said):
    with pytest.raises(error, match=said):
        _serve(Pipe(*words), [Process(code)], Curve(), lambda: None)


def test_ranks_end_when_the_trial_is_given_away():
    def look():
        raise TrialTakenError

    with pytest.raises(TrialTakenError, match=r"^$"):
        _serve(Pipe(("report", (0.5, 1))), [Process(None)], Curve(), look)


def test_several_machines_are_refused():
    trainer = pl.Trainer(accelerator="cpu", devices=2, num_nodes=2, strategy="ddp", logger=False)
    with pytest.raises(ConfigError, match=r"`trainer.num_nodes` must be 1 in a study, got 2"):
        needs_ranks(trainer)
    assert needs_ranks(pl.Trainer(accelerator="cpu", devices=1, logger=False)) == 0
