"""The life of a tuned model, with a clock that we turn ourselves: fresh, due, drifted, re-tested, refreshed, fresh.

    python examples/020_stale_and_retuned.py        (half a minute; files in runs/life)

A small, hasty study on the digits; 29 days later it is fresh, 31 days later due. Then the data change (a tenth of the
contrast, every second label a guess), which makes it due whatever its age; `retune` re-tests the recorded best on the
new data, and refreshes the study if another configuration is clearly better.
"""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from lightning_hp import BatchNormClassifier, DigitsDataModule, SearchSpace
from lightning_hp.ledger import dates, records
from lightning_hp.ledger.fingerprint import data_fingerprint
from lightning_hp.tuning.build import PythonBuilder
from lightning_hp.tuning.config import Budget, TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.retune import retune
from lightning_hp.tuning.status_command import status_command

FOLDER = Path("runs/life")
EPOCHS = 6
SPACE = SearchSpace.from_dict(
    {
        "learning_rate": {"low": 1e-3, "high": 1.0, "tier": "A", "default": 0.03},
        "momentum": {"low": 0.5, "high": 0.99, "tier": "B", "default": 0.9},
        "dropout": {"low": 0.0, "high": 0.5, "tier": "C", "default": 0.1},
    }
)


class FadedDigits(DigitsDataModule):
    """The digits after scanner and staff were replaced: a tenth of the contrast, and every second label is a guess."""

    def load(self):
        super().load()
        for split in ("train_set", "val_set", "test_set"):
            x, y = getattr(self, split).tensors
            draw = torch.Generator().manual_seed(len(x))
            guessed = torch.rand(len(y), generator=draw) < 0.5
            y = torch.where(guessed, torch.randint(10, y.shape, generator=draw), y)
            setattr(self, split, TensorDataset(0.1 * x, y))


def builder(data):
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": EPOCHS, "logger": False}
    return PythonBuilder(partial(BatchNormClassifier, hidden_units=64, schedule="cosine"), data, trainer)


def say(event):
    if event.kind == "said":
        print("   ", event.text)


def main():
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.rmtree(FOLDER.with_name("life-r2"), ignore_errors=True)
    config = TuneConfig("life", None, SPACE, budget=Budget(4, EPOCHS), folder=FOLDER)
    found = run(config, builder(DigitsDataModule), say)
    print(f"tuned: val_loss {found.value:.4f}, {found.test}")

    today = datetime.now(UTC)
    ledger = FOLDER / "ledger.jsonl"
    for days in (29, 31):
        print(f"\n{days} days later:")
        status_command([FOLDER], now=today + timedelta(days=days))

    faded = FadedDigits()
    faded.setup("fit")
    moved = dates.verdict(records.read(ledger).of("life"), today + timedelta(days=2), {"data": data_fingerprint(faded)})
    print(f"\n2 days later, on the new data: {moved.status}: {moved.reason}")

    config = replace(config, budget=Budget(12, EPOCHS))
    later = today + timedelta(days=2)
    done = retune(str(FOLDER), config, builder(FadedDigits), k=6, trials=8, listen=say, now=later)
    if done.result is None:  # still the best: the dates moved on; a refresh can be asked for all the same
        status_command([FOLDER], now=later)
        done = retune(str(FOLDER), config, builder(FadedDigits), trials=8, test=False, listen=say, now=later)
    print(f"refreshed: val_loss {done.result.value:.4f}, {done.result.test}\n")
    status_command([FOLDER], now=later)


if __name__ == "__main__":
    main()
