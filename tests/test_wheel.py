"""The wheel, installed away from the repository, runs the main job."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the files that git knows, so that nothing else can get into it."""
    pytest.importorskip("build", reason="`build` is not installed")
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.whl")
    assert list(out.glob("*.tar.gz"))
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    return target


def run(installed, folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"lightning_hp"}
    assert {"lightning_hp/py.typed", "lightning_hp/report/templates/report.html", "lightning_hp/dashboard/poll.js"} <= {
        *names
    }
    points = next(name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(points).decode()
    assert "lightning-hp = lightning_hp.cli:main" in text
    assert "lightning_hp = lightning_hp.callbacks.factory:environment_callbacks" in text


def test_the_main_job_runs_outside_of_the_repository(installed, tmp_path):
    where = run(installed, tmp_path, sys.executable, "-c", "import lightning_hp; print(lightning_hp.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    for file in ("train.yaml", "tune.yaml"):
        shutil.copy(ROOT / "configs/digits" / file, tmp_path / file)
    ours = [sys.executable, "-m", "lightning_hp"]
    run(installed, tmp_path, *ours, "tune", "tune.yaml", "--trials", "3", "--max_epochs", "2")
    result = json.loads((tmp_path / "runs/digits/result.json").read_text())
    assert result["value"] > 0
    assert "test_accuracy" in result["test"]
    assert (tmp_path / "runs/digits/report.html").stat().st_size > 100_000
    assert "learning_rate" in run(installed, tmp_path, *ours, "report", "digits")
    run(installed, tmp_path, *ours, "init", "train.yaml", "--output", "first.yaml")


def test_a_trainer_of_another_project_is_audited_where_the_environment_says_so(installed, tmp_path, monkeypatch):
    script = (
        "from lightning.pytorch import Trainer; print(*[type(c).__name__ for c in Trainer(logger=False).callbacks])"
    )
    assert "Auditor" not in run(installed, tmp_path, sys.executable, "-c", script)
    monkeypatch.setenv("LIGHTNING_HP_AUDIT", "1")
    assert "EnvironmentAuditor" in run(installed, tmp_path, sys.executable, "-c", script)
