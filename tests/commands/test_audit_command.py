"""The offline commands on a small LightningCLI project: codes, repair beside the original, shift, and the page."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lightning_hp.callbacks import BatchNormAuditor
from lightning_hp.commands.audit import audit_command
from lightning_hp.commands.recalibrate import recalibrate_command
from lightning_hp.report.audit_page import audit_page

PROJECT = """
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Data(pl.LightningDataModule):
    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.offset = offset

    def setup(self, stage: str) -> None:
        x = torch.randn(960, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
        y = (x[:, 0] > 1).long()
        self.train_set, self.val_set = TensorDataset(x[:640], y[:640]), TensorDataset(x[640:] + self.offset, y[640:])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, 64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, 64)

    test_dataloader = val_dataloader


class Model(pl.LightningModule):
    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(8, momentum=momentum)
        self.net = nn.Sequential(nn.Linear(6, 8, bias=False), norm, nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)
"""
CONFIG = """
model: {class_path: audited_project.Model, init_args: {momentum: MOMENTUM}}
data: {class_path: audited_project.Data}
trainer: {max_epochs: 2, accelerator: cpu}
"""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "disabled", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "audited_project.py").write_text(PROJECT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "audited_project", raising=False)
    return tmp_path


def trained(folder: Path, momentum: float, audited: bool = True) -> tuple[Path, Path]:
    import audited_project

    config, ckpt = folder / "train.yaml", folder / "last.ckpt"
    config.write_text(CONFIG.replace("MOMENTUM", str(momentum)))
    pl.seed_everything(1, verbose=False)
    trainer = pl.Trainer(
        max_epochs=8 if momentum >= 0.1 else 2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[BatchNormAuditor(on_finding="log", dirpath="")] if audited else [],
    )
    trainer.fit(audited_project.Model(momentum), audited_project.Data())
    trainer.save_checkpoint(ckpt)
    return config, ckpt


def test_audit_of_a_healthy_checkpoint_is_silent(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, ckpt = trained(project, 0.1)
    assert audit_command(config, ckpt, json=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["findings"] == []
    assert result["layers"][0]["population_mean"]


def test_broken_checkpoint_is_reported_repaired_beside_and_then_healthy(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, ckpt = trained(project, 0.005)
    original = ckpt.read_bytes()
    assert audit_command(config, ckpt, html=project / "audit.html") == 4
    assert "**WARN BN10** `net.1`" in capsys.readouterr().out
    page = (project / "audit.html").read_text(encoding="utf-8")
    assert "BN10" in page
    assert "<script src" not in page
    assert 'http-equiv="Content-Security-Policy"' in page

    assert recalibrate_command(config, ckpt, json=True) == 0
    record = json.loads(capsys.readouterr().out)
    repaired = project / "last-recalibrated.ckpt"
    assert record["written"] == str(repaired)
    assert record["after"]["val_loss"] < record["before"]["val_loss"]
    assert ckpt.read_bytes() == original
    weights = [torch.load(path, weights_only=True)["state_dict"] for path in (ckpt, repaired)]
    changed = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert changed == {"net.1.running_mean", "net.1.running_var"}
    assert audit_command(config, repaired) == 0


def test_repair_that_makes_validation_worse_writes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, ckpt = trained(project, 0.005)
    assert recalibrate_command(config, ckpt, mode="max") == 0  # a loss that falls is worse when it is to be maximised
    assert "nothing was written" in capsys.readouterr().out
    assert not (project / "last-recalibrated.ckpt").exists()


def test_a_layer_that_normalises_by_hand_is_named_and_left_alone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand = """
class ByHand(nn.BatchNorm1d):
    def forward(self, x):
        mean, var = (x.mean(0), x.var(0)) if self.training else (self.running_mean, self.running_var)
        if self.training:
            self.running_mean.lerp_(mean.detach(), 0.01)
            self.running_var.lerp_(var.detach(), 0.01)
        return (x - mean) / (var + self.eps).sqrt() * self.weight + self.bias


