"""Trials of LightningCLI projects: what the project's own command would run, with values replaced and outputs apart."""

import csv
import json
import random
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cli_projects as projects
import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger

from lightning_hp import SearchSpace, cli
from lightning_hp.project.best_yaml import best_yaml
from lightning_hp.project.cli_builder import CliBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.python_builder import PythonBuilder
from lightning_hp.project.quiet import suppress_repeated_warnings
from lightning_hp.project.yaml_file import ConfigError

TRAINER = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "num_sanity_val_steps": 0, "logger": False}
TRAIN = {
    "seed_everything": 3,
    "model": {"class_path": "cli_projects.Net", "init_args": {"lr": 0.05}},
    "data": {"class_path": "cli_projects.Data"},
    "trainer": TRAINER,
}
FIXED = {"model": {"lr": 0.05}, "trainer": TRAINER}
RANGE = {"low": 0.001, "high": 0.5}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory of the test, and a command line of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-hp", "tune", "tune.yaml"])
    projects.EVENTS.clear()
    return tmp_path


def builder(train=TRAIN, **options):
    Path("train.yaml").write_text(yaml.safe_dump(train))
    return CliBuilder(Path("train.yaml"), **options)


def space_of(**parameters):
    return SearchSpace.from_dict(parameters)


def trial(number=0):
    return Path("runs/s/trials") / f"{number:04d}"


def changed(train=TRAIN, **parts):
    """A copy of a file with some keys of its parts replaced."""
    return {**train, **{part: {**train.get(part, {}), **keys} for part, keys in parts.items()}}


# --- the project's command ---


def test_a_trial_trains_as_the_projects_own_command_does():
    """Weights after training are compared with those of the command itself, hooks included."""
    built = builder(cli="cli_projects.HookedCLI").build({"model.init_args.lr": 0.2}, trial(), 5)
    assert built.trainer.log_every_n_steps == 2, "self.config[self.subcommand] is the one that counts"
    built.fit()
    assert projects.EVENTS == ["before_fit", "after_fit at epoch 2"]
    projects.EVENTS.clear()
    arguments = ["fit", "--config", "train.yaml", "--model.init_args.lr=0.2", "--seed_everything=5"]
    sys.argv[1:] = arguments
    own = projects.HookedCLI(save_config_callback=None)
    assert projects.EVENTS == ["before_fit", "after_fit at epoch 2"]
    for name, weights in own.model.state_dict().items():
        assert torch.equal(weights, built.model.state_dict()[name])
    assert not torch.all(own.model.net[2].weight == 0.25), "it has learned something"


@pytest.mark.parametrize("command", ["cli_projects.main", "cli_projects.main_that_fits", "main.py"])
def test_a_function_or_a_script_makes_the_call(command):
    Path("main.py").write_text(projects.SCRIPT)
    pytest.importorskip("omegaconf") if command == "main.py" else None
    built = builder({**FIXED, "trainer": {**TRAINER, "max_epochs": 2}}, cli=command).build(
        {"model.lr": 0.2}, trial(), 5, length=TrainingLength(max_epochs=1)
    )
    assert built.trainer.gradient_clip_val == 0.5, "what the command passes holds"
    assert built.model.hparams.lr == 0.2
    assert "after the call" not in projects.EVENTS
    built.fit()
    assert built.trainer.current_epoch == 1
    assert "val_loss" in built.trainer.callback_metrics
    assert "fitted" not in projects.EVENTS, "the study fits, the command's own fit was left"


@pytest.mark.parametrize("command", ["main_with_a_trainer", "main_that_fits_with_a_trainer"])
def test_a_trainer_class_of_the_project_is_used_once(command):
    made = builder({**FIXED, "trainer": {**TRAINER, "note": 5}}, cli=f"cli_projects.{command}")
    made.check(space_of(**{"trainer.note": {"low": 2, "high": 9}}))
    built = made.build({"trainer.note": 7}, trial(), 0)
    assert projects.EVENTS == []
    built.fit()
    assert (projects.EVENTS, built.trainer.note, built.trainer.current_epoch) == (["own fit"], 7, 2)


