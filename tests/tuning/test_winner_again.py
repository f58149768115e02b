"""A winner whose worker shares no folder is trained again where the study ends."""

import shutil

import pytest
import toy_project as toy


def run_elsewhere(studies, **options):
    """A study whose trials are run; then all files are gone but those of storage, as on another machine."""
    first = studies.run(trials=3, **options)
    for name in ("trials", "evaluation", "locks"):
        shutil.rmtree(studies.paths().root / name, ignore_errors=True)
    studies.paths().result.unlink()
    return first


def test_the_winner_of_another_machine_has_its_checkpoint_and_metrics_here(studies, capsys):
    first = run_elsewhere(studies)
    before = studies.paths().journal.read_bytes()
    again = studies.run(trials=3)
    assert (again.trial, again.value) == (first.trial, first.value)
    assert again.checkpoint.is_file()
    assert again.validation == pytest.approx(first.validation)
    assert studies.paths().journal.read_bytes() == before, "nothing of it is stored"
    said = capsys.readouterr().err
    assert f"training trial {first.trial} again here: its checkpoint is with " in said
    assert " there" not in said, "the same value, so it is not told"
    assert [folder.name for folder in (studies.paths().root / "trials").iterdir()] == [f"{first.trial:04d}"]


def test_what_differs_here_is_told(studies, monkeypatch, capsys):
    first = run_elsewhere(studies)
    loss = toy.Toy.loss
    monkeypatch.setattr(toy.Toy, "loss", lambda module: loss(module) + 1)
    again = studies.run(trials=3)
    assert again.value == first.value, "the study's own record stays"
    told = f"trial {first.trial} has val_loss {first.value + 1:.6g} here, {first.value:.6g} there"
    assert told in capsys.readouterr().err


def test_a_winner_that_cannot_be_trained_here_is_said_and_the_study_ends(studies, monkeypatch, capsys):
    first = run_elsewhere(studies)

    def broken(module, batch, batch_idx):
        raise RuntimeError("no such device")

    monkeypatch.setattr(toy.Toy, "training_step", broken)
    again = studies.run(trials=3)
    assert again.trial == first.trial
    assert f"trial {first.trial} could not be trained again: RuntimeError: no such device" in capsys.readouterr().err


def test_a_winner_of_this_folder_is_not_trained_again(studies, capsys):
    studies.run(trials=3)
    studies.paths().result.unlink()
    studies.run(trials=3)
    assert "again here" not in capsys.readouterr().err
