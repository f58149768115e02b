"""A member of a stack ends with the parameters, buffers and metrics that its own Trainer gives it."""

import copy
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from foreign_modules import (
    CNN,
    ImageData,
    Loaders,
    Plain,
    Regressor,
    Rows,
    SequenceData,
    TableData,
    Transformer,
    TwoHeads,
    sgd,
)
from lightning.pytorch.callbacks import EarlyStopping
from stacked_runs import alone, assert_equal, both, build, difference
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from lightning_hp.training import BatchNormClassifier, BatchNormRegressor, DigitsDataModule
from lightning_hp.training.stacked import train_stacked

# --- our own modules: their pure functions ---


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["none", "exponential", "cosine", "step", "inverse_time"])
def test_our_classifier_equals_its_own_training_after_50_steps(optimizer, schedule):
    modules = [
        partial(
            BatchNormClassifier,
            hidden_units=8,
            optimizer=optimizer,
            schedule=schedule,
            learning_rate=0.02 * (i + 1),
            learning_rate_decay=0.1 * i,
            momentum=0.3 * i,
            beta1=0.9 - 0.1 * i,
            epsilon=10.0 ** -(8 - 2 * i),
            weight_decay=0.01 * i,
            bn_momentum=0.1 * (i + 1),
            bn_epsilon=10.0 ** -(5 - i),
            step_every=2,
        )
        for i in range(3)
    ]
    outcomes, singles = both(modules, partial(DigitsDataModule, batch_size=64), max_epochs=4)
    assert outcomes[0].way == "own, validated own"
    assert [outcome.steps for outcome in outcomes] == [64] * 3
    assert_equal(outcomes, singles)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("norm", ["z", "a", "none"])
def test_every_activation_and_norm(activation, norm):
    modules = [
        partial(BatchNormClassifier, hidden_units=[9, 7], num_layers=2, activation=activation, norm=norm, nesterov=True)
        for _ in range(2)
    ]
    outcomes, singles = both(modules, partial(DigitsDataModule, batch_size=256), max_epochs=2)
    assert_equal(outcomes, singles)


class Lines(pl.LightningDataModule):
    num_features, num_targets = 5, 2
    target_mean, target_scale = [1.0, -3.0], [2.0, 5.0]

    def __init__(self):
        super().__init__()
        x = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
        y = torch.stack([1 + x.sum(1), -3 + 5 * x[:, 0]], 1)
        self.sets = TensorDataset(x[:60], y[:60]), TensorDataset(x[60:], y[60:])

    def train_dataloader(self):
        return DataLoader(self.sets[0], 16, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.sets[1], 16)


def test_our_regressor_equals_its_own_training():
    modules = [partial(BatchNormRegressor, hidden_units=6, learning_rate=0.1 / (i + 1)) for i in range(3)]
    outcomes, singles = both(modules, Lines)
    assert outcomes[0].way == "own, validated own"
    # torchmetrics counts in single precision
    assert_equal(outcomes, singles, metrics=1e-5)


def test_a_network_without_hidden_layers():
    modules = [partial(BatchNormClassifier, num_layers=0, learning_rate=0.1 * (i + 1)) for i in range(2)]
    assert_equal(*both(modules, partial(DigitsDataModule, batch_size=256)))


def test_mini_batches_that_grow():
    data = partial(DigitsDataModule, batch_size=64, batch_growth=2.0, batch_growth_every=1, drop_last=False)
    outcomes, singles = both([partial(BatchNormClassifier, hidden_units=8)] * 2, data)
    assert_equal(outcomes, singles)


def test_members_with_and_without_dropout_share_a_stack_and_those_without_are_exact():
    modules = [partial(BatchNormClassifier, hidden_units=8, dropout=rate) for rate in (0.0, 0.5)]
    outcomes, singles = both(modules, partial(DigitsDataModule, batch_size=256))
    assert_equal(outcomes[:1], singles[:1])
    assert difference(outcomes[1].member.module, singles[1][0]) > 1e-3


