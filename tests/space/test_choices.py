"""Choices that are lists or mappings: a label in the study, the value itself to the model."""

import json

import optuna
import pytest

from lightning_hp.search.boxes import positions
from lightning_hp.search.curves import CurveReader
from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.labels import LONGEST, label, labels
from lightning_hp.space.space import SearchSpace

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
SLOW = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01, "momentum": 0.9}}
ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}}
MAPPING = {
    "optimizer": {"choices": [SGD, SLOW, ADAM], "default": ADAM},
    "betas": {"choices": [(0.9, 0.999), [0.8, 0.99]], "active_if": {"optimizer": "Adam"}},
    "nesterov": {"choices": [False, True], "active_if": {"optimizer": "torch.optim.SGD"}},
    "warmup": {"low": 1, "high": 9, "active_if": {"optimizer": "SGD(lr=0.1, momentum=0.9)"}},
    "cool": {"low": 1, "high": 9, "active_if": {"optimizer": "!= SGD"}},
}


def test_labels_are_stored_and_values_handed_on():
    space = SearchSpace.from_dict(MAPPING)
    assert space["optimizer"].labels == ("SGD(lr=0.1, momentum=0.9)", "SGD(lr=0.01, momentum=0.9)", "Adam(lr=0.001)")
    assert space["betas"].labels == ("[0.9, 0.999]", "[0.8, 0.99]")
    assert space["optimizer"].is_categorical
    study = optuna.create_study(sampler=SearchPlan(space=space, n_trials=20).sampler())
    seen = []

    def objective(trial):
        arguments = space.suggest(trial)
        seen.append(json.loads(json.dumps(arguments)))
        arguments["optimizer"]["init_args"].clear()  # whoever is given a block may change it
        return len(seen)

    study.optimize(objective, n_trials=20)
    assert seen[0]["optimizer"] == ADAM
    assert all(a["optimizer"] in (SGD, SLOW, ADAM) for a in seen)
    assert {t.params["optimizer"] for t in study.trials} == set(space["optimizer"].labels)
    for trial, arguments in zip(study.trials, seen, strict=True):
        assert trial.params["optimizer"] in space.distributions["optimizer"].choices
        assert space.natural(trial.params)["optimizer"] == arguments["optimizer"]


def test_a_condition_names_a_label_a_class_or_a_value():
    space = SearchSpace.from_dict({**MAPPING, "last": {"low": 1, "high": 2, "active_if": {"optimizer": SLOW}}})
    expected = {
        "Adam(lr=0.001)": {"betas", "cool"},
        "SGD(lr=0.1, momentum=0.9)": {"nesterov", "warmup"},
        "SGD(lr=0.01, momentum=0.9)": {"nesterov", "last"},
    }
    for text, others in expected.items():
        assert space.arguments(space.stored({"optimizer": text})).keys() == {"optimizer"} | others
    with pytest.raises(ValueError, match=r"^`space.betas.active_if.optimizer` must be one of \['SGD\(lr=0.1, mom"):
        SearchSpace.from_dict({**MAPPING, "betas": {"choices": [1, 2], "active_if": {"optimizer": "Adagrad"}}})


def test_conditions_read_well():
    space = SearchSpace.from_dict(MAPPING)
    texts = {p.name: [c.text for c in p.active_if] for p in space.parameters if p.active_if}
    both = "SGD(lr=0.1, momentum=0.9) {} SGD(lr=0.01, momentum=0.9)"
    assert texts == {
        "betas": ["optimizer == Adam(lr=0.001)"],
        "nesterov": ["optimizer == " + both.format("or")],
        "warmup": ["optimizer == SGD(lr=0.1, momentum=0.9)"],
        "cool": ["optimizer != " + both.format("and")],
    }


@pytest.mark.parametrize(
    "default",
    [
        SLOW,
        "SGD(lr=0.01, momentum=0.9)",
        {**SLOW, "init_args": {**SLOW["init_args"], "dampening": 0, "nesterov": False}},
    ],
    ids=["value", "label", "resolved"],
)
def test_the_default_is_a_value_a_label_or_the_resolved_block(default):
    written = SearchSpace.from_dict({"optimizer": {**MAPPING["optimizer"], "default": default}})
    assert written["optimizer"].default == SLOW
    own = SearchSpace.from_dict({"optimizer": {"choices": [SGD, SLOW, ADAM]}}, defaults={"optimizer": default})
    assert own["optimizer"].default == SLOW
    assert own.defaults() == {"optimizer": "SGD(lr=0.01, momentum=0.9)"}