def test_a_trainer_that_the_command_makes_itself_is_refused():
    with pytest.raises(ConfigError, match="`cli` must train with the Trainer of its LightningCLI"):
        builder(FIXED, cli="cli_projects.main_with_another_trainer").build({}, trial(), 0)


def test_omegaconf_files_are_resolved_by_the_projects_parser():
    pytest.importorskip("omegaconf")
    Path("main.py").write_text(projects.SCRIPT)
    train = {"model": {"width": "${data.batch_size}"}, "data": {"batch_size": 16}, "trainer": TRAINER}
    made = builder(train, cli="main.py")
    made.check(space_of(**{"model.lr": RANGE}))
    assert made.defaults(["model.width"]) == {"model.width": 16}
    assert made.build({"model.lr": 0.2}, trial(), 0).model.hparams.width == 16
    with pytest.raises(ConfigError, match="`config` must be a LightningCLI file"):
        builder(train, model="cli_projects.Net", data="cli_projects.Data").check(space_of(**{"model.lr": RANGE}))


def test_nothing_of_the_process_is_changed_by_a_build_or_a_failure():
    before = {name: getattr(LightningCLI, name) for name in vars(LightningCLI)}
    argv, fit = list(sys.argv), pl.Trainer.fit
    builder().build({}, trial(), 0)
    with pytest.raises(ConfigError, match="Option 'nobody' is not accepted"):
        builder().build({"model.init_args.nobody": 1}, trial(), 0)
    with pytest.raises(ConfigError, match="exit code 3"):
        builder(cli="cli_projects.leaves").build({}, trial(), 0)
    assert {name: getattr(LightningCLI, name) for name in vars(LightningCLI)} == before
    assert sys.argv == argv
    assert pl.Trainer.fit is fit


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cli": "cli_projects.makes_no_cli"}, "`cli` must make a LightningCLI, got 'cli_projects.makes_no_cli'"),
        ({"cli": "cli_projects.with_arguments_of_its_own"}, "`cli` must read its arguments from the command line"),
        ({"cli": "cli_projects.TRAIN"}, "`cli` must be a class that can be imported, got 'cli_projects.TRAIN'"),
        ({"cli": "cli_projects.SCRIPT"}, "`cli` must be a LightningCLI class, a function or a script"),
        ({"cli": "nowhere.py"}, "`cli` must be a script that exists, got 'nowhere.py'"),
        (
            {"cli": "cli_projects.main", "model": "cli_projects.Net"},
            "`model` and `data` must be left out where `cli` makes the call",
        ),
    ],
)
def test_a_command_that_cannot_be_run(options, error):
    with pytest.raises(ConfigError, match=error):
        builder(**options).check(space_of(**{"model.lr": RANGE}))


# --- what can be tuned ---


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.init_args.lr", 0.2),
        ("model.lr", 0.2),
        ("model.noise.level", 0.3),
        ("optimizer.lr", 0.3),
        ("optimizer.init_args.betas[1]", 0.9),
        ("trainer.callbacks.init_args.patience", 7),
        ("trainer.callbacks[0].patience", 7),
        ("trainer.callbacks.patience", 7),
        ("trainer.callbacks[1].init_args.every_n_epochs", 3),
    ],
)
def test_every_way_to_name_a_key(key, value):
    train = changed(
        trainer={
            "callbacks": [
                {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss"}},
                {"class_path": "ModelCheckpoint", "init_args": {"every_n_epochs": 1}},
            ]
        }
    )
    train["optimizer"] = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01, "betas": [0.8, 0.99]}}
    made = builder(train)
    made.check(space_of(**{key: {"choices": [value, value * 2]}}))
    with pytest.warns(UserWarning, match="will be overridden"):
        built = made.build({key: value}, trial(), 0)
    (group,) = built.model.configure_optimizers().param_groups
    stopping, checkpoint = (c for c in built.trainer.callbacks if type(c) in (EarlyStopping, ModelCheckpoint))
    there = {
        "model.init_args.lr": built.model.hparams.lr,
        "model.lr": built.model.hparams.lr,
        "model.noise.level": built.model.noise_level,
        "optimizer.lr": group["lr"],
        "optimizer.init_args.betas[1]": group["betas"][1],
        "trainer.callbacks[1].init_args.every_n_epochs": checkpoint._every_n_epochs,
    }
    assert there.get(key, stopping.patience) == value
    assert group["betas"][0] == 0.8
    assert stopping.monitor == "val_loss"
    with pytest.warns(UserWarning, match="will be overridden"):
        text = best_yaml(made, {key: value}, 1, TrainingLength())
    assert made.of_file(_written(text)).defaults([key]) == {key: value}


