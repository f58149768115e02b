"""Two processes that train one trial for a moment do not take each other's unfinished checkpoint away."""

import os
from types import SimpleNamespace

import pytest

from lightning_hp.callbacks import unfinished
from lightning_hp.callbacks.pruning import TrialPruning
from lightning_hp.callbacks.unfinished import UnfinishedCheckpoint, drop_unfinished


class Trainer:
    """What the callback asks of a Trainer; while it saves, something else may happen."""

    is_global_zero = True
    strategy = SimpleNamespace(broadcast=lambda value: value)

    def __init__(self, text, meanwhile=lambda: None):
        self.text, self.meanwhile = text, meanwhile

    def save_checkpoint(self, file):
        file.write_text(self.text)
        self.meanwhile()


@pytest.fixture
def checkpoint(tmp_path):
    return UnfinishedCheckpoint(tmp_path / "unfinished.ckpt", TrialPruning(None, "val_loss", 3))


def as_process(monkeypatch, number):
    monkeypatch.setattr(unfinished.os, "getpid", lambda: number)


def test_a_process_that_stood_still_writes_to_a_file_of_its_own(checkpoint, monkeypatch):
    here = os.getpid()

    def late():
        as_process(monkeypatch, here + 1)
        checkpoint._write(Trainer("late"))
        as_process(monkeypatch, here)
        assert checkpoint.file.read_text() == "late"

    checkpoint._write(Trainer("mine", late))
    assert checkpoint.file.read_text() == "mine"
    assert [file.name for file in checkpoint.file.parent.iterdir()] == [checkpoint.file.name]


def test_what_killed_processes_have_left_is_dropped_with_the_checkpoint(checkpoint):
    (checkpoint.file.parent / f".part-elsewhere-7-{checkpoint.file.name}").write_text("half")
    (checkpoint.file.parent / "best.ckpt").write_text("whole")
    checkpoint._write(Trainer("mine", lambda: drop_unfinished(checkpoint.file)))
    checkpoint._write(Trainer("again"))
    drop_unfinished(checkpoint.file)
    assert [file.name for file in checkpoint.file.parent.iterdir()] == ["best.ckpt"]
