"""Every YAML file in configs/ loads, and runs shortly."""

import json
from pathlib import Path

import pytest
import yaml

from lightning_hp import TuneConfig, cli
from lightning_hp.tuning.tune import cli_builder

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
TUNE = [f for f in FILES if "space" in yaml.safe_load(f.read_text())]
TRAIN = [f for f in FILES if f not in TUNE]
LOCAL = [f for f in TUNE if yaml.safe_load(f.read_text()).get("caviar", {}).get("engine") == "local"]


def name(path):
    return str(path.relative_to(ROOT))


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """The commands in the files' first lines are meant for the repository's root."""
    monkeypatch.chdir(ROOT)


def test_there_are_files_of_both_kinds():
    assert {name(f) for f in TUNE} >= {"configs/smoke.yaml", "configs/digits/tune.yaml", "configs/tabular/tune.yaml"}
    assert {name(f) for f in TRAIN} >= {"configs/digits/train.yaml", "configs/tabular/train.yaml"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_first_line_is_the_command_that_runs_it(path):
    verb = "tune" if path in TUNE else "fit"
    assert path.read_text().splitlines()[0] == f"# lightning-hp {verb} {name(path)}"


@pytest.mark.parametrize("path", TUNE, ids=name)
def test_a_tune_file_fits_its_train_file(path):
    config = TuneConfig.from_file(path)
    cli_builder(config).check(config.space)
    assert config.config in TRAIN
    assert all(low < high for low, high in ((p.low, p.high) for p in config.space.parameters if hasattr(p, "low")))


def test_names_of_studies_do_not_clash():
    names = [TuneConfig.from_file(path).name for path in TUNE]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", TRAIN, ids=name)
def test_a_train_file_trains(path, tmp_path):
    limits = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    assert cli.main(["fit", str(path), *limits, f"--trainer.default_root_dir={tmp_path}"]) == 0


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.slow] if p in LOCAL else []) for p in TUNE], ids=name
)
def test_a_tune_file_tunes(path, tmp_path):
    short = ["--trials", "2", "--max_epochs", "1", "--folder", str(tmp_path / "study")]
    assert cli.main(["tune", name(path), *short]) == 0
    found = json.loads((tmp_path / "study" / "result.json").read_text())
    assert sum(found["trials"].values()) == 2
    assert "test_accuracy" in found["test"]
    for file in ("best.yaml", "report.html", "ledger.jsonl"):
        assert (tmp_path / "study" / file).stat().st_size
    limits = ["--trainer.limit_train_batches=2", f"--trainer.default_root_dir={tmp_path}"]
    assert cli.main(["fit", str(tmp_path / "study" / "best.yaml"), *limits]) == 0
