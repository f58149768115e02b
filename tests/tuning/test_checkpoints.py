"""What is saved of a trial, what is kept, and how a checkpoint with the project's own classes is loaded."""

import enum
import pickle
from dataclasses import dataclass

import pytest
import torch
import toy_project as toy

from lightning_hp.tuning.checkpoints import classes_of


@dataclass
class Settings:
    width: int = 3


class Colour(enum.Enum):
    RED = 1


class Described(toy.Toy):
    def __init__(self, learning_rate: float = 0.1, momentum: float = 0.9, faults: str = "", settings=None):
        super().__init__(learning_rate, momentum, faults)
        self.save_hyperparameters({"settings": Settings(5), "colour": Colour.RED})


def test_a_winner_with_objects_in_its_hyperparameters_is_evaluated(studies):
    result = studies.run(model=Described, trials=2)
    assert set(result.validation) == {"val_loss"}
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(result.checkpoint, weights_only=True)


def test_the_reported_value_is_that_of_the_reported_checkpoint(studies):
    """The loss rises after the first epoch, so the last weights would give another value."""

    class Rising(toy.Toy):
        def loss(self):
            return super().loss() + self.current_epoch

    result = studies.run(model=Rising, trials=2, max_epochs=4)
    assert torch.load(result.checkpoint, weights_only=True)["epoch"] == 0
    assert result.value == studies.trials()[result.trial].intermediate_values[1]
    assert sorted(p.name for p in result.checkpoint.parent.iterdir()) == ["lightning_hp-best.ckpt"]


def test_classes_are_allowed_and_functions_are_not(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"a": Settings(7), "b": Colour.RED}, path)
    with classes_of(path):
        assert torch.load(path, weights_only=True)["a"] == Settings(7)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(path, weights_only=True)

    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"a": Evil()}, path)
    with classes_of(path), pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(path, weights_only=True)


def test_a_file_that_is_no_checkpoint_is_left_to_the_loader(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_text("nothing")
    with classes_of(path), pytest.raises((pickle.UnpicklingError, RuntimeError), match=r".+"):
        torch.load(path, weights_only=True)
