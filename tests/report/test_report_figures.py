"""Figures hold the numbers of the study: each is compared with a second computation from the trials."""

import json

import numpy as np
import pytest
from decorated_studies import SPACE, made_trial
from optuna.trial import TrialState

from lightning_hp.report.figures import audit_history, best_so_far, contour, curves, history, importance, zoom_funnel
from lightning_hp.report.landscape import REACH, surface
from lightning_hp.report.measured import Measured
from lightning_hp.report.style import value_axis
from lightning_hp.report.view import NEUTRAL, TIER_COLOURS, StudyView


def traces(figure):
    return {trace.name: trace for trace in figure.data}


def test_history_draws_every_trial_once(finished):
    view = StudyView.read(finished[0])
    found = traces(history(view))
    drawn = {
        x: y for s in view.stages if s.name in found for x, y in zip(found[s.name].x, found[s.name].y, strict=True)
    }
    assert drawn == {t.number: t.value for t in view.trials if t.number % 10 not in (4, 5, 7)}
    assert list(found["failed"].x) == [4, 14, 24, 34]
    assert list(found["failed"].customdata) == ["out of memory"] * 4
    assert list(found["diverged"].x) == [7, 17, 27, 37]
    last = {t.number: t.intermediate_values[3] for t in view.pruned}
    assert dict(zip(found["pruned"].x, found["pruned"].y, strict=True)) == last


@pytest.mark.parametrize("mode", ["min", "max"])
def test_best_so_far_is_the_running_best(made, mode):
    values = np.random.default_rng(0).normal(size=50).round(3)
    view = StudyView.read(made([made_trial(0.5, float(v)) for v in values], mode))
    numbers, bests = best_so_far(view)
    running = (np.minimum if mode == "min" else np.maximum).accumulate(values)
    steps = np.array(bests)[np.searchsorted(numbers[:-1], np.arange(50), side="right") - 1]
    assert steps == pytest.approx(running)
    assert numbers[-1] == 49


def test_funnel_points_and_boxes_are_those_of_the_study(finished):
    study, _ = finished
    view = StudyView.read(study)
    rate = SPACE["learning_rate"]
    figure = zoom_funnel(view, rate)
    drawn = {y: x for t in figure.data if t.name != "best" for x, y in zip(t.x, t.y, strict=True)}
    expected = {t.number: rate.unit([t.params["learning_rate"]])[0] for t in study.trials}
    assert drawn == pytest.approx(expected, abs=1e-4)
    boxes = {(s.y0, s.y1): (s.x0, s.x1) for s in figure.layout.shapes}
    for stage in study.sampler.stages(study):
        assert boxes[stage.first - 0.5, stage.last - 0.5] == pytest.approx(stage.box["learning_rate"], abs=1e-4)


def test_closed_tier_has_no_box_and_grey_points(finished):
    view = StudyView.read(finished[0])
    figure = zoom_funnel(view, SPACE["dropout"])
    opened = next(s.first for s in view.stages if "C" in s.tiers)
    assert min(s.y0 for s in figure.layout.shapes) == opened - 0.5
    for trace in figure.data:
        if trace.name != "best":
            assert (trace.marker.color == NEUTRAL) == (max(trace.y) < opened)