class Model("""
    source = PROJECT.replace("nn.BatchNorm1d(", "ByHand(").replace("class Model(", by_hand, 1)
    (project / "audited_project.py").write_text(source)
    config, ckpt = trained(project, 0.005)
    assert audit_command(config, ckpt, json=True) == 0
    assert [f["id"] for f in json.loads(capsys.readouterr().out)["findings"]] == ["BN19"]
    assert recalibrate_command(config, ckpt) == 2
    assert "by a `forward` that shows what they normalise" in capsys.readouterr().err
    assert not (project / "last-recalibrated.ckpt").exists()


def test_shift_compares_a_split_with_the_stored_moments(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, ckpt = trained(project, 0.1)
    assert audit_command(config, ckpt, shift="test", json=True) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    assert audit_command(config, ckpt, shift="test", data=["data.init_args.offset=4.0"], json=True) == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    assert (found[0]["id"], found[0]["layer"]) == ("DR01", "net.1")


@pytest.mark.parametrize(
    ("split", "data", "verdict"),
    [
        ("test", ["data.init_args.offset=0.01"], "not shifted"),
        ("val", [], "not shifted, but these are the very rows that the moments were taken from"),
        ("test", ["data.init_args.offset=4.0"], "shifted: net.1 is the first layer hit"),
    ],
)
def test_shift_prints_a_verdict_and_the_layers(
    project: Path, capsys: pytest.CaptureFixture[str], split: str, data: list[str], verdict: str
) -> None:
    config, ckpt = trained(project, 0.1)
    assert audit_command(config, ckpt, shift=split, data=data) == 0
    out = capsys.readouterr().out
    assert f"**{verdict}**." in out
    assert "; 1 layers." in out or "; 2 layers." in out
    assert "| net.1 |" in out
    assert audit_command(config, ckpt, shift=split, data=data, json=True) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == verdict


def test_wrong_use_is_told_with_code_two(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, ckpt = trained(project, 0.1, audited=False)
    assert audit_command("missing.yaml", ckpt) == 2
    assert audit_command(config, "missing.ckpt") == 2
    assert audit_command(config, ckpt, shift="new") == 2
    assert audit_command(config, ckpt, data=["offset"]) == 2
    assert audit_command(config, ckpt, shift="val") == 2
    assert recalibrate_command(config, ckpt, mode="up") == 2
    errors = capsys.readouterr().err
    for text in (
        "got 'missing.yaml'",
        "got 'missing.ckpt'",
        "got 'new'",
        "got 'offset'",
        "validation moments",
        "got 'up'",
    ):
        assert text in errors
    broken = project / "broken.ckpt"
    broken.write_bytes(b"not a checkpoint")
    assert audit_command(config, broken) == 1


def test_checkpoint_without_statistics_is_a_finding(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, ckpt = trained(project, 0.1)
    content = torch.load(ckpt, weights_only=True)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        del content["state_dict"][f"net.1.{name}"]
    torch.save(content, ckpt)
    assert audit_command(config, ckpt, json=True) == 4
    assert json.loads(capsys.readouterr().out)["findings"][0]["id"] == "BN02"


def test_page_escapes_what_comes_from_outside_and_survives_gaps() -> None:
    finding = {"id": "BN01", "severity": "ERROR", "layer": "<img src=x>", "sentence": "<b>", "fix": "&"}
    layer = {
        "name": "</script><script>alert(1)</script>",
        "kind": "BatchNorm1d", "channels": 2, "momentum": None, "updates": 3,
        "eps": 1e-5, "running_mean": [None, 0.0], "running_var": [1.0, -1.0], "population_mean": [0.0, 0.0],
        "population_var": [1.0, 1.0],
    }  # fmt: skip
    page = audit_page({"counts": {"ERROR": 1}, "findings": [finding], "layers": [layer], "history": []})
    assert "<img src=x>" not in page
    assert "<script>alert(1)" not in page
    assert "None: the statistics" in audit_page({})
