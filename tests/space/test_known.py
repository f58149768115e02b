"""What a name tells: ranges that nobody wrote, around the values of the user's own configuration."""

import pytest

from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.entries import short_names
from lightning_hp.space.known import KNOWN, canonical, guess
from lightning_hp.space.parameters import Choice, Float, Int
from lightning_hp.space.presets import PRESETS, preset
from lightning_hp.space.space import SearchSpace


def auto(key, value=None):
    """The parameter of an entry that says ``auto``, where the configuration has a value."""
    return SearchSpace.from_dict({key: "auto"}, defaults={key: value}).parameters[0]


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("lr", "learning_rate"),
        ("model.init_args.lr", "learning_rate"),
        ("optimizer.init_args.betas.0", "beta1"),
        ("betas[1]", "beta2"),
        ("eps", "epsilon"),
        ("hidden_size", "hidden_units"),
        ("n_layers", "num_layers"),
        ("mine", "mine"),
        ("layers.2", "layers.2"),
        ("model.network.hidden[0]", "hidden_units"),
        ("hidden_dims.3", "hidden_units"),
        ("lr_generator", "learning_rate"),
        ("model.init_args.backbone_learning_rate", "learning_rate"),
        ("attention_dropout", "dropout"),
        ("lr_scheduler", "lr_scheduler"),
        ("min_lr", "min_lr"),
        ("warmup_lr", "warmup_lr"),
        ("lr_patience", "lr_patience"),
        ("generator_momentum", "generator_momentum"),
    ],
)
def test_names_are_known_by_their_last_part(key, known):
    assert canonical(key) == known
    assert guess(key) == guess(known)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lr", 0.003, Float("lr", 3e-5, 0.3, "log", "A", 0.003)),
        ("lr", "1e-3", Float("lr", 1e-5, 0.1, "log", "A", 1e-3)),
        ("lr", 2, Float("lr", 0.02, 200.0, "log", "A", 2.0)),
        ("weight_decay", 1e-4, Float("weight_decay", 1e-6, 1e-2, "log", "C", 1e-4)),
        ("weight_decay", 0, Choice("weight_decay", (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1), "C", 0.0)),
        ("momentum", 0.9, Float("momentum", 0.8, 0.999, "one_minus_log", "B", 0.9)),
        ("momentum", 0.99, Float("momentum", 0.9, 0.999, "one_minus_log", "B", 0.99)),
        ("momentum", 0.999, Float("momentum", 0.9, 0.9995, "one_minus_log", "B", 0.999)),
        ("momentum", 0.0, Float("momentum", 0.0, 0.999, "one_minus_log", "B", 0.0)),
        ("betas.0", 0.5, Float("betas.0", 0.0, 0.99, "one_minus_log", "D", 0.5)),
        ("betas[1]", 0.999, Float("betas[1]", 0.9, 0.9999, "one_minus_log", "D", 0.999)),
        ("eps", 1e-8, Float("eps", 1e-10, 1e-3, "log", "D", 1e-8)),
        ("eps", 1.0, Float("eps", 1e-10, 10.0, "log", "D", 1.0)),
        ("dropout", 0.1, Float("dropout", 0.0, 0.5, "linear", "C", 0.1)),
        ("dropout", 0.5, Float("dropout", 0.0, 0.75, "linear", "C", 0.5)),
        ("hidden_units", 128, Int("hidden_units", 32, 256, "linear", "B", 128)),
        ("hidden_size", 3, Int("hidden_size", 1, 6, "linear", "B", 3)),
        ("num_layers", 2, Int("num_layers", 1, 4, "linear", "C", 2)),
        ("n_layers", 0, Int("n_layers", 0, 2, "linear", "C", 0)),
        ("n_layers", 6, Int("n_layers", 3, 12, "linear", "C", 6)),
        ("data.batch_size", 64, Choice("batch_size", (16, 32, 64, 128, 256), "B", 64)),
        ("batch_size", 1, Choice("batch_size", (1, 2, 4), "B", 1)),
    ],
)
def test_a_range_lies_around_the_value_of_the_configuration(key, value, expected):
    assert auto(key, value) == expected


@pytest.mark.parametrize("name", [n for n, known in KNOWN.items() if known.usual])
def test_every_rule_holds_its_value_and_leaves_room(name):
    values = [1e-12, 1e-6, 0.003, 0.25, 0.5, 0.9, 0.9999] if guess(name).scale != "linear" else [0, 1, 2, 7, 100]
    values = {"dropout": [0.0, 0.1, 0.5, 0.9], "batch_size": [1, 2, 3, 100], "hidden_units": [1, 2, 100]}.get(
        name, values
    )
    for value in values:
        parameter = auto(name, value)
        assert parameter.natural(parameter.store(parameter.default)) == pytest.approx(value, rel=1e-9)
        ends = parameter.choices if isinstance(parameter, Choice) else (parameter.low, parameter.high)
        assert value < max(ends)
        assert value > min(ends) or value in (0, 1)  # nothing lies below, or nothing that makes sense
    usual = SearchSpace.from_dict({name: "auto"})
    assert usual.parameters[0].tier == guess(name).tier


