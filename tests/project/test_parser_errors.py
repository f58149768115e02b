"""Errors of a project's own classes come out of LightningCLI as they were raised, wherever the class stands."""

import sys

import pytest
from jsonargparse import ArgumentError

from lightning_hp.project.parser_errors import parser_error, raised_by_project
from lightning_hp.project.project_cli import ProjectCLI
from lightning_hp.study.patience import is_away
from lightning_hp.tuning.objective import is_disk_full, is_out_of_memory

MODULE = """
import lightning.pytorch as pl
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger


class Good(BoringModel):
    def __init__(self, part: torch.nn.Module | None = None, rate: float = 0.1):
        super().__init__()


class Large(BoringModel):
    def __init__(self, width: int = 8):
        raise torch.OutOfMemoryError(f"CUDA out of memory: {width} units")


class Missing(BoringModel):
    def __init__(self, width: int = 8):
        raise FileNotFoundError("no weights.ckpt")


class Part(torch.nn.Module):
    def __init__(self, width: int = 8):
        raise ImportError("parts needs the package partlib")


class Watch(pl.Callback):
    def __init__(self, width: int = 8):
        raise ImportError("watches need the package watchlib")


class Log(CSVLogger):
    def __init__(self, width: int = 8):
        raise ImportError("logs need the package loglib")
"""
RAISED = {
    "model": (["--model=broken.Missing"], "no weights.ckpt", FileNotFoundError),
    "part": (["--model=broken.Good", "--model.part=broken.Part"], "parts needs the package partlib", ImportError),
    "callback": (["--model=broken.Good", "--trainer.callbacks=broken.Watch"], "the package watchlib", ImportError),
    "callbacks": (["--model=broken.Good", "--trainer.callbacks+=broken.Watch"], "the package watchlib", ImportError),
    "logger": (["--model=broken.Good", "--trainer.logger=broken.Log"], "the package loglib", ImportError),
}


@pytest.fixture(autouse=True)
def broken(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken", raising=False)


@pytest.mark.parametrize("place", RAISED)
def test_an_error_of_a_class_of_the_project_comes_out_as_it_was_raised(place):
    arguments, words, kind = RAISED[place]
    with pytest.raises((kind, RuntimeError), match=words) as caught:  # older parsers keep the words only
        ProjectCLI().call([*arguments, "--seed_everything=1"], "built")
    assert len(str(caught.value)) < 120
    for word in ("Union", "Namespace", "Expected a", "Given value", "\n"):
        assert word not in str(caught.value)
    # it stands in its own chain, since it is raised again while the parser's is handled: whoever walks it has to end
    assert not is_disk_full(caught.value)
    assert not is_away(caught.value)


def test_a_model_that_does_not_fit_into_memory_is_recognised():
    with pytest.raises(RuntimeError, match="out of memory: 1024 units") as caught:
        ProjectCLI().call(["--model=broken.Large", "--model.width=1024", "--seed_everything=1"], "built")
    assert is_out_of_memory(caught.value)


def test_an_error_that_is_none_of_the_parsers_stays_what_it_is():
    for error in (ValueError("no such width"), ValueError("")):
        assert raised_by_project(error) is error


def test_an_own_error_keeps_its_own_cause(tmp_path):
    cause = KeyError("width")
    own = ValueError("no such width")
    own.__cause__ = cause
    wrapped = ValueError("Does not validate against any of the Union subtypes\nErrors:\n  - no such width")
    wrapped.__cause__ = own
    assert raised_by_project(wrapped) is own
    assert own.__cause__ is cause


def test_a_value_that_the_parser_refuses_is_told_with_its_key():
    with pytest.raises(ArgumentError, match="rate") as caught:
        ProjectCLI().call(["--model=broken.Good", "--model.rate=fast"], "built")
    line = parser_error(str(caught.value))
    assert "rate" in line
    assert "fast" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain words\n  of two lines", "plain words of two lines"),
        (
            'Parser key "trainer.logger":\n  Does not validate against any of the Union subtypes\n  Subtypes: [a, b]\n'
            "  Errors:\n    - Expected a <class 'bool'>\n    - Problem with given class_path 'x.Log':\n"
            "        needs a package\n        of that name\n    - Expected a <class 'NoneType'>\n"
            "  Given value type: dict",
            "Parser key \"trainer.logger\": Problem with given class_path 'x.Log': needs a package of that name",
        ),
    ],
)
def test_what_a_parser_says_as_one_line(text, line):
    assert parser_error(text) == line
