"""The model computes with one thread of BLAS; what BLAS is allowed otherwise stays as it is."""

import numpy as np
import optuna
import pytest
from threadpoolctl import ThreadpoolController

from lightning_hp.search import CoarseToFineSampler, surrogate
from lightning_hp.search.blas_threads import one_blas_thread


def threads():
    return [library["num_threads"] for library in ThreadpoolController().info() if library["user_api"] == "blas"]


@pytest.fixture(autouse=True)
def three_threads():
    with ThreadpoolController().limit(limits=3, user_api="blas"):
        yield


def test_one_thread_inside_and_as_many_as_before_outside():
    @one_blas_thread
    def nested(depth):
        assert set(threads()) == {1}
        if depth:
            nested(depth - 1)
            assert set(threads()) == {1}
            return
        raise RuntimeError("inside")

    assert set(threads()) == {3}
    with pytest.raises(RuntimeError, match="inside"):
        nested(2)
    assert set(threads()) == {3}


def test_asking_and_pruning_use_one_thread_and_leave_the_setting_as_it_was(monkeypatch):
    seen, fit, predict = [], surrogate.fit, surrogate.GaussianProcess.predict
    monkeypatch.setattr(surrogate, "fit", lambda *of: seen.extend(threads()) or fit(*of))
    monkeypatch.setattr(
        surrogate.GaussianProcess, "predict", lambda self, at: seen.extend(threads()) or predict(self, at)
    )
    sampler = CoarseToFineSampler({"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}}, n_trials=20)
    study = optuna.create_study(sampler=sampler, pruner=sampler.pruner())

    def objective(trial):
        values = sampler.space.suggest(trial)
        for step in range(1, 5):
            trial.report(values["x"] + values["y"] + 1 / step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return values["x"] + values["y"] + 0.25

    study.optimize(objective, n_trials=20)
    assert len(seen) > 50
    assert set(seen) == {1}
    assert set(threads()) == {3}
    assert np.isfinite(study.best_value)
