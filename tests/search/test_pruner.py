"""CurvePruner on curves whose ends are known: what it stops, what it spares, what it says; and the engine on curves."""

import math
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from lightning_hp.search import CoarseToFineSampler, SearchSpace
from lightning_hp.search.curves import LOOKS, MOST_POINTS, CurveReader, fraction, looks, points, steps_read
from lightning_hp.search.engine import Engine, fitted_at
from lightning_hp.search.model import CurveModel, Encoder
from lightning_hp.search.pruner import ATTRIBUTE, CurvePruner, space_of
from lightning_hp.search.surrogate import compress

STEPS = 32
SPACE = SearchSpace.from_dict(
    {
        "x": {"low": 0.0, "high": 1.0, "tier": "A", "default": 0.5},
        "y": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "B", "default": 1e-2},
        "kind": {"choices": ["p", "q", "r"], "tier": "B", "default": "p"},
        "width": {"low": 1, "high": 8, "tier": "C", "default": 4},
    }
)


def final(natural: dict) -> float:
    """Best, 0.1, at x = 0.2, y = 0.1, kind q."""
    off = (natural["x"] - 0.2) ** 2 + 0.1 * (math.log10(natural["y"]) + 1) ** 2
    return 0.1 + off + 0.2 * (natural["kind"] != "q")


def curve(natural: dict) -> list[float]:
    """Falls towards the final value; all curves fall alike."""
    return [final(natural) + 2.0 / step - 2.0 / STEPS for step in range(1, STEPS + 1)]


def objective(shape: Callable[[dict], list[float]] = curve, sign: float = 1.0) -> Callable[[optuna.Trial], float]:
    def train(trial: optuna.Trial) -> float:
        values = shape(SPACE.suggest(trial))
        for step, value in enumerate(values, start=1):
            trial.report(sign * value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return sign * values[-1]

    return train


def run(n=30, shape=curve, direction="minimize", sampler=None, pruner=None, n_jobs=1) -> optuna.Study:
    sampler = sampler or CoarseToFineSampler(SPACE, n_trials=n, max_steps=STEPS, seed=0)
    pruner = pruner or sampler.pruner()
    study = optuna.create_study(sampler=sampler, pruner=pruner, direction=direction)
    study.optimize(objective(shape, -1.0 if direction == "maximize" else 1.0), n_trials=n, n_jobs=n_jobs)
    return study


@pytest.fixture(scope="module")
def thirty() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return run(30)


def stopped(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [t for t in study.trials if t.state is TrialState.PRUNED]


# --- what it decides ---


def test_it_saves_epochs_and_keeps_the_best(thirty):
    assert len(stopped(thirty)) >= 5
    assert thirty.best_value < 0.15
    assert sum(len(t.intermediate_values) for t in thirty.trials) < 0.8 * 30 * STEPS


def test_it_stops_at_looks_only_and_never_before_the_first(thirty):
    last_steps = {max(t.intermediate_values) for t in stopped(thirty)}
    assert last_steps
    assert last_steps <= set(looks(STEPS))


def test_what_it_stops_would_not_have_won(thirty):
    assert stopped(thirty), "the test needs some"
    for trial in stopped(thirty):
        best = min(t.value for t in thirty.trials[: trial.number] if t.state is TrialState.COMPLETE)
        assert final(SPACE.natural(trial.params)) > best


def test_nothing_is_stopped_before_a_trial_is_complete():
    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, max_steps=STEPS))
    pruner = study.sampler.pruner()
    for value in (0.1, 5.0, 9.0, 9.5):  # four workers start at once
        trial = study.ask()
        SPACE.suggest(trial)
        for step in range(1, STEPS):
            trial.report(value, step)
            frozen = study._storage.get_trial(trial._trial_id)
            assert not pruner.prune(study, frozen)
    assert pruner.verdict(study, frozen) is None
    assert ATTRIBUTE not in study.trials[3].user_attrs


def test_the_reason_is_stored_with_the_trial(thirty):
    predicted = [t.user_attrs[ATTRIBUTE] for t in stopped(thirty) if t.user_attrs[ATTRIBUTE]["rule"] == "predicted"]
    assert predicted
    for reason in predicted:
        assert set(reason) == {"rule", "step", "mean", "best", "low", "high"}
        assert reason["low"] < reason["mean"] < reason["high"]
        assert reason["best"] < reason["mean"]
    assert all(ATTRIBUTE not in t.user_attrs for t in thirty.trials if t.state is TrialState.COMPLETE)