def _written(text):
    Path("best.yaml").write_text(text)
    return Path("best.yaml")


@pytest.mark.parametrize(
    ("key", "options", "error"),
    [
        ("lr", {}, r"`space\.lr` must be something that train\.yaml takes \(there is model\.init_args\.lr\)$"),
        ("trainer.max_epoch", {}, r"`space\.trainer\.max_epoch` must be something that train\.yaml takes"),
        (
            "model.init_args.width",
            {"cli": "cli_projects.LinkedCLI"},
            r"`space\.model\.init_args\.width` must not be set by a link: .* from data\.init_args\.batch_size; tune",
        ),
        ("model.width", {"cli": "cli_projects.LinkedCLI"}, r"`space\.model\.width` must not be set by a link"),
        (
            "model.width",
            {"cli": "cli_projects.DataLinkedCLI"},
            r"`space\.model\.width` must not be set by a link: .* from data\.features",
        ),
        (
            "model.init_args.width",
            {"cli": "cli_projects.OverwritingCLI"},
            r"`space\.model\.init_args\.width` must decide its value, but before_instantiate_classes .* makes it 7",
        ),
    ],
)
def test_a_key_that_decides_nothing_is_refused(key, options, error):
    with pytest.raises(ConfigError, match=error) as raised:
        builder(**options).check(space_of(**{key: {"low": 2, "high": 64}}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["seed_everything", "trainer.max_epochs", "trainer.default_root_dir"])
def test_what_the_study_gives_every_trial_is_not_tuned(key):
    space = space_of(**{key: {"low": 2, "high": 64}})
    for made in (builder(), PythonBuilder(projects.Net, projects.Data)):
        with pytest.raises(ConfigError, match=rf"`space\.{re.escape(key)}` must be left out: "):
            made.check(space)


def test_a_key_that_fits_several_callbacks():
    stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss"}}
    train = changed(trainer={"callbacks": [stopping, stopping]})
    error = r"must say which of several it means: trainer\.callbacks\[0\]\.init_args\.patience, trainer\.callbacks\[1\]"
    with pytest.raises(ConfigError, match=error):
        builder(train).check(space_of(**{"trainer.callbacks.init_args.patience": {"low": 2, "high": 9}}))


def test_a_link_follows_its_source():
    made = builder(cli="cli_projects.LinkedCLI")
    made.check(space_of(**{"data.init_args.batch_size": {"low": 2, "high": 64}}))
    assert made.build({"data.init_args.batch_size": 12}, trial(), 0).model.hparams.width == 12
    text = best_yaml(made, {"data.init_args.batch_size": 12}, 1, TrainingLength())
    assert made.of_file(_written(text)).build({}, trial(), 0).model.hparams.width == 12


@pytest.mark.parametrize("switch", ["fast_dev_run", "barebones"])
def test_a_trainer_that_leaves_no_checkpoint_is_refused(switch):
    with pytest.raises(ConfigError, match=rf"`trainer\.{switch}` must be false, got True"):
        builder(changed(trainer={switch: True})).check(space_of(**{"model.lr": RANGE}))


def test_a_warm_start():
    """The checkpoint's optimizer comes back with its learning rate; what it does not hold can be tuned."""
    built = builder().build({}, trial(), 0)
    built.fit()
    built.trainer.save_checkpoint("warm.ckpt")
    train = {**changed(trainer={"max_epochs": 4}), "ckpt_path": "warm.ckpt"}
    made = builder(train)
    made.check(space_of(**{"data.batch_size": {"low": 2, "high": 16}}))
    warm = made.build({"data.batch_size": 4}, trial(1), 0)
    with suppress_repeated_warnings():
        warm.fit()
    assert (warm.trainer.current_epoch, warm.trainer.global_step) == (4, 2 * 4 + 2 * 8)
    with pytest.raises(
        ConfigError, match=r"`space\.model\.lr` must decide its value, but the checkpoint of `ckpt_path`"
    ):
        made.check(space_of(**{"model.lr": RANGE}))
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    with (
        pytest.warns(UserWarning, match="will be overridden"),
        pytest.raises(ConfigError, match=r"`space\.optimizer\.lr` must decide its value, but `ckpt_path` restores"),
    ):
        builder({**train, "optimizer": optimizer}).check(space_of(**{"optimizer.lr": RANGE}))


# --- what the configuration says ---


def test_the_files_own_values_are_known_by_key():
    train = changed(trainer={"callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss"}}]})
    keys = ["model.lr", "model.init_args.momentum", "data.batch_size", "trainer.callbacks[0].patience", "nobody"]
    own = builder(train).defaults(keys)
    assert own == {
        "model.lr": 0.05,
        "model.init_args.momentum": 0.0,
        "data.batch_size": 8,
        "trainer.callbacks[0].patience": 3,
    }


