"""Search spaces: YAML in, natural values out, and every mistake in one line that names its place."""

import json
from collections.abc import Mapping

import numpy as np
import optuna
import pytest

from lightning_hp.space.entries import short_names
from lightning_hp.space.known import guess
from lightning_hp.space.parameters import Choice, Float, Int
from lightning_hp.space.presets import PRESETS, preset
from lightning_hp.space.space import SearchSpace, differences

SMALL = {
    "model.init_args.learning_rate": {"low": 1e-4, "high": 1.0, "default": 0.01},
    "model.init_args.momentum": {"low": 0.9, "high": 0.999, "default": 0.9},
    "data.init_args.batch_size": {"choices": [32, 64, 128], "default": 64},
    "model.init_args.num_layers": {"low": 1, "high": 4, "default": 2},
    "model.init_args.hidden_units": {"low": 16, "high": 64, "default": 32, "per_layer": "num_layers"},
}


def test_known_names_bring_scale_and_tier():
    space = SearchSpace.from_dict(SMALL)
    assert [p.name for p in space.parameters[:4]] == ["learning_rate", "momentum", "batch_size", "num_layers"]
    assert space["learning_rate"] == Float("learning_rate", 1e-4, 1.0, "log", "A", 0.01)
    assert space["momentum"].scale == "one_minus_log"
    assert space["one_minus_momentum"] is space["momentum"]
    assert space["batch_size"] == Choice("batch_size", (32, 64, 128), "B", 64)
    assert space["num_layers"] == Int("num_layers", 1, 4, "linear", "C", 2)
    assert space.tiers == ("A", "B", "C")
    assert len(space) == 8
    with pytest.raises(KeyError, match="nothing"):
        space["nothing"]


def test_what_is_given_wins_over_what_is_known():
    space = SearchSpace.from_dict(
        {
            "learning_rate": {"low": "1e-3", "high": "1", "scale": "linear", "tier": "D"},
            "n": {"low": 1, "high": 9, "type": "float"},
        }
    )
    assert space["learning_rate"] == Float("learning_rate", 1e-3, 1.0, "linear", "D", 0.5005)
    assert isinstance(space["n"], Float)


def test_the_default_is_the_middle_of_the_scale():
    space = SearchSpace.from_dict(
        {
            "lr": {"low": 1e-4, "high": 1.0},
            "momentum": {"low": 0.9, "high": 0.999},
            "layers": {"low": 1, "high": 5},
            "kind": {"choices": ["a", "b", "c"]},
        }
    )
    assert space["lr"].default == pytest.approx(1e-2)
    assert space["momentum"].default == pytest.approx(0.99)
    assert space["layers"].default == 3
    assert space["kind"].default == "b"


def test_a_layer_each():
    space = SearchSpace.from_dict(SMALL)
    assert space.entries[-1].names == tuple(f"hidden_units_{i}" for i in (1, 2, 3, 4))
    stored = {**space.defaults(), "num_layers": 2, "hidden_units_1": 20, "hidden_units_2": 30}
    assert space.arguments(stored)["model.init_args.hidden_units"] == [20, 30]
    active = dict(zip([p.name for p in space.parameters], space.active(stored), strict=True))
    assert [active[f"hidden_units_{i}"] for i in (1, 2, 3, 4)] == [True, True, False, False]


def test_conditions_follow_chains():
    space = SearchSpace.from_dict(
        {
            "optimizer": {"choices": ["sgd", "adam"], "default": "sgd"},
            "amsgrad": {"choices": [False, True], "default": False, "active_if": {"optimizer": "adam"}},
            "beta3": {"low": 0.1, "high": 0.9, "active_if": {"amsgrad": True}},
            "gamma": {"low": 0.1, "high": 0.9, "active_if": {"beta3": ">= 0.5", "optimizer": "!= sgd"}},
        }
    )

    def active(**stored: object) -> list[bool]:
        return space.active({**space.defaults(), **stored}).tolist()

    assert active() == [True, False, False, False]
    assert active(optimizer="adam") == [True, True, False, False]
    assert active(optimizer="adam", amsgrad=True, beta3=0.2) == [True, True, True, False]
    assert active(optimizer="adam", amsgrad=True, beta3=0.7) == [True, True, True, True]
    # the whole chain hangs on its first link
    assert active(optimizer="sgd", amsgrad=True, beta3=0.7) == [True, False, False, False]


def test_natural_values_by_name_or_key():
    space = SearchSpace.from_dict(SMALL)
    stored = space.stored(
        {"momentum": 0.95, "data.init_args.batch_size": 128, "model.init_args.hidden_units": [16, 17]}
    )
    assert stored["one_minus_momentum"] == 0.05
    assert stored["batch_size"] == 128
    assert [stored[f"hidden_units_{i}"] for i in (1, 2, 3)] == [16, 17, 32]
    assert stored["learning_rate"] == 0.01
    assert space.stored({"model.init_args.hidden_units": 20})["hidden_units_4"] == 20
    assert space.natural({"one_minus_momentum": 0.05}) == {"momentum": 0.95}
    with pytest.raises(ValueError, match=r"`lr` must be a parameter of the space \(learning_rate, momentum"):
        space.stored({"lr": 0.1})


