"""Optuna's own suite for samplers, on ours with each kind of space that a script may bring.

The suite asks for parameters ``x`` and ``y`` of changing kinds, so a space that names them itself cannot be used; one
space knows none of its parameters, the other asks with the default TPE replaced by a user's base sampler.
"""

from collections.abc import Callable

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase

from lightning_hp.search import CoarseToFineSampler, preset


class TestCoarseToFine(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: CoarseToFineSampler(preset("sgd"), n_trials=10, seed=0)


class TestFineFromTheFirstTrialOn(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: CoarseToFineSampler(preset("sgd"), n_trials=2, seed=0)


class TestWithABaseSampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: CoarseToFineSampler(preset("sgd"), n_trials=2, base=optuna.samplers.TPESampler(seed=0))
