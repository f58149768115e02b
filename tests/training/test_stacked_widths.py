"""Members of different widths share a stack: each ends as its own Trainer leaves it, and never sees the filling."""

from functools import partial

import pytest
import torch
from foreign_modules import Plain, TableData, sgd
from stacked_runs import alone, assert_equal, both, build, difference
from test_stacked_newcomers import join, stop_after

from lightning_hp.training import BatchNormClassifier, BatchNormRegressor, DigitsDataModule
from lightning_hp.training.stacked import NotStackable, stack, train_stacked
from lightning_hp.training.stacked.seat import seat, structure_of
from lightning_hp.training.stacked.state import part_of, resized

DATA = partial(DigitsDataModule, batch_size=128)
WIDTHS = (5, 17, 9)


def classifier(units, **arguments):
    return partial(BatchNormClassifier, hidden_units=units, **{"num_layers": 2, "learning_rate": 0.05, **arguments})


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_members_of_different_widths_equal_their_own_training(optimizer):
    modules = [
        classifier(units, optimizer=optimizer, weight_decay=0.01, momentum=0.3 * i) for i, units in enumerate(WIDTHS)
    ]
    outcomes, singles = both(modules, DATA)
    assert outcomes[0].way == "own, validated own"
    assert_equal(outcomes, singles)
    for outcome, units in zip(outcomes, WIDTHS, strict=True):
        assert outcome.member.module.net.hidden[0][0].weight.shape == (units, 64)
        assert all(p.is_contiguous() for p in outcome.member.module.parameters())


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("norm", ["z", "a", "none"])
def test_every_activation_and_norm_keeps_the_filling_at_zero(activation, norm):
    modules = [classifier(units, activation=activation, norm=norm, nesterov=True) for units in ([4, 11], [9, 3])]
    assert_equal(*both(modules, DATA, max_epochs=2))


def test_gradients_are_clipped_by_each_members_own_norm():
    modules = [classifier(units, learning_rate=0.5) for units in WIDTHS]
    assert_equal(*both(modules, DATA, gradient_clip_val=0.3))


def test_a_regressor_of_different_widths():
    from test_stacked_training import Lines

    modules = [partial(BatchNormRegressor, hidden_units=units, learning_rate=0.05) for units in WIDTHS]
    assert_equal(*both(modules, Lines), metrics=1e-5)


@pytest.mark.parametrize("stopped", [1, 2])
def test_wider_and_narrower_members_leave_and_come(stopped):
    every = {tag: classifier(units, optimizer="adam") for tag, units in enumerate((6, 20, 11, 30, 4))}
    members = [build(tag, module, DATA, max_epochs=4) for tag, module in every.items()]
    outcomes = train_stacked(members[:3], stop_after((stopped, 0), 2), join(members[3:]))
    assert [outcome.epochs for outcome in outcomes] == [2, *(2 if tag == stopped else 4 for tag in (1, 2)), 4, 4]
    kept = [outcome for outcome in outcomes if not outcome.stopped]
    assert_equal(kept, alone([build(o.member.tag, every[o.member.tag], DATA, max_epochs=4) for o in kept]))


def test_the_optimizer_of_a_narrow_member_gets_the_state_that_its_own_training_would_leave():
    modules = [classifier(units, optimizer="adam") for units in WIDTHS]
    outcomes, _ = both(modules, DATA)
    singles = [build(seed, module, DATA) for seed, module in enumerate(modules)]
    alone(singles)
    for outcome, single in zip(outcomes, singles, strict=True):
        stacked, own = (m.trainer.optimizers[0].state_dict()["state"] for m in (outcome.member, single))
        assert stacked.keys() == own.keys()
        for parameter, state in own.items():
            for name, tensor in state.items():
                assert torch.allclose(stacked[parameter][name].double(), tensor.double(), atol=1e-10), name


def test_a_nan_in_one_member_stays_there():
    modules = [classifier(5), classifier(17, learning_rate=1e200, norm="none"), classifier(9)]
    outcomes, _ = both([modules[0], modules[2]], DATA)
    members = [
        build(0, modules[0], DATA),
        build(1, modules[2], DATA),
        build(2, classifier(17, learning_rate=1e200), DATA),
    ]
    with_nan = train_stacked(members)
    assert not torch.isfinite(with_nan[2].member.module.net.output.weight).all()
    for before, after in zip(outcomes, with_nan[:2], strict=True):
        assert difference(before.member.module, after.member.module) < 1e-10


class ZeroEpsilon(BatchNormClassifier):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01, eps=0.0)


class Wide(Plain):
    """It brings no step of its own, so nobody vouches for the filling."""

    def __init__(self, units):
        super().__init__(sgd(0.1))
        self.net = torch.nn.Sequential(torch.nn.Linear(5, units), torch.nn.ReLU(), torch.nn.Linear(units, 1))


@pytest.mark.parametrize(
    ("modules", "data"),
    [
        ([classifier(5), classifier(5, num_layers=3)], DATA),
        ([classifier(5), classifier(9, activation="tanh")], DATA),
        ([partial(Wide, units) for units in (4, 6)], TableData),
    ],
)
def test_what_cannot_be_filled_up_is_trained_in_a_stack_of_its_own(modules, data):
    with pytest.raises(NotStackable, match="the members have not the same structure"):
        stack([build(seed, module, data) for seed, module in enumerate(modules)])
    assert_equal(*both(modules, data))


def test_where_adam_would_divide_zero_by_zero_nothing_is_filled_up():
    with pytest.raises(NotStackable, match="the members have not the same structure"):
        stack([build(seed, partial(ZeroEpsilon, hidden_units=units), DATA) for seed, units in enumerate((5, 9))])


def test_what_the_caller_tells_apart_shares_a_stack_only_where_a_step_of_the_modules_own_takes_it():
    for module, data, together in (
        (partial(Plain, sgd(0.1)), TableData, False),
        (classifier(5), DATA, True),
    ):
        members = [build(seed, module, data) for seed in range(2)]
        for member in members:
            member.structure = member.tag
        assert (structure_of(seat(members[0])) == structure_of(seat(members[1]))) is together


def test_a_stack_is_as_wide_as_its_widest_member():
    together = stack([build(seed, classifier(units), DATA) for seed, units in enumerate(WIDTHS)])
    assert together.state.trained["net.hidden.1.0.weight"].shape == (3, 17, 17)
    together.keep([0, 2])
    assert together.state.trained["net.hidden.1.0.weight"].shape == (2, 9, 9)
    assert together.modules[0].net.hidden[1][0].weight.shape == (5, 5)


def test_resized_cuts_and_fills_and_part_of_is_a_view():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert resized(tensor, (3, 2)).tolist() == [[0, 1], [3, 4], [0, 0]]
    assert resized(tensor, (2, 3)) is tensor
    part_of(tensor, (1, 2)).zero_()
    assert tensor.tolist() == [[0, 0, 2], [3, 4, 5]]
