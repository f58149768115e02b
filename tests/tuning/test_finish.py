"""The end of a study: the clock that dates it, and the moments that its winner leaves behind."""

import json
from datetime import UTC, datetime, timedelta

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.callbacks import BatchNormAuditor, StalenessTracker
from lightning_hp.callbacks.audit.reference import read_reference, weights_fingerprint
from lightning_hp.ledger import records
from lightning_hp.tuning.tune import tune

START = datetime(2031, 1, 31, 12, tzinfo=UTC)
QUIET = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}


class Rows(pl.LightningDataModule):
    def __init__(self, contrast: float = 1.0):
        super().__init__()
        x = torch.randn(96, 3, generator=torch.Generator().manual_seed(round(10 * contrast)))
        self.rows = TensorDataset(contrast * x, (x[:, 0] > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=16)

    val_dataloader = test_dataloader = train_dataloader


class Norm(pl.LightningModule):
    def __init__(self, learning_rate: float = 0.1):
        super().__init__()
        self.learning_rate = learning_rate
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", self.training_step(batch, index))

    def test_step(self, batch, index):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.learning_rate)


@pytest.fixture(scope="module")
def winner(tmp_path_factory):
    space = {"learning_rate": {"low": 0.01, "high": 1.0, "scale": "log", "tier": "A", "default": 0.1}}
    folder = tmp_path_factory.mktemp("runs") / "norm"
    return tune(Norm, Rows, space, name="norm", folder=folder, trials=2, max_epochs=3, trainer=QUIET, now=START)


def test_the_clock_given_dates_the_record_the_result_and_the_report(winner):
    record = records.read(winner.folder / "ledger.jsonl").latest("norm")
    assert record["tuned_at"] == record["at"] == "2031-01-31T12:00:00Z"
    assert record["retest_at"] == {"A": "2031-03-02T12:00:00Z"}
    assert json.loads((winner.folder / "result.json").read_text())["finished_at"] == "2031-01-31T12:00:00+00:00"
    report = winner.report.read_text()
    assert "Written 2031-01-31T12:00:00Z" in report
    assert "Fresh until 2031-03-02 (tier A)" in report
    assert winner.study.user_attrs["stale_after"] == "2031-03-02"


def test_every_short_attribute_is_written_once_in_one_format(winner):
    lines = [json.loads(line) for line in (winner.folder / "journal.log").read_text().splitlines()]
    attributes = [attribute for line in lines for attribute in line.get("user_attr", {}).items()]
    assert [value for name, value in attributes if name == "best"] == [
        f"val_loss {winner.value:.4g} (trial {winner.trial})"
    ]
    assert [value for name, value in attributes if name == "stale_after"] == ["2031-03-02"]


def test_a_clock_without_a_time_zone_is_refused(studies):
    with pytest.raises(ValueError, match="`now` must be a datetime with a time zone"):
        studies.run(trials=1, now=datetime(2031, 1, 31))


def test_the_winner_leaves_its_validation_moments_for_shift_checks(winner):
    record = records.read(winner.folder / "ledger.jsonl").latest("norm")
    assert record["reference_moments"] == "audit_reference.json"
    checkpoint = torch.load(winner.checkpoint, weights_only=True)
    reference, weights = read_reference(winner.folder / record["reference_moments"])
    assert weights == weights_fingerprint(checkpoint["state_dict"])
    model = Norm()
    model.load_state_dict(checkpoint["state_dict"])
    seen = model.eval().net[0](Rows().rows.tensors[0]).detach().double()
    torch.testing.assert_close(reference.layers["net.1"].mean, seen.mean(0), rtol=1e-5, atol=1e-6)

    tracker = StalenessTracker(winner.folder / "ledger.jsonl", on_stale="log", clock=lambda: START + timedelta(days=1))
    auditor = BatchNormAuditor(on_finding="log", dirpath="")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = pl.Trainer(**QUIET, **quiet, callbacks=[tracker, auditor])
    for _ in range(2):  # a model with the winner's weights, however they came into it
        run.test(model, datamodule=Rows(3.0), verbose=False)
    assert tracker.verdict is not None
    assert tracker.verdict.status == "due"


def test_a_study_without_such_layers_names_no_moments(studies):
    result = studies.run(trials=1)
    assert records.read(result.folder / "ledger.jsonl").latest("toy")["reference_moments"] is None
    assert not (result.folder / "audit_reference.json").exists()
