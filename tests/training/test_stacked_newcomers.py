"""Members that leave a stack early give their places to new ones, who are trained as exactly as the first."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from foreign_modules import Plain, TableData, sgd
from stacked_runs import alone, assert_equal, both, build
from torch.nn import functional
from torch.optim import lr_scheduler

from lightning_hp.training import BatchNormClassifier, DigitsDataModule
from lightning_hp.training.stacked import train_stacked


def stop_after(tags, validation):
    """Stop the members with these tags at one of their validations."""

    def should_stop(reports):
        return [report.member.tag in tags and report.validation == validation for report in reports]

    return should_stop


def join(coming):
    """Refill free places from a list, which gets shorter."""

    def refill(free):
        return [coming.pop(0) for _ in range(min(free, len(coming)))]

    return refill


def test_stopped_members_leave_and_new_ones_take_their_places():
    module = partial(BatchNormClassifier, hidden_units=8, learning_rate=0.05, optimizer="adam", momentum=0.0)
    data = partial(DigitsDataModule, batch_size=128)
    seen, coming = [], [build(seed, module, data) for seed in (3, 4)]

    def should_stop(reports):
        seen.append([(report.member.tag, report.validation) for report in reports])
        return [report.member.tag == 1 and report.validation == 1 for report in reports]

    def refill(free):
        return [coming.pop(0) for _ in range(min(free, len(coming), 1))]

    members = [build(seed, module, data) for seed in range(3)]
    outcomes = train_stacked(members, should_stop=should_stop, refill=refill)
    assert [outcome.member.tag for outcome in outcomes] == [0, 1, 2, 3, 4]
    assert [outcome.epochs for outcome in outcomes] == [3, 1, 3, 3, 3]
    assert [outcome.stopped for outcome in outcomes] == [False, True, False, False, False]
    assert seen[0] == [(0, 1), (1, 1), (2, 1)]
    assert seen[1] == [(0, 2), (2, 2), (3, 1)]
    kept = [outcome for outcome in outcomes if not outcome.stopped]
    assert_equal(kept, alone([build(outcome.member.tag, module, data) for outcome in kept]))
    assert list(outcomes[3].curve) == [1, 2, 3]


class Powered(pl.LightningModule):
    """Its loss depends on a Python number, of which a stack has only one; the momentum of its norm may differ."""

    def __init__(self, rate, power=2, momentum=0.1):
        super().__init__()
        self.rate, self.power = rate, power
        layers = [torch.nn.Linear(5, 6, bias=False), torch.nn.BatchNorm1d(6, momentum=momentum), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers, torch.nn.Linear(6, 1))

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]) - batch[1]).abs().pow(self.power).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        return [optimizer], [lr_scheduler.ExponentialLR(optimizer, 0.7)]


def test_newcomers_of_a_traced_stack_are_exact_and_one_that_cannot_be_traced_with_the_others_is_refused():
    first = [partial(Powered, rate) for rate in (0.01, 0.02, 0.03, 0.04)]
    later = [partial(Powered, 0.05, momentum=0.4), partial(Powered, 0.06, power=3), partial(Powered, 0.07)]
    every = dict(enumerate([*first, *later]))
    members = [build(tag, module, TableData) for tag, module in every.items()]
    outcomes = train_stacked(members[:4], stop_after((0, 1, 2), 1), join(members[4:]))
    assert [outcome.epochs for outcome in outcomes] == [1, 1, 1, 3, 3, 0, 3]
    reason = outcomes[5].refused
    assert reason is not None
    assert reason.startswith("Powered: the stacked loss differs from that of the member alone by ")
    kept = [outcome for outcome in outcomes if outcome.epochs == 3]
    assert_equal(kept, alone([build(o.member.tag, every[o.member.tag], TableData) for o in kept]))


def test_nobody_is_asked_for_where_mini_batches_grow_with_the_epoch():
    data = partial(DigitsDataModule, batch_size=128, batch_growth=2.0, batch_growth_every=1, drop_last=False)
    module = partial(BatchNormClassifier, hidden_units=8)
    asked = []
    members = [build(seed, module, data) for seed in range(3)]
    outcomes = train_stacked(members, stop_after((1,), 1), lambda free: asked.append(free) or [])
    assert [outcome.epochs for outcome in outcomes] == [3, 1, 3]
    assert not asked


class AsksForEpoch(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1.0 + self.trainer.current_epoch)


def test_nobody_is_asked_for_where_a_step_asks_for_the_epoch():
    asked = []
    members = [build(seed, partial(AsksForEpoch, sgd(0.1)), TableData) for seed in range(3)]
    outcomes = train_stacked(members, stop_after((1,), 1), lambda free: asked.append(free) or [])
    assert [outcome.epochs for outcome in outcomes] == [3, 1, 3]
    assert not asked


@pytest.mark.parametrize("seed", [7, 8])
def test_whoever_builds_newcomers_may_seed_the_process(seed):
    module = partial(BatchNormClassifier, hidden_units=8, dropout=0.5)

    def train(refill):
        members = [build(tag, module, partial(DigitsDataModule, 256)) for tag in range(3)]
        return train_stacked(members, stop_after((0,), 1), refill)

    def seeded(free):
        pl.seed_everything(seed, verbose=False)
        return []

    for one, other in zip(train(None), train(seeded), strict=True):
        assert one.metrics == other.metrics


def test_more_members_than_fit_are_trained_in_turn():
    modules = [partial(BatchNormClassifier, hidden_units=8, learning_rate=0.1 / (i + 1)) for i in range(5)]
    outcomes, singles = both(
        modules, partial(DigitsDataModule, batch_size=256), partial(train_stacked, memory=1_200_000)
    )
    assert_equal(outcomes, singles)


def test_those_that_wait_for_memory_take_free_places_first():
    module, data = partial(BatchNormClassifier, hidden_units=8, learning_rate=0.05), partial(DigitsDataModule, 256)
    seen, asked = [], []

    def should_stop(reports):
        seen.append([report.member.tag for report in reports])
        return [report.member.tag == 0 and report.validation == 1 for report in reports]

    members = [build(seed, module, data) for seed in range(4)]
    outcomes = train_stacked(members, should_stop, lambda free: asked.append(free) or [], memory=1_200_000)
    places = len(seen[0])
    assert 1 < places < 4, "else the memory says nothing"
    assert seen[1] == [*range(1, places), places]
    assert_equal(outcomes[1:], alone([build(seed, module, data) for seed in (1, 2, 3)]))
    assert [outcome.stopped for outcome in outcomes] == [True, False, False, False]
