"""Keys that decide nothing are refused also where the study starts at the value that something else sets."""

import sys
from pathlib import Path

import cli_projects as projects
import pytest
import torch
import yaml

from lightning_hp import SearchSpace
from lightning_hp.project.cli_builder import CliBuilder
from lightning_hp.project.yaml_file import ConfigError

TRAINER = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "num_sanity_val_steps": 0, "logger": False}
MODEL = {"class_path": "cli_projects.Net", "init_args": {"lr": 0.05, "width": 7}}
TRAIN = {"seed_everything": 3, "model": MODEL, "data": {"class_path": "cli_projects.Data"}, "trainer": TRAINER}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory of the test, and a command line of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-hp", "tune", "tune.yaml"])


def builder(train=TRAIN, **options):
    Path("train.yaml").write_text(yaml.safe_dump(train))
    return CliBuilder(Path("train.yaml"), **options)


def space_of(made, **entries):
    """A space that starts at the project's own values, as that of a tune.yaml does."""
    return SearchSpace.from_dict(entries, defaults=made.defaults(entries))


def test_a_hook_that_sets_the_files_own_value():
    """The hook makes the width 7, which the file says too."""
    made = builder(cli="cli_projects.OverwritingCLI")
    space = space_of(made, **{"model.init_args.width": {"low": 2, "high": 64}})
    assert space.defaults() == {"width": 7}
    with pytest.raises(ConfigError, match=r"`space\.model\.init_args\.width` must decide .* makes it 7 where 2 was"):
        made.check(space)


def test_a_hook_that_sets_the_lowest_value():
    """Then it is the highest that shows it."""
    made = builder({**TRAIN, "model": {**MODEL, "init_args": {"width": 7}}}, cli="cli_projects.OverwritingCLI")
    with pytest.raises(ConfigError, match="makes it 7 where 64 was given"):
        made.check(space_of(made, **{"model.init_args.width": {"low": 7, "high": 64}}))


def test_a_checkpoint_of_ones_own_configuration():
    """A warm start: the checkpoint holds the learning rate that the file says."""
    built = builder().build({}, Path("runs/s/trials/0000"), 0)
    built.fit()
    built.trainer.save_checkpoint("warm.ckpt")
    made = builder({**TRAIN, "trainer": {**TRAINER, "max_epochs": 4}, "ckpt_path": "warm.ckpt"})
    with pytest.raises(ConfigError, match=r"`space\.model\.lr` must decide its value, but the checkpoint"):
        made.check(space_of(made, **{"model.lr": {"low": 0.001, "high": 0.5}}))
    made.check(space_of(made, **{"data.batch_size": {"low": 2, "high": 16}}))


def test_a_block_and_an_argument_inside_it():
    """The optimizer is chosen as a block; one argument of one class is tuned beside it."""
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    made = builder({**TRAIN, "optimizer": sgd})
    inside = "optimizer.init_args.nesterov"
    entries = {
        "optimizer": {"choices": [sgd, adam]},
        inside: {"choices": [True, False], "active_if": {"optimizer": "SGD"}},
    }
    for ordered in (entries, dict(reversed(entries.items()))):
        space = space_of(made, **ordered)
        made.check(space)
        fixed = made.fixed_part(space)["config"]
        assert "optimizer" not in fixed
        assert fixed["model"]["init_args"]["lr"] == 0.05
    arguments = space.arguments({**space.defaults(), "nesterov": True})
    with pytest.warns(UserWarning, match="will be overridden"):
        optimizer = made.build(arguments, Path("runs/s/trials/0001"), 0).model.configure_optimizers()
    assert (type(optimizer), optimizer.defaults["nesterov"]) == (torch.optim.SGD, True)
    assert optimizer.defaults["momentum"] == 0.9


def test_an_interpolation_without_the_command_that_resolves_it():
    made = builder({**TRAIN, "model": {**MODEL, "init_args": {"width": "${data.init_args.batch_size}"}}})
    with pytest.raises(ConfigError, match=r"got 'train\.yaml': .*omegaconf resolves such values: name yours as `cli`"):
        made.check(SearchSpace.from_dict({"model.init_args.lr": {"low": 0.01, "high": 0.1}}))


def test_checkpoints_of_two_folders_of_one_name_are_kept_apart(tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "model"
    folders = ["by_loss/model", "by_epoch/model", str(elsewhere)]
    monitors = ["val_loss", "train_loss", None]
    callbacks = [
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": folder, "filename": "best", "monitor": monitor}}
        for folder, monitor in zip(folders, monitors, strict=True)
    ]
    trial = Path("runs/s/trials/0000")
    built = builder({**TRAIN, "trainer": {**TRAINER, "callbacks": callbacks}}).build({}, trial, 0)
    built.fit()
    project = trial / "checkpoints" / "project"
    written = [project / folders[0], project / folders[1], project / elsewhere.relative_to("/")]
    assert sorted(project.rglob("*.ckpt")) == sorted(folder / "best.ckpt" for folder in written)
    assert not Path("by_loss").exists()
    assert not elsewhere.exists()
    assert projects.Net.load_from_checkpoint(written[0] / "best.ckpt", weights_only=True).hparams.lr == 0.05
