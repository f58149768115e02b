"""The sampler in studies: every trial whole, stages and points from storage alone, foreign trials, other samplers."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from lightning_hp.search import CoarseToFineSampler, SearchSpace, preset
from lightning_hp.search.sobol import sobol_point, to_stored_values
from lightning_hp.search.stages import stage_at
from lightning_hp.space.parameters import Float

SPACE = SearchSpace.from_dict(preset("batchnorm_mlp"))
IMPORTANT = [p.stored_name for p in SPACE.parameters if isinstance(p, Float)]


def quality(natural: dict[str, Any]) -> float:
    """Best at learning rate 0.005, momentum 0.98, 100 units, two layers, no dropout."""
    return (
        (math.log10(natural["learning_rate"]) + 2.3) ** 2
        + 0.3 * (math.log10(1 - natural["momentum"]) + 1.7) ** 2
        + abs(natural["hidden_units"] - 100) / 300
        + 0.1 * (natural["num_layers"] - 2) ** 2
        + 0.2 * natural["dropout"]
    )


def objective(trial: optuna.Trial) -> float:
    return quality(SPACE.suggest(trial))


def run(n: int, sampler: BaseSampler | None = None, **options: Any) -> optuna.Study:
    sampler = sampler or CoarseToFineSampler(SPACE, n_trials=n, **options)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=n)
    return study


def values(study: optuna.Study) -> list[dict[str, Any]]:
    return [t.params for t in study.get_trials(deepcopy=False)]


def check_inside_boxes(study: optuna.Study, first: int) -> None:
    stages = study.sampler.stages(study)
    for trial in study.trials[first:]:
        assert trial.distributions == SPACE.distributions
        if "explored" in trial.user_attrs:
            continue
        box = stage_at(stages, trial.number).box
        for parameter, unit in zip(SPACE.parameters, SPACE.unit([trial.params])[0], strict=True):
            low, high = box[parameter.stored_name]
            assert low - 1e-9 <= unit <= high + 1e-9


@pytest.fixture(scope="module")
def sixty() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return run(60, seed=1)


# --- what a study holds ---


def test_every_trial_stores_every_parameter_at_full_range(sixty):
    for trial in sixty.trials:
        assert trial.distributions == SPACE.distributions


def test_trial_0_is_the_defaults(sixty):
    assert sixty.trials[0].params == SPACE.defaults()


def test_closed_tiers_sit_at_their_default_and_open_ones_do_not(sixty):
    defaults = SPACE.defaults()
    for trial in sixty.trials[1:]:
        stage = stage_at(sixty.sampler.planned, trial.number)
        for parameter in SPACE.parameters:
            name = parameter.stored_name
            if parameter.tier not in stage.tiers:
                assert trial.params[name] == defaults[name]
            elif isinstance(parameter, Float):
                assert trial.params[name] != defaults[name]


def test_values_lie_in_the_box_of_their_stage(sixty):
    check_inside_boxes(sixty, 1)


def test_no_two_trials_share_the_value_of_an_open_important_parameter(sixty):
    for name in IMPORTANT:
        opened = next(s.first for s in sixty.sampler.planned if SPACE[name].tier in s.tiers)
        seen = [t.params[name] for t in sixty.trials[opened:]]
        assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("base", [None, "tpe"])
def test_a_range_that_holds_few_stored_values_does_not_hang(base):
    """Distances from 1 are stored rounded: near 1 - 1e-12 many positions are one value."""
    space = SearchSpace.from_dict(
        {"beta2": {"low": 0.9, "high": 1 - 1e-12, "scale": "one_minus_log", "default": 0.999}}
    )
    tpe = optuna.samplers.TPESampler(seed=0) if base else None
    study = optuna.create_study(sampler=CoarseToFineSampler(space, n_trials=40, base=tpe))
    study.optimize(lambda trial: -space.suggest(trial)["beta2"], n_trials=40)
    assert len(study.trials) == 40
    seen = [t.params["one_minus_beta2"] for t in study.trials]
    assert len(set(seen)) > 20


def test_trials_say_their_stage(sixty):
    first, last = sixty.trials[0].user_attrs, sixty.trials[-1].user_attrs
    assert (first["stage"], first["stage_index"], first["tier"]) == ("1 coarse ABC", 1, "C")
    assert (last["stage"], last["stage_index"], last["tier"]) == ("3 fine ABC", 3, "C")
    assert first["momentum"] == 0.9
    assert sixty.sampler.describe(sixty.trials[40])["stage"] == "2 fine ABC"


def test_it_finds_better_values_than_random_search_on_a_smooth_task():
    ours = np.mean([run(60, seed=s).best_value for s in range(4)])
    random = np.mean([run(60, optuna.samplers.RandomSampler(seed=s)).best_value for s in range(4)])
    assert ours < 0.5 * random


def test_boxes_zoom_on_what_matters(sixty):
    last = sixty.sampler.stages(sixty)[-1].box
    low, high = last["learning_rate"]
    optimum = (math.log10(0.005) + 4) / 4
    assert low < optimum < high
    assert high - low < 0.4


def test_stages_not_yet_begun_have_no_box():
    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=60))
    planned = study.sampler.planned

    def known() -> list[bool]:
        return [s.box is not None for s in study.sampler.stages(study)]

    assert known() == [False] * len(planned)
    study.optimize(objective, n_trials=planned[1].first)
    assert known() == [True] + [False] * (len(planned) - 1)
    study.enqueue_trial(SPACE.defaults())  # waiting is not begun
    assert known() == [True] + [False] * (len(planned) - 1)
    study.optimize(objective, n_trials=1)
    assert known() == [True, True] + [False] * (len(planned) - 2)


# --- the same everywhere ---


def test_same_seed_same_study_other_seed_other_study():
    assert values(run(30, seed=3)) == values(run(30, seed=3))
    assert values(run(30, seed=3))[1:] != values(run(30, seed=4))[1:]


def test_a_resumed_study_continues_as_if_never_interrupted(tmp_path):
    for n in (1, 9, 12, 8):  # each time by a new storage and sampler, as after a kill
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
        storage = optuna.storages.JournalStorage(backend)
        study = optuna.create_study(
            storage=storage,
            study_name="s",
            load_if_exists=True,
            sampler=CoarseToFineSampler(SPACE, n_trials=30, seed=3),
        )
        study.optimize(objective, n_trials=n)
    assert values(study) == values(run(30, seed=3))


def test_parallel_asks_of_a_coarse_stage_do_not_depend_on_who_finishes_when():
    sequential = run(30, seed=2)
    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=30, seed=2))
    first_stage = study.sampler.planned[0].last
    asked = [study.ask() for _ in range(first_stage)]
    for trial in reversed(asked):
        study.tell(trial, objective(trial))
    assert values(study) == values(sequential)[:first_stage]


def test_another_process_comes_to_the_same_points():
    script = (
        "import json; from lightning_hp.search import CoarseToFineSampler, preset;"
        "from lightning_hp.search.sobol import sobol_point, to_stored_values;"
        "from lightning_hp.search.boxes import with_boxes;"
        "from lightning_hp.search.stages import stage_at;"
        "s = CoarseToFineSampler(preset('batchnorm_mlp'), n_trials=200, seed=9);"
        "stages = with_boxes(s.space, [], s.planned);"
        "print(json.dumps([[stage_at(stages, n).name, to_stored_values(s.space, stage_at(stages, n),"
        " sobol_point(s.space, stage_at(stages, n), n, 9))] for n in (1, 20, 70, 99)]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    sampler = CoarseToFineSampler(SPACE, n_trials=200, seed=9)
    study = optuna.create_study(sampler=sampler)
    from lightning_hp.search.boxes import with_boxes

    stages = with_boxes(SPACE, study.trials, sampler.planned)
    for (name, point), number in zip(json.loads(found.stdout), (1, 20, 70, 99), strict=True):
        stage = stage_at(stages, number)
        assert name == stage.name
        assert point == to_stored_values(SPACE, stage, sobol_point(SPACE, stage, number, 9))


def test_threads_share_a_study():
    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=24, seed=0))
    study.optimize(objective, n_trials=24, n_jobs=3)
    trials = study.trials
    assert sorted(t.number for t in trials) == list(range(24))
    assert all(t.state is TrialState.COMPLETE for t in trials)
    first_stage = study.sampler.planned[0].last
    assert [t.params for t in trials[:first_stage]] == values(run(24, seed=0))[:first_stage]


# --- direction, pruning, failures ---


def test_maximise_is_minimise_of_the_opposite():
    down = run(30, seed=5)
    up = optuna.create_study(direction="maximize", sampler=CoarseToFineSampler(SPACE, n_trials=30, seed=5))
    up.optimize(lambda t: -objective(t), n_trials=30)
    boxes = [[s.box for s in study.sampler.stages(study)] for study in (down, up)]
    assert boxes[0][:3] == boxes[1][:3]
    assert up.best_value == pytest.approx(-down.best_value, rel=0.5)
    check_inside_boxes(up, 1)


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.MedianPruner(n_startup_trials=3),
        optuna.pruners.SuccessiveHalvingPruner(),
        optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9),
    ],
    ids=lambda p: type(p).__name__,
)
def test_works_with_optunas_pruners(pruner):
    def with_curve(trial: optuna.Trial) -> float:
        final = quality(SPACE.suggest(trial))
        for step in range(9):
            trial.report(final + 1.0 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return final

    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=40, seed=0), pruner=pruner)
    study.optimize(with_curve, n_trials=40)
    states = [t.state for t in study.trials]
    assert len(states) == 40
    assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert TrialState.PRUNED in states
    assert all(t.distributions == SPACE.distributions for t in study.trials)


def test_failed_trials_and_values_that_are_not_finite():
    def moody(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.number % 5 == 1:
            raise RuntimeError("out of memory")
        return {2: math.inf, 3: math.nan}.get(trial.number % 5, value)

    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=30, seed=0))
    study.optimize(moody, n_trials=30, catch=(RuntimeError,))
    assert len(study.trials) == 30
    assert all(s.box is not None for s in study.sampler.stages(study))


def test_more_trials_than_planned_continue_the_last_stage():
    study = run(10, seed=0)
    study.optimize(objective, n_trials=5)
    assert {t.user_attrs["stage"] for t in study.trials[10:]} == {study.sampler.planned[-1].name}
    # as do trials past the end of a plan that is one coarse stage
    single = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=1))
    single.optimize(objective, n_trials=70)
    assert len({t.params["learning_rate"] for t in single.trials}) == 70


# --- trials and parameters from elsewhere ---


def test_enqueued_natural_values_win():
    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=30))
    study.optimize(objective, n_trials=3)
    study.enqueue_trial(SPACE.stored({"momentum": 0.95, "learning_rate": 0.2}))
    study.optimize(objective, n_trials=1)
    assert study.trials[3].user_attrs["momentum"] == 0.95
    assert study.trials[3].params["learning_rate"] == 0.2
    study.enqueue_trial({"learning_rate": 0.5})  # the others are the sampler's
    study.optimize(objective, n_trials=26)
    assert study.trials[4].params["learning_rate"] == 0.5
    assert len(study.trials) == 30


def test_foreign_trials_do_not_break_a_study():
    wide = optuna.distributions.FloatDistribution(1e-6, 10.0, log=True)
    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=30, seed=0))
    study.add_trial(optuna.create_trial(params={}, distributions={}, value=3.0))
    study.add_trial(
        optuna.create_trial(params={"learning_rate": 5.0}, distributions={"learning_rate": wide}, value=0.1)
    )
    study.add_trial(optuna.create_trial(params={"else": 5.0}, distributions={"else": wide}, value=0.1))
    study.add_trial(optuna.create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.5}))
    study.add_trial(
        optuna.create_trial(params=SPACE.stored({"momentum": 0.99}), distributions=SPACE.distributions, value=0.5)
    )
    study.optimize(objective, n_trials=25)
    assert all(t.distributions == SPACE.distributions for t in study.trials[5:])


@pytest.mark.parametrize("n_trials", [2, 24])
def test_parameters_that_the_space_does_not_know(n_trials):
    def more(trial: optuna.Trial) -> float:
        value = objective(trial)
        extra = trial.suggest_float("extra", -1, 1) + trial.suggest_int("whole", 0, 3, step=1)
        return value + extra**2 + (trial.suggest_categorical("kind", ["p", "q"]) == "p")

    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=n_trials, seed=0))
    study.optimize(more, n_trials=24)
    extras = [t.params["extra"] for t in study.trials]
    assert len(set(extras)) == 24
    assert len({t.params["whole"] for t in study.trials}) > 1


def test_unknown_parameters_are_drawn_independently_and_alike_in_every_process():
    script = (
        "import optuna; from lightning_hp.search import CoarseToFineSampler, preset;"
        "t = optuna.create_study(sampler=CoarseToFineSampler(preset('sgd'), seed=4)).ask();"
        "print(t.suggest_float('p', 0, 1), t.suggest_float('q', 0, 1))"
    )
    draws = [
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": h},
        ).stdout
        for h in ("1", "2")
    ]
    assert draws[0] == draws[1]
    first, second = draws[0].split()
    assert first != second


def test_parameters_that_the_objective_does_not_ask_for():
    def less(trial: optuna.Trial) -> float:
        return (math.log10(trial.suggest_float("learning_rate", 1e-4, 1.0, log=True)) + 2) ** 2

    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=24, seed=0))
    study.optimize(less, n_trials=24)
    assert all(list(t.params) == ["learning_rate"] for t in study.trials)
    assert study.best_value < 0.05


def test_a_narrower_range_asked_for_by_the_objective_is_respected():
    def narrow(trial: optuna.Trial) -> float:
        return trial.suggest_float("learning_rate", 1e-3, 2e-3, log=True)

    study = optuna.create_study(sampler=CoarseToFineSampler(SPACE, n_trials=12, seed=0))
    study.optimize(narrow, n_trials=12)
    assert all(1e-3 <= t.params["learning_rate"] <= 2e-3 for t in study.trials)


def test_conditional_layers():
    space = SearchSpace.from_dict(
        {
            "learning_rate": {"low": 1e-4, "high": 1.0},
            "num_layers": {"low": 1, "high": 3, "tier": "B"},
            "hidden_units": {"low": 8, "high": 64, "per_layer": "num_layers"},
        }
    )

    def layered(trial: optuna.Trial) -> float:
        given = space.suggest(trial)
        assert len(given["hidden_units"]) == given["num_layers"]
        return sum(given["hidden_units"]) * given["learning_rate"]

    study = optuna.create_study(sampler=CoarseToFineSampler(space, n_trials=30, seed=0))
    study.optimize(layered, n_trials=30)
    assert all(t.distributions == space.distributions for t in study.trials)


# --- a base sampler of the user's choice ---

BASES: dict[str, Callable[[], BaseSampler]] = {
    "random": lambda: optuna.samplers.RandomSampler(seed=0),
    "tpe": lambda: optuna.samplers.TPESampler(seed=0),
    "tpe_univariate": lambda: optuna.samplers.TPESampler(seed=0, multivariate=False),
    "qmc": lambda: optuna.samplers.QMCSampler(seed=0, scramble=True, warn_independent_sampling=False),
}


@pytest.mark.parametrize("name", BASES)
def test_a_base_sampler_proposes_inside_the_boxes(name):
    check_base(BASES[name]())


@pytest.mark.slow
def test_gp_as_base_sampler():
    pytest.importorskip("torch")
    check_base(optuna.samplers.GPSampler(seed=0, warn_independent_sampling=False))


def test_cma_es_as_base_sampler():
    pytest.importorskip("cmaes", reason="Optuna's CMA-ES sampler needs the package cmaes")
    check_base(optuna.samplers.CmaEsSampler(seed=0, warn_independent_sampling=False))


def check_base(base: BaseSampler) -> None:
    study = run(40, base=base, seed=1)
    plain = run(40, seed=1, plan="opening")
    fine = next(s.first for s in study.sampler.planned if s.kind == "fine")
    assert values(study)[:fine] == values(plain)[:fine]  # coarse stages are ours
    assert values(study)[fine:] != values(plain)[fine:]
    check_inside_boxes(study, fine)
    for name in IMPORTANT:
        seen = [t.params[name] for t in study.trials[fine:]]
        assert len(set(seen)) == len(seen)


class Stubborn(BaseSampler):
    """Proposes the upper end of everything, and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def infer_relative_search_space(self, study, trial):
        return {"learning_rate": SPACE["learning_rate"].distribution}

    def sample_relative(self, study, trial, search_space):
        self.calls.append("relative")
        return {name: distribution.high for name, distribution in search_space.items()}

    def sample_independent(self, study, trial, param_name, param_distribution):
        self.calls.append("independent")
        if isinstance(param_distribution, optuna.distributions.CategoricalDistribution):
            return param_distribution.choices[-1]
        return param_distribution.high

    def reseed_rng(self):
        self.calls.append("reseed")

    def before_trial(self, study, trial):
        self.calls.append("before")

    def after_trial(self, study, trial, state, values):
        self.calls.append("after")