def test_a_learning_curve_in_single_precision():
    modules = [partial(BatchNormClassifier, hidden_units=16, learning_rate=0.01 * (i + 1)) for i in range(3)]
    outcomes, singles = both(modules, DigitsDataModule, max_epochs=1, precision="32-true")
    for outcome, (_, logged) in zip(outcomes, singles, strict=True):
        for name in ("train_loss", "val_loss"):
            assert outcome.metrics[name] == pytest.approx(logged[name], rel=1e-4)


# --- modules that know nothing of stacks ---


def test_a_cnn_with_batch_norm_and_one_cycle():
    modules = [partial(CNN, lr=0.02 * (i + 1), bn_momentum=0.1 + 0.2 * i) for i in range(3)]
    outcomes, singles = both(modules, ImageData)
    assert outcomes[0].way == "traced, validated traced"
    assert_equal(outcomes, singles)


def test_a_regressor_with_torchmetrics_is_validated_member_by_member():
    modules = [partial(Regressor, lr=0.01 * (i + 1), weight_decay=0.1 * i) for i in range(3)]
    outcomes, singles = both(modules, TableData, max_epochs=4)
    assert outcomes[0].way == "traced, validated singly"
    # the metric of the training epoch is not counted in a stack
    assert_equal(outcomes, singles, metrics=1e-5, ignore={"train_mae"})


def test_a_transformer_encoder():
    modules = [partial(Transformer, lr=1e-3 * (i + 1)) for i in range(2)]
    outcomes, singles = both(modules, SequenceData)
    assert outcomes[0].way == "traced, validated traced"
    assert_equal(outcomes, singles)


def test_two_heads_with_a_loss_dictionary_and_a_buffer_that_differs():
    modules = [partial(TwoHeads, lr=0.01, head_lr=0.02 * (i + 1), balance=0.2 + 0.3 * i) for i in range(3)]
    outcomes, singles = both(modules, TableData)
    assert_equal(outcomes, singles)


# --- optimizers and schedules that only torch has ---


def scheduled(rate, schedule, **options):
    def configure(parameters):
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule(optimizer), **options}}

    return configure


@pytest.mark.parametrize(
    "configure",
    [
        [sgd(0.1), sgd(0.2, momentum=0.9)],
        [sgd(0.1, momentum=0.5, dampening=0.3), sgd(0.1, momentum=0.9, dampening=0.0, weight_decay=0.1)],
        [sgd(0.01, momentum=0.9, nesterov=True, weight_decay=0.1), sgd(0.1, momentum=0.4, nesterov=True)],
        [sgd(0.001, maximize=True), sgd(0.002, maximize=True, momentum=0.9)],
        [lambda p, a=a: torch.optim.Adam(p, lr=0.01 * (a + 1), weight_decay=0.1 * a, amsgrad=True) for a in range(2)],
        [lambda p, a=a: torch.optim.AdamW(p, lr=0.01, betas=(0.5 + 0.2 * a, 0.9), maximize=True) for a in range(2)],
        [lambda p, a=a: torch.optim.AdamW(p, lr=0.1**a, eps=0.1**a, weight_decay=a) for a in range(1, 3)],
    ],
)
def test_every_option_of_the_optimizers(configure):
    outcomes, singles = both([partial(Plain, one) for one in configure], TableData, max_epochs=13)
    assert outcomes[0].steps == 52
    assert_equal(outcomes, singles)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": lambda o: lr_scheduler.StepLR(o, 2, 0.5), "interval": "epoch"},
        {"schedule": lambda o: lr_scheduler.ExponentialLR(o, 0.9), "interval": "step", "frequency": 3},
        {"schedule": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, 3), "interval": "step"},
        {"schedule": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=30), "interval": "step"},
        {"schedule": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1.0), "monitor": "val_loss"},
        {"schedule": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2), "interval": "epoch", "frequency": 2},
    ],
)
def test_schedules_are_stepped_by_lightnings_rules(options):
    options = dict(options)
    schedule = options.pop("schedule")
    modules = [partial(Plain, scheduled(0.1 * (i + 1), schedule, **options)) for i in range(2)]
    assert_equal(*both(modules, TableData, max_epochs=5))


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 3},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "val_check_interval": 0.5},
        {"check_val_every_n_epoch": 2},
        {"max_epochs": -1, "max_steps": 7},
        {"limit_train_batches": 3, "limit_val_batches": 1},
        {"limit_val_batches": 0},
    ],
)
def test_what_the_trainer_decides(arguments):
    modules = [partial(Plain, sgd(0.1 * (i + 1), momentum=0.5)) for i in range(2)]
    outcomes, singles = both(modules, TableData, **arguments)
    assert_equal(outcomes, singles)