def test_the_fixed_part_tells_a_changed_project_from_a_changed_range():
    space = space_of(**{"model.lr": RANGE})
    fixed = builder().fixed_part(space)
    assert json.loads(json.dumps(fixed)) == fixed
    moved = {**TRAIN, "model": {"class_path": "cli_projects.Net", "init_args": {"lr": 0.4}}}
    assert builder(moved).fixed_part(space) == fixed, "a tuned value is no part of it"
    assert builder(changed(trainer={"logger": True, "max_epochs": 9})).fixed_part(space) == fixed
    wider = {**TRAIN, "model": {"class_path": "cli_projects.Net", "init_args": {"width": 32}}}
    assert builder(wider).fixed_part(space)["config"]["model"]["init_args"]["width"] == 32
    assert builder(changed(trainer={"gradient_clip_val": 1.0})).fixed_part(space) != fixed
    assert "lr: float = 0.1" in fixed["signatures"]["cli_projects.Net"]


def test_several_files_and_parts_in_files_of_their_own():
    Path("parts").mkdir()
    Path("parts/trainer.yaml").write_text(yaml.safe_dump({**TRAINER, "gradient_clip_val": 0.25}))
    Path("parts/model.yaml").write_text(yaml.safe_dump(TRAIN["model"]))
    Path("base.yaml").write_text(yaml.safe_dump({"model": "parts/model.yaml", "trainer": "parts/trainer.yaml"}))
    Path("over.yaml").write_text(yaml.safe_dump({"data": "cli_projects.Data", "trainer": {"max_epochs": 7}}))
    made = CliBuilder((Path("base.yaml"), Path("over.yaml")))
    assert made.trainer_settings()["max_epochs"] == 7
    made.check(space_of(**{"model.lr": RANGE}))
    text = best_yaml(made, {"model.lr": 0.2}, 1, TrainingLength(max_epochs=3))
    Path("elsewhere").mkdir()
    Path("elsewhere/best.yaml").write_text(text)
    built = made.of_file(Path("elsewhere/best.yaml")).build({}, trial(), 0)
    assert built.trainer.gradient_clip_val == 0.25
    assert (built.trainer.max_epochs, built.model.hparams.lr) == (3, 0.2)


