"""The folder for OptunaHub has the parts that it asks for, and its example runs with the package of the folder."""

import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

import optuna
import pytest
import yaml

import lightning_hp.search

PACKAGE = Path(__file__).parents[2] / "examples/optunahub/package/samplers/coarse_to_fine"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coarse_to_fine", PACKAGE / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_has_the_parts_that_optunahub_asks_for():
    assert {path.name for path in PACKAGE.iterdir()} - {"__pycache__"} == {
        "LICENSE",
        "README.md",
        "__init__.py",
        "example.py",
    }
    _, front, text = (PACKAGE / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(front)
    assert {*about} == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert optuna.__version__ in about["optuna_versions"]
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["Abstract", "APIs", "Installation", "Example", "Others"]


def test_its_names_are_ours():
    module = load()
    assert {name: getattr(module, name) for name in module.__all__} == {
        name: getattr(lightning_hp.search, name) for name in module.__all__
    }


def test_its_example_finds_the_optimum(monkeypatch, capsys):
    hub = ModuleType("optunahub")
    hub.load_module = lambda path: {"samplers/coarse_to_fine": load()}[path]
    monkeypatch.setitem(sys.modules, "optunahub", hub)
    values = runpy.run_path(str(PACKAGE / "example.py"))
    assert values["study"].best_value < 0.01
    assert values["space"].natural(values["study"].best_params)["learning_rate"] == pytest.approx(0.1, abs=0.1)
