"""Ranges at the ends of what numbers can do: they work, or are refused with the key and what to write."""

import math
import warnings

import numpy as np
import optuna
import pytest

from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.space.parameters import Choice, Float, Int
from lightning_hp.space.scales import one_minus
from lightning_hp.space.space import SearchSpace

TINY, HUGE = 5e-324, 1.7e308
#: Key to fields, as a person may write them.
WORKING = {
    "twelve nines": {"low": 0.9, "high": 1 - 1e-12, "scale": "one_minus_log"},
    "nine nines": {"low": 0.99, "high": 1 - 1e-9, "scale": "one_minus_log"},
    "only nines": {"low": 1 - 1e-9, "high": 1 - 1e-11, "scale": "one_minus_log"},
    "from below zero": {"low": -99.5, "high": 0.5, "scale": "one_minus_log"},
    "narrow": {"low": 0.9, "high": 0.9 + 1e-9, "scale": "one_minus_log"},
    "epsilon 1e-30": {"low": 1e-30, "high": 1e-3, "scale": "log"},
    "denormal": {"low": 1e-320, "high": 1e-300, "scale": "log"},
    "all decades": {"low": TINY, "high": HUGE, "scale": "log"},
    "half a decade": {"low": 1.0, "high": 3.0, "scale": "log"},
    "wide": {"low": -8e307, "high": 8e307, "scale": "linear"},
    "far from zero": {"low": 1e15, "high": 1e15 + 1e3, "scale": "linear", "type": "float"},
    "next to zero": {"low": 0.0, "high": 1e-300, "scale": "linear"},
    "whole from 1 on log": {"low": 1, "high": 10**12, "scale": "log"},
    "whole and wide": {"low": -(10**12), "high": 10**12},
    "two whole numbers": {"low": -1, "high": 0},
    "two whole numbers on log": {"low": 1, "high": 2, "scale": "log"},
}


def parameter_of(fields):
    return SearchSpace.from_dict({"x": fields})["x"]


@pytest.mark.parametrize("fields", WORKING.values(), ids=WORKING)
def test_values_go_to_storage_and_back(fields):
    parameter = parameter_of(fields)
    wide = parameter.distribution
    units = np.random.default_rng(0).random(300)
    stored = [parameter.at(float(u)) for u in [0.0, *units, 1.0]]
    for value in stored:
        natural = parameter.natural(value)
        assert parameter.low <= natural <= parameter.high
        assert wide.low <= value <= wide.high
        assert parameter.store(natural) == value  # to the last bit: a trial that is told again is the same trial
    assert parameter.natural(stored[0]) == pytest.approx(parameter.low, rel=1e-12, abs=0)
    assert parameter.natural(stored[-1]) == pytest.approx(parameter.high, rel=1e-12, abs=0)
    back = parameter.unit(stored)
    assert np.all((back >= 0) & (back <= 1))
    assert [parameter.at(float(u)) for u in back] == pytest.approx(stored, rel=1e-3)
    if isinstance(parameter, Int):
        assert [parameter.at(float(u)) for u in back] == stored
    else:
        assert back[1:-1] == pytest.approx(units, abs=1e-3)
        assert len(set(stored)) > 250  # trials differ


@pytest.mark.parametrize("fields", WORKING.values(), ids=WORKING)
@pytest.mark.parametrize("base", [None, optuna.samplers.TPESampler(seed=0)], ids=["engine", "tpe"])
def test_a_study_goes_through(fields, base):
    space = SearchSpace.from_dict({"x": fields})
    sampler = CoarseToFineSampler(space, n_trials=12, base=base)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: float(space.unit([space.stored(space.suggest(trial))])[0, 0]), n_trials=12)
    values = [t.params[space["x"].stored_name] for t in study.trials]
    assert all(space["x"].low <= space["x"].natural(v) <= space["x"].high for v in values)
    if isinstance(space["x"], Float):
        assert len(set(values)) == 12


@pytest.mark.parametrize("decimals", [12, 15])
def test_distance_from_one_twice_is_the_value(decimals):
    rng = np.random.default_rng(1)
    for magnitude in (1e-9, 1e-3, 1.0, 30.0, 1e6):
        for distance in rng.uniform(0, magnitude, 200):
            stored = one_minus(1.0 - distance, decimals)
            assert one_minus(one_minus(stored, decimals), decimals) == stored