def test_files_that_a_configuration_names_relative_to_itself():
    Path("conf").mkdir()
    Path("conf/a.csv").write_text("a")
    Path("conf/b.csv").write_text("b")
    data = {"class_path": "cli_projects.TableData", "init_args": {"table": "a.csv", "tables": ["b.csv"]}}
    Path("conf/train.yaml").write_text(yaml.safe_dump({**TRAIN, "data": data}))
    made = CliBuilder(Path("conf/train.yaml"))
    made.check(space_of(**{"model.lr": RANGE}))
    text = best_yaml(made, {"model.lr": 0.2}, 1, TrainingLength())
    assert made.of_file(_written(text)).build({}, trial(), 0).data.read == ["a", "b"]


def test_the_environment_is_a_part_of_the_configuration(monkeypatch):
    Path("main.py").write_text(projects.SCRIPT.replace('"parser_mode": "omegaconf"', '"default_env": True'))
    monkeypatch.setenv("PL_FIT__DATA__SCALE", "2.5")
    made = builder(FIXED, cli="main.py")
    text = best_yaml(made, {"model.lr": 0.2}, 1, TrainingLength())
    monkeypatch.delenv("PL_FIT__DATA__SCALE")
    assert made.build({}, trial(), 0).data.hparams.scale == 1.0
    assert made.of_file(_written(text)).build({}, trial(), 0).data.hparams.scale == 2.5


# --- best.yaml ---


def test_best_yaml_says_if_it_would_build_something_else(monkeypatch):
    made = builder()
    monkeypatch.setattr(CliBuilder, "of_file", lambda self, file: replace(self, model=None))
    with pytest.raises(
        ConfigError, match=r"best\.yaml can repeat, but there .*model\.init_args\.lr is 0\.2 and becomes"
    ):
        best_yaml(made, {"model.lr": 0.2}, 1, TrainingLength())


def test_best_yaml_compares_what_is_built(monkeypatch):
    """A file that reads the same may still build something else; what differs by chance is no difference."""
    original, clip = CliBuilder.build, {"best.yaml": 9.0}

    def build(self, *arguments, **named):
        built = original(self, *arguments, **named)
        built.trainer.gradient_clip_val = clip.get(self.files[0].name)
        built.data.made_at = random.random()
        return built

    monkeypatch.setattr(CliBuilder, "build", build)
    with pytest.raises(ConfigError, match=r"but there trainer\.gradient_clip_val is None and becomes 9\.0$"):
        best_yaml(builder(), {"model.lr": 0.2}, 1, TrainingLength())
    clip.clear()
    assert "lr: 0.2" in best_yaml(builder(), {"model.lr": 0.2}, 1, TrainingLength())


def test_best_yaml_of_a_command_is_taken_by_fit_and_by_the_command(monkeypatch):
    made = builder(FIXED, cli="cli_projects.main")
    text = best_yaml(made, {"model.lr": 0.2}, 8, TrainingLength(max_epochs=1))
    _written(text)
    seen = []
    monkeypatch.setattr(
        projects.Net, "on_fit_end", lambda self: seen.append(float(self.trainer.callback_metrics["val_loss"]))
    )
    assert cli.main(["fit", "best.yaml", "--cli_class", "cli_projects.main", "--trainer.logger=false"]) == 0
    shutil.rmtree("production")
    sys.argv[1:] = ["fit", "--config", "best.yaml", "--trainer.logger=false"]
    projects.main()
    made.build({"model.lr": 0.2}, trial(), 8, length=TrainingLength(max_epochs=1)).fit()
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]


# --- what a trial writes ---


def test_checkpoints_of_the_project_are_each_trials_own():
    made = builder(FIXED, cli="cli_projects.main")
    for number in range(2):
        made.build({"model.lr": 0.1 + number / 10}, trial(number), number, length=TrainingLength(max_epochs=1)).fit()
    assert not Path("production").exists()
    written = [torch.load(trial(n) / "checkpoints/project/production/model.ckpt", weights_only=True) for n in range(2)]
    assert [c["hyper_parameters"]["lr"] for c in written] == [0.1, 0.2]