def test_the_most_telling_choice_is_meant_where_several_fit():
    bare = {"class_path": "torch.optim.SGD"}
    space = SearchSpace.from_dict({"optimizer": {"choices": [bare, SGD]}}, defaults={"optimizer": SGD | {"x": 1}})
    assert space["optimizer"].default == SGD


def test_it_is_the_same_space_after_a_resume():
    space = SearchSpace.from_dict(MAPPING)
    text = json.dumps(SearchPlan(space=space).to_json())
    again = SearchPlan.from_json(json.loads(text)).space
    assert again == space
    assert again.arguments(again.defaults())["betas"] == [0.9, 0.999]  # a tuple is a list, before and after
    assert again.fingerprint == SearchSpace.from_dict(json.loads(json.dumps(MAPPING))).fingerprint
    plain = SearchSpace.from_dict({"c": {"choices": [1, "a", None]}})
    assert "labels" not in plain.to_dict()["parameters"]["c"]  # as studies of today have it


def test_the_labels_of_a_study_stay_its_own():
    described = SearchSpace.from_dict({"betas": MAPPING["betas"] | {"active_if": None}}).to_dict()
    described["parameters"]["betas"]["labels"] = ["first", "second"]
    space = SearchSpace.from_description(described)
    assert space.stored({"betas": [0.8, 0.99]}) == {"betas": "second"}
    assert space.natural({"betas": "first"}) == {"betas": [0.9, 0.999]}


def test_trials_are_read_back_onto_the_unit_axis():
    space = SearchSpace.from_dict({"betas": MAPPING["betas"] | {"active_if": None}, "mixed": {"choices": [1, [2]]}})
    for position in (0.25, 0.75):
        stored = space.at([position, position])
        assert space.unit([stored])[0].tolist() == [position, position]
        trial = optuna.create_trial(params=stored, distributions=space.distributions, value=1.0)
        assert CurveReader(space, None, False).read([trial])[0].unit.tolist() == [position, position]
        assert positions(space, [trial]).tolist() == [[position, position]]
    assert space.at([0.25, 0.25])["mixed"] == 1


def test_labels_read_well_and_differ():
    assert label({"a": [None, True, 1e-5], "b": {"c": "x"}}) == "{a: [null, true, 1e-05], b: {c: x}}"
    assert label({"class_path": "Net", "dict_kwargs": {"n": 1}}) == "Net(dict_kwargs={n: 1})"
    assert label(ADAM, full=True) == "torch.optim.Adam(lr=0.001)"
    assert labels([1, "a", None, True]) == (1, "a", None, True)
    other = {"class_path": "mine.SGD", "init_args": SGD["init_args"]}
    assert labels([SGD, other]) == ("torch.optim.SGD(lr=0.1, momentum=0.9)", "mine.SGD(lr=0.1, momentum=0.9)")
    assert labels(["[1]", [1]]) == ("[1]", "[1] (2)")
    long = [list(range(40)), list(range(41)), [0]]
    texts = labels(long)
    assert len(set(texts)) == 3
    assert all(len(text) <= LONGEST + 4 for text in texts)
    assert texts == labels(long)


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([[1], [1.0]], r"`space.c.choices` must be different from each other, got \[\[1\], \[1.0\]\]"),
        ([[1], [object]], "`space.c.choices` must be numbers, texts, booleans or null, or lists and mappings of these"),
        ([{1: 2}, 3], "`space.c.choices` must be numbers, texts, booleans or null, or lists and mappings of these"),
        (
            [[float("nan")]],
            "`space.c.choices` must be numbers, texts, booleans or null, or lists and mappings of these",
        ),
    ],
)
def test_choices_that_cannot_be_kept_are_refused(choices, expected):
    with pytest.raises(ValueError, match=f"^{expected}"):
        SearchSpace.from_dict({"c": {"choices": choices}})


def test_errors_show_labels():
    with pytest.raises(ValueError, match=r"^`space.optimizer.default` must be one of \['SGD\(lr=0.1, .*, got 'SDG'$"):
        SearchSpace.from_dict({"optimizer": {**MAPPING["optimizer"], "default": "SDG"}})
