"""Values that a person wants tried: natural ones in, stored ones queued, and a word where Optuna would say nothing."""

import warnings

import optuna
import pytest

from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.space.space import SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "model.lr": {"low": 1e-4, "high": 1.0},
        "model.momentum": {"low": 0.6, "high": 0.999},
        "data.batch_size": {"choices": [32, 64, 128]},
        "model.depth": {"low": 1, "high": 3},
        "model.units": {"low": 4, "high": 64, "per_layer": "depth"},
        "model.betas": {"choices": [[0.9, 0.999], [0.8, 0.99]]},
    }
)


def new_study() -> optuna.Study:
    return optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=9))


def test_natural_values_are_what_the_trial_is_given():
    study = new_study()
    SPACE.enqueue(study, {"momentum": 0.7, "model.lr": 0.03, "betas": [0.8, 0.99]}, user_attrs={"by": "me"})
    SPACE.enqueue(study, {"model.units": [9, 8]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (SPACE.suggest(study.ask()) for _ in range(2))
    assert (first["model.momentum"], first["model.lr"], first["model.betas"]) == (0.7, 0.03, [0.8, 0.99])
    assert study.trials[0].params["one_minus_momentum"] == 0.3
    assert study.trials[0].user_attrs["by"] == "me"
    assert (second["model.depth"], second["model.units"]) == (2, [9, 8])
    assert second["model.lr"] != 0.03  # the sampler's


def test_the_same_values_are_queued_once_where_that_is_asked_for():
    study = new_study()
    for _ in range(2):
        SPACE.enqueue(study, {"lr": 0.5}, skip_if_exists=True)
    assert len(study.trials) == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lr": 5.0}, r"`lr` must be within \[0.0001, 1.0\], got 5.0"),
        ({"momentum": 0.5}, r"`momentum` must be within \[0.6, 0.999\], got 0.5"),
        ({"one_minus_momentum": 0.5}, r"`momentum` must be within \[0.6, 0.999\], got 0.5"),
        ({"momentun": 0.7}, r"`momentun` must be a parameter of the space \(lr, momentum, batch_size, depth, units_1"),
        ({"batch_size": 48}, r"`batch_size` must be one of \[32, 64, 128\], got 48"),
        ({"depth": 2.5}, r"`depth` must be a whole number within \[1, 3\], got 2.5"),
        ({"depth": 10**400}, r"`depth` must be a whole number within \[1, 3\], got 1000"),
        ({"lr": "big"}, r"`lr` must be within \[0.0001, 1.0\], got 'big'"),
        ({"lr": float("nan")}, r"`lr` must be within \[0.0001, 1.0\], got nan"),
        ({"model.units": [9, 8], "depth": 3}, r"`model.units` must have a value for each of 3 layers, got \[9, 8\]"),
        ({"model.units": [9, 8, 7, 6]}, r"`depth` must be a whole number within \[1, 3\], got 4"),
        ({"model.units": [900]}, r"`units_1` must be a whole number within \[4, 64\], got 900"),
        ({"betas": [0.9, 0.99]}, r"`betas` must be one of \['\[0.9, 0.999\]', '\[0.8, 0.99\]'\], got \[0.9, 0.99\]"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_it_is_queued(values, expected):
    study = new_study()
    with pytest.raises(ValueError, match=f"^{expected}"):
        SPACE.enqueue(study, values)
    assert study.trials == []


@pytest.mark.parametrize("name", ["momentum", "model.momentum"])
def test_a_natural_name_that_optuna_would_ignore_is_said(name):
    study = new_study()
    study.enqueue_trial({name: 0.7})
    trial = study.ask()
    with pytest.warns(
        UserWarning, match=rf"^enqueued `{name}` is ignored: .*write space.enqueue\(study, \{{'{name}': 0.7"
    ):
        arguments = SPACE.suggest(trial)
    assert arguments["model.momentum"] != 0.7


def test_stored_names_and_names_beyond_the_space_are_no_matter():
    study = new_study()
    study.enqueue_trial({"one_minus_momentum": 0.3, "lr": 0.5, "mine": 4})
    trial = study.ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SPACE.suggest(trial)["model.momentum"] == 0.7
    assert trial.suggest_int("mine", 0, 9) == 4


def test_stored_values_are_those_of_a_trial():
    stored = SPACE.stored({"momentum": 0.7, "model.units": [9, 8], "betas": "[0.8, 0.99]"})
    assert stored.keys() == SPACE.distributions.keys()
    assert (stored["one_minus_momentum"], stored["units_2"], stored["betas"]) == (0.3, 8, "[0.8, 0.99]")
    assert SPACE.stored({"one_minus_momentum": 0.3})["one_minus_momentum"] == 0.3
    assert SPACE.stored({"lr": 7})["lr"] == 1.0  # a value of another study may lie outside
    trial = optuna.create_trial(params=stored, distributions=SPACE.distributions, value=1.0)
    assert SPACE.suggest(trial)["model.momentum"] == 0.7
    with pytest.raises(ValueError, match="`lr` must be a number, got 'big'"):
        SPACE.stored({"lr": "big"})
