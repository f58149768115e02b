"""When a study has nothing left to gain, and which of its trials may be the best, on objectives that are known."""

import numpy as np
import optuna
import pytest

from lightning_hp.search import CoarseToFineSampler, SearchSpace, StopWhenConverged
from lightning_hp.search.convergence import ATTRIBUTE, FEWEST, Convergence, convergence
from lightning_hp.search.winner import winner_candidates

SPACE = SearchSpace.from_dict({n: {"low": 0.0, "high": 1.0, "tier": "A", "default": 0.5} for n in ("x", "y")})
NOISE = 0.05


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def bowl(natural: dict) -> float:
    return 0.5 + (natural["x"] - 0.3) ** 2 + (natural["y"] - 0.7) ** 2


def noisy(seed: int, noise: float = NOISE):
    def objective(trial: optuna.Trial) -> float:
        luck = np.random.default_rng([seed, trial.number]).standard_normal()
        return bowl(SPACE.suggest(trial)) + noise * luck

    return objective


def study_of(objective, n: int, seed: int = 0, direction: str = "minimize", **options) -> optuna.Study:
    sampler = CoarseToFineSampler(SPACE, n_trials=n, seed=seed)
    study = optuna.create_study(sampler=sampler, direction=direction)
    study.optimize(objective, n_trials=n, **options)
    return study


def test_a_noisy_study_ends_early_without_a_loss_that_could_be_told_from_noise():
    ends, losses = [], []
    for seed in range(3):
        study = study_of(noisy(seed), 60, seed, callbacks=[StopWhenConverged()])
        ends.append(len(study.trials))
        best = winner_candidates(study, study.sampler.engine, k=1)[0].trial
        losses.append(bowl(best.params) - 0.5)
        if len(study.trials) < 60:
            assert f"after {len(study.trials)} of 60 trials" in study.user_attrs[ATTRIBUTE]
    assert min(ends) >= FEWEST
    assert np.mean(ends) <= 30
    assert np.mean(losses) < NOISE


def filled(points: list[tuple[float, float]]) -> optuna.Study:
    """A study of an exact bowl, of trials at these positions."""
    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=60))
    for x, y in points:
        params = {"x": float(x), "y": float(y)}
        study.add_trial(optuna.create_trial(params=params, distributions=SPACE.distributions, value=bowl(params)))
    return study


def test_what_the_model_expects_to_gain_keeps_a_study_going():
    """All trials on the slope, the bottom further down: the model knows that there is more."""
    rng = np.random.default_rng(0)
    slope = filled([(0.6 + 0.4 * a, 0.4 * b) for a, b in rng.random((20, 2))])
    result = convergence(slope, slope.sampler.engine, 60)
    assert not result.converged
    assert result.gain > 0.01


def test_what_the_last_half_gained_keeps_a_study_going():
    """The bottom is reached: at once, or in the last trials; what the model expects of the next trial is the same."""
    rng = np.random.default_rng(0)
    around = [(0.3 + 0.01 * a, 0.7 + 0.01 * b) for a, b in rng.standard_normal((8, 2))]
    far = [(x, y) for x, y in rng.random((40, 2)) if bowl({"x": x, "y": y}) > 0.55][:12]
    late, early = filled([*far, *around]), filled([*around, *far])
    gains = [convergence(s, s.sampler.engine, 60).gain for s in (late, early)]
    assert gains[0] > 0.04
    assert gains[1] < gains[0] / 2


def test_nothing_is_said_before_enough_trials_are_complete_and_when_nothing_is_left():
    study = study_of(noisy(0), FEWEST - 1)
    assert convergence(study, study.sampler.engine, 200) is None
    study.optimize(noisy(0), n_trials=1)
    assert convergence(study, study.sampler.engine, 200) is not None
    assert convergence(study, study.sampler.engine, FEWEST) is None


def test_more_budget_is_never_expected_to_gain_less():
    study = study_of(noisy(1), 20)
    gains = [convergence(study, study.sampler.engine, n).gain for n in (21, 30, 200)]
    assert gains == sorted(gains)
    assert gains[0] >= 0


def test_with_another_sampler_the_number_of_trials_must_be_given():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with pytest.raises(ValueError, match="`n_trials` must be given where the study's sampler has no number of trials"):
        study.optimize(noisy(0), n_trials=1, callbacks=[StopWhenConverged()])
    study.optimize(noisy(0, noise=0.3), n_trials=60, callbacks=[StopWhenConverged(n_trials=60)])
    assert FEWEST <= len(study.trials) < 61
    with pytest.raises(ValueError, match="`n_trials` must be a whole number of at least 1 or None, got 0"):
        StopWhenConverged(0)


def test_what_is_said():
    text = str(Convergence(finished=80, left=120, gain=0.0004, noise=0.002, sure=0.97))
    assert text == (
        "after 80 of 200 trials the other 120 are expected to gain 0.0004, less than one training scatters (0.002); "
        "97% sure"
    )


# --- the winner ---


def test_candidates_are_those_that_cannot_be_told_from_the_best():
    study = study_of(noisy(2), 30)
    candidates = winner_candidates(study, study.sampler.engine)
    assert 1 <= len(candidates) <= 3
    assert study.best_trial.number in [c.trial.number for c in candidates]
    for c in candidates:
        assert c.low < c.mean < c.high
        assert bowl(c.trial.params) < 0.5 + 3 * NOISE
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        winner_candidates(study, study.sampler.engine, 0)
    assert winner_candidates(optuna.create_study(), study.sampler.engine) == []


def test_maximise_gives_the_same_candidates():
    down = study_of(noisy(3), 20)
    up = optuna.create_study(direction="maximize", sampler=CoarseToFineSampler(SPACE, n_trials=20))
    for trial in down.trials:
        up.add_trial(optuna.create_trial(params=trial.params, distributions=trial.distributions, value=-trial.value))
    pairs = zip(winner_candidates(down, down.sampler.engine), winner_candidates(up, up.sampler.engine), strict=True)
    for ours, theirs in pairs:
        assert ours.trial.number == theirs.trial.number
        assert (theirs.mean, theirs.low, theirs.high) == pytest.approx((-ours.mean, -ours.high, -ours.low))


def test_a_lucky_training_is_found_out_by_its_repeats():
    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=40))
    rng = np.random.default_rng(0)

    def add(x: float, y: float, value: float) -> None:
        params = {"x": x, "y": y}
        study.add_trial(optuna.create_trial(params=params, distributions=SPACE.distributions, value=value))

    for x, y in rng.random((16, 2)):
        add(x, y, bowl({"x": x, "y": y}) + 0.02 * rng.standard_normal())
    add(0.31, 0.69, 0.5)
    add(0.9, 0.1, 0.45)  # bad (0.5 + 0.72), and lucky beyond belief
    assert study.best_trial.params == {"x": 0.9, "y": 0.1}
    for _ in range(3):
        add(0.9, 0.1, 1.2)
    engine = study.sampler.engine
    model = engine.model(engine.curves(study, study.trials))
    assert float(model.compression.inverse(np.array([model.best]))[0]) == pytest.approx(0.5)
    first = winner_candidates(study, engine)[0]
    assert first.trial.params == {"x": 0.31, "y": 0.69}
    lucky = [c for c in winner_candidates(study, engine) if c.trial.params["x"] == 0.9]
    assert all(c.trainings == 4 for c in lucky)
    noise = model.noise
    few = [t for t in study.trials if t.number < 17]
    assert noise > engine.model(engine.curves(study, few)).noise, "repeats that differ are noise"
