"""What a study says about its space: on tasks where the truth is known, and on studies too small to say anything."""

import json
import math

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.boxes import OPENED, with_boxes
from lightning_hp.search.evidence import evidence
from lightning_hp.search.importance import FEWEST_IN_STAGE, SHUFFLES, not_explored
from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.search.stages import plan_stages
from lightning_hp.space.space import SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "learning_rate": {"low": 1e-4, "high": 1.0, "default": 0.01},
        "momentum": {"low": 0.9, "high": 0.999, "default": 0.95},
        "units": {"low": 16, "high": 64, "tier": "B", "default": 32},
        "weight_decay": {"low": 1e-6, "high": 1e-1, "default": 1e-4},
        "kind": {"choices": ["x", "y", "z"], "tier": "C", "default": "x"},
    }
)


def study_of(function, n=80, seed=0, direction="minimize", space=SPACE, plan="opening"):
    sampler = CoarseToFineSampler(space, n_trials=n, seed=seed, plan=plan)
    study = optuna.create_study(sampler=sampler, direction=direction)
    study.optimize(lambda t: function(space.suggest(t)), n_trials=n)
    return study


def evidence_of(study, direction="minimize", space=SPACE):
    found = evidence(space, study.trials, direction, study.sampler.stages(study))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def decades(value: float, best: float) -> float:
    return (math.log10(value) - math.log10(best)) ** 2


def test_what_matters_alone_has_the_effect():
    found = evidence_of(study_of(lambda v: decades(v["learning_rate"], 0.02)))
    rate = found["parameters"]["learning_rate"]
    assert rate["effect"] is True
    assert rate["measured_tier"] == rate["tier"] == "A"
    assert rate["importance"] > 0.6
    others = {n: p["importance"] for n, p in found["parameters"].items() if n != "learning_rate"}
    assert max(others.values()) < 0.25
    assert len(found["unimportant"]) >= 2
    assert set(found["unimportant"]) < set(others)
    assert sum(p["importance"] for p in found["parameters"].values()) == pytest.approx(1)
    assert found["why_not_measured"] is None


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_default_plan_is_measured_by_its_model(direction):
    sign = 1 if direction == "minimize" else -1

    def function(v):
        return sign * (decades(v["learning_rate"], 0.02) + 0.5 * decades(v["weight_decay"], 1e-3))

    found = evidence_of(study_of(function, n=40, direction=direction, plan="default"), direction)
    effects = {n for n, p in found["parameters"].items() if p["effect"]}
    assert effects == {"learning_rate", "weight_decay"}
    assert found["parameters"]["weight_decay"]["tier"] == "C"
    assert found["parameters"]["weight_decay"]["measured_tier"] < "C"
    assert any(s.startswith("weight_decay behaves like tier") for s in found["disagreements"])
    assert sum(p["importance"] for p in found["parameters"].values()) == pytest.approx(1)
    assert found["unimportant"] == [], "the model alone dismisses nothing"


def test_a_tier_that_disagrees_is_said_with_its_part():
    found = evidence_of(study_of(lambda v: decades(v["weight_decay"], 1e-3), n=120))
    decay = found["parameters"]["weight_decay"]
    assert (decay["tier"], decay["measured_tier"], decay["effect"]) == ("C", "A", True)
    part = f"{decay['importance']:.2f}"
    assert f"weight_decay behaves like tier A here: {part} of the effect (assumed tier C)" in found["disagreements"]
    demoted = [s for s in found["disagreements"] if s.startswith("learning_rate behaves like tier")]
    assert len(demoted) == 1
    assert demoted[0].endswith("no more than chance in 60 trials (assumed tier A)")


def test_few_trials_dismiss_nothing():
    for n, dismissed in ((40, False), (80, True)):
        found = evidence_of(study_of(lambda v: decades(v["learning_rate"], 0.02), n=n))
        assert found["why_not_measured"] is None
        assert bool(found["unimportant"]) is dismissed
        assert any("no more than chance" in s for s in found["disagreements"]) <= dismissed


def test_natural_names_and_maximise():
    study = study_of(lambda v: -decades(1 - v["momentum"], 0.01), n=120, direction="maximize")
    found = evidence_of(study, "maximize")
    assert found["parameters"]["momentum"]["effect"] is True
    assert max(found["parameters"], key=lambda n: found["parameters"][n]["importance"]) == "momentum"
    assert found["best"]["value"] == study.best_value
    assert found["best"]["values"]["momentum"] == pytest.approx(0.99, abs=0.004)
    assert "one_minus_momentum" not in json.dumps(found)


