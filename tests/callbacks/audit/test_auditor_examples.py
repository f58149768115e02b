"""The auditor says the right thing on three kinds of project, as users write them."""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "disabled", True)

    def loader(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        yield loader


def serious(auditor: Any) -> list[tuple[str, str, str]]:
    return [(f["id"], f["topic"], f["layer"]) for f in auditor.result()["findings"] if f["severity"] != "INFO"]


@pytest.mark.slow
def test_healthy_cnn_gets_no_finding_and_a_tiny_momentum_is_explained(load: Any, tmp_path: Path) -> None:
    example = load("010_audit_cnn.py")
    assert example.main().result()["findings"] == []
    assert (tmp_path / "runs" / "audit_cnn" / "audit.md").is_file()
    assert serious(example.main(momentum=0.001))[0] == ("BN10", "not_warmed_up", "bn1")


@pytest.mark.slow
def test_discriminator_mixes_domains_and_the_generator_does_not(load: Any) -> None:
    found = serious(load("011_audit_gan.py").main())
    assert found[0] == ("BN04", "domains", "discriminator.1")
    assert not [layer for _, _, layer in found if layer.startswith("generator")]


@pytest.mark.slow
def test_two_views_are_a_note_when_alike_and_a_warning_when_not(load: Any) -> None:
    example = load("012_audit_two_views.py")
    even = example.main()
    assert serious(even) == []
    assert {f["topic"] for f in even.result()["findings"]} == {"several_updates"}
    assert serious(example.main(uneven=True))[0] == ("BN04", "domains", "encoder.1")