def stopping(**arguments):
    return {"callbacks": [EarlyStopping("val_loss", **arguments)], "max_epochs": 12}


@pytest.mark.parametrize(
    "arguments",
    [
        stopping(patience=1, min_delta=0.05),
        stopping(patience=2, min_delta=0.02, check_on_train_epoch_end=False),
        {**stopping(patience=1, min_delta=0.1), "min_epochs": 4},
        {**stopping(patience=3, min_delta=0.05), "val_check_interval": 0.5},
        stopping(stopping_threshold=2.5),
    ],
)
def test_early_stopping_stops_each_member_where_its_trainer_would(arguments):
    modules = [partial(Plain, sgd(rate, momentum=0.5)) for rate in (0.2, 0.02, 0.002)]
    members = [build(seed, one, TableData, **copy.deepcopy(arguments)) for seed, one in enumerate(modules)]
    singles = [build(seed, one, TableData, **copy.deepcopy(arguments)) for seed, one in enumerate(modules)]
    expected = alone(singles)
    outcomes = train_stacked(members)
    assert_equal(outcomes, expected)
    assert [outcome.steps for outcome in outcomes] == [member.trainer.global_step for member in singles]
    assert len({outcome.steps for outcome in outcomes}) > 1


# --- data ---


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(Rows(0.0), 16, shuffle=True),
        lambda: DataLoader(Rows(0.1), 16, shuffle=True),
        lambda: DataLoader(Rows(0.1), 16, shuffle=True, num_workers=0, drop_last=True),
        lambda: DataLoader(Rows(0.0), 16, shuffle=True, generator=torch.Generator().manual_seed(5)),
        lambda: DataLoader(TensorDataset(Rows(0).x, Rows(0).x[:, :1]), 16, shuffle=True),
        lambda: DataLoader(
            TensorDataset(Rows(0).x, Rows(0).x[:, :1]), 7, shuffle=True, generator=torch.Generator().manual_seed(5)
        ),
        lambda: DataLoader(
            TensorDataset(Rows(0).x, Rows(0).x[:, :1]), 16, sampler=WeightedRandomSampler(torch.arange(1.0, 71), 50)
        ),
    ],
)
def test_every_member_reads_its_own_order(loader):
    modules = [partial(Plain, sgd(0.1))] * 3
    outcomes, singles = both(modules, partial(Loaders, loader))
    assert_equal(outcomes, singles)
    assert difference(singles[0][0], singles[1][0]) > 1e-3


def test_loaders_with_workers_are_read_in_this_process_in_the_same_order():
    def loader(workers):
        return DataLoader(Rows(0.0), 16, shuffle=True, num_workers=workers)

    modules = [partial(Plain, sgd(0.1))] * 2
    members = [build(seed, module, partial(Loaders, partial(loader, 2))) for seed, module in enumerate(modules)]
    singles = alone([build(seed, one, partial(Loaders, partial(loader, 0))) for seed, one in enumerate(modules)])
    assert_equal(train_stacked(members), singles)