def test_unordered_choices_are_measured():
    found = evidence_of(study_of(lambda v: {"x": 1.0, "y": 0.0, "z": 2.0}[v["kind"]] + 0.01 * v["units"] / 64, n=120))
    assert found["parameters"]["kind"]["effect"] is True
    assert found["parameters"]["kind"]["measured_tier"] < "C"


def test_importance_of_a_stage_covers_its_open_parameters_and_sums_up_to_one():
    study = study_of(lambda v: decades(v["learning_rate"], 0.02) + 0.1 * decades(1 - v["momentum"], 0.01))
    found = evidence_of(study)
    for said, stage in zip(found["stages"], study.sampler.planned, strict=True):
        assert (said["name"], said["kind"], said["tiers"]) == (stage.name, stage.kind, list(stage.tiers))
        assert said["trials"] == stage.last - stage.first
        within, of_stage = said["within"], study.trials[stage.first : stage.last]
        counted = len(not_explored(of_stage))
        if within is None:
            assert counted < FEWEST_IN_STAGE, "few stayed in the box"
            continue
        assert within["importance"].keys() == {p.name for p in SPACE.parameters if p.tier in stage.tiers}
        assert sum(within["importance"].values()) == pytest.approx(1)
        assert within["trials"] == counted
    assert found["stages"][0]["within"]["importance"] == {"learning_rate": pytest.approx(1)}


def test_importance_of_a_stage_is_told_with_what_it_is_conditional_on():
    study = study_of(lambda v: decades(v["learning_rate"], 0.02) + 0.1 * decades(1 - v["momentum"], 0.01))
    first, *_, last = [stage for stage in evidence_of(study)["stages"] if stage["within"]]
    assert first["within"]["between"] == {"learning_rate": pytest.approx([1e-4, 1.0])}
    closed = {"momentum": 0.95, "units": 32, "weight_decay": 1e-4, "kind": "x"}
    assert first["within"]["at"] == closed
    of_stage = not_explored([t for t in study.trials if t.user_attrs["stage"] == last["name"]])
    assert len(of_stage) == last["within"]["trials"]
    searched = [SPACE.natural(t.params) for t in of_stage]
    assert last["within"]["between"].keys() | last["within"]["at"].keys() == {p.name for p in SPACE.parameters}
    assert last["within"]["between"]["kind"] == ["x", "y", "z"]
    for name in ("learning_rate", "momentum", "units", "weight_decay"):
        low, high = last["within"]["between"][name]
        assert all(low * (1 - 1e-9) <= values[name] <= high * (1 + 1e-9) for values in searched)
    assert last["within"]["between"]["learning_rate"][0] > 1e-3  # zoomed in: not the full range


def test_trials_that_explored_outside_of_the_box_do_not_count_in_the_stage():
    study = study_of(lambda v: decades(v["learning_rate"], 0.02) + 0.1 * decades(1 - v["momentum"], 0.01))
    outside = {t.number for t in study.trials if t.user_attrs.get("explored", "inside the box") != "inside the box"}
    assert outside, "the test needs some"
    assert {t.number for t in not_explored(study.trials)} == {t.number for t in study.trials} - outside


def test_evidence_says_what_it_was_measured_by():
    opening = evidence_of(study_of(lambda v: decades(v["learning_rate"], 0.02), n=60))
    coarse = sum(stage["trials"] for stage in opening["stages"] if stage["kind"] == "coarse")
    assert opening["measured_by"] == {"method": "coarse trials", "trials": coarse}
    default = evidence_of(study_of(lambda v: decades(v["learning_rate"], 0.02), n=30, plan="default"))
    assert default["measured_by"] == {"method": "model", "trials": 30}
    short = evidence_of(study_of(lambda v: decades(v["learning_rate"], 0.02), n=9, plan="default"))
    assert short["measured_by"] == {"method": None, "trials": 9}
    assert short["why_not_measured"] == "importance needs at least 20 finished trials, there are 9"


def test_noise_is_seldom_an_effect():
    """Nothing matters: one parameter in 1 + SHUFFLES passes by chance; 60 of them give 3 on average."""
    rng = np.random.default_rng(0)
    effects = []
    for seed in range(12):
        found = evidence_of(study_of(lambda v: float(rng.normal()), n=60, seed=seed))
        effects += [p["effect"] for p in found["parameters"].values()]
    assert len(effects) == 60
    assert sum(effects) <= 9  # binomial(60, 1/20) exceeds 9 with probability 5e-4
    assert SHUFFLES == 19