def test_strong_points_are_the_best_quarter(finished):
    view = StudyView.read(finished[0])
    strong = sorted(y for t in zoom_funnel(view, SPACE["momentum"]).data if t.marker.size == 7 for y in t.y)
    counted = [t for t in view.trials if t.state == TrialState.COMPLETE and not t.user_attrs.get("diverged")]
    counted.sort(key=lambda t: t.value)
    assert strong == sorted(t.number for t in counted[: -(-len(counted) // 4)])


def test_many_trials_are_thinned_and_keep_the_best(made):
    rng = np.random.default_rng(1)
    trials = [
        made_trial(float(u), float(v)) for u, v in zip(rng.uniform(size=3000), rng.uniform(size=3000), strict=True)
    ]
    view = StudyView.read(made(trials))
    drawn = [y for t in zoom_funnel(view, SPACE["momentum"], most=200).data if t.name != "best" for y in t.y]
    assert 150 <= len(drawn) == len(set(drawn)) <= 240
    assert {t.number for t in view.ranked[:40]} <= set(drawn)


def test_curves_band_is_the_quartiles_at_each_step(finished):
    view = StudyView.read(finished[0])
    found = traces(curves(view))
    table = np.array([[t.intermediate_values[s] for s in range(1, 10)] for t in view.ranked])
    assert found["median"].y == pytest.approx(np.median(table, axis=0))
    assert found["middle half of trials"].y == pytest.approx(np.quantile(table, 0.25, axis=0))
    best = view.ranked[0]
    assert list(found[f"trial {best.number} (best)"].y) == [best.intermediate_values[s] for s in range(1, 10)]


def test_importance_is_the_studys_one_answer(finished):
    view = StudyView.read(finished[0])
    parts = {"learning_rate": (0.6, True), "dropout": (0.3, True), "momentum": (0.1, False)}
    evidence = {
        "parameters": {name: {"importance": part, "effect": effect} for name, (part, effect) in parts.items()},
        "stages": [{"name": "4 fine ABC", "trials": 9, "importance": {"dropout": 0.9, "momentum": 0.1}}],
    }
    (bars,) = importance(view, Measured.read(view, evidence)).data
    assert [name.split()[0] for name in bars.y][::-1] == [
        "learning_rate",
        "dropout",
        "momentum",
    ]  # Plotly draws upwards
    assert list(bars.x)[::-1] == [0.6, 0.3, 0.1]
    assert list(bars.marker.color)[::-1] == [TIER_COLOURS["A"], TIER_COLOURS["C"], NEUTRAL]


def test_contour_is_not_shifted_by_trials_without_value(made):
    rng = np.random.default_rng(2)
    clean = [made_trial(float(u), float(u) ** 2) for u in rng.uniform(size=20)]
    mixed = [made_trial(0.9, state=TrialState.FAIL), *clean[:6], made_trial(0.2, 5.0, TrialState.PRUNED), *clean[6:]]
    mixed.append(made_trial(0.3, 50.0, user_attrs={"diverged": True}))
    across, up = SPACE["learning_rate"], SPACE["momentum"]
    one, other = (contour(StudyView.read(made(t)), across, up) for t in (clean, mixed))
    assert one.data[0].z == other.data[0].z
    assert list(one.data[1].x) == list(other.data[1].x)
    assert [row[3] for row in one.data[1].customdata] == [row[3] for row in other.data[1].customdata]


def test_contour_shows_each_complete_trial_at_its_place(finished):
    view = StudyView.read(finished[0])
    across, up = SPACE["learning_rate"], SPACE["momentum"]
    points = contour(view, across, up).data[1]
    for x, y, (number, *_rest) in zip(points.x, points.y, points.customdata, strict=True):
        trial = view.trials[number]
        assert trial.state == TrialState.COMPLETE
        assert x == pytest.approx(across.unit([trial.params["learning_rate"]])[0], abs=1e-4)
        assert y == pytest.approx(up.unit([trial.params["one_minus_momentum"]])[0], abs=1e-4)


def test_surface_meets_lone_trials_stays_within_values_and_turns_with_the_axes():
    points = np.array([[0.1, 0.2], [0.9, 0.2], [0.5, 0.9]])
    values = np.array([1.0, 2.0, 4.0])
    grid = np.linspace(0, 1, 41)
    found = surface(points, values, grid)
    for (x, y), value in zip(points, values, strict=True):
        assert found[round(y * 40), round(x * 40)] == pytest.approx(value, abs=1e-3)
    inside = found[~np.isnan(found)]
    assert inside.min() >= 1.0
    assert inside.max() <= 4.0
    assert np.array_equal(found.T, surface(points[:, ::-1], values, grid), equal_nan=True)
    width = np.clip(0.25 * 3 ** (-1 / 6), 0.06, 0.13)
    near = (
        np.hypot(grid[None, :, None] - points[:, 0], grid[:, None, None] - points[:, 1]).min(axis=-1) <= REACH * width
    )
    assert np.array_equal(near, ~np.isnan(found))


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0.1, 2.0], "log"), ([0.9, 0.97], "linear"), ([-1.0, 20.0], "linear"), ([0.0, 5.0], "linear"), ([], "linear")],
)
def test_value_axis(values, kind):
    assert value_axis(values)["type"] == kind


def test_figures_escape_names_and_are_plain_json(made):
    from lightning_hp.space.space import SearchSpace

    space = SearchSpace.from_dict({"<b>a</b>": {"low": 0.0, "high": 1.0}, "c": {"choices": ["<i>", "y"], "tier": "B"}})
    trials = [made_trial(u, u, space=space, intermediate_values={1: u}) for u in (0.1, 0.4, 0.6, 0.9)]
    view = StudyView.read(made(trials, space=space))
    first, second = space.parameters
    every = [history(view), zoom_funnel(view, first), zoom_funnel(view, second), curves(view)]
    every += [
        contour(view, first, second),
        importance(view, Measured.read(view, {"parameters": {"<b>a</b>": {"importance": 0.3, "effect": True}}})),
    ]
    text = json.dumps([figure.to_plotly_json() for figure in every], allow_nan=False, default=lambda v: v.tolist())
    for hostile in ("<b>a", "<i>"):
        assert hostile not in text
    assert "&lt;b&gt;a" in text


@pytest.mark.parametrize(("counts", "text"), [({"INFO": 0}, "no findings in 1 audited trial"), ({"WARN": 2}, "")])
def test_ticks_of_few_whole_numbers_are_not_written_twice(made, counts, text):
    """A study whose winner alone was audited had the ticks 34, 34, 34, 34 below its one bar."""
    audited = made_trial(0.5, 0.1, user_attrs={"audit": counts})
    view = StudyView.read(made([made_trial(0.1, 0.2), audited], "min"))
    figure = audit_history(view)
    assert (figure.layout.xaxis.dtick, figure.layout.yaxis.dtick) == (1, 1)
    assert [note.text for note in figure.layout.annotations] == ([text] if text else [])
    assert history(view).layout.xaxis.dtick == 1
    assert zoom_funnel(view, SPACE["learning_rate"]).layout.yaxis.dtick == 1
    many = StudyView.read(made([made_trial(0.5, 0.1, user_attrs={"audit": {"WARN": n}}) for n in range(20)], "min"))
    assert (audit_history(many).layout.xaxis.dtick, audit_history(many).layout.yaxis.dtick) == (None, None)
    assert audit_history(many).layout.yaxis.nticks == 5