def test_a_base_sampler_that_repeats_itself_still_gives_different_values():
    study = run(40, base=Stubborn(), seed=0)
    fine = next(s.first for s in study.sampler.planned if s.kind == "fine")
    for name in IMPORTANT:
        seen = [t.params[name] for t in study.trials[fine:]]
        assert len(set(seen)) == len(seen)
    stages = study.sampler.stages(study)
    for trial in study.trials[fine:]:
        low, high = stage_at(stages, trial.number).box["learning_rate"]
        unit = float(SPACE["learning_rate"].unit([trial.params["learning_rate"]])[0])
        assert low <= unit <= high + 1e-9
        assert unit > high - 0.3 * (high - low)  # moved a little, not thrown away


def test_calls_reach_the_base_sampler():
    base = Stubborn()
    study = run(4, base=base)
    assert base.calls.count("before") == base.calls.count("after") == 4
    assert base.calls.count("relative") == sum(s.last - s.first for s in study.sampler.planned if s.kind == "fine")
    study.sampler.reseed_rng()
    assert base.calls[-1] == "reseed"


def test_inside_partial_fixed_sampler():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        fixed = optuna.samplers.PartialFixedSampler({"num_layers": 3}, CoarseToFineSampler(SPACE, n_trials=24, seed=0))
    study = optuna.create_study(sampler=fixed)
    study.optimize(objective, n_trials=24)
    assert {t.params["num_layers"] for t in study.trials} == {3}