def test_without_a_value_the_range_is_the_usual_one():
    space = SearchSpace.from_dict({"momentum": "auto", "epsilon": {}, "batch_size": {"tier": "A"}})
    assert space["momentum"] == Float("momentum", 0.9, 0.999, "one_minus_log", "B", 0.9)
    assert space["epsilon"] == Float("epsilon", 1e-10, 1e-3, "log", "D", 1e-8)
    assert space["batch_size"] == Choice("batch_size", (32, 64, 128, 256), "A", 64)


def test_what_is_written_wins_over_what_is_known():
    space = SearchSpace.from_dict(
        {"lr": {"scale": "linear", "tier": "B", "default": 0.1}, "momentum": {"default": 0.95}},
        defaults={"lr": 0.5, "momentum": 0.5},
    )
    assert space["lr"] == Float("lr", 0.001, 10.0, "linear", "B", 0.1)
    assert space["momentum"] == Float("momentum", 0.9, 0.999, "one_minus_log", "B", 0.95)


@pytest.mark.parametrize("entry", ["auto", {}, {"tier": "A"}])
@pytest.mark.parametrize("name", ["mine", "batch_growth"])
def test_a_name_without_a_rule_needs_a_range(entry, name):
    with pytest.raises(
        ValueError, match=f"^`space.{name}` must have a range: low and high, or choices; nothing is known"
    ):
        SearchSpace.from_dict({name: entry})


# --- the user's own values ---


def test_own_values_are_the_defaults_of_what_writes_none():
    mapping = {
        "model.lr": {"low": 1e-4, "high": 1.0},
        "model.momentum": {"low": 0.9, "high": 0.999, "default": 0.95},
        "model.act": {"choices": ["relu", "tanh", "gelu"]},
        "model.depth": {"low": 1, "high": 5},
        "model.p": {"low": 0.0, "high": 1.0},
    }
    own = {"model.lr": "3e-2", "model.momentum": 0.9, "model.act": "gelu", "model.depth": 2.0, "model.p": None, "x": 1}
    space = SearchSpace.from_dict(mapping, defaults=own)
    assert space.arguments(space.defaults()) == {
        "model.lr": 0.03,
        "model.momentum": 0.95,
        "model.act": "gelu",
        "model.depth": 2,
        "model.p": 0.5,  # None says nothing
    }
    assert isinstance(space["depth"].default, int)


def test_layers_start_at_the_list_of_the_configuration():
    mapping = {"depth": {"low": 1, "high": 4}, "hidden_units": {"per_layer": "depth"}}
    space = SearchSpace.from_dict(mapping, defaults={"depth": 3, "hidden_units": [128, 64, 32]})
    assert space.arguments(space.defaults()) == {"depth": 3, "hidden_units": [128, 64, 32]}
    assert [(p.low, p.high, p.default) for p in space.parameters[1:]] == [
        (8, 256, 128),
        (8, 256, 64),
        (8, 256, 32),
        (8, 256, 32),
    ]
    one = SearchSpace.from_dict(mapping, defaults={"depth": 2, "hidden_units": 40})
    assert one.arguments(one.defaults())["hidden_units"] == [40, 40]
    written = {"low": 4, "high": 200, "per_layer": "model.depth", "default": [7, 8]}
    keyed = SearchSpace.from_dict({"model.depth": {"low": 1, "high": 4, "default": 2}, "model.units": written})
    assert keyed.arguments(keyed.defaults())["model.units"] == [7, 8]