@pytest.mark.parametrize("name", PRESETS)
def test_unit_cube_and_back(name):
    space = SearchSpace.from_dict(preset(name))
    points = [space.at(u) for u in np.random.default_rng(0).random((30, len(space)))]
    units = space.unit(points)
    assert units.shape == (30, len(space))
    again = [space.at(u) for u in units]
    for before, after in zip(points, again, strict=True):
        assert after == {k: pytest.approx(v, rel=1e-8) if isinstance(v, float) else v for k, v in before.items()}
    assert space.unit([]).shape == (0, len(space))


@pytest.mark.parametrize("mapping", [SMALL, *(preset(n) for n in PRESETS)], ids=["small", *PRESETS])
def test_a_description_is_plain_json_and_makes_the_same_space(mapping):
    space = SearchSpace.from_dict(mapping)
    again = SearchSpace.from_description(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert again.fingerprint == space.fingerprint
    assert differences(space.to_dict(), again.to_dict()) == []


def test_what_differs_is_said():
    old = SearchSpace.from_dict(SMALL)
    changed = {**SMALL, "model.init_args.learning_rate": {"low": 1e-5, "high": 1.0, "default": 0.01}}
    del changed["data.init_args.batch_size"]
    new = SearchSpace.from_dict({**changed, "dropout": {"low": 0.0, "high": 0.5}})
    said = differences(old.to_dict(), new.to_dict())
    assert said == ["batch_size is gone", "dropout is new", "learning_rate.low was 0.0001, is 1e-05"]
    assert old.fingerprint != new.fingerprint
    moved = SearchSpace.from_dict({k.replace("init_args.", ""): v for k, v in SMALL.items()})
    assert differences(old.to_dict(), moved.to_dict()) == ["the paths of the parameters differ"]


def test_names_are_the_shortest_that_are_unique():
    assert short_names(["a.lr", "b.lr", "a.x"]) == {"a.lr": "a.lr", "b.lr": "b.lr", "a.x": "x"}
    assert short_names(["lr", "a.lr"]) == {"lr": "lr", "a.lr": "a.lr"}


def test_suggest_stores_every_parameter_at_full_range_and_tells_natural_values():
    space = SearchSpace.from_dict(SMALL)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    given = space.suggest(trial)
    assert given.keys() == SMALL.keys()
    assert isinstance(given["model.init_args.hidden_units"], list)
    assert len(given["model.init_args.hidden_units"]) == given["model.init_args.num_layers"]
    frozen = study.get_trials()[0]
    assert frozen.distributions == space.distributions
    assert frozen.user_attrs["momentum"] == given["model.init_args.momentum"]
    assert frozen.user_attrs["momentum"] == pytest.approx(1 - frozen.params["one_minus_momentum"])
    missing = 4 - given["model.init_args.num_layers"]
    assert len(frozen.user_attrs.get("inactive", [])) == missing
    assert "stage" not in frozen.user_attrs  # this sampler has none


def test_suggest_takes_fixed_and_frozen_trials():
    space = SearchSpace.from_dict(SMALL)
    stored = space.stored({"learning_rate": 0.3})
    assert space.suggest(optuna.trial.FixedTrial(stored))["model.init_args.learning_rate"] == 0.3
    frozen = optuna.create_trial(params=stored, distributions=space.distributions, value=1.0)
    assert space.suggest(frozen)["model.init_args.momentum"] == 0.9


LR = {"low": 1e-4, "high": 1.0}


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"lr": {**LR, "hight": 1}}, "`space.lr.hight` is not a known key; expected one of low, high, scale, tier"),
        ({"lr": {"low": 1.0, "high": 1.0}}, "`space.lr` must have low < high, got low=1.0, high=1.0"),
        ({"n": {"low": 5, "high": 2}}, "`space.n` must have low < high, got low=5, high=2"),
        (
            {"lr": {"low": 0.0, "high": 1.0, "scale": "log"}},
            "`space.lr` must have low > 0 on the log scale, got low=0.0",
        ),
        ({"n": {"low": 0, "high": 9, "scale": "log"}}, "`space.n` must have low > 0 on the log scale, got low=0"),
        (
            {"momentum": {"low": 0.9, "high": 1.0, "scale": "one_minus_log"}},
            "`space.momentum` must have high < 1 on the one_minus_log scale, got high=1.0",
        ),
        ({"lr": {**LR, "default": 3}}, "`space.lr.default` must be within [0.0001, 1.0], got 3.0"),
        ({"n": {"low": 1, "high": 4, "default": 7}}, "`space.n.default` must be a whole number within [1, 4], got 7"),
        (
            {"n": {"low": 1, "high": 4, "default": 1.5}},
            "`space.n.default` must be a whole number within [1, 4], got 1.5",
        ),
        ({"lr": {**LR, "default": "big"}}, "`space.lr.default` must be a number, got 'big'"),
        ({"c": {"choices": ["a"], "default": "b"}}, "`space.c.default` must be one of ['a'], got 'b'"),
        ({"lr": {**LR, "tier": "E"}}, "`space.lr.tier` must be one of A, B, C, D, got 'E'"),
        ({"lr": {**LR, "scale": "sqrt"}}, "`space.lr.scale` must be one of linear, log, one_minus_log, got 'sqrt'"),
        (
            {"n": {"low": 1, "high": 4, "scale": "one_minus_log"}},
            "`space.n.scale` must be linear or log for whole numbers",
        ),
        ({"c": {"choices": []}}, "`space.c.choices` must have at least one value, got []"),
        ({"c": {"choices": "abc"}}, "`space.c.choices` must be a list, got 'abc'"),
        ({"c": {"choices": [1, 1]}}, "`space.c.choices` must be different from each other, got [1, 1]"),
        ({"c": {"choices": [1, 2], "low": 0}}, "`space.c` must have either choices or a range, got choices and low"),
        ({"lr": {"low": 1e-4}}, "`space.lr.high` is missing; expected a number (or `choices`)"),
        ({"lr": {"low": "a", "high": 1}}, "`space.lr.low` must be a number, got 'a'"),
        ({"lr": {"low": True, "high": 2}}, "`space.lr.low` must be a number, got True"),
        ({"n": {"low": 1.5, "high": 4, "type": "int"}}, "`space.n` must have whole bounds for type int"),
        ({"n": {"low": 1, "high": 4, "type": "complex"}}, "`space.n.type` must be int or float, got 'complex'"),
        ({}, "`space` must have at least one parameter, got {}"),
        (
            {"a": LR, "b": {**LR, "active_if": {"c": ">= 1"}}},
            "`space.b.active_if` must name another parameter (a, b), got 'c'",
        ),
        ({"a": {**LR, "active_if": {"a": ">= 1"}}}, "`space.a.active_if` must name another parameter (a), got 'a'"),
        ({"a": {**LR, "active_if": 3}}, "`space.a.active_if` must be a mapping such as {num_layers: '>= 3'}, got 3"),
        (
            {"k": {"choices": ["x", "y"]}, "a": {**LR, "active_if": {"k": ">= 3"}}},
            "`space.a.active_if.k` must be comparable with the values of k, got >= 3",
        ),
        (
            {"k": {"choices": ["x", "y"]}, "a": {**LR, "active_if": {"k": "z"}}},
            "`space.a.active_if.k` must be one of ['x', 'y'], got 'z'",
        ),
        (
            {"a": {**LR, "per_layer": "depth"}},
            "`space.a.per_layer` must name another parameter of the space, got 'depth'",
        ),
        (
            {"a": {**LR, "per_layer": "b"}, "b": LR},
            "`space.a.per_layer` must name a whole number of at least 1, got 'b'",
        ),
        (
            {"momentum": {"low": 0.9, "high": 0.99}, "one_minus_momentum": {"low": 0.01, "high": 0.1}},
            "`space` must give each parameter a name of its own, got one_minus_momentum twice",
        ),
    ],
)
def test_bad_input_gets_one_line(mapping, said):
    with pytest.raises(ValueError, match=r"^`space") as caught:
        SearchSpace.from_dict(mapping)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_bad_types_get_one_line():
    with pytest.raises(TypeError, match=r"^`space` must be a mapping from parameters to ranges, got \[1\]$"):
        SearchSpace.from_dict([1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^`tune.space.lr` must be a mapping such as .*, got 0.1$"):
        SearchSpace.from_dict({"lr": 0.1}, where="tune.space")


def test_the_mapping_is_not_changed():
    before = json.dumps(SMALL)
    SearchSpace.from_dict(SMALL)
    assert json.dumps(SMALL) == before


# --- presets ---


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole_and_known_by_name(name):
    space = SearchSpace.from_dict(preset(name))
    assert space.tiers[0] == "A"
    if name == "playbook":
        assert {p.name: p.tier for p in space.parameters} == {
            "learning_rate": "A",
            "beta1": "B",
            "epsilon": "C",
            "beta2": "D",
        }
        return
    for parameter in space.parameters:  # what a name tells alone agrees with the presets
        known = guess(parameter.name)
        assert parameter.tier == known.tier
        if not isinstance(parameter, Choice):
            assert parameter.scale == known.scale


def test_presets_with_paths_and_a_selection():
    given = preset("sgd", paths=True, only=["learning_rate", "batch_size"])
    assert list(given) == ["model.init_args.learning_rate", "data.init_args.batch_size"]
    given["data.init_args.batch_size"]["default"] = 32
    assert preset("sgd")["batch_size"]["default"] == 64  # a copy
    assert isinstance(preset("adam"), Mapping)
    with pytest.raises(ValueError, match=r"`space` must be a mapping or one of the presets sgd, adam, .*, got 'sdg'"):
        preset("sdg")


def test_unknown_names_are_tier_b_and_linear():
    assert (guess("my.thing").tier, guess("my.thing").scale) == ("B", "linear")
    assert guess("model.init_args.lr").tier == "A"
    assert guess("weight_decay").scale_for("float", 0.0, 0.1) == "linear"  # log has no place for zero
    assert guess("momentum").scale_for("float", 0.9, 1.0) == "linear"