# --- arguments ---


def test_a_mapping_will_do():
    sampler = CoarseToFineSampler(preset("sgd"), opens_from={"B": 10}, n_trials=9, max_steps=None)
    assert sampler.space == SearchSpace.from_dict(preset("sgd"))
    assert sampler.planned[-1].tiers == ("A", "C")
    assert str(sampler) == "CoarseToFineSampler" or "CoarseToFineSampler" in str(sampler)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"n_trials": 0}, ValueError, "`n_trials` must be a whole number of at least 1, got 0"),
        ({"n_trials": 2.5}, ValueError, "`n_trials` must be a whole number of at least 1, got 2.5"),
        ({"n_trials": True}, ValueError, "`n_trials` must be a whole number of at least 1, got True"),
        ({"max_steps": 0}, ValueError, "`max_steps` must be a whole number of at least 1, got 0"),
        ({"seed": -1}, ValueError, "`seed` must be a whole number of at least 0, got -1"),
        ({"seed": None}, ValueError, "`seed` must be a whole number of at least 0, got None"),
        ({"plan": "grid"}, ValueError, "`plan` must be one of default, opening, tiers, retune, got 'grid'"),
        ({"base": "tpe"}, TypeError, "`base` must be an Optuna sampler or None, got 'tpe'"),
    ],
)
def test_bad_arguments_are_named(options, error, said):
    with pytest.raises(error, match=said):
        CoarseToFineSampler(SPACE, **options)


def test_all_but_the_space_is_given_by_name():
    with pytest.raises(TypeError, match="positional argument"):
        CoarseToFineSampler(SPACE, 60)


def test_public_names_load_late():
    import lightning_hp.search as room

    for name in room.__all__:
        assert getattr(room, name) is not None
    assert dir(room) == sorted(room.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        room.nothing  # noqa: B018
    script = "import sys, lightning_hp.space.scales; assert not {'optuna', 'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_room_never_loads_torch_or_lightning():
    script = (
        "import sys; from lightning_hp.search import *; from lightning_hp.search import evidence;"
        "assert not {'torch', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