def test_callbacks_that_draw_on_the_screen_stay_away():
    callbacks = [{"class_path": name} for name in ("RichProgressBar", "RichModelSummary", "DeviceStatsMonitor")]
    built = builder(changed(trainer={"callbacks": callbacks, "logger": True})).build({}, trial(), 0)
    kinds = {type(callback).__name__ for callback in built.trainer.callbacks}
    assert "DeviceStatsMonitor" in kinds
    assert not kinds & {"RichProgressBar", "RichModelSummary", "TQDMProgressBar"}


@pytest.mark.parametrize("kind", ["CSVLogger", "TensorBoardLogger"])
def test_loggers_keep_their_class_and_settings(kind):
    if kind == "TensorBoardLogger":
        pytest.importorskip("tensorboard")
    logger = {"class_path": kind, "init_args": {"save_dir": "logs", "name": "mine", "prefix": "p"}}
    made = builder(changed(trainer={"logger": [logger], "log_every_n_steps": 1}))
    loggers = []
    for number in range(2):
        built = made.build({}, trial(number), 0, length=TrainingLength(max_epochs=1))
        built.fit()
        loggers.append(built.trainer.logger)
        assert Path(built.trainer.logger.log_dir) == (trial(number) / "logs/mine/version_0").absolute()
        assert list((trial(number) / "logs/mine/version_0").iterdir())
    assert loggers[0] is not loggers[1]
    assert {type(logger).__name__ for logger in loggers} == {kind}
    assert not Path("logs").exists()


def test_no_logger_stays_no_logger_and_metrics_are_kept_beside():
    built = builder().build({}, trial(), 0, length=TrainingLength(max_epochs=3))
    assert built.trainer.logger is None
    values = []
    built.model.on_validation_end = lambda: values.append(float(built.trainer.callback_metrics["val_loss"]))
    built.fit()
    rows = list(csv.DictReader((trial() / "metrics.csv").read_text().splitlines()))
    assert [(int(r["epoch"]), int(r["step"])) for r in rows] == [(0, 4), (1, 8), (2, 12)]
    assert [float(r["val_loss"]) for r in rows] == values
    assert all(float(r["train_loss"]) > 0 for r in rows)


def test_a_logger_that_is_shared_is_copied_for_every_trial():
    shared = CSVLogger("logs")
    made = PythonBuilder(projects.Net, projects.Data, {"accelerator": "cpu", "logger": shared})
    own = [made.build({}, trial(n), 0).trainer.logger for n in range(2)]
    assert len({id(logger) for logger in (shared, *own)}) == 3
    assert [logger.root_dir for logger in own] == [str(trial(n).absolute() / "logs/lightning_logs") for n in range(2)]
    assert shared.root_dir == "logs/lightning_logs"
    assert shared.experiment is not None
    with pytest.raises(ConfigError, match=r"`trainer\.logger` must be a logger that has not begun to log"):
        made.build({}, trial(2), 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["WandbLogger", "MLFlowLogger"])
def test_loggers_that_name_runs(kind, monkeypatch):
    """Offline: a run a trial, named after it, in the group or experiment of the study."""
    pytest.importorskip({"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}[kind])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = {"WandbLogger": {"offline": True, "project": "mine"}, "MLFlowLogger": {"save_dir": "mlruns"}}[kind]
    made = builder(changed(trainer={"logger": {"class_path": kind, "init_args": settings}, "log_every_n_steps": 1}))
    runs = []
    for number in range(2):
        built = made.build({}, trial(number), 0, length=TrainingLength(max_epochs=1))
        built.fit()
        logger = built.trainer.logger
        if kind == "WandbLogger":
            run = logger.experiment
            assert Path(run.dir).is_relative_to(trial(number).absolute())
            runs.append((run.id, run.name, run.group))
        else:
            run = logger.experiment.get_run(logger.run_id)
            assert run.data.metrics["val_loss"] > 0
            runs.append(
                (run.info.run_id, run.info.run_name, logger.experiment.get_experiment(logger.experiment_id).name)
            )
    assert [run[1:] for run in runs] == [("s-0000", "s"), ("s-0001", "s")]
    assert runs[0][0] != runs[1][0]
    assert not Path("wandb").exists()
