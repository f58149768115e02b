"""What cannot be stacked is found before training, and said in one line."""

import warnings
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from foreign_modules import Loaders, Plain, Rows, TableData, sgd
from stacked_runs import alone, assert_equal, build, trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_hp.training import BatchNormClassifier, DigitsDataModule
from lightning_hp.training.stacked import Member, NotStackable, check, stack, train_stacked


class Manual(Plain):
    def __init__(self):
        super().__init__(sgd(0.1))
        self.automatic_optimization = False


class AsksTrainer(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + self.trainer.num_training_batches)


class Counts(Plain):
    count = 0

    def training_step(self, batch, batch_idx):
        self.count += 1
        return super().training_step(batch, batch_idx)


class Hooked(Plain):
    def on_before_optimizer_step(self, optimizer):
        pass


class Branches(Plain):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if loss > 1 else 2 * loss


class Smooths(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + self.smoothing)


class Weighs(Plain):
    """A list among the hyperparameters enters the loss."""

    def __init__(self, weights):
        super().__init__(sgd(0.1))
        self.save_hyperparameters()

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * sum(self.hparams.weights)


class Idle(Plain):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.unused = nn.Linear(2, 2)


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(Rows(0).x, Rows(0).x[:, :1], strict=True)


class Stops(pl.Callback):
    pass


@pytest.mark.parametrize(
    ("modules", "data", "arguments", "reason"),
    [
        ([Manual] * 2, TableData, {}, "Manual optimises by hand"),
        ([partial(AsksTrainer, sgd(0.1))] * 2, TableData, {}, "uses self.trainer.num_training_batches"),
        ([partial(Counts, sgd(0.1))] * 2, TableData, {}, "training_step changes self.count"),
        ([partial(Hooked, sgd(0.1))] * 2, TableData, {}, "Hooked overrides on_before_optimizer_step"),
        ([partial(Branches, sgd(0.1))] * 2, TableData, {}, "a step fails under vmap: vmap: It looks like"),
        ([partial(Smooths, sgd(0.1), s) for s in (0.0, 0.0, 0.5)], TableData, {}, "the stacked loss differs"),
        ([partial(Weighs, [1.0, w]) for w in (1.0, 1.0, 2.0)], TableData, {}, "the stacked loss differs"),
        ([partial(Idle, sgd(0.1))] * 2, TableData, {}, "the loss does not depend on unused.weight"),
        ([partial(Plain, lambda p: torch.optim.RMSprop(p))] * 2, TableData, {}, "the optimizer RMSprop is not stacked"),
        ([partial(Plain, sgd(0.1))] * 2, partial(Loaders, lambda: DataLoader(Stream(), 8)), {}, "Stream is iterable"),
        ([partial(Plain, sgd(0.1))] * 2, TableData, {"callbacks": [Stops()]}, "the callback Stops needs a Trainer"),
        ([partial(Plain, sgd(0.1))] * 2, TableData, {"precision": "bf16-true"}, "precision bf16-true is not stacked"),
        ([partial(Plain, sgd(0.1))] * 2, TableData, {"overfit_batches": 1}, "overfit_batches and fast_dev_run"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_the_reason(modules, data, arguments, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        members = [build(seed, module, data, **arguments) for seed, module in enumerate(modules)]
        outcomes = train_stacked(members)
    assert all(reason in (outcome.refused or "trained") for outcome in outcomes), [o.refused for o in outcomes]
    assert all("\n" not in outcome.refused for outcome in outcomes)


def test_a_member_of_another_structure_is_trained_after_the_others_and_a_newcomer_of_one_is_refused():
    modules = [partial(BatchNormClassifier, hidden_units=8, num_layers=layers) for layers in (2, 2, 3)]
    members = [build(seed, module, DigitsDataModule, max_epochs=1) for seed, module in enumerate(modules)]
    outcomes = train_stacked(members)
    assert_equal(
        outcomes, alone([build(seed, module, DigitsDataModule, max_epochs=1) for seed, module in enumerate(modules)])
    )
    asked, coming = [], [build(3, modules[2], DigitsDataModule)]

    def refill(free):
        asked.append(free)
        return coming[:1] if len(asked) == 1 else []

    members = [build(seed, module, DigitsDataModule, max_epochs=2 + (seed != 1)) for seed, module in enumerate(modules)]
    refused = [outcome.refused for outcome in train_stacked(members, refill=refill)]
    assert refused == [None, None, None, "the members have not the same structure"]
    assert asked == [1], "nobody is asked for while members of another structure are in training"
    with pytest.raises(NotStackable, match="the members have not the same structure"):
        stack([build(seed, module, DigitsDataModule) for seed, module in enumerate(modules)])


def test_a_subclass_that_changes_a_step_is_not_taken_for_its_parent():
    class Weighted(BatchNormClassifier):
        def training_step(self, batch, batch_idx):
            return 2 * super().training_step(batch, batch_idx)

    members = [build(seed, partial(Weighted, hidden_units=8), DigitsDataModule) for seed in (0, 1)]
    assert "overrides on_train_epoch_start" in train_stacked(members)[0].refused


def test_a_trainer_may_be_shared_and_loaders_given_directly():
    data = TableData()
    data.setup()
    shared = trainer()
    members, singles = [], []
    for seed in (0, 1):
        pl.seed_everything(seed, verbose=False)
        loaders = {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()}
        members.append(Member(Plain(sgd(0.1)), shared, **loaders))
        singles.append(build(seed, partial(Plain, sgd(0.1)), TableData))
    assert_equal(train_stacked(members), alone(singles))


def test_a_wrong_optimizer_step_is_found_before_training(monkeypatch):
    """The check itself: an update with another rate."""
    from lightning_hp.training.stacked.optimizers import StackedSGD

    right = StackedSGD.values
    monkeypatch.setattr(
        StackedSGD, "values", lambda self, group: right(self, group) | {"lr": [10.0] * len(self.optimizers)}
    )
    members = [build(seed, partial(Plain, sgd(0.1)), TableData) for seed in (0, 1)]
    assert "the stacked SGD step of net.0.weight differs" in train_stacked(members)[0].refused


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_a_difference_on_one_mini_batch_may_be_a_kink_that_rounding_crosses_but_not_on_all(monkeypatch, batches):
    single, rows = check._single, []

    def differs(stack, row, batch, loss, gradients, buffers):
        if not row:
            rows.append(batch[0])
        wrong = {name: gradient + (len(rows) <= batches) for name, gradient in gradients.items()}
        return single(stack, row, batch, loss, wrong, buffers)

    monkeypatch.setattr(check, "_single", differs)
    module, data = partial(BatchNormClassifier, hidden_units=8), partial(DigitsDataModule, batch_size=64)
    (first, second) = (build(seed, module, data) for seed in (0, 1))
    outcomes = train_stacked([first, second])
    if batches == 3:
        assert "gradient of" in outcomes[0].refused
        assert "differs from that of the member alone by 1" in outcomes[0].refused
    else:
        assert_equal(outcomes, alone([build(seed, module, data) for seed in (0, 1)]))
    assert len(rows) == min(batches + 1, 3)
    assert not any(torch.equal(rows[0], other) for other in rows[1:])
