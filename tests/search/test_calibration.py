"""What the pruner predicts against where curves really end: as often inside an interval as the interval says."""

import numpy as np
import optuna
import pytest

from lightning_hp.search import CoarseToFineSampler, SearchSpace
from lightning_hp.search.pruner import WIDER

STEPS = 32
SPACE = SearchSpace.from_dict(
    {
        "x": {"low": 0.0, "high": 1.0, "tier": "A", "default": 0.5},
        "y": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "B", "default": 1e-2},
        "kind": {"choices": ["p", "q", "r"], "tier": "B", "default": "p"},
    }
)


def curve(natural: dict, rng: np.random.Generator) -> list[float]:
    """Ends at its own level, after a fall of its own speed and height; curves cross, and scatter a little."""
    end = 0.1 + (natural["x"] - 0.2) ** 2 + 0.1 * (np.log10(natural["y"]) + 1) ** 2 + 0.2 * (natural["kind"] != "q")
    speed, height = 0.5 + 1.5 * natural["x"], 0.3 + natural["x"]
    return [
        end + height * (step**-speed - STEPS**-speed) + 0.01 * rng.standard_normal() for step in range(1, STEPS + 1)
    ]


def forecasts(seed: int, n: int = 30) -> list[float]:
    """How many of its (widened) deviations the true end lies from each prediction of a study, on the model's axis."""
    rng = np.random.default_rng(seed)
    sampler = CoarseToFineSampler(SPACE, n_trials=n, max_steps=STEPS, seed=seed)
    pruner = sampler.pruner()
    study = optuna.create_study(sampler=sampler)
    away = []
    for _ in range(n):
        trial = study.ask()
        losses = curve(SPACE.suggest(trial), rng)
        stop = False
        for step, value in enumerate(losses, start=1):
            trial.report(value, step)
            verdict = pruner.verdict(study, study._storage.get_trial(trial._trial_id))
            if verdict is None or verdict["rule"] != "predicted":
                continue
            curves = sampler._engine.curves(study, study.get_trials(deepcopy=False))
            model = sampler._engine.model(curves)
            mean, deviation = model.final(np.array([c.unit for c in curves if c.number == trial.number]))
            away.append((float(model.compression(losses[-1])) - mean[0]) / (WIDER * deviation[0]))
            # the interval that is told is the one that is tested
            ends = model.compression.inverse(np.array([mean[0] - WIDER * deviation[0], mean[0] + WIDER * deviation[0]]))
            assert [verdict["low"], verdict["high"]] == pytest.approx(list(ends))
            if verdict["stop"]:
                stop = True
                break
        if stop:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, losses[-1])
    return away


def test_ends_lie_in_the_predicted_intervals_as_often_as_they_say():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    away = np.abs([z for seed in range(3) for z in forecasts(seed)])
    assert len(away) > 60
    assert 0.40 <= np.mean(away < 0.674) <= 0.70, "50 %"
    assert 0.82 <= np.mean(away < 1.645) <= 0.98, "90 %"