def test_maximise_is_minimise_of_the_opposite(thirty):
    study = run(30, direction="maximize")
    assert [t.params for t in study.trials] == [t.params for t in thirty.trials]
    assert [t.state for t in study.trials] == [t.state for t in thirty.trials]
    for ours, theirs in zip(stopped(study), stopped(thirty), strict=True):
        up, down = ours.user_attrs[ATTRIBUTE], theirs.user_attrs[ATTRIBUTE]
        if down["rule"] == "predicted":
            assert (up["mean"], up["low"], up["high"]) == pytest.approx((-down["mean"], -down["high"], -down["low"]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_trial_is_stopped_at_its_first_look_and_the_study_goes_on(bad):
    def diverging(natural: dict) -> list[float]:
        return [bad] * STEPS if natural["x"] > 0.7 else curve(natural)

    study = run(24, diverging)
    diverged = [t for t in study.trials if SPACE.natural(t.params)["x"] > 0.7]
    assert diverged, "the test needs some"
    for trial in diverged:
        assert trial.user_attrs[ATTRIBUTE] == {"rule": "diverged", "step": looks(STEPS)[0]}
    assert study.best_value < 0.2
    assert len(diverged) <= 6, "the corner is learned"


@pytest.mark.parametrize("given", [STEPS, None], ids=["length given", "length read off"])
@pytest.mark.parametrize("first", [0, 1], ids=["from 0", "from 1"])
def test_reports_counted_from_0_or_from_1_and_sparse_ones(first, given):
    def sparse(trial: optuna.Trial) -> float:
        values = curve(SPACE.suggest(trial))
        for step in [*range(first, STEPS + first, 3), STEPS - 1 + first]:
            trial.report(values[step - first], step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return values[-1]

    sampler = CoarseToFineSampler(SPACE, n_trials=24, max_steps=given)
    study = optuna.create_study(sampler=sampler, pruner=sampler.pruner())
    study.optimize(sparse, n_trials=24)
    trained = [max(t.intermediate_values) + 1 - first for t in stopped(study)]
    assert trained, "the test needs some"
    assert set(trained) <= {next(s for s in range(1, STEPS, 3) if s >= look) for look in looks(STEPS)}
    assert study.best_value < 0.2


def test_without_a_length_everything_is_as_if_the_length_of_the_complete_curves_were_given(thirty):
    sampler = CoarseToFineSampler(SPACE, n_trials=30, max_steps=None, seed=0)
    study = run(30, sampler=sampler)
    assert [t.params for t in study.trials] == [t.params for t in thirty.trials]
    assert [t.intermediate_values for t in study.trials] == [t.intermediate_values for t in thirty.trials]


def test_from_0_and_from_1_are_the_same_study(thirty):
    def from_zero(trial: optuna.Trial) -> float:
        values = curve(SPACE.suggest(trial))
        for step, value in enumerate(values):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return values[-1]

    sampler = CoarseToFineSampler(SPACE, n_trials=30, seed=0)
    study = optuna.create_study(sampler=sampler, pruner=sampler.pruner())
    study.optimize(from_zero, n_trials=30)
    assert [t.params for t in study.trials] == [t.params for t in thirty.trials]
    assert [list(t.intermediate_values.values()) for t in study.trials] == [
        list(t.intermediate_values.values()) for t in thirty.trials
    ]


def test_long_trainings_of_unknown_length_are_not_stopped_early():
    """100 epochs, nothing given: the length is read off the first complete trial, and looks follow from it."""

    def long(trial: optuna.Trial) -> float:
        end = final(SPACE.suggest(trial))
        for step in range(100):
            trial.report(end + 2.0 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return end + 0.02

    sampler = CoarseToFineSampler(SPACE, n_trials=24)
    study = optuna.create_study(sampler=sampler, pruner=sampler.pruner())
    study.optimize(long, n_trials=24)
    trained = {max(t.intermediate_values) + 1 for t in stopped(study)}
    assert trained
    assert trained <= set(looks(100)) == {6, 13, 25, 50}


def test_tiny_losses_are_told_apart(thirty):
    """A study of the same task with all losses a 10^-14th part: the same trials (physics-informed networks)."""
    tiny = run(30, shape=lambda natural: [2.0**-46 * v for v in curve(natural)])  # a power of two: no rounding
    assert [t.params for t in tiny.trials] == [t.params for t in thirty.trials]
    assert [t.state for t in tiny.trials] == [t.state for t in thirty.trials]


# --- in company ---


@pytest.mark.parametrize("given", ["space", "nothing"])
def test_alone_with_another_sampler(given):
    pruner = CurvePruner(SPACE, STEPS) if given == "space" else CurvePruner()
    study = run(30, sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
    assert len(stopped(study)) >= 8
    assert stopped(study)[0].number > 0
    full = run(30, sampler=optuna.samplers.RandomSampler(seed=0), pruner=optuna.pruners.NopPruner())
    assert study.best_value == full.best_value


def test_the_sampler_shares_its_engine_with_its_pruner_and_results_do_not_depend_on_it(thirty):
    shared = CoarseToFineSampler(SPACE, n_trials=30, max_steps=STEPS, seed=0)
    apart = run(30, sampler=shared, pruner=CurvePruner(SPACE, STEPS))
    assert [t.params for t in apart.trials] == [t.params for t in thirty.trials]
    assert [t.state for t in apart.trials] == [t.state for t in thirty.trials]


def test_fresh_objects_for_every_trial_give_the_same_study(thirty):
    study = optuna.create_study()
    for _ in range(20):
        study.sampler = CoarseToFineSampler(SPACE, n_trials=30, max_steps=STEPS, seed=0)
        study.pruner = study.sampler.pruner()
        study.optimize(objective(), n_trials=1)
    assert [t.params for t in study.trials] == [t.params for t in thirty.trials[:20]]
    assert [t.state for t in study.trials] == [t.state for t in thirty.trials[:20]]


def test_one_sampler_serves_two_studies_in_turn():
    sampler = CoarseToFineSampler(SPACE, n_trials=16, max_steps=STEPS, seed=0)
    studies = [optuna.create_study(sampler=sampler, direction=d) for d in ("minimize", "maximize")]
    for _ in range(16):
        for study, sign in zip(studies, (1.0, -1.0), strict=True):
            study.optimize(objective(sign=sign), n_trials=1)
    assert [t.params for t in studies[0].trials] == [t.params for t in studies[1].trials]


def test_parallel_asks_do_not_collide(thirty):
    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=60, max_steps=STEPS, seed=0))
    study.add_trials(thirty.trials[:10])
    asked = [study.ask() for _ in range(6)]
    units = SPACE.unit([t.params for t in asked if SPACE.suggest(t)])
    apart = [np.abs(a - b).max() for i, a in enumerate(units) for b in units[:i]]
    assert min(apart) > 0.02


def test_threads_share_a_study():
    study = run(24, n_jobs=4)
    assert [t.number for t in study.trials] == list(range(24))
    assert all(t.state.is_finished() for t in study.trials)
    assert study.best_value < 0.3


@pytest.mark.parametrize(
    "pruner",
    [optuna.pruners.HyperbandPruner(1, STEPS), optuna.pruners.MedianPruner(), optuna.pruners.NopPruner()],
    ids=lambda p: type(p).__name__,
)
def test_the_engine_works_with_optunas_pruners(pruner):
    assert run(30, pruner=pruner).best_value < 0.25


def test_no_curves_no_looks():
    sampler = CoarseToFineSampler(SPACE, n_trials=25)
    study = optuna.create_study(sampler=sampler, pruner=sampler.pruner())
    study.optimize(lambda trial: final(SPACE.suggest(trial)), n_trials=25)
    assert study.best_value < 0.12


def test_pruned_trials_count_without_max_steps():
    sampler = CoarseToFineSampler(SPACE, n_trials=30, max_steps=None)
    study = run(30, sampler=sampler, pruner=optuna.pruners.MedianPruner(n_startup_trials=3))
    assert stopped(study)
    assert study.best_value < 0.2


def test_several_objectives_and_bad_arguments_are_named():
    study = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="`study` must have one objective, got 2 directions"):
        CurvePruner(SPACE, STEPS).verdict(study, study.ask())
    with pytest.raises(ValueError, match="`max_steps` must be a whole number of at least 1 or None, got 0"):
        CurvePruner(SPACE, 0)
    with pytest.raises(TypeError, match="`space` must be a mapping"):
        CurvePruner(3)


def test_a_space_from_what_trials_hold():
    found = space_of(SPACE.distributions | {"fixed": optuna.distributions.FloatDistribution(2.0, 2.0)})
    assert found.distributions == SPACE.distributions
    assert space_of({"fixed": optuna.distributions.FloatDistribution(2.0, 2.0)}) is None


# --- curves ---


@pytest.mark.parametrize(
    ("max_steps", "expected"),
    [(None, ()), (1, ()), (2, (1,)), (10, (1, 3, 5)), (52, (3, 7, 13, 26)), (1000, (63, 125, 250, 500))],
)
def test_looks(max_steps, expected):
    assert looks(max_steps) == expected
    assert len(expected) <= len(LOOKS)


def test_fractions_are_even_in_doublings_and_bounded():
    assert np.diff([fraction(s, 64) for s in (1, 2, 4, 8, 16, 32, 64)]) == pytest.approx([1 / 6] * 6)
    assert (fraction(0, 64), fraction(99, 64), fraction(1, 1)) == (0.0, 1.0, 1.0)


def test_steps_read_are_the_first_at_or_after_each_look_and_the_last():
    assert steps_read(dict.fromkeys(range(1, 10), 0.0), (2, 4, 8, 16)) == [2, 4, 8, 9]
    assert steps_read(dict.fromkeys((3, 10, 20), 0.0), (2, 4, 8, 16)) == [3, 10, 20]
    assert steps_read({}, (2, 4)) == []


def test_points_are_bounded_and_keep_the_best_and_the_running():
    rng = np.random.default_rng(0)
    study = optuna.create_study()
    for _ in range(400):
        natural = {"x": rng.random(), "y": 10 ** -(4 * rng.random()), "kind": "q", "width": 3}
        values = curve(natural)
        study.add_trial(
            optuna.create_trial(
                params=SPACE.stored(natural),
                distributions=SPACE.distributions,
                value=values[-1],
                intermediate_values=dict(enumerate(values, start=1)),
            )
        )
    running = study.ask()
    SPACE.suggest(running)
    running.report(3.0, 2)
    curves = CurveReader(SPACE, STEPS, maximize=False).read(study.trials)
    which, where = points(curves)
    assert len(which) == MOST_POINTS
    assert len({*zip(which, where, strict=True)}) == MOST_POINTS
    best = np.argsort([c.final for c in curves])[:20]
    assert set(best) <= set(which), "the last points of the best stay"
    assert 400 in which
    ends = [i for i, j in zip(which, where, strict=True) if j == len(curves[i].losses) - 1]
    assert len(set(which)) == len(ends), "no curve without its end"
    few, _ = points(curves[:5])
    assert len(few) == sum(len(c.losses) for c in curves[:5])


def test_inactive_parameters_do_not_tell_trials_apart():
    space = SearchSpace.from_dict(
        {
            "layers": {"low": 1, "high": 2, "default": 1},
            "second": {"low": 0.0, "high": 1.0, "default": 0.5, "active_if": {"layers": ">= 2"}},
        }
    )
    made = [
        optuna.create_trial(params=space.stored(n), distributions=space.distributions, value=1.0)
        for n in ({"layers": 1, "second": 0.1}, {"layers": 1, "second": 0.9}, {"layers": 2, "second": 0.9})
    ]
    reader = CurveReader(space, None, maximize=False)
    for i, trial in enumerate(made):
        trial.number = trial._trial_id = i
    units = [c.unit for c in reader.read(made)]
    assert np.array_equal(units[0], units[1])
    assert not np.array_equal(units[1], units[2])


# --- the engine ---


def test_choices_are_equally_far_from_each_other():
    encoder = Encoder(SPACE)
    units = SPACE.unit([SPACE.stored({"kind": k}) for k in ("p", "q", "r")])
    features = encoder(units, np.ones(3))
    distances = [np.linalg.norm(features[i] - features[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert distances == pytest.approx([1.0, 1.0, 1.0])
    assert list(encoder.groups) == [0, 1, 2, 2, 2, 3, 4]


def test_hyperparameters_are_refitted_ever_more_rarely():
    marks = [fitted_at(n) for n in range(1, 1001)]
    assert marks == sorted(marks)
    assert marks[:16] == list(range(1, 17))
    assert all(0.94 * n <= m <= n for n, m in enumerate(marks, start=1) if n > 60)
    assert len(set(marks)) < 100


def test_slope_of_expected_improvement_equals_finite_differences(thirty):
    engine = Engine(SPACE, STEPS)
    model = engine.model(engine.curves(thirty, thirty.trials))
    for unit in np.random.default_rng(0).random((5, 4)):
        value, slope = model.slope(unit, model.best)
        assert value == pytest.approx(model.score(unit[None], model.best)[0])
        for j in (0, 1, 3):
            step = 1e-6 * np.eye(4)[j]
            ends = [model.score((unit + s)[None], model.best)[0] for s in (step, -step)]
            assert slope[j] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-5)
        assert slope[2] == 0


def test_a_believed_point_is_not_proposed_again(thirty):
    engine = Engine(SPACE, STEPS)
    model = engine.model(engine.curves(thirty, thirty.trials))
    unit = np.array([[0.9, 0.9, 1 / 6, 0.9]])
    before, _ = model.final(unit)[1][0], model.believe(unit)
    _, deviation = model.final(unit)
    assert deviation[0] < 0.5 * before


def test_a_model_of_complete_trials_predicts_them(thirty):
    engine = Engine(SPACE, STEPS)
    curves = engine.curves(thirty, thirty.trials)
    model = engine.model(curves)
    complete = [c for c in curves if c.state is TrialState.COMPLETE]
    mean, deviation = model.final(np.stack([c.unit for c in complete]))
    actual = model.compression(np.array([c.final for c in complete]))
    assert np.corrcoef(mean, actual)[0, 1] > 0.9
    assert isinstance(model, CurveModel)
    assert np.all(np.isfinite(deviation))
    assert compress(np.array([c.final for c in complete])).best == min(c.final for c in complete)
