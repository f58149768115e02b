"""StalenessTracker on real Trainers: what it says, what it writes, and that training is the same with it."""

from __future__ import annotations

import csv
import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from distributed_script import run_distributed
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.callbacks import StalenessTracker, staleness
from lightning_hp.ledger import dates, records
from lightning_hp.ledger.fingerprint import data_fingerprint, model_fingerprint

START = datetime(2026, 1, 31, tzinfo=UTC)
DAY = timedelta(days=1)


class Line(pl.LightningModule):
    def __init__(self, learning_rate: float = 0.03, units: tuple[int, ...] = (8, 8)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(3, 2)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.training_step(batch, index)

    test_step = validation_step

    def predict_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate)


def loader(contrast: float = 1.0, rows: int = 300, shuffle: bool = True) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=generator) + 1
    y = torch.randint(2, (rows,), generator=generator)
    return DataLoader(TensorDataset(x * contrast, y), batch_size=50, shuffle=shuffle)


def tune(path: Path, name: str = "line", **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "name": name,
        "study": "runs/line",
        "trials": 40,
        "hyperparameters_by_tier": {"A": {"model.init_args.learning_rate": 0.03}},
        "metric": "val_loss",
        "value": 0.1,
        "model_fingerprint": model_fingerprint(Line),
        "data_fingerprint": data_fingerprint(loader()),
        "now": START,
    }
    records.append(path, records.tuned(**{**arguments, **changes}))


def trainer(tracker: StalenessTracker, tmp_path: Path, **changes: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu", "devices": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
        "default_root_dir": tmp_path,
    }  # fmt: skip
    return pl.Trainer(**{**settings, **changes}, callbacks=[tracker])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(staleness, "rank_zero_info", lines.append)
    return lines


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def track(ledger: Path, day: float = 1, **changes: Any) -> StalenessTracker:
    return StalenessTracker(ledger, clock=lambda: START + day * DAY, **changes)


def events(path: Path) -> list[tuple[str, str]]:
    return [(record["event"], record.get("kind", "")) for record in records.read(path).records]


def fit(
    tracker: StalenessTracker, tmp_path: Path, model: Line | None = None, contrast: float = 1.0, **changes: Any
) -> None:
    trainer(tracker, tmp_path, **changes).fit(model or Line(), loader(contrast), loader(shuffle=False))


def test_a_fresh_record_is_one_line_of_information(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger)
    fit(track(ledger, 29, on_stale="raise"), tmp_path)
    assert said == ["hyperparameters of line fresh until 2026-03-02 (tier A)"]
    assert events(ledger) == [("tuned", ""), ("checked", "model"), ("checked", "data")]


def test_checks_that_find_nothing_are_written_once_a_day(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger)
    for day in (1, 1.5, 1.9, 3):
        fit(track(ledger, day), tmp_path)
    assert [record["at"] for record in records.read(ledger).records if record.get("kind") == "data"] == [
        "2026-02-01T00:00:00Z",
        "2026-02-03T00:00:00Z",
    ]


def test_a_model_without_a_record_is_information_and_makes_no_file(
    tmp_path: Path, ledger: Path, said: list[str]
) -> None:
    fit(track(ledger, on_stale="raise"), tmp_path)
    assert len(said) == 1
    assert said[0].startswith("hyperparameters of this model never tuned")
    assert not ledger.exists()


def test_a_due_record_warns_raises_or_informs(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger)
    line = r"hyperparameters of line due since 2026-03-02 \(tier A\) \(do: lightning-hp retune runs/line\)"
    with pytest.warns(UserWarning, match=line):
        fit(track(ledger, 31), tmp_path)
    with pytest.raises(RuntimeError, match=line):
        fit(track(ledger, 31, on_stale="raise"), tmp_path)
    assert said == []
    fit(track(ledger, 31, on_stale="log"), tmp_path)
    assert len(said) == 1


