"""The life of a tuned model, with a clock that we turn ourselves: fresh, due, shifted, drifted, re-tested, refreshed.

    python examples/020_stale_and_retuned.py        (half a minute; files in runs/life)

A small, hasty study on the digits; 29 days later it is fresh, 31 days later due. Then the scanner is replaced (a third
of the contrast, and as much grain), which makes it due whatever its age: twice over, since the winner sees shifted
inputs in two test runs, and since the next training finds that the training data moved. `retune` re-tests the recorded
values on the new data, and refreshes the study. After each step: what `lightning-hp status` says.
"""

import logging
import shutil
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import TensorDataset

from lightning_hp import BatchNormClassifier, DigitsDataModule, SearchSpace
from lightning_hp.callbacks import BatchNormAuditor, StalenessTracker
from lightning_hp.commands.status import status_command
from lightning_hp.project.build import PythonBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.retests.retune import retune_study
from lightning_hp.search.plan import SearchPlan
from lightning_hp.tuning.config import Budget, TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.listener import SilentListener

FOLDER = Path("runs/life")
START = datetime.now(UTC) - timedelta(days=4)
EPOCHS = 6
SPACE = SearchSpace.from_dict(
    {
        "learning_rate": {"low": 1e-3, "high": 1.0, "tier": "A", "default": 0.03},
        "momentum": {"low": 0.5, "high": 0.99, "tier": "B", "default": 0.9},
        "dropout": {"low": 0.0, "high": 0.5, "tier": "C", "default": 0.1},
    }
)
QUIET = {"accelerator": "cpu", "devices": 1, "logger": False}


class NewScanner(DigitsDataModule):
    """The digits after the change.

    What fades here is already standardised with the old scanner's mean and deviation. Had the DataModule standardised
    the faded pixels anew, model and fingerprint would see the old digits: see docs/staleness.md.
    """

    def __init__(self, scans: int = 0):
        super().__init__(split_seed=scans)

    def load(self):
        super().load()
        for split in ("train_set", "val_set", "test_set"):
            x, y = getattr(self, split).tensors
            grain = torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))
            setattr(self, split, TensorDataset(0.3 * x + 0.3 * grain, y))


def builder(data):
    return PythonBuilder(
        partial(BatchNormClassifier, hidden_units=64, schedule="cosine"), data, {**QUIET, "max_epochs": EPOCHS}
    )


def trainer(now, **options):
    """An ordinary Trainer of an existing project, with the two callbacks; their order does not matter."""
    tracker = StalenessTracker(FOLDER / "ledger.jsonl", on_stale="log", clock=lambda: now)
    return pl.Trainer(
        **QUIET, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[tracker, BatchNormAuditor(on_finding="log", dirpath="")], **options,
    )  # fmt: skip


def status(title, now):
    print(f"\n{now:%Y-%m-%d}, {title}:")
    status_command([FOLDER.parent / "life"], now=now)


class Say(SilentListener):
    """Prints what a study says in words."""

    def message(self, text):
        print("   ", text)


def main():
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    for folder in FOLDER.parent.glob(f"{FOLDER.name}*"):
        shutil.rmtree(folder)
    config = TuneConfig(
        "life", None, SearchPlan(space=SPACE, n_trials=4), budget=Budget(TrainingLength(EPOCHS)), folder=FOLDER
    )
    found = run(config, builder(DigitsDataModule), Say(), now=START)
    print(f"tuned: val_loss {found.value:.4f}, {found.test}")
    for days in (29, 31):
        status(f"{days} days later", START + timedelta(days=days))

    checkpoint = torch.load(found.checkpoint, weights_only=True)
    model = BatchNormClassifier(**checkpoint["hyper_parameters"])
    for scans in (1, 2):  # its validation moments are in the checkpoint; new rows every time
        now = START + timedelta(days=scans)
        trainer(now).test(
            model, datamodule=NewScanner(scans), ckpt_path=found.checkpoint, weights_only=True, verbose=False
        )
        status(f"test run {scans} on the new scanner", now)

    now = START + timedelta(days=3)
    trainer(now, max_epochs=1).fit(model, datamodule=NewScanner())
    status("somebody trains on the new data", now)

    now = START + timedelta(days=4)
    print(f"\n{now:%Y-%m-%d}, lightning-hp retune life:")
    config = replace(config, search=replace(config.search, n_trials=12))
    done = retune_study(str(FOLDER), config, builder(NewScanner), trials=8, listener=Say(), now=now)
    if done.result is None:  # still the best: the dates moved on; a refresh can be asked for all the same
        done = retune_study(str(FOLDER), config, builder(NewScanner), trials=8, test=False, listener=Say(), now=now)
    print(f"refreshed: val_loss {done.result.value:.4f}, {done.result.test}")
    status("refreshed", now)
    print(f"\nBefore and after, side by side: {done.result.report}")


if __name__ == "__main__":
    main()