def test_ordinary_ranges_keep_twelve_decimals_as_studies_of_today_do():
    momentum = Float("momentum", 0.9, 0.999, "one_minus_log", "B", 0.9)
    assert momentum.at(0.123456) == round(momentum.at(0.123456), 12)
    assert momentum.store(0.93) == 0.07


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"low": 0.9, "high": 0.9999999999999, "scale": "one_minus_log"},
            "`space.x` must have high of at most 1 - 1e-12 on the one_minus_log scale, got high=0.9999999999999",
        ),
        (
            {"low": 0.9, "high": 0.9 + 1e-13, "scale": "one_minus_log"},
            "`space.x` must have a range that holds at least 101 different values, got low=0.9, high=0.9000000000001",
        ),
        (
            {"low": 1.0, "high": 1.0 + 1e-15},
            "`space.x` must have a range that holds at least 101 different values, got low=1.0, high=1.000000000000001",
        ),
        (
            {"low": 0.0, "high": TINY},
            "`space.x` must have a range that holds at least 101 different values, got low=0.0, high=5e-324",
        ),
        ({"low": -HUGE, "high": HUGE}, "`space.x` must have bounds less than 1.8e308 apart, got low=-1.7e+308"),
        ({"low": 1, "high": 10**13}, "`space.x` must have whole bounds within 1e12 of 0 (`type: float` goes further)"),
        ({"low": 1, "high": 10**400}, "`space.x.high` must be a number within 1.8e308 of 0, got one of 1329 bits"),
        ({"low": 0.0, "high": math.inf}, "`space.x` must have finite bounds, got low=0.0, high=inf"),
        ({"low": math.nan, "high": 1.0}, "`space.x` must have finite bounds, got low=nan, high=1.0"),
        ({"low": 3, "high": 3}, "`space.x` must have low < high, got low=3, high=3"),
        ({"low": 0.0, "high": 1e-30, "scale": "log"}, "`space.x` must have low > 0 on the log scale, got low=0.0"),
        ({"low": 0.1, "high": 0.2, "default": math.nan}, "`space.x.default` must be within [0.1, 0.2], got nan"),
        ({"choices": [math.nan, 1.0]}, "`space.x.choices` must be numbers, texts, booleans or null, or lists"),
    ],
)
def test_what_cannot_work_is_refused_with_the_key(fields, expected):
    with pytest.raises(ValueError, match=r"^`space") as caught:
        parameter_of(fields)
    assert str(caught.value).startswith(expected)


def test_a_sampler_that_has_used_up_the_values_still_ends():
    space = SearchSpace.from_dict({"x": {"low": 0.9, "high": 0.9 + 1.1e-10, "scale": "one_minus_log"}})
    study = optuna.create_study(sampler=CoarseToFineSampler(space, n_trials=150, base=EdgeSampler()))
    study.optimize(lambda trial: space.suggest(trial)["x"], n_trials=150)
    assert len({t.params["one_minus_x"] for t in study.trials}) <= 111  # all that twelve decimals have there
    assert len(study.trials) == 150


class EdgeSampler(optuna.samplers.RandomSampler):
    """Proposes the lower edge of what it is asked for, as samplers that clip do."""

    def sample_independent(self, study, trial, param_name, param_distribution):
        return param_distribution.low


def test_infinite_choices_and_few_choices():
    parameter = SearchSpace.from_dict({"x": {"choices": [0.0, math.inf]}})["x"]
    assert isinstance(parameter, Choice)
    assert [parameter.at(u) for u in (0.2, 0.8)] == [0.0, math.inf]
    assert SearchSpace.from_dict({"x": {"choices": [3]}})["x"].at(0.7) == 3


def test_optuna_stores_and_gives_back_every_extreme(tmp_path):
    space = SearchSpace.from_dict(WORKING)
    storage = f"sqlite:///{tmp_path}/study.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [space.at(np.full(len(space), u)) for u in (0.0, 0.37, 1.0)]
    for params in trials:
        study.add_trial(optuna.create_trial(params=params, distributions=space.distributions, value=0.0))
    again = optuna.load_study(study_name=study.study_name, storage=storage)
    assert [t.params for t in again.trials] == trials
