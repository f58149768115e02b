"""A study's search as one value: it makes the sampler, is written as JSON, and is read back."""

import json
from dataclasses import fields, replace

import optuna
import pytest

from lightning_hp.search.curves import CurveReader, curves_to_dicts
from lightning_hp.search.plan import SearchPlan
from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.space.presets import OPENS_FROM, preset
from lightning_hp.space.space import SearchSpace

SGD = SearchSpace.from_dict(preset("sgd"))


def trials_of(sampler: CoarseToFineSampler, n: int = 12) -> list[dict[str, object]]:
    """Parameters of the first n trials of a study whose loss is the learning rate's distance from 0.1."""
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: abs(sampler.space.suggest(trial)["learning_rate"] - 0.1), n_trials=n)
    return [t.params for t in study.trials]


def full_plan() -> SearchPlan:
    """A plan in which no field is at its default."""
    study = optuna.create_study(sampler=CoarseToFineSampler(SGD, n_trials=6, max_steps=None))
    study.optimize(lambda trial: SGD.suggest(trial)["learning_rate"], n_trials=6)
    curves = curves_to_dicts(CurveReader(SGD, None, False).read(study.trials))
    opens = {"A": 0, "B": 2, "C": 99}
    return SearchPlan(space=SGD, n_trials=9, max_steps=8, seed=3, plan="retune", opens_from=opens, older=curves)


def test_every_field_reaches_the_sampler():
    plan = full_plan()
    defaults = SearchPlan(space=SGD)
    assert all(getattr(plan, f.name) != getattr(defaults, f.name) for f in fields(plan) if f.name != "space")
    expected = CoarseToFineSampler(
        SGD, n_trials=9, max_steps=8, seed=3, plan="retune", opens_from=plan.opens_from, older=plan.older
    )
    assert trials_of(plan.sampler()) == trials_of(expected)
    for change in ({"seed": 4}, {"opens_from": None}, {"older": ()}, {"plan": "default"}):
        assert trials_of(replace(plan, **change).sampler()) != trials_of(plan.sampler()), change
    base = optuna.samplers.RandomSampler(seed=0)
    assert plan.sampler(base).base is base
    assert plan.sampler().max_steps == 8


def test_it_is_read_back_from_json_beside_other_keys():
    for plan in (full_plan(), SearchPlan(space=SGD)):
        text = json.dumps({"schema": 1, "monitor": "val_loss", "mode": "min", "preset": None, **plan.to_json()})
        assert SearchPlan.from_json(json.loads(text)) == plan


def test_a_description_written_before_there_was_a_plan_is_read():
    described_then = {
        "schema": 1,
        "space": SearchSpace.from_dict(preset("playbook")).to_dict(),
        "n_trials": 30,
        "max_steps": 27,
        "monitor": "val_loss",
        "mode": "min",
        "seed": 5,
        "plan": "tiers",
        "preset": "playbook",
        "versions": {},
        "created": "2026-01-01T00:00:00+00:00",
        "opens_from": None,
        "previous": None,
    }
    plan = SearchPlan.from_json(described_then)
    assert (plan.n_trials, plan.max_steps, plan.seed, plan.plan, plan.older) == (30, 27, 5, "tiers", ())
    assert plan.opens_from == OPENS_FROM["playbook"]
    assert plan == SearchPlan.of("playbook", n_trials=30, max_steps=27, seed=5, plan="tiers")
    own = SearchPlan.from_json({**described_then, "opens_from": {"B": 3}})
    assert own.opens_from == {"B": 3}


def test_a_plan_is_made_from_what_a_person_writes():
    assert SearchPlan.of(SGD, seed=1) == SearchPlan(space=SGD, seed=1)
    assert SearchPlan.of(preset("sgd")).space == SGD
    assert SearchPlan.of("sgd") == SearchPlan(space=SGD)
    assert SearchPlan.of("playbook").opens_from == OPENS_FROM["playbook"]
    assert SearchPlan.of("playbook", opens_from={"B": 1}).opens_from == {"B": 1}
    assert SearchPlan.of("sgd", paths=True).space.entries[0].key == "model.init_args.learning_rate"
    with pytest.raises(ValueError, match=r"`space` must be a mapping or one of the presets .*, got 'sdg'"):
        SearchPlan.of("sdg")


def test_what_a_study_cannot_be_continued_with_is_named():
    begun = SearchPlan(space=SGD, n_trials=10, max_steps=5)
    assert replace(begun, n_trials=20, max_steps=9).changes(begun) == []
    wider = {**preset("sgd"), "learning_rate": {"low": 1e-5, "high": 1.0, "default": 0.01}}
    changed = SearchPlan.of(wider, seed=2, plan="tiers").changes(begun)
    assert changed == [
        "learning_rate.low was 0.0001, is 1e-05",
        "seed was 0, is 2",
        "plan was 'default', is 'tiers'",
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n_trials": 0}, "`n_trials` must be a whole number of at least 1, got 0"),
        ({"max_steps": 0}, "`max_steps` must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, got -1"),
        ({"plan": "other"}, "`plan` must be one of default, .*, got 'other'"),
        ({"opens_from": {"E": 1}}, "`opens_from` must have the tiers A, B, C, D, got E"),
    ],
)
def test_a_wrong_field_is_refused_at_once(fields, expected):
    with pytest.raises(ValueError, match=expected):
        SearchPlan(space=SGD, **fields)


def test_a_mapping_is_no_space():
    with pytest.raises(TypeError, match="`space` must be a SearchSpace, got "):
        SearchPlan(space=preset("sgd"))  # type: ignore[arg-type]