def test_a_narrowed_parameter_gets_no_credit_for_the_stage_it_was_narrowed_in():
    """Fine trials are better whatever the weight decay was: the study's measurement must not see that."""
    planned = plan_stages(SPACE, 60, plan="opening")
    rng = np.random.default_rng(1)
    trials = []
    for stage in planned:
        for number in range(stage.first, stage.last):
            fine = stage.kind == "fine"
            natural = {
                "learning_rate": 10 ** rng.uniform(-4, 0),
                "momentum": rng.uniform(0.9, 0.999),
                "units": int(rng.integers(16, 65)),
                "weight_decay": 10 ** rng.uniform(-2, -1.9) if fine else 10 ** rng.uniform(-6, -1),
                "kind": str(rng.choice(["x", "y", "z"])),
            }
            trials.append(make(number, float(rng.normal()) - 50 * fine, **natural))
    found = evidence(SPACE, trials, "minimize", with_boxes(SPACE, trials, planned))
    assert found["parameters"]["weight_decay"]["effect"] is False


# --- edges ---


def make(number, value, state=TrialState.COMPLETE, space=SPACE, attrs=None, **natural) -> FrozenTrial:
    made = optuna.create_trial(
        params=space.stored(natural),
        distributions=space.distributions,
        value=value,
        state=state,
        user_attrs=attrs or {},
    )
    made.number = number
    return made


def edges(trials, space=SPACE, n=30):
    return evidence(space, trials, "minimize", with_boxes(space, trials, plan_stages(space, n, plan="opening")))[
        "edges"
    ]


def test_best_trials_at_the_upper_end():
    rates = [0.9, 0.95, 0.8, 0.01, 0.02, 0.005, 0.001]
    found = edges([make(i, float(i), learning_rate=r, momentum=0.97) for i, r in enumerate(rates)])
    assert found == [
        {
            "parameter": "learning_rate",
            "side": "upper",
            "bound": 1.0,
            "trials": [0, 1, 2],
            "sentence": "widen learning_rate above 1.0: the best 3 trials lie within a tenth of the upper end",
        }
    ]


def test_one_of_three_elsewhere_is_no_edge():
    rates = [0.9, 0.01, 0.95, 0.8]
    assert edges([make(i, float(i), learning_rate=r) for i, r in enumerate(rates)]) == []


def test_edges_on_the_natural_side_of_one_minus_log():
    trials = [make(20 + i, float(i), momentum=0.9985, learning_rate=0.01) for i in range(5)]
    found = edges(trials)
    assert [(e["parameter"], e["side"], e["bound"]) for e in found] == [("momentum", "upper", 0.999)]
    assert found[0]["sentence"].startswith("widen momentum above 0.999:")


def test_a_closed_parameter_at_its_default_is_no_edge():
    space = SearchSpace.from_dict(
        {**{"learning_rate": {"low": 1e-4, "high": 1.0}}, "momentum": {"low": 0.9, "high": 0.999, "default": 0.9}}
    )
    trials = [make(i, float(i), space=space, learning_rate=0.01 * (i + 1)) for i in range(3)]  # only tier A is open
    assert edges(trials, space) == []


def test_a_tier_that_opened_late_has_edges_from_there_on():
    """Tier B opens with trial 5, since nothing was left to gain: the best before it had no say in momentum."""
    closed = SearchSpace.from_dict(
        {"learning_rate": {"low": 1e-4, "high": 1.0}, "momentum": {"low": 0.9, "high": 0.999, "default": 0.9}}
    )
    searched = [0.01, 0.03, 0.1, 0.3, 0.02]
    before = [make(i, 0.1 * (i + 2), space=closed, learning_rate=r) for i, r in enumerate(searched[:2])]
    later = [
        make(5 + i, 0.1 * i, space=closed, learning_rate=r, momentum=0.9989, attrs={} if i else {OPENED: "B"})
        for i, r in enumerate(searched)
    ]
    opened = edges([*before, *later], closed, n=8)
    assert [(e["parameter"], e["side"], e["trials"]) for e in opened] == [("momentum", "upper", [5, 6, 7])]
    for trial in later:
        trial.user_attrs = {}
    assert edges([*before, *later], closed, n=8) == []


