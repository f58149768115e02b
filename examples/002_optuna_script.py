"""A plain Optuna study with an objective of its own; only the space and the sampler are ours.

Run:  python examples/002_optuna_script.py            (under a minute on one core; no torch, no Lightning)

The objective trains a perceptron with one hidden layer, written in numpy, on scikit-learn's bundled 8x8 digits by
mini-batch gradient descent with momentum. Everything else is what an Optuna script has anyway.
"""

import numpy as np
import optuna
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lightning_hp.search import CoarseToFineSampler, SearchSpace
from lightning_hp.search.evidence import evidence

# Scale, tier and default of well-known names are known; those of others are given. Tier A opens first.
SPACE = SearchSpace.from_dict(
    {
        "learning_rate": {"low": 1e-4, "high": 1.0, "default": 0.01},  # log, tier A
        "momentum": {"low": 0.5, "high": 0.999, "default": 0.9},  # one_minus_log, tier B
        "hidden_units": {"low": 8, "high": 64, "default": 16},  # linear, tier B
        "batch_size": {"choices": [16, 32, 64, 128], "default": 32},  # tier B
        "weight_decay": {"low": 1e-6, "high": 1e-1, "default": 1e-4},  # log, tier C
    }
)
TRIALS, EPOCHS = 40, 9

images, labels = load_digits(return_X_y=True)
X, X_val, y, y_val = train_test_split(images / 16.0, labels, test_size=0.25, random_state=0, stratify=labels)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def objective(trial: optuna.Trial) -> float:
    hp = SPACE.suggest(trial)  # natural values: hp["momentum"] is 0.93, however it is stored
    rng = np.random.default_rng(trial.number)
    n_in, n_hidden, n_out = X.shape[1], hp["hidden_units"], 10
    weights = [
        rng.normal(size=(n_in, n_hidden)) * np.sqrt(2 / n_in),
        np.zeros(n_hidden),
        rng.normal(size=(n_hidden, n_out)) * np.sqrt(1 / n_hidden),
        np.zeros(n_out),
    ]
    velocity = [np.zeros_like(w) for w in weights]
    loss = np.inf
    for epoch in range(EPOCHS):
        order = rng.permutation(len(X))
        for start in range(0, len(X), hp["batch_size"]):
            rows = order[start : start + hp["batch_size"]]
            hidden = np.maximum(X[rows] @ weights[0] + weights[1], 0.0)
            error = softmax(hidden @ weights[2] + weights[3])
            error[np.arange(len(rows)), y[rows]] -= 1.0
            error /= len(rows)
            back = (error @ weights[2].T) * (hidden > 0)
            gradients = [X[rows].T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
            for i, gradient in enumerate(gradients):
                decay = hp["weight_decay"] * weights[i] if weights[i].ndim == 2 else 0.0
                velocity[i] = hp["momentum"] * velocity[i] - hp["learning_rate"] * (gradient + decay)
                weights[i] = weights[i] + velocity[i]
        chance = softmax(np.maximum(X_val @ weights[0] + weights[1], 0.0) @ weights[2] + weights[3])
        loss = float(-np.mean(np.log(chance[np.arange(len(y_val)), y_val] + 1e-12)))
        if not np.isfinite(loss):
            return 30.0  # diverged: a bad value, so that the corner is learned
        trial.report(loss, epoch + 1)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    np.seterr(all="ignore")  # diverging trials overflow, and are told as such
    sampler = CoarseToFineSampler(SPACE, n_trials=TRIALS, max_steps=EPOCHS, seed=0)
    study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.MedianPruner(n_warmup_steps=3))
    study.optimize(objective, n_trials=TRIALS)

    print(f"best validation loss {study.best_value:.4f} in trial {study.best_trial.number}")
    for name, value in SPACE.natural(study.best_params).items():
        print(f"  {name:14s} {value:.4g}")
    print("learning rate searched in each stage:")
    rate = SPACE["learning_rate"]
    for stage in sampler.stages(study):
        low, high = (rate.at(edge) for edge in stage.box["learning_rate"])
        print(f"  {stage.name:14s} trials {stage.first:2d}-{stage.last - 1:2d}   {low:.4f} to {high:.4f}")
    found = evidence(SPACE, study.trials, "minimize", sampler.stages(study))
    print(f"pruned {found['counts']['pruned']} of {len(study.trials)} trials")
    for sentence in [*(e["sentence"] for e in found["edges"]), *found["disagreements"]]:
        print("  " + sentence)


if __name__ == "__main__":
    main()
