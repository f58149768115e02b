"""A study that starts from values found elsewhere: a mapping, a file, a babysat run, another study."""

from __future__ import annotations

import json

import pytest
from toy_project import SPACE as TOY_SPACE
from toy_project import Toy, ToyData

import lightning_hp
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.space.space import SearchSpace
from lightning_hp.tuning.start import with_start

SPACE = SearchSpace.from_dict(
    {
        "model.init_args.learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log", "default": 0.01},
        "model.init_args.momentum": {"low": 0.9, "high": 0.999, "scale": "one_minus_log", "default": 0.9},
        "model.init_args.layers": {"low": 1, "high": 4, "default": 2},
        "data.init_args.batch_size": {"choices": [32, 64, 128], "default": 32},
        "model.init_args.betas": {"choices": [[0.9, 0.999], [0.8, 0.99]]},
    }
)


def started(start, **more):
    space = with_start(SPACE, start, **more)
    return space.natural(space.defaults())


def test_named_values_become_defaults_and_the_others_stay():
    before, after = SPACE.natural(SPACE.defaults()), started({"learning_rate": 0.3, "data.init_args.batch_size": 128})
    assert after == {**before, "learning_rate": 0.3, "batch_size": 128}
    assert started(None) == before


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("learning_rate", 50.0, 1.0),
        ("learning_rate", 0, 1e-4),
        ("momentum", 0.5, 0.9),
        ("layers", 3.0, 3),
        ("layers", 9, 4),
        ("batch_size", 64.0, 64),
        ("batch_size", 100, 128),
        ("betas", [0.8, 0.99], [0.8, 0.99]),
    ],
)
def test_a_value_goes_to_the_nearest_that_its_parameter_takes(name, value, nearest):
    after = started({name: value})[name]
    assert after == pytest.approx(nearest)
    assert type(after) is type(nearest)


def test_a_file_may_know_more_than_the_space(tmp_path):
    (tmp_path / "panda_values.json").write_text(json.dumps({"learning_rate": 0.05, "epsilon": 1e-8}))
    for start, base in (
        (tmp_path, tmp_path),
        ("panda_values.json", tmp_path),
        (tmp_path / "panda_values.json", tmp_path),
    ):
        assert started(start, base=base)["learning_rate"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"learing_rate": 0.1}, r"`start` must name parameters of the space \(learning_rate, .*got 'learing_rate'"),
        ({"learning_rate": "fast"}, r"`start.learning_rate` must be .*, got 'fast'"),
        ({"learning_rate": float("nan")}, r"`start.learning_rate` must be .*, got nan"),
        ({"batch_size": True}, r"`start.batch_size` must be .*, got True"),
        ({"betas": [1, 2]}, r"`start.betas` must be .*, got \[1, 2\]"),
        ("nowhere", r"`start` must be a babysat run, a study or a JSON file, got 'nowhere': no such file"),
        (3, r"`start` must be a mapping, a folder or a JSON file, got 3"),
    ],
)
def test_what_cannot_be_started_from_is_refused_in_one_line(start, message):
    with pytest.raises(ConfigError, match=message) as error:
        started(start)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"must be a JSON object"),
        ("{", r"be a JSON file"),
        (json.dumps({"epsilon": 1}), r"must name parameters of the space"),
    ],
)
def test_a_file_without_values_of_the_space_is_refused(tmp_path, text, message):
    (tmp_path / "values.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        started(tmp_path / "values.json")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"must hold panda_values.json of a run, the result of a study"):
        started(tmp_path)


def test_a_study_starts_from_the_winner_of_another(tmp_path, monkeypatch):
    """Trial 0 of the second study has the values of the first one's winner."""
    monkeypatch.chdir(tmp_path)
    common = {"space": TOY_SPACE, "progress": False, "max_epochs": 1}
    first = lightning_hp.tune(Toy, ToyData, name="first", trials=8, **common)
    assert first.trial > 0, "else the defaults have won, and the next lines would show nothing"
    second = lightning_hp.tune(Toy, ToyData, name="second", trials=1, start="runs/first", **common)
    assert second.natural == pytest.approx(first.natural)