@pytest.mark.parametrize(
    ("mapping", "own", "expected"),
    [
        (
            {"lr": {"low": 1e-4, "high": 0.1}},
            {"lr": 0.5},
            r"`space.lr` must hold the value of your own configuration, .*: it must be within \[0.0001, 0.1\], "
            r"got 0.5; widen the range, or write a `default` to start from$",
        ),
        ({"lr": "auto"}, {"lr": 0}, r"`space.lr` must hold the value of your own .* within \[1e-05, 1.0\], got 0;"),
        ({"lr": "auto"}, {"lr": "fast"}, r"`space.lr` must hold the value of your own .*, got 'fast';"),
        (
            {"weight_decay": {"low": 1e-6, "high": 0.1}},
            {"weight_decay": 0.0},
            r"`space.weight_decay` must hold .* 0.0;",
        ),
        ({"n": {"low": 1, "high": 9}}, {"n": 2.5}, r"`space.n` must hold .* a whole number within \[1, 9\], got 2.5;"),
        ({"n": {"low": 1, "high": 9}}, {"n": [2, 2]}, r"`space.n` must hold .* got \[2, 2\];"),
        ({"act": {"choices": ["relu"]}}, {"act": "elu"}, r"`space.act` must hold .* one of \['relu'\], got 'elu';"),
        ({"momentum": "auto"}, {"momentum": 1.0}, r"`space.momentum` must hold .* within \[0.9, 0.999\], got 1.0;"),
        (
            {"depth": {"low": 1, "high": 4}, "units": {"low": 1, "high": 99, "per_layer": "depth"}},
            {"depth": 2, "units": [9, 9, 9]},
            r"`space.units` must start with a value for each of 2 layers \(depth starts at 2\), got \[9, 9, 9\]$",
        ),
        (
            {"depth": {"low": 1, "high": 4}, "units": {"low": 1, "high": 9, "per_layer": "depth"}},
            {"depth": 2, "units": [9, 10]},
            r"`space.units` must hold .* a whole number within \[1, 9\], got 10;",
        ),
        (
            {
                "depth": {"low": 1, "high": 4, "default": 1},
                "units": {"low": 1, "high": 9, "per_layer": "depth", "default": [10]},
            },
            {},
            r"`space.units.default` must be a whole number within \[1, 9\], got 10$",
        ),
    ],
)
def test_a_study_that_could_not_start_at_the_users_own_values_is_refused(mapping, own, expected):
    with pytest.raises(ValueError, match=f"^{expected}"):
        SearchSpace.from_dict(mapping, defaults=own)


def test_a_place_in_a_list_keeps_the_lists_name():
    assert short_names(["a.betas.0", "a.betas.1", "b.lr"]) == {
        "a.betas.0": "betas.0",
        "a.betas.1": "betas.1",
        "b.lr": "lr",
    }
    assert short_names(["a.betas.0", "b.betas.0"]) == {"a.betas.0": "a.betas.0", "b.betas.0": "b.betas.0"}


# --- presets that fit a project ---


def test_a_preset_takes_the_names_that_a_project_says():
    takes = ["model.init_args.lr", "model.init_args.eps", "model.init_args.betas.0", "data.init_args.batch_size"]
    mapping = preset("adam", takes=takes)
    assert list(mapping) == [takes[0], takes[3], takes[2], takes[1]]
    assert mapping["model.init_args.lr"] == PRESETS["adam"]["learning_rate"]
    assert preset("sgd", takes=["lr", "momentum", "encoder.lr", "width"]).keys() == {"lr", "momentum"}


def test_a_preset_starts_at_the_values_of_a_project():
    values = {"lr": 0.05, "momentum": 0.0, "batch_size": 512, "weight_decay": 0.0, "num_layers": 3}
    takes = [*values, "hidden_units", "dropout"]
    values["hidden_units"] = [512, 64, 64]
    mapping = preset("batchnorm_mlp", takes=takes, values=values)
    space = SearchSpace.from_dict(mapping, defaults=values)
    assert space.arguments(space.defaults()) == {**values, "dropout": 0.0}
    assert mapping["lr"] == {**PRESETS["batchnorm_mlp"]["learning_rate"], "default": 0.05}  # its range holds the value
    assert space["momentum"] == Float("momentum", 0.0, 0.999, "one_minus_log", "B", 0.0)
    assert space["batch_size"].choices == (128, 256, 512, 1024, 2048)
    assert space["weight_decay"].choices[0] == 0.0
    assert (space["hidden_units_1"].low, space["hidden_units_1"].high) == (16, 1024)
    plan = SearchPlan.of("batchnorm_mlp", takes=takes, defaults=values)
    assert plan.space == space
    assert preset("batchnorm_mlp")["learning_rate"]["default"] == 0.01  # presets stay as they are


@pytest.mark.parametrize(
    ("takes", "expected"),
    [
        (["a.lr", "b.lr"], "`space` must name its parameters: learning_rate of the preset 'sgd' could be a.lr or b.lr"),
        (["width"], r"`space` must name its parameters: nothing takes the learning rate .*, there is width$"),
        ([], r"`space` must name its parameters: nothing takes the learning rate .*, there is nothing$"),
    ],
)
def test_a_preset_that_does_not_fit_says_so(takes, expected):
    with pytest.raises(ValueError, match=f"^{expected}"):
        preset("sgd", takes=takes)
