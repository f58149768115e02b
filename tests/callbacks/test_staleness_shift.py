"""StalenessTracker beside BatchNormAuditor: what the auditor sees shift reaches the ledger, whoever comes first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from distributed_script import run_distributed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.callbacks import BatchNormAuditor, StalenessTracker, staleness
from lightning_hp.callbacks.audit.reference import read_reference, weights_fingerprint, write_reference
from lightning_hp.commands.status import status_command
from lightning_hp.ledger import records
from lightning_hp.ledger.fingerprint import model_fingerprint

START = datetime(2026, 1, 31, tzinfo=UTC)
LOOPS = ("validate", "test", "predict")


class Net(pl.LightningModule):
    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.ReLU(), nn.Linear(8, 2)
        )

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.net(batch[0])

    test_step = validation_step

    def predict_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


def loader(seed: int, contrast: float = 1.0, rows: int = 320) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator) + 1
    y = (x[:, 0] > 1).long()
    return DataLoader(TensorDataset(contrast * x, y), batch_size=40)


def trainer(callbacks: list[pl.Callback], **changes: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 3, "logger": False, "enable_checkpointing": False, "accelerator": "cpu", "devices": 1,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return pl.Trainer(**{**settings, **changes}, callbacks=callbacks)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "last.ckpt"
    pl.seed_everything(1)
    run = trainer([BatchNormAuditor(dirpath="", on_finding="log")])
    run.fit(Net(), loader(0), loader(1))
    run.save_checkpoint(path)
    return path


def tune(path: Path, reference: str | None = None) -> Path:
    event = records.tuned(
        name="net", study="runs/net", trials=9, hyperparameters_by_tier={"A": {"lr": 0.05}}, metric="val_loss",
        value=0.1, model_fingerprint=model_fingerprint(Net), reference_moments=reference, now=START,
    )  # fmt: skip
    records.append(path / "ledger.jsonl", event)
    return path / "ledger.jsonl"


def callbacks(ledger: Path, tracker_first: bool = True) -> list[pl.Callback]:
    pair: list[pl.Callback] = [
        StalenessTracker(ledger, on_stale="log", clock=lambda: START + timedelta(days=2)),
        BatchNormAuditor(dirpath="", on_finding="log"),
    ]
    return pair if tracker_first else pair[::-1]


def evaluate(run: pl.Trainer, loop: str, model: Net, data: DataLoader[Any], ckpt: Path | None) -> None:
    options: dict[str, Any] = {"weights_only": True} if ckpt is not None else {}
    if loop != "predict":
        options["verbose"] = False
    getattr(run, loop)(model, data, ckpt_path=ckpt, **options)


def checks(ledger: Path) -> list[str]:
    return [record["event"] for record in records.read(ledger).records if record.get("kind") == "moments"]


@pytest.mark.parametrize("tracker_first", [True, False])
@pytest.mark.parametrize("loop", LOOPS)
def test_two_shifted_runs_make_the_record_due_with_the_reason(
    tmp_path: Path, checkpoint: Path, loop: str, tracker_first: bool, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "300")
    ledger = tune(tmp_path)
    run, model = trainer(callbacks(ledger, tracker_first)), Net()
    now = START + timedelta(days=2)

    evaluate(run, loop, model, loader(2, contrast=2.5), checkpoint)
    assert status_command([ledger], now=now) == 0
    assert "shifted in 1 check, due at 2 in a row: input of net.1: mean by" in capsys.readouterr().out

    evaluate(run, loop, model, loader(3), checkpoint)  # new rows, not shifted: the count begins anew
    evaluate(run, loop, model, loader(4, contrast=2.5), checkpoint)
    assert status_command([ledger], now=now) == 0

    evaluate(run, loop, model, loader(5, contrast=2.5), checkpoint)
    capsys.readouterr()
    assert status_command([ledger], now=now) == 3
    shown = capsys.readouterr().out
    assert "due" in shown
    assert "shifted in 2 checks in a row: input of net.1: mean by" in shown
    assert f"(320 rows of {loop})" in shown
    assert checks(ledger) == ["drifted", "checked", "drifted", "drifted"]


def test_the_rows_of_the_reference_few_rows_and_trial_runs_prove_nothing(tmp_path: Path, checkpoint: Path) -> None:
    ledger = tune(tmp_path)
    run, model = trainer(callbacks(ledger)), Net()
    evaluate(run, "predict", model, loader(2, contrast=2.5), checkpoint)
    evaluate(run, "validate", model, loader(1), checkpoint)  # what the moments were taken from
    evaluate(run, "validate", model, loader(3, rows=15), checkpoint)
    evaluate(trainer(callbacks(ledger), fast_dev_run=True), "validate", model, loader(3), checkpoint)
    assert checks(ledger) == ["drifted"]
    evaluate(run, "predict", model, loader(4, contrast=2.5), checkpoint)
    assert checks(ledger) == ["drifted", "drifted"]


def test_without_stored_moments_or_layers_or_auditor_nothing_is_entered(tmp_path: Path, checkpoint: Path) -> None:
    ledger = tune(tmp_path)
    for model, ckpt in ((Net(), None), (Net(norm=False), None)):
        evaluate(trainer(callbacks(ledger)), "test", model, loader(2, contrast=2.5), ckpt)
    tracker = callbacks(ledger)[0]
    with pytest.warns(UserWarning, match="BatchNormAuditor"):  # Lightning misses the checkpoint's auditor
        evaluate(trainer([tracker]), "test", Net(), loader(2, contrast=2.5), checkpoint)
    trainer(callbacks(ledger)).fit(
        Net(), loader(0), loader(1, contrast=2.5)
    )  # validation within a fit is the reference
    assert checks(ledger) == []


@pytest.mark.parametrize("tracker_first", [True, False])
def test_the_ledgers_moments_serve_a_model_of_the_same_weights_only(
    tmp_path: Path, checkpoint: Path, tracker_first: bool
) -> None:
    found = torch.load(checkpoint, weights_only=True)
    assert write_reference(tmp_path / "sub" / "moments.json", found)
    ledger = tune(tmp_path, "sub/moments.json")  # relative to the ledger
    same, other = Net(), Net()
    same.load_state_dict(found["state_dict"])
    other.load_state_dict(found["state_dict"])
    with torch.no_grad():
        other.net[0].weight[3, 2] += 1e-3
    evaluate(trainer(callbacks(ledger, tracker_first)), "predict", other, loader(2, contrast=2.5), None)
    assert checks(ledger) == []
    evaluate(trainer(callbacks(ledger, tracker_first)), "predict", same, loader(2, contrast=2.5), None)
    assert checks(ledger) == ["drifted"]


def test_a_file_of_moments_that_cannot_be_read_is_said(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(staleness, "rank_zero_warn", said.append)
    ledger = tune(tmp_path, "moments.json")
    (tmp_path / "moments.json").write_text('{"layers": ')
    evaluate(trainer(callbacks(ledger)), "predict", Net(), loader(2), None)
    assert len(said) == 1
    assert said[0].startswith("no shift check: `reference_moments` must be a file of validation moments, got ")
    evaluate(trainer(callbacks(ledger)), "predict", Net(), loader(2, contrast=2.5), checkpoint)
    assert (len(said), checks(ledger)) == (1, ["drifted"])  # the checkpoint's own moments need no file


def test_moments_are_written_from_a_checkpoint_that_has_them(tmp_path: Path, checkpoint: Path) -> None:
    found = torch.load(checkpoint, weights_only=True)
    assert write_reference(tmp_path / "moments.json", found)
    reference, weights = read_reference(tmp_path / "moments.json")
    model = Net()
    model.load_state_dict(found["state_dict"])
    assert weights == weights_fingerprint(model.state_dict())
    model.eval()
    x = torch.cat([batch[0] for batch in loader(1)])
    seen = model.net[0](x).detach().double()
    torch.testing.assert_close(reference.layers["net.1"].mean, seen.mean(0), rtol=1e-5, atol=1e-6)
    assert not write_reference(tmp_path / "none.json", {"state_dict": {}, "callbacks": {}})
    assert not (tmp_path / "none.json").exists()


DISTRIBUTED = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
from pathlib import Path
from lightning.pytorch.strategies import DDPStrategy
from test_staleness_shift import (START, BatchNormAuditor, Net, StalenessTracker, loader, pl, timedelta, torch)
torch.set_num_threads(1)
tracker = StalenessTracker(sys.argv[2], on_stale="log", clock=lambda: START + timedelta(days=2))
trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", devices=2,
                     strategy=DDPStrategy(process_group_backend="gloo"), enable_progress_bar=False,
                     enable_model_summary=False, callbacks=[tracker, BatchNormAuditor(dirpath="", on_finding="log")])
model = Net()
said = []
for seed, contrast in ((2, 2.5), (3, 1.0), (4, 2.5), (5, 2.5)):
    if seed == 5:
        tracker.on_stale = "raise"
    try:
        trainer.test(model, loader(seed, contrast), ckpt_path=sys.argv[3], weights_only=True, verbose=False)
    except RuntimeError as error:
        said.append(str(error))
    Path(f"{sys.argv[2]}.{trainer.global_rank}").write_text(f"{tracker.verdict.status} {said}")
"""


@pytest.mark.slow
def test_two_processes_enter_each_check_once_and_act_on_one_verdict(tmp_path: Path, checkpoint: Path) -> None:
    ledger = tune(tmp_path)
    script = tmp_path / "run.py"
    script.write_text(DISTRIBUTED)
    done = run_distributed(script, Path(__file__).parent, ledger, checkpoint)
    assert checks(ledger) == ["drifted", "checked", "drifted", "drifted"], done.stderr
    told = [Path(f"{ledger}.{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0].startswith("due [")
    assert "shifted in 2 checks in a row: input of net.1: mean by" in told[0]
    assert "(320 rows of test)" in told[0]  # of both processes
