"""Trials made from a configuration that was parsed before: what they are and learn is what parsing again gives."""

import sys
from pathlib import Path

import cli_projects as projects
import pytest
import torch
import yaml

from lightning_hp.project import cli_repeat
from lightning_hp.project.cli_builder import CliBuilder
from lightning_hp.project.cli_repeat import RepeatingBuilder
from lightning_hp.project.length import TrainingLength

TRAIN = {
    "model": {"class_path": "cli_projects.Net", "init_args": {"lr": 0.05}},
    "data": {"class_path": "cli_projects.Data"},
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}},
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val_loss"}}
        ],
    },
}
LR = "model.init_args.lr"
LENGTH = TrainingLength(max_epochs=2)


@pytest.fixture(autouse=True)
def parsed(tmp_path, monkeypatch):
    """The values of the trials that were parsed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-hp", "tune", "tune.yaml"])
    Path("train.yaml").write_text(yaml.safe_dump(TRAIN))
    calls, called = [], CliBuilder.called

    def counted(builder, values, *more):
        calls.append(values)
        return called(builder, values, *more)

    monkeypatch.setattr(CliBuilder, "called", counted)
    projects.EVENTS.clear()
    return calls


def build(repeating, number, seed=None, **values):
    given = {LR: 0.01 * (number + 1), **values}
    return repeating.build(given, Path("runs/s/trials") / f"{number:04d}", seed or number, [], LENGTH)


def test_a_trial_that_was_not_parsed_again_is_and_learns_the_same(parsed):
    repeating = RepeatingBuilder(CliBuilder(Path("train.yaml")))
    trials = [build(repeating, number) for number in range(4)]
    assert len(parsed) == 2
    trials.append(build(repeating, 3))  # the one of the same values and seed
    alone = CliBuilder(Path("train.yaml")).build({LR: 0.04}, Path("runs/s/trials/0003"), 3, [], LENGTH)
    for number, one in ((0, trials[0]), (3, trials[3])):
        assert one.model.hparams.lr == 0.01 * (number + 1)
        assert one.trainer.default_root_dir == f"runs/s/trials/{number:04d}"
    one = trials[3]
    assert one.model.hparams == alone.model.hparams
    assert [type(c) for c in one.trainer.callbacks] == [type(c) for c in alone.trainer.callbacks]
    assert one.trainer.logger.save_dir == alone.trainer.logger.save_dir
    assert len({id(c) for trial in trials for c in trial.trainer.early_stopping_callbacks}) == len(trials)
    assert one.train.__self__.config == alone.train.__self__.config
    torch.manual_seed(3)
    alone.fit()
    torch.manual_seed(3)
    one.fit()
    for name, weights in alone.model.state_dict().items():
        assert torch.equal(weights, one.model.state_dict()[name])
    assert trials[2].trainer.current_epoch == 0, "another trial is as it was"


def test_a_key_is_parsed_the_first_time_it_has_another_value(parsed):
    repeating = RepeatingBuilder(CliBuilder(Path("train.yaml")))
    for number in range(3):
        build(repeating, number, **{"trainer.gradient_clip_val": 0.5})
    assert len(parsed) == 2
    clipped = build(repeating, 3, **{"trainer.gradient_clip_val": 0.25})
    assert len(parsed) == 3
    assert clipped.trainer.gradient_clip_val == 0.25
    assert build(repeating, 4, **{"trainer.gradient_clip_val": 0.125}).trainer.gradient_clip_val == 0.125
    assert len(parsed) == 3


def test_where_both_ways_differ_all_trials_are_parsed(parsed, monkeypatch):
    find = cli_repeat.key_paths.find

    def misplaced(config, key):
        return find(config, LR if key == "seed_everything" else key)

    monkeypatch.setattr(cli_repeat.key_paths, "find", misplaced)
    repeating = RepeatingBuilder(CliBuilder(Path("train.yaml")))
    trials = [build(repeating, number) for number in range(4)]
    assert len(parsed) == 4
    assert [t.model.hparams.lr for t in trials] == pytest.approx([0.01, 0.02, 0.03, 0.04])


def test_a_command_of_the_projects_own_makes_every_trial(parsed):
    repeating = RepeatingBuilder(CliBuilder(Path("train.yaml"), cli="cli_projects.HookedCLI"))
    for number in range(4):
        build(repeating, number)
    assert len(parsed) == 4


def test_values_that_are_more_than_numbers_are_parsed(parsed):
    repeating = RepeatingBuilder(CliBuilder(Path("train.yaml")))
    for number in range(4):
        stopping = {"monitor": "val_loss", "patience": number}
        callbacks = [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stopping}]
        trial = build(repeating, number, **{"trainer.callbacks": callbacks})
        assert [c.patience for c in trial.trainer.early_stopping_callbacks] == [number]
    assert len(parsed) == 4


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. will be overridden")
def test_an_element_of_a_tuple_is_replaced_without_parsing_again(parsed):
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01, "betas": [0.8, 0.99]}}
    Path("train.yaml").write_text(yaml.safe_dump({**TRAIN, "optimizer": optimizer}))
    first, second = "optimizer.init_args.betas[0]", "optimizer.init_args.betas[1]"
    repeating = RepeatingBuilder(CliBuilder(Path("train.yaml")))
    trials = [build(repeating, n, **{first: 0.5 + 0.1 * n, second: 0.9 + 0.01 * n}) for n in range(4)]
    assert len(parsed) == 2, "the first, and the one that shows that a replaced value is a parsed one"
    for number, trial in enumerate(trials):
        optimizers = trial.model.configure_optimizers()
        assert optimizers.defaults["betas"] == (0.5 + 0.1 * number, 0.9 + 0.01 * number)