def test_members_with_other_data_read_their_own():
    def data(shift):
        x = Rows(0).x + shift
        return partial(Loaders, lambda: DataLoader(TensorDataset(x, x[:, :1]), 16, shuffle=True))

    def members():
        return [build(seed, partial(Plain, sgd(0.1)), data(0.5 * seed)) for seed in range(3)]

    assert_equal(train_stacked(members()), alone(members()))


class Dropping(pl.LightningModule):
    """A module that knows nothing of stacks, with dropout of its own rate and a batch norm of its own momentum."""

    def __init__(self, dropout):
        super().__init__()
        layers = [torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64, momentum=0.1 + dropout / 2), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers, torch.nn.Dropout(dropout), torch.nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


# --- what leaves the others alone ---


def test_a_member_that_becomes_nan_touches_no_other():
    module = partial(BatchNormClassifier, hidden_units=8, norm="none")
    modules = [partial(module, learning_rate=rate) for rate in (0.1, 1e200, 0.2)]
    outcomes, singles = both(modules, partial(DigitsDataModule, batch_size=128), check_val_every_n_epoch=1)
    assert outcomes[1].metrics["val_loss"] != outcomes[1].metrics["val_loss"]
    assert_equal([outcomes[0], outcomes[2]], [singles[0], singles[2]])


def test_a_nan_member_of_a_traced_stack_touches_no_other():
    modules = [partial(Plain, sgd(rate, momentum=0.9)) for rate in (0.1, float("inf"), 0.2)]
    outcomes, singles = both(modules, TableData, gradient_clip_val=1e300)
    assert not torch.isfinite(outcomes[1].member.module.net[0].weight).all()
    assert_equal([outcomes[0], outcomes[2]], [singles[0], singles[2]])


def test_an_unstacked_member_is_on_its_own_and_can_be_trained_further(tmp_path):
    module, data = partial(BatchNormClassifier, hidden_units=8, learning_rate=0.05), partial(DigitsDataModule, 128)
    outcomes = train_stacked([build(seed, module, data, max_epochs=2) for seed in range(2)])
    single = build(1, module, data, max_epochs=2)
    alone([single])
    optimizers = [outcomes[1].member.trainer.optimizers[0], single.trainer.optimizers[0]]
    states = [list(optimizer.state_dict()["state"].values()) for optimizer in optimizers]
    for mine, theirs in zip(*states, strict=True):
        for name, tensor in theirs.items():
            torch.testing.assert_close(mine[name], tensor, rtol=0, atol=1e-9)
    first, second = (outcome.member.module for outcome in outcomes)
    before = copy.deepcopy(second.state_dict())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(second.state_dict()[name], tensor) for name, tensor in before.items())


def test_the_random_numbers_of_the_process_are_left_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    module = partial(BatchNormClassifier, hidden_units=4, dropout=0.5)
    members = [build(seed, module, DigitsDataModule) for seed in (0, 1)]
    torch.manual_seed(9)
    train_stacked(members)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("module", [partial(BatchNormClassifier, hidden_units=64, learning_rate=0.05), Dropping])
def test_with_dropout_members_are_equal_in_distribution(module):
    """Mean and spread of the loss of an epoch over 30 seeds, in the stack and alone."""
    data = partial(DigitsDataModule, batch_size=256)
    modules = [partial(module, dropout=rate) for rate in (0.1, 0.7)] * 15
    outcomes, singles = both(modules, data, max_epochs=2, precision="32-true")
    for first in (0, 1):
        losses = torch.tensor(
            [[o.metrics["val_loss"], s[1]["val_loss"]] for o, s in zip(outcomes, singles, strict=True)]
        )
        stacked, alone_ = losses[first::2].T
        error = float(losses[first::2].std(0).square().sum().div(15).sqrt())
        assert abs(float(stacked.mean() - alone_.mean())) < 3.5 * error
        assert 0.4 < float(stacked.std() / alone_.std()) < 2.5
    apart = abs(float(losses[0::2].mean() - losses[1::2].mean()))
    assert apart > 4 * error, "the rates must tell: else the test could not fail"
