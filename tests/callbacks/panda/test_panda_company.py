"""Other people's trainings: each is babysat as it should be, or refused in one line."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from panda_project import Module, Script, assert_equal, data, state_of, trainer
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset

from lightning_hp.callbacks import PandaBabysitter
from lightning_hp.callbacks.panda.history import Intervention
from lightning_hp.callbacks.panda.values import read_values, write_values

BACK = Intervention("divergence", "told to", restore="good")


class Watch(pl.Callback):
    """Keeps the state and the rate after every step; it runs after the babysitter."""

    def __init__(self):
        self.states, self.rates = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.states[trainer.global_step] = state_of(pl_module, trainer.optimizers[0])
        self.rates[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]


def fit(folder, panda, module=None, callbacks=(), datamodule=None, before=(), **options):
    pl.seed_everything(7, verbose=False)
    fitted = trainer(folder, [*before, panda, *callbacks], **options)
    fitted.fit(module or Module(), datamodule or data())
    return fitted


# --- refused ---


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (
            lambda: StochasticWeightAveraging(swa_lrs=0.01),
            r"`callbacks` must have no StochasticWeightAveraging beside PandaBabysitter, got one: it sets the learning",
        ),
        (
            lambda: ModelPruning("l1_unstructured", amount=0.2),
            r"`callbacks` must have no ModelPruning beside PandaBabysitter, got one: a rollback would bring pruned",
        ),
    ],
)
def test_a_callback_that_would_work_against_it_is_refused(tmp_path, callback, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, PandaBabysitter(dirpath=""), callbacks=[callback()])


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`:UserWarning")
def test_a_module_without_an_optimizer_is_refused(tmp_path):
    class Fixed(Module):
        def configure_optimizers(self):
            return None

    with pytest.raises(ValueError, match="`module` must have an optimizer with a learning rate, got _MockOptimizer"):
        fit(tmp_path, PandaBabysitter(dirpath=""), Fixed())


# --- a scheduler that is left alone ---


def one_cycle(optimizer):
    return {"scheduler": lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=80), "interval": "step"}


@pytest.mark.parametrize("mode", ["rules", "probe"])
@pytest.mark.parametrize("rate", [1e-6, 0.05])
def test_a_training_whose_rate_is_left_alone_is_what_it_was(tmp_path, mode, rate):
    """No search, no memory, no batch size: 80 steps are few, the momentum long, and the first rate far too low."""

    def schedule(optimizer):
        return {"scheduler": lr_scheduler.OneCycleLR(optimizer, rate, total_steps=80), "interval": "step"}

    alone, watched = Watch(), Watch()
    fit(tmp_path, alone, Module(schedule=schedule), epochs=8)
    panda = PandaBabysitter(mode, scheduler="leave", dirpath="")
    fit(tmp_path, panda, Module(schedule=schedule), [watched], epochs=8)
    assert panda.history.done == []
    assert watched.rates == alone.rates
    assert_equal(watched.states[80], alone.states[80])


def test_weights_that_break_are_mended_beside_a_scheduler_and_its_rate_stays(tmp_path):
    alone, watched = Watch(), Watch()
    fit(tmp_path, alone, Module(schedule=one_cycle), epochs=8)
    panda = PandaBabysitter(scheduler="leave", check_every=5, dirpath="")
    fitted = fit(tmp_path, panda, Module(schedule=one_cycle, spoil_at=63), [watched], epochs=8)
    assert [(one.what.rule, one.back_to) for one in panda.history.done] == [("divergence", 50)]
    assert watched.rates == alone.rates
    assert math.isfinite(fitted.callback_metrics["val_loss"])


def test_a_batch_size_is_not_changed_where_a_schedule_counts_steps(tmp_path):
    from lightning_hp.callbacks.panda import control

    class Person(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 12:
                control.request(tmp_path, "nudge", {"batch_size": 32})

    panda = PandaBabysitter(scheduler="leave", check_every=5, dirpath=tmp_path, picture=False)
    fitted = fit(tmp_path, panda, Module(schedule=one_cycle), [Person()], epochs=8)
    answer = next(row for row in panda.rows if "command" in row)
    assert (answer["accepted"], answer["why"]) == (
        False,
        "batch_size belongs to the learning-rate scheduler of this run",
    )
    assert fitted.global_step == 80


# --- the length of a training ---


def test_the_steps_of_an_accumulation_schedule_are_planned(tmp_path):
    for first in (True, False):
        schedule = [GradientAccumulationScheduler({0: 4, 2: 2, 5: 1})]
        panda = PandaBabysitter(dirpath="", settings={"tiers": ["A"]})
        around = {"before": schedule} if first else {"callbacks": schedule}
        fitted = fit(tmp_path, panda, epochs=8, **around)
        assert panda.history.planned == fitted.global_step == 2 * 3 + 3 * 5 + 3 * 10
        assert panda.history.count("wind_down") > 3


class Stream(IterableDataset):
    def __iter__(self):
        draw = torch.Generator().manual_seed(0)
        for _ in range(160):
            row = torch.randn(6, generator=draw)
            yield row, row[:1] - row[1:2]


def test_the_first_epoch_of_a_stream_shows_how_long_the_training_is(tmp_path):
    panda, planned = PandaBabysitter(dirpath=""), []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            planned.append(panda.history.planned)

    pl.seed_everything(7, verbose=False)
    fitted = trainer(tmp_path, [panda, Note()], epochs=8, limit_val_batches=0)
    fitted.fit(Module(), DataLoader(Stream(), 16), DataLoader(Stream(), 16))
    assert planned == [None] * 10 + [80] * 70
    assert panda.history.count("wind_down") > 3
    assert panda.history.values["learning_rate"] < 0.05 * 0.2


def test_a_changed_batch_size_plans_no_more_than_max_steps(tmp_path):
    nudge = Intervention("nudge", "", {"batch_size": 8.0}, by="person")
    panda = PandaBabysitter(policy=Script({5: nudge}), check_every=5, dirpath="")
    fit(tmp_path, panda, epochs=8, max_steps=30)
    assert panda.history.planned == 30


def test_no_probe_begins_while_a_new_batch_size_waits(tmp_path):
    """80 steps are few: smaller mini-batches come with the second epoch, and training begins again with them."""
    panda = PandaBabysitter("probe", dirpath="", hyperparameters={"batch_size": (4, 64)})
    fit(tmp_path, panda, epochs=8)
    rules = [one.what.rule for one in panda.history.done if one.what.rule != "wind_down"]
    assert rules[:2] == ["batch", "reload"]
    assert "probe" in rules


# --- finders, finetuning, buffers that grow, optimizers that differ ---


class Sized(pl.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.batch_size, self.inside = 16, data()

    def setup(self, stage):
        self.inside.setup(stage)

    def train_dataloader(self):
        return DataLoader(self.inside.train_set, self.batch_size)

    def val_dataloader(self):
        return DataLoader(self.inside.val_set, 40)


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`|The number of training batches:UserWarning")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("finder", ["rate", "batch"])
def test_lightnings_finders_run_before_the_babysitting_begins(tmp_path, finder, first):
    class Named(Module):
        def __init__(self):
            super().__init__()
            self.lr = 1e-3

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)

    one = LearningRateFinder(num_training_steps=20) if finder == "rate" else BatchSizeFinder(max_trials=2)
    panda = PandaBabysitter(dirpath="")
    pl.seed_everything(7, verbose=False)
    around = {"before": [one]} if first else {"callbacks": [one]}
    fitted = trainer(tmp_path, [*around.get("before", []), panda, *around.get("callbacks", [])], epochs=8)
    fitted.fit(Named(), datamodule=Sized())
    assert panda.rows[0]["why"] == "babysitting begins (rules)"
    assert panda.history.planned == fitted.global_step
    assert sum(window.steps for window in panda.history.windows) > 0.9 * fitted.global_step


def test_layers_that_a_finetuning_callback_thaws_are_rolled_back_with_the_others(tmp_path):
    class Thaw(BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.net[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 2:
                self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.004)

    def head(module):
        return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.05, momentum=0.9)

    watch = Watch()
    panda = PandaBabysitter(policy=Script({25: BACK}, keep=[15]), check_every=5, dirpath="")
    fitted = fit(tmp_path, panda, Module(optimizer=head), [watch], before=[Thaw()])
    kept = watch.states[15]
    assert_equal({name: watch.states[25][name] for name in kept}, kept)
    assert [group["lr"] for group in fitted.optimizers[0].param_groups] == [0.05, 0.004]


@pytest.mark.parametrize("late", [False, True])
def test_a_buffer_that_grows_or_comes_later_does_not_break_a_rollback(tmp_path, late):
    class Queue(Module):
        def __init__(self):
            super().__init__()
            if not late:
                self.register_buffer("queue", torch.zeros(0, 6))

        def training_step(self, batch, index):
            if late and not hasattr(self, "queue"):
                if self.batches < 15:
                    return super().training_step(batch, index)
                self.register_buffer("queue", torch.zeros(0, 6))
            self.queue = torch.cat([self.queue, batch[0][:1].detach()])
            return super().training_step(batch, index)

    lengths, watch = {}, Watch()

    class Length(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            lengths[trainer.global_step] = len(getattr(pl_module, "queue", ()))

    panda = PandaBabysitter(policy=Script({20: BACK}, keep=[15]), check_every=5, dirpath="")
    fit(tmp_path, panda, Queue(), [watch, Length()])
    assert (lengths[19], lengths[20]) == ((4, 5) if late else (19, 15))
    for name in ("net.0.weight", "net.1.running_mean"):
        assert torch.equal(watch.states[20][name], watch.states[15][name])


def test_momentum_of_zero_is_raised_only_where_the_optimizer_can():
    def stepped(kind, **options):
        parameter = nn.Parameter(torch.ones(2))
        optimizer = kind([parameter], lr=0.1, **options)
        for _ in range(2):
            parameter.grad = torch.ones(2)
            optimizer.step()
        return optimizer

    assert "momentum" not in read_values(stepped(torch.optim.RMSprop))
    for optimizer in (stepped(torch.optim.SGD), stepped(torch.optim.RMSprop, momentum=0.5)):
        assert "momentum" in read_values(optimizer)
        write_values(optimizer, {"momentum": 0.0})
        write_values(optimizer, {"momentum": 0.9})
        optimizer.step()
        assert read_values(optimizer)["momentum"] == 0.9


@pytest.mark.parametrize("mode", ["rules", "probe"])
@pytest.mark.parametrize("name", ["RMSprop", "Adafactor", "LBFGS", "Adadelta", "Rprop", "Muon"])
def test_every_optimizer_of_torch_is_babysat(tmp_path, mode, name):
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")

    def build(module):
        matrices = [parameter for parameter in module.parameters() if parameter.ndim == 2]
        return getattr(torch.optim, name)(matrices if name == "Muon" else module.parameters(), lr=1e-4)

    panda = PandaBabysitter(mode, dirpath="")
    fitted = fit(tmp_path, panda, Module(optimizer=build), epochs=8)
    assert panda.history.count("slow_start", "too_fast") >= 1
    assert panda.history.values == read_values(fitted.optimizers[0], fitted.datamodule)


# --- what is watched ---


def test_a_metric_that_nobody_logs_is_said_once(tmp_path):
    panda = PandaBabysitter(dirpath="", monitor="val/loss")
    with pytest.warns(UserWarning, match=r"finds no metric 'val/loss' \(logged: val_loss\)") as caught:
        fit(tmp_path, panda)
    assert sum("finds no metric" in str(one.message) for one in caught) == 1
