"""Run: python example.py; it takes a second."""

import optuna
import optunahub

package = optunahub.load_module("samplers/coarse_to_fine")
space = package.SearchSpace.from_dict(
    {
        "learning_rate": {"low": 1e-4, "high": 1.0},  # log, tier A: known by its name
        "momentum": {"low": 0.5, "high": 0.999},  # 1 - 10^r, tier B
        "hidden_units": {"low": 8, "high": 64},
    }
)


def objective(trial: optuna.Trial) -> float:
    values = space.suggest(trial)
    return (values["learning_rate"] - 0.1) ** 2 + (values["momentum"] - 0.93) ** 2 + values["hidden_units"] / 1e4


sampler = package.CoarseToFineSampler(space, n_trials=30)
study = optuna.create_study(sampler=sampler, pruner=sampler.pruner())
study.optimize(objective, n_trials=30)
print(space.natural(study.best_params))
