"""A training that was interrupted goes on from its last checkpoint, which costs little and is gone at its end."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_hp.callbacks.pruning import TrialPruning
from lightning_hp.callbacks.unfinished import UnfinishedCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*logging interval.*", "ignore:.*checkpoint directory.*exists.*")


class Trial:
    def report(self, value, step):
        pass

    def should_prune(self):
        return False


class Steady(BoringModel):
    """Sees the same rows every epoch, so that a training that was cut in two ends where an uncut one does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(32, 2)
        self.rows = torch.rand(8, 32, generator=torch.Generator().manual_seed(1))

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.rows, batch_size=2)

    val_dataloader = train_dataloader

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch))

    def on_validation_epoch_end(self):
        pass

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)]


class Cut(pl.Callback):
    """Ends the process, as far as the training can tell, in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 2:
            raise SystemExit("cut off")


def fit(folder, cut=None, epoch_seconds=10.0, write_seconds=0.1, of="a"):
    """Train with a clock that runs so many seconds an epoch and a write."""
    clock = [0.0]
    pruning = TrialPruning(Trial(), "val_loss", 6)
    unfinished = UnfinishedCheckpoint(folder / "u.ckpt", pruning, of, lambda: clock[0])
    written = []

    class Time(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            clock[0] += epoch_seconds

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            clock[0] += write_seconds
            written.append(trainer.current_epoch)

    callbacks = [pruning, unfinished, Time()] + ([Cut(cut)] if cut is not None else [])
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=6, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=callbacks, default_root_dir=folder,
    )  # fmt: skip
    model = Steady()
    file = folder / "u.ckpt"
    if file.exists() and unfinished.fits(torch.load(file, weights_only=True)):
        trainer.ckpt_path = file
    if cut is None:
        trainer.fit(model)
    else:
        with pytest.raises(SystemExit, match="cut off"):
            trainer.fit(model)
    return model, pruning, unfinished, written


def test_a_training_that_goes_on_ends_where_an_uncut_one_does(tmp_path):
    whole, its, _, _ = fit(tmp_path / "whole")
    fit(tmp_path / "cut", cut=3)
    assert (tmp_path / "cut" / "u.ckpt").exists()
    model, pruning, unfinished, _ = fit(tmp_path / "cut")
    assert unfinished.begun_at == 3
    assert torch.equal(model.layer.weight, whole.layer.weight)
    assert pruning.curve == its.curve
    assert list(pruning.curve) == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "cut" / "u.ckpt").exists()


def test_the_checkpoint_of_another_training_is_not_gone_on_from(tmp_path):
    fit(tmp_path, cut=3)
    assert fit(tmp_path, of="b")[2].begun_at == 0


@pytest.mark.parametrize(
    ("epoch_seconds", "write_seconds", "written"),
    [(10.0, 0.1, [0, 1, 2, 3, 4, 5]), (0.1, 0.1, []), (1.0, 0.09, [0, 2, 4]), (1.0, 0.3, [0])],
)
def test_writes_cost_at_most_a_twentieth_of_the_time_between_them(tmp_path, epoch_seconds, write_seconds, written):
    assert fit(tmp_path, epoch_seconds=epoch_seconds, write_seconds=write_seconds)[3] == written


def test_other_checkpoints_hold_nothing_of_it(tmp_path):
    _, pruning, unfinished, _ = fit(tmp_path)
    assert unfinished.state_dict() == {}
    assert pruning.state_dict() == {}
