"""The life of a tuned model under a clock of our own: fresh, due, drifted, re-tested, refreshed, and fresh again."""

import re
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
from optuna_dashboard import get_note
from torch.utils.data import TensorDataset

from lightning_hp import BatchNormClassifier, DigitsDataModule, SearchSpace
from lightning_hp.callbacks import StalenessTracker
from lightning_hp.commands.status import status_command
from lightning_hp.ledger import records
from lightning_hp.project.build import PythonBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.retests.retune import retune_study
from lightning_hp.search.plan import SearchPlan
from lightning_hp.tuning.config import Budget, TuneConfig
from lightning_hp.tuning.engines import run

START = datetime(2031, 1, 31, 9, 30, tzinfo=UTC)
DAY = timedelta(days=1)


def date(day: int) -> str:
    return f"{START + day * DAY:%Y-%m-%d}"


#: the default is far too high for the digits as they are, and about right once they have faded
SPACE = SearchSpace.from_dict(
    {
        "learning_rate": {"low": 1e-3, "high": 30.0, "scale": "log", "tier": "A", "default": 1.0},
        "momentum": {"low": 0.5, "high": 0.99, "scale": "one_minus_log", "tier": "B", "default": 0.9},
    }
)


class FadedDigits(DigitsDataModule):
    """A twentieth of the contrast, while the scaling is still that of the old scanner."""

    def load(self):
        super().load()
        for split in ("train_set", "val_set", "test_set"):
            x, y = getattr(self, split).tensors
            setattr(self, split, TensorDataset(0.05 * x, y))


def builder(data):
    # without BatchNorm, which would make the net indifferent to contrast
    net = partial(BatchNormClassifier, num_layers=1, hidden_units=32, norm="none")
    return PythonBuilder(net, data, {"accelerator": "cpu", "devices": 1, "max_epochs": 4, "logger": False})


@pytest.fixture
def status(tmp_path, capsys, monkeypatch):
    """``lightning-hp status`` on a day: its exit code and its table, spaces pressed together."""
    monkeypatch.setenv("COLUMNS", "400")

    def ask(day: float) -> tuple[int, str]:
        capsys.readouterr()
        code = status_command([tmp_path], now=START + day * DAY)
        return code, re.sub(r"\s+", " ", capsys.readouterr().out)

    return ask


@pytest.mark.slow
def test_fresh_due_drifted_beaten_refreshed_and_fresh_again(tmp_path, status):
    folder = tmp_path / "digits"
    config = TuneConfig(
        "digits", None, SearchPlan(space=SPACE, n_trials=8, seed=3), budget=Budget(TrainingLength(4)), folder=folder
    )
    first = run(config, builder(DigitsDataModule), now=START)

    code, table = status(29)
    assert (code, f"digits fresh 29 d {date(30)} A fresh until {date(30)} (tier A)" in table) == (0, True), table
    code, table = status(31)
    assert (code, f"digits due 31 d {date(30)} A due since {date(30)} (tier A)" in table) == (3, True), table

    # the data move: somebody's training on day 2, long before the date
    tracker = StalenessTracker(folder / "ledger.jsonl", on_stale="log", clock=lambda: START + 2 * DAY)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, callbacks=[tracker], **quiet)
    trainer.fit(BatchNormClassifier(num_layers=1, hidden_units=32, norm="none"), datamodule=FadedDigits())
    code, table = status(2)
    assert (code, "digits due 2 d" in table) == (3, True), table
    assert "standard deviation is 0.05 times the old one" in table
    assert f"in the script that tuned it: lightning_hp.retune('{folder}', ...)" in table

    # the re-test fails
    tested = retune_study(str(folder), config, builder(FadedDigits), search=False, now=START + 3 * DAY)
    assert tested.test is not None
    assert not tested.test.confirmed
    code, table = status(3)
    assert (code, f"re-test of {date(3)} found better values" in table) == (3, True), table

    # the study is refreshed
    done = retune_study(str(folder), config, builder(FadedDigits), trials=6, now=START + 4 * DAY)
    assert done.result is not None
    assert done.result.value < 0.9 * tested.test.now
    code, table = status(4)
    assert (code, f"digits fresh 0 d {date(34)} A fresh until {date(34)} (tier A)" in table) == (0, True), table
    assert status(35)[0] == 3

    events = [record["event"] for record in records.read(folder / "ledger.jsonl").records]
    assert events == ["tuned", "checked", "drifted", "retested", "retested", "retuned"]
    check_pages(first, done.result, tested.test)


def check_pages(first, second, tested):
    """Both reports and both dashboard pages tell of each other."""
    new = second.report.read_text()
    for said in ("Before and after", f"old values, when tuned {date(0)}", f"re-tested {date(4)}", "new values"):
        assert said in new
    for value in (first.value, tested.now, second.value):
        assert f"<b>{value:.4g}"[:7] in new
    assert 'href="../digits/report.html"' in new
    assert "times the old one" in new
    old = first.report.read_text()
    assert "These values were replaced by those of" in old
    assert f'href="../{Path(second.folder).name}/report.html"' in old
    assert f"{date(3)}" in old  # the re-test that failed
    assert second.study.user_attrs["stale_after"] == f"{date(34)}"
    assert first.study.user_attrs["stale_after"] == f"replaced by digits-r2 on {date(4)}"
    notes = [get_note(one.study) for one in (first, second)]
    assert f"replaced by digits-r2 on {date(4)}" in notes[0].replace("\\", "")
    assert "### Before and after" in notes[1]
