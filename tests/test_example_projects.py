"""Projects of other shapes: what a study reports, derived again from its checkpoint and from best.yaml, to 6 digits."""

import importlib
import json
import runpy
import shutil
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import recorder
import torch
import yaml

from lightning_hp import cli

EXAMPLES = Path(__file__).parents[1] / "examples" / "projects"
#: folder -> its own command, the metric, which value of it is best
PROJECTS = {
    "digits_cli": ("digits_cli.py", "val/loss", min),
    "finetune": ("finetune.py", "val_accuracy", max),
    "forecast": ("forecast.py", "val/mae/dataloader_idx_0", min),
    "moons_gan": ("moons_gan.py", "distance", min),
    "parts": ("train.py", "val_loss", min),
}
RECORD = ["--trainer.callbacks+=recorder.Recorder"]


def enter(project, tmp_path, monkeypatch):
    """Make a copy of a project the working directory."""
    left_behind = shutil.ignore_patterns("runs", "__pycache__", "*.pt")
    shutil.copytree(EXAMPLES / project, tmp_path / project, ignore=left_behind)
    monkeypatch.chdir(tmp_path / project)
    monkeypatch.syspath_prepend(str(tmp_path / project))
    monkeypatch.setattr(sys, "argv", ["lightning-hp"])
    for file in EXAMPLES.rglob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)


@pytest.fixture(params=PROJECTS)
def project(request, tmp_path, monkeypatch):
    """A copy of a project, as the working directory; its name."""
    if request.param == "moons_gan":
        pytest.importorskip("tensorboard")
    enter(request.param, tmp_path, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning says of the projects is said to their authors
        if request.param == "finetune":
            runpy.run_path("pretrain.py", run_name="__main__")
        yield request.param


def own_command(project, *arguments):
    """Run the project's own command, as a user does."""
    sys.argv[1:] = arguments
    sys.argv[0] = PROJECTS[project][0]
    runpy.run_path(PROJECTS[project][0], run_name="__main__")


def best_of_curve(project):
    _, metric, best = PROJECTS[project]
    values = [row[metric] for row in recorder.CURVE if metric in row]
    recorder.CURVE.clear()
    return best(values)


def of_checkpoint(project, best, checkpoint):
    """The metric of the weights in a checkpoint, without anything of ours."""
    if project == "moons_gan":  # without a validation loop: the module's own measure
        gan = runpy.run_path("moons_gan.py")["GAN"].load_from_checkpoint(checkpoint, weights_only=True)
        return float(gan.distance())
    if project == "forecast":  # its command has no `validate`
        module = importlib.import_module("forecast")
        model = module.Forecaster.load_from_checkpoint(checkpoint, weights_only=True)
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        data = module.GridLoad(model.hparams.past, model.hparams.future)
        return trainer.validate(model, data, verbose=False)[0][PROJECTS[project][1]]
    own_command(project, "validate", "--config", str(best), "--ckpt_path", checkpoint, *RECORD)
    return best_of_curve(project)


def test_the_reported_value_is_derived_again(project):
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert cli.main(["tune", "tune.yaml"]) == 0
    changed = [path for path, content in before.items() if path.read_bytes() != content]
    new = {path.parts[0] for path in Path().rglob("*") if path.is_file() and path not in before}
    assert (changed, new - {"__pycache__"}) == ([], {"runs"}), "nothing but the study's folder was written"
    result = json.loads(Path(f"runs/{project}/result.json").read_text())
    value, best = result["value"], Path(f"runs/{project}/best.yaml")
    near = pytest.approx(value, rel=1e-6)

    first_line = best.read_text().splitlines()[0].removeprefix("# lightning-hp ").split()
    if project == "digits_cli":  # it has BatchNorm layers
        offline = ["--config", str(best), "--ckpt", result["checkpoint"]]
        assert cli.main(["audit", *offline]) == 0, "the study knows the project's command"
        assert (
            cli.main(["recalibrate", *offline, *first_line[2:], "--output", "exact.ckpt", "--monitor", "val/loss"]) == 0
        )

    recorder.CURVE.clear()
    command = first_line if project == "forecast" else first_line[:2]  # the study knows the rest
    assert cli.main([*command, *RECORD]) == 0
    assert best_of_curve(project) == near, "best.yaml by lightning-hp fit"
    shutil.rmtree("production", ignore_errors=True)
    fit = [] if project == "forecast" else ["fit"]
    own_command(project, *fit, "--config", str(best), *RECORD)
    assert best_of_curve(project) == near, "best.yaml by the project's own command"
    assert of_checkpoint(project, best, result["checkpoint"]) == near, "the checkpoint without us"


def test_trial_0_is_the_users_own_configuration(project):
    """All values of the space that the file has are those of trial 0."""
    assert cli.main(["tune", "tune.yaml", "--trials", "1"]) == 0
    best = yaml.safe_load(Path(f"runs/{project}/best.yaml").read_text())
    if project == "digits_cli":
        assert best["model"]["optimizer"] == {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.001}
        assert best["model"]["network"] == {"channels": 8, "hidden": [32], "dropout": 0.1}
        assert best["trainer"]["gradient_clip_val"] == 1.0
    if project == "finetune":
        assert best["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.01
        assert best["unfreeze"]["unfreeze_backbone_at_epoch"] == 2
        checkpoint = Path("runs/finetune/trials/0000/checkpoints/project/best.ckpt")
        assert torch.load(checkpoint, weights_only=True)["global_step"] > 0
    if project == "forecast":
        assert (best["model"]["lr"], best["model"]["betas"], best["model"]["heads"]) == (0.003, [0.9, 0.999], 2)
        assert (best["trainer"]["max_steps"], best["trainer"]["val_check_interval"]) == (80, 20)
        assert list(Path("runs/forecast/trials/0000/logs/grid/version_0").glob("metrics.csv"))
    if project == "moons_gan":
        assert (best["model"]["lr_generator"], best["model"]["b1"]) == (0.002, 0.5)
        assert list(Path("runs/moons_gan/trials/0000/logs/gan/version_0").glob("events*"))
    if project == "parts":
        assert best["optimizer"]["init_args"]["nesterov"] is True
        assert best["model"]["init_args"]["frequencies"] == [1.0, 3.0]
        checkpoint = Path("runs/parts/trials/0000/checkpoints/project/production/model.ckpt")
        assert torch.load(checkpoint, weights_only=True)["global_step"] > 0


def test_a_plain_script_is_tuned_from_python(tmp_path, monkeypatch, capsys):
    """diabetes, without LightningCLI: the value from the checkpoint, and by the script with the winner's values."""
    enter("diabetes", tmp_path, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = runpy.run_path("tune.py", run_name="__main__")["result"]
        assert {path.name for path in Path().iterdir()} <= {"train.py", "tune.py", "runs", "__pycache__"}
        near = pytest.approx(result.value, rel=1e-6)
        assert result.validation["val_mae"] == near

        script = importlib.import_module("train")
        model = script.Progression.load_from_checkpoint(result.checkpoint, weights_only=True)
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        assert trainer.validate(model, script.Diabetes(), verbose=False)[0]["val_mae"] == near

        trial = result.study.trials[result.trial]
        values = {key.removeprefix("trainer.gradient_").removesuffix("_val"): v for key, v in result.arguments.items()}
        sys.argv[1:] = [f"--{name}={value}" for name, value in {**values, "seed": trial.user_attrs["seed"]}.items()]
        capsys.readouterr()
        runpy.run_path("train.py", run_name="__main__")
    best = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("best "))
    assert float(best.removeprefix("best ")) == pytest.approx(result.value, abs=1e-6), "by the project's own command"
