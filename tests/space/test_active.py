"""Conditions: what has no effect in a trial is not handed to what is built in it."""

import optuna
import pytest

from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.space.conditions import Condition
from lightning_hp.space.space import SearchSpace

OPTIMIZERS = {
    "optimizer.class_path": {"choices": ["torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW"]},
    "optimizer.init_args.momentum": {"low": 0.5, "high": 0.99, "active_if": {"class_path": "torch.optim.SGD"}},
    "optimizer.init_args.amsgrad": {"choices": [False, True], "active_if": {"class_path": "!= torch.optim.SGD"}},
    "optimizer.init_args.eps": {"low": 1e-10, "high": 1e-3, "active_if": {"amsgrad": True}},
    "lr": {"low": 1e-4, "high": 1.0},
}


def build(class_path, **arguments):
    """Like a class that takes only what is its own."""
    takes = {"SGD": {"momentum"}, "Adam": {"amsgrad", "eps"}, "AdamW": {"amsgrad", "eps"}}[
        class_path.rpartition(".")[2]
    ]
    assert arguments.keys() <= takes, f"{arguments.keys() - takes} is not accepted"


def objective(space):
    def train(trial):
        arguments = space.suggest(trial)
        inner = {k.rpartition(".")[2]: v for k, v in arguments.items() if k.startswith("optimizer.init_args")}
        build(arguments["optimizer.class_path"], **inner)
        return arguments["lr"]

    return train


def test_a_class_that_is_chosen_is_given_its_own_arguments_only():
    space = SearchSpace.from_dict(OPTIMIZERS)
    study = optuna.create_study(sampler=CoarseToFineSampler(space, n_trials=25))
    study.optimize(objective(space), n_trials=25)
    chosen = {t.params["class_path"] for t in study.trials}
    assert len(chosen) == 3
    for trial in study.trials:
        assert trial.params.keys() == space.distributions.keys()  # stored all the same
        active = {p.name for p, on in zip(space.parameters, space.active(trial.params), strict=True) if on}
        keys = {entry.key for entry in space.entries if entry.names[0] in active}
        assert space.arguments(trial.params).keys() == keys
        assert set(trial.user_attrs.get("inactive", [])) == {p.name for p in space.parameters} - active
        assert ("momentum" in active) == (trial.params["class_path"] == "torch.optim.SGD")


def test_what_hangs_on_an_inactive_key_is_left_out_too():
    space = SearchSpace.from_dict(OPTIMIZERS)
    point = space.stored({"class_path": "torch.optim.SGD", "amsgrad": True})
    assert space.arguments(point).keys() == {"optimizer.class_path", "optimizer.init_args.momentum", "lr"}


def test_layers_stay_a_list_of_the_right_length():
    space = SearchSpace.from_dict(
        {
            "kind": {"choices": ["mlp", "linear"]},
            "depth": {"low": 1, "high": 3, "default": 2, "active_if": {"kind": "mlp"}},
            "units": {"low": 4, "high": 64, "per_layer": "depth"},
        }
    )
    assert len(space.arguments(space.stored({"kind": "mlp", "depth": 3}))["units"]) == 3
    assert len(space.arguments(space.stored({"kind": "mlp", "depth": 1}))["units"]) == 1
    assert space.arguments(space.stored({"kind": "linear"})) == {"kind": "linear"}


def test_every_key_is_in_one_of_the_examples():
    space = SearchSpace.from_dict(OPTIMIZERS)
    points = space.examples()
    assert points[0] == space.defaults()
    assert {key for point in points for key in space.arguments(point)} == OPTIMIZERS.keys()
    for point in points:
        objective(space)(optuna.trial.FixedTrial(point))
    plain = SearchSpace.from_dict({"lr": OPTIMIZERS["lr"]})
    assert plain.examples() == [plain.defaults()]


def test_deciders_are_keys_and_follow_chains():
    space = SearchSpace.from_dict(OPTIMIZERS)
    assert space.deciders("optimizer.init_args.eps") == ["optimizer.init_args.amsgrad", "optimizer.class_path"]
    assert space.deciders("lr") == []


def test_examples_meet_chains_and_ranges():
    mapping = {
        "a": {"low": 0.0, "high": 1.0, "default": 0.0},
        "b": {"low": 1, "high": 90, "default": 1, "active_if": {"a": "> 0.5"}},
        "c": {"low": 0.0, "high": 1.0, "active_if": {"b": "== 17", "a": "< 0.75"}},
        "d": {"low": 1, "high": 9, "active_if": {"c": "!= 0.5"}},
    }
    space = SearchSpace.from_dict(mapping)
    assert {key for point in space.examples() for key in space.arguments(point)} == mapping.keys()


def test_conditions_in_a_circle_are_refused():
    one = {"low": 0.0, "high": 1.0}
    mapping = {"a": {**one, "active_if": {"b": "> 0.5"}}, "b": {**one, "active_if": {"c": "> 0.5"}}, "x": one}
    with pytest.raises(
        ValueError, match=r"^`space` must have no active_if that goes in a circle, got one with a, b, c$"
    ):
        SearchSpace.from_dict({**mapping, "c": {**one, "active_if": {"a": "> 0.5"}}})


def test_a_condition_may_name_the_key_and_the_class():
    for name, value in [("optimizer.class_path", "torch.optim.SGD"), ("class_path", "SGD"), ("class_path", "== SGD")]:
        momentum = {"low": 0.5, "high": 0.99, "active_if": {name: value}}
        space = SearchSpace.from_dict({**OPTIMIZERS, "optimizer.init_args.momentum": momentum})
        assert space["momentum"].active_if == (Condition("class_path", "==", "torch.optim.SGD"),)
    number = SearchSpace.from_dict(
        {"n": {"low": 1, "high": 3}, "x": {"low": 0.0, "high": 1.0, "active_if": {"n": "2"}}}
    )
    assert number["x"].active_if == (Condition("n", "==", 2),)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"depth": ">= 9"}, "`space.x.active_if.depth` must hold for some value of depth, .* within .1, 4., got >= 9"),
        ({"depth": "== 2.5"}, "`space.x.active_if.depth` must hold for some value of depth"),
        ({"depth": "deep"}, "`space.x.active_if.depth` must be comparable with the values of depth, got == deep"),
        ({"kind": "SDG"}, r"`space.x.active_if.kind` must be one of \['torch.optim.SGD', None\], got 'SDG'"),
        ({"kind": "> a"}, "`space.x.active_if.kind` must be comparable with the values of kind, got > a"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(condition, expected):
    mapping = {
        "depth": {"low": 1, "high": 4},
        "kind": {"choices": ["torch.optim.SGD", None]},
        "x": {"low": 0.0, "high": 1.0, "active_if": condition},
    }
    with pytest.raises(ValueError, match=f"^{expected}"):
        SearchSpace.from_dict(mapping)
