"""Projects of other shapes: what a study reports, derived again from its checkpoint and from best.yaml, to 6 digits."""

import json
import runpy
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import recorder
import torch
import yaml

from lightning_hp import cli

EXAMPLES = Path(__file__).parents[1] / "examples" / "projects"
#: folder -> its own command, the metric, what its trainings need
PROJECTS = {
    "digits_cli": ("digits_cli.py", "val/loss"),
    "moons_gan": ("moons_gan.py", "distance"),
    "parts": ("train.py", "val_loss"),
}
RECORD = ["--trainer.callbacks+=recorder.Recorder"]


@pytest.fixture(params=PROJECTS)
def project(request, tmp_path, monkeypatch):
    """A copy of a project, as the working directory; its name."""
    if request.param == "moons_gan":
        pytest.importorskip("tensorboard")
    shutil.copytree(EXAMPLES / request.param, tmp_path / request.param)
    monkeypatch.chdir(tmp_path / request.param)
    monkeypatch.syspath_prepend(str(tmp_path / request.param))
    monkeypatch.setattr(sys, "argv", ["lightning-hp"])
    for module in ("digits_cli", "moons_gan", "waves"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning says of the projects is said to their authors
        yield request.param


def own_command(project, *arguments):
    """Run the project's own command, as a user does."""
    sys.argv[1:] = arguments
    sys.argv[0] = PROJECTS[project][0]
    runpy.run_path(PROJECTS[project][0], run_name="__main__")


def best_of_curve(metric):
    values = [row[metric] for row in recorder.CURVE if metric in row]
    recorder.CURVE.clear()
    return min(values)


def test_the_reported_value_is_derived_again(project):
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    metric = PROJECTS[project][1]
    assert cli.main(["tune", "tune.yaml"]) == 0
    changed = [path for path, content in before.items() if path.read_bytes() != content]
    new = {path.parts[0] for path in Path().rglob("*") if path.is_file() and path not in before}
    assert (changed, new - {"__pycache__"}) == ([], {"runs"}), "nothing but the study's folder was written"
    result = json.loads(Path(f"runs/{project}/result.json").read_text())
    value, best = result["value"], Path(f"runs/{project}/best.yaml")
    near = pytest.approx(value, rel=1e-6)

    options = best.read_text().splitlines()[0].removeprefix("# lightning-hp fit ").split()[1:]
    if project == "digits_cli":  # it has BatchNorm layers
        offline = ["--config", str(best), "--ckpt", result["checkpoint"], *options]
        assert cli.main(["audit", *offline]) == 0
        assert cli.main(["recalibrate", *offline, "--output", "exact.ckpt", "--monitor", "val/loss"]) == 0

    recorder.CURVE.clear()
    command = best.read_text().splitlines()[0].removeprefix("# lightning-hp ").split()
    assert cli.main([*command, *RECORD]) == 0
    assert best_of_curve(metric) == near, "best.yaml by lightning-hp fit"
    shutil.rmtree("production", ignore_errors=True)
    own_command(project, "fit", "--config", str(best), *RECORD)
    assert best_of_curve(metric) == near, "best.yaml by the project's own command"

    if project == "moons_gan":  # without a validation loop: the module's own measure, of the weights in the checkpoint
        gan = runpy.run_path("moons_gan.py")["GAN"].load_from_checkpoint(result["checkpoint"], weights_only=True)
        assert float(gan.distance()) == near
    else:
        own_command(project, "validate", "--config", str(best), "--ckpt_path", result["checkpoint"], *RECORD)
        assert best_of_curve(metric) == near, "the checkpoint by the project's own command"


def test_trial_0_is_the_users_own_configuration(project):
    """All values of the space that the file has are those of trial 0."""
    assert cli.main(["tune", "tune.yaml", "--trials", "1"]) == 0
    best = yaml.safe_load(Path(f"runs/{project}/best.yaml").read_text())
    if project == "digits_cli":
        assert best["model"]["optimizer"] == {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.001}
        assert best["model"]["network"] == {"channels": 8, "hidden": [32], "dropout": 0.1}
        assert best["trainer"]["gradient_clip_val"] == 1.0
    if project == "moons_gan":
        assert (best["model"]["lr_generator"], best["model"]["b1"]) == (0.002, 0.5)
        assert list(Path("runs/moons_gan/trials/0000/logs/gan/version_0").glob("events*"))
    if project == "parts":
        assert best["optimizer"]["init_args"]["nesterov"] is True
        assert best["model"]["init_args"]["frequencies"] == [1.0, 3.0]
        checkpoint = Path("runs/parts/trials/0000/checkpoints/project/production/model.ckpt")
        assert torch.load(checkpoint, weights_only=True)["global_step"] > 0