def test_nothing_lies_below_zero_or_below_one_layer():
    space = SearchSpace.from_dict(
        {
            "dropout": {"low": 0.0, "high": 0.5, "tier": "A"},
            "layers": {"low": 1, "high": 3, "tier": "A"},
            "size": {"choices": [32, 64, 128, 256], "tier": "A"},
            "rate": {"low": 1e-3, "high": 1e-1, "scale": "log", "tier": "A"},
        }
    )
    low = [make(i, float(i), space=space, dropout=0.0, layers=1, size=32, rate=1e-3) for i in range(4)]
    assert [(e["parameter"], e["side"], e["bound"]) for e in edges(low, space)] == [
        ("size", "lower", 32),
        ("rate", "lower", 1e-3),
    ]
    high = [make(i, float(i), space=space, dropout=0.5, layers=3, size=256, rate=1e-2) for i in range(4)]
    assert [(e["parameter"], e["bound"]) for e in edges(high, space)] == [
        ("dropout", 0.5),
        ("layers", 3),
        ("size", 256),
    ]


def test_nothing_lies_above_a_share_of_one():
    fields = {"low": 0.5, "high": 1.0, "tier": "A"}
    space = SearchSpace.from_dict({"learning_rate_decay": fields, "learning_rate": fields})
    trials = [make(i, float(i), space=space, learning_rate_decay=1.0, learning_rate=1.0) for i in range(4)]
    assert [(e["parameter"], e["side"]) for e in edges(trials, space)] == [("learning_rate", "upper")]


# --- small and odd studies ---


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 8, 19, 20, 21])
def test_few_trials(n):
    rng = np.random.default_rng(0)
    trials = [make(i, float(rng.random()), **SPACE.natural(SPACE.at(rng.random(5)))) for i in range(n)]
    planned = plan_stages(SPACE, max(n, 1), plan="opening")
    found = evidence(SPACE, trials, "minimize", with_boxes(SPACE, trials, planned))
    json.dumps(found, allow_nan=False)
    assert found["counts"]["complete"] == n
    assert (found["best"] is None) == (n == 0)
    assert all(p["importance"] is None for p in found["parameters"].values())
    assert "importance needs at least 20 finished coarse trials, there are" in found["why_not_measured"]
    assert found["disagreements"] == found["unimportant"] == []


def test_equal_values():
    study = study_of(lambda v: 1.0, n=60)
    found = evidence_of(study)
    assert found["why_not_measured"] == "all finished coarse trials have the same value"
    assert all(stage["within"] is None for stage in found["stages"])


def test_counts_of_what_went_wrong():
    trials = [
        make(0, 1.0),
        make(1, 50.0, attrs={"diverged": True}),
        make(2, math.inf),
        make(3, None, TrialState.FAIL),
        make(4, None, TrialState.RUNNING),
        optuna.create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.5}),
    ]
    found = evidence(SPACE, trials, "minimize", plan_stages(SPACE, 30, plan="opening"))
    assert found["counts"] == {"complete": 3, "pruned": 1, "failed": 1, "running": 1, "diverged": 2}
    assert found["best"]["number"] == 0


def test_foreign_trials_layers_and_single_values():
    space = SearchSpace.from_dict(
        {
            "rate": {"low": 1e-3, "high": 1.0, "scale": "log", "tier": "A"},
            "layers": {"low": 1, "high": 3, "tier": "A"},
            "units": {"low": 8, "high": 64, "tier": "A", "per_layer": "layers"},
            "only": {"choices": ["one"], "tier": "A"},
        }
    )
    study = study_of(lambda v: decades(v["rate"], 0.1) + sum(v["units"]) / 1000, n=60, space=space)
    study.add_trial(optuna.create_trial(params={}, distributions={}, value=-1.0))
    found = evidence_of(study, space=space)
    assert found["parameters"]["rate"]["effect"] is True
    assert found["parameters"]["only"]["importance"] is None


def test_no_stage_is_an_error():
    with pytest.raises(ValueError, match=r"`stages` must have at least one stage, got \[\]"):
        evidence(SPACE, [], "minimize", [])


def test_optunas_logging_is_left_as_it_was():
    optuna.logging.set_verbosity(optuna.logging.INFO)
    study = study_of(lambda v: v["learning_rate"], n=40)
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    evidence_of(study)
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