def test_moved_data_is_due_at_once_for_everybody_until_it_is_back(
    tmp_path: Path, ledger: Path, said: list[str]
) -> None:
    tune(ledger)
    with pytest.warns(UserWarning, match=r"re-test due: columns 0, 1, 2: standard deviation is 0.5 times the old one"):
        fit(track(ledger, 1), tmp_path, contrast=0.5)
    assert events(ledger)[-1] == ("drifted", "data")
    assert dates.verdict(records.read(ledger).of("line"), START + 2 * DAY).status == "due"
    fit(track(ledger, 1.1), tmp_path)
    assert dates.verdict(records.read(ledger).of("line"), START + 2 * DAY).status == "fresh"


def test_data_is_left_alone_when_told_so(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger)
    fit(track(ledger, max_rows=0), tmp_path, contrast=0.5)
    assert said[0].startswith("hyperparameters of line fresh")


def test_another_model_is_invalid(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger, model_fingerprint="somewhere.Line(learning_rate)")
    with pytest.warns(UserWarning, match=r"invalid: model changed: was somewhere.Line\(learning_rate\), is .*Line"):
        fit(track(ledger), tmp_path)
    assert ("drifted", "model") in events(ledger)


def test_values_other_than_the_tuned_ones_are_named(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tuned = {"A": {"model.init_args.learning_rate": 0.03}, "B": {"units": [8, 8], "gone": 1}}
    tune(ledger, hyperparameters_by_tier=tuned)
    fit(track(ledger), tmp_path)
    with pytest.warns(UserWarning, match=r"than tuned: learning_rate is 0.1, tuned was 0.03; units is \(4,"):
        fit(track(ledger), tmp_path, Line(learning_rate=0.1, units=(4, 4)))
    assert dates.verdict(records.read(ledger).of("line"), START + 2 * DAY).status == "fresh"


def test_training_is_the_same_with_and_without_the_tracker(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger)
    weights = []
    for tracker in (track(ledger), track(tmp_path / "none.jsonl", max_rows=0)):
        pl.seed_everything(5, verbose=False)
        model = Line()
        fit(tracker, tmp_path, model, max_epochs=2)
        weights.append(model.layer.weight.detach().clone())
    assert torch.equal(*weights)


def test_dates_reach_the_checkpoint_and_the_loggers(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger)
    logger = CSVLogger(tmp_path, name="logs", version=0)
    run = trainer(track(ledger, 10), tmp_path, logger=logger)
    run.fit(Line(), loader(), loader(shuffle=False))
    logger.save()
    (row,) = csv.DictReader((tmp_path / "logs/version_0/metrics.csv").read_text().splitlines())
    assert (float(row["staleness/age_days"]), float(row["staleness/days_left"])) == (10.0, 20.0)
    texts = (tmp_path / "logs/version_0/hparams.yaml").read_text().splitlines()
    assert {"staleness/next: '2026-03-02T00:00:00Z'", "staleness/status: fresh"} <= set(texts)
    run.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    ((key, found),) = [item for item in state.items() if "StalenessTracker" in item[0]]
    assert found["tuned_at"] == "2026-01-31T00:00:00Z"
    assert json.loads(json.dumps(found)) == found
    later = track(ledger, 11)
    trainer(later, tmp_path, max_epochs=2).fit(
        Line(), loader(), loader(shuffle=False), ckpt_path=tmp_path / "last.ckpt"
    )
    assert later.restored == found
    assert later.state_key == key


def test_two_shifted_checks_in_a_row_make_the_record_due(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger)
    answers: list[list[str] | None] = [["layer 1 shifted"], [], ["layer 1 shifted"], None, ["layer 2 shifted"]]
    asked = iter(answers)
    tracker = track(ledger, shift=lambda *_: next(asked))
    run, model = trainer(tracker, tmp_path), Line()
    with pytest.warns(UserWarning, match=r"line fresh until .*; shifted in 1 check, due at 2 in a row: layer 1"):
        run.validate(model, loader(shuffle=False), verbose=False)
    run.test(model, loader(shuffle=False), verbose=False)
    with pytest.warns(UserWarning, match=r"in a row: layer 1 shifted"):
        run.predict(model, loader(shuffle=False))
    run.validate(model, loader(shuffle=False), verbose=False)
    assert tracker.verdict is not None
    assert tracker.verdict.status == "fresh"
    with pytest.warns(UserWarning, match=r"re-test due: shifted in 2 checks in a row: layer 2 shifted"):
        run.validate(model, loader(shuffle=False), verbose=False)
    assert [event for event, kind in events(ledger) if kind == "moments"] == [
        "drifted",
        "checked",
        "drifted",
        "drifted",
    ]


def test_the_shift_test_is_not_asked_inside_a_fit(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger)

    def never(*_: object) -> list[str]:
        raise AssertionError

    trainer(track(ledger, shift=never), tmp_path).fit(Line(), loader(), loader(shuffle=False))
    assert len(said) == 1


def test_a_trial_run_writes_nothing(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger)
    fit(track(ledger), tmp_path, fast_dev_run=True)
    assert (len(said), events(ledger)) == (1, [("tuned", "")])


@pytest.mark.parametrize("content", ["not a ledger\n", '{"schema": 9}\n'])
def test_a_bad_ledger_is_said_in_one_line_and_left_alone(
    tmp_path: Path, ledger: Path, said: list[str], content: str
) -> None:
    ledger.write_text(content)
    with pytest.warns(UserWarning, match=r"staleness unknown: .*ledger.jsonl:1: "):
        fit(track(ledger), tmp_path)
    with pytest.raises(RuntimeError, match=r"staleness unknown: .*ledger.jsonl:1: "):
        fit(track(ledger, on_stale="raise"), tmp_path)
    assert ledger.read_text() == content


def test_a_clock_in_the_past_is_said_and_nothing_written(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger)
    with pytest.warns(UserWarning, match=r"ledger.jsonl:1: 2026-01-31T00:00:00Z lies after the clock's 2026-01-28"):
        fit(track(ledger, -3), tmp_path)
    assert events(ledger) == [("tuned", "")]


def test_several_names_need_one(tmp_path: Path, ledger: Path, said: list[str]) -> None:
    tune(ledger)
    tune(ledger, name="other", now=START + DAY)
    with pytest.warns(UserWarning, match=r"`name` must be one of line, other of .*ledger.jsonl, got None"):
        fit(track(ledger), tmp_path)
    fit(track(ledger, 2, name="other"), tmp_path)
    assert said[-1].startswith("hyperparameters of other fresh until 2026-03-03")


@pytest.mark.parametrize(("name", "value"), [("on_stale", "shout"), ("max_rows", 1), ("max_rows", -5)])
def test_arguments_are_checked(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        StalenessTracker(**{name: value})


DISTRIBUTED = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
from pathlib import Path
from test_staleness import DAY, START, Line, StalenessTracker, loader, pl
import lightning.pytorch.callbacks
tracker = StalenessTracker(sys.argv[2], on_stale="raise", clock=lambda: START + float(sys.argv[3]) * DAY)
trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu", devices=2,
                     strategy="ddp", enable_progress_bar=False, enable_model_summary=False,
                     log_every_n_steps=1, callbacks=[tracker])
trainer.fit(Line(), loader(), loader(shuffle=False))
assert tracker.verdict.status == "fresh"
Path(f"{sys.argv[2]}.{trainer.global_rank}").touch()
"""


@pytest.mark.slow
def test_two_processes_write_one_record_and_both_raise(tmp_path: Path, ledger: Path) -> None:
    tune(ledger, model_fingerprint="test_staleness" + model_fingerprint(Line).removeprefix(__name__))
    script = tmp_path / "run.py"
    script.write_text(DISTRIBUTED)

    def run(day: int) -> subprocess.CompletedProcess[str]:
        return run_distributed(script, Path(__file__).parent, ledger, day)

    done = run(1)
    assert done.returncode == 0, done.stderr
    assert events(ledger) == [("tuned", ""), ("checked", "model"), ("checked", "data")]
    assert {path.name for path in tmp_path.glob("ledger.jsonl.*")} == {"ledger.jsonl.0", "ledger.jsonl.1"}
    done = run(31)
    assert done.returncode != 0
    assert "due since 2026-03-02" in done.stderr
