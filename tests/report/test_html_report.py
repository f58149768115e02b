"""The report: self-contained, escaped, and there for every study however little of it went well."""

import json
import re
import shlex
from datetime import UTC, datetime
from html.parser import HTMLParser

import optuna
import plotly.graph_objects as go
import pytest
from decorated_studies import SPACE, STEPS, made_trial
from optuna.trial import TrialState

from lightning_hp.ledger import events, records
from lightning_hp.report.axes import ends_text
from lightning_hp.report.html_report import html_report, write_report
from lightning_hp.report.markdown import study_note
from lightning_hp.report.model import read_report
from lightning_hp.report.page import Page
from lightning_hp.report.view import StudyView
from lightning_hp.search.evidence import evidence
from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.description import Description, open_study

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
RESULT = {
    "validation": {"val_loss": 0.0712, "val_acc": 0.981},
    "test": {"test_acc": 0.978},
    "seconds": 213.4,
    "best_yaml": "runs/my digits/best.yaml",
}


class Reader(HTMLParser):
    """Collects the words a person sees, the tags, and every address."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.addresses, self.skip = [], [], [], False
        self.feed(text)
        self.seen = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.skip = tag in ("script", "style")
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag):
        self.skip = False

    def handle_data(self, data):
        if not self.skip:
            self.words.append(data)


def test_report_of_a_study(finished, tmp_path):
    study, paths = finished
    measured = evidence(study.sampler.space, study.trials, "minimize", study.sampler.stages(study))
    path = write_report(read_report(study, paths, measured, RESULT, NOW))
    assert path == paths.report
    assert path.stat().st_size < 6e6
    text = path.read_text()
    reader = Reader(text)
    best = study.best_trial
    assert f"best val_loss, trial {best.number}" in reader.seen
    for said in ("Best values", "Progress", "Zoom", "What mattered", "Landscape", "Learning curves", "Failures"):
        assert said in reader.seen
    assert "lightning-hp fit 'runs/my digits/best.yaml'" in reader.seen
    assert "3 min 33 s" in reader.seen
    assert "out of memory last lines" in reader.seen
    assert "40 of 40 trials were audited" in reader.seen
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.S)[1])
    assert len(figures) == 3 + 8  # history, landscape, curves; a funnel a parameter


def test_what_mattered_has_one_answer_and_a_stages_numbers_stand_beside_what_they_depend_on(finished):
    study, paths = finished
    view = StudyView.read(study)
    stage = view.stages[-1]
    evidence = {
        "parameters": {"learning_rate": {"importance": 0.61, "effect": True, "measured_tier": "A"}},
        "stages": [{"name": stage.name, "trials": 10, "importance": {"learning_rate": 0.23}}],
    }
    text = html_report(read_report(study, paths, evidence, {}, NOW))
    seen = Reader(text).seen
    searched = ends_text(SPACE["learning_rate"], *stage.interval("learning_rate"))
    assert f"learning_rate 61% 23% {searched}" in seen
    assert seen.count("23%") == 1
    assert "two that mattered most" in seen
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.S)[1])
    assert not any(trace["type"] == "bar" for figure in figures.values() for trace in figure["data"])


def test_report_needs_no_network(finished):
    study, paths = finished
    text = write_report(read_report(study, paths, {}, {}, NOW)).read_text()
    reader = Reader(text)
    assert reader.addresses == []
    assert not {"link", "iframe", "img", "object", "embed"} & set(reader.tags)
    assert "default-src 'none'" in text
    assert "url(" not in re.search(r"<style>(.*?)</style>", text, re.S)[1]


def test_what_is_not_given_is_read_from_the_folder(made, paths):
    paths.root.mkdir()
    paths.result.write_text(json.dumps(RESULT))
    paths.evidence.write_text(json.dumps({"edges": [{"sentence": "widen momentum below 0.9"}]}))
    seen = Reader(write_report(read_report(made([made_trial(0.5, 1.0)]), paths, now=NOW)).read_text()).seen
    assert "0.978" in seen
    assert "widen momentum below 0.9" in seen


def test_a_broken_result_file_does_not_stop_the_report(made, paths, caplog):
    paths.root.mkdir()
    paths.result.write_text('{"seconds":')
    seen = Reader(write_report(read_report(made([made_trial(0.5, 1.0)]), paths, now=NOW)).read_text()).seen
    assert "Best values" in seen
    assert "cannot be read" in caplog.text


def _trials(kind):
    fail = {"user_attrs": {"failure": "ValueError: no"}}
    return {
        "none": [],
        "one": [made_trial(0.5, 0.3, intermediate_values={1: 0.3})],
        "only failed": [made_trial(0.5, state=TrialState.FAIL, **fail)] * 3,
        "only pruned": [made_trial(0.4, 0.7, TrialState.PRUNED, intermediate_values={1: 0.7})] * 3,
        "only infinite": [made_trial(0.4, float("inf"))],
        "only diverged": [made_trial(0.4, 8.0, user_attrs={"diverged": True})] * 2,
        "equal values": [made_trial(u / 20, 1.0) for u in range(20)],
        "empty curve": [made_trial(0.4, 0.2, intermediate_values={1: float("nan")})] * 9,
        "running": [made_trial(0.5, 0.1), made_trial(0.5, state=TrialState.RUNNING)],
        "waiting": [made_trial(0.5, state=TrialState.WAITING)],
    }[kind]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("none", "No trial of 0 finished"),
        ("one", "Trial 0 of 1"),
        ("only failed", "ValueError: no"),
        ("only pruned", "3 pruned"),
        ("only infinite", "value is not finite"),
        ("only diverged", "diverged: the loss was not finite"),
        ("equal values", "Trial 0 of 20"),
        ("empty curve", "Trial 0 of 9"),
        ("running", "Trial 0 of 2"),
        ("waiting", "No trial of 0 finished"),
    ],
)
def test_report_of_studies_that_went_badly(made, paths, kind, said, mode):
    report = read_report(made(_trials(kind), mode), paths, {}, {}, NOW)
    assert said in Reader(html_report(report)).seen


def test_thousand_trials_stay_within_the_size(made, paths):
    trials = [
        made_trial((i * 0.618) % 1, 1 + (i * 0.37) % 1, intermediate_values={s: 1.0 / s for s in range(1, STEPS + 1)})
        for i in range(1000)
    ]
    assert write_report(read_report(made(trials), paths, {}, {}, NOW)).stat().st_size < 6e6


def test_text_from_outside_is_never_markup(paths):
    """Each place has a text of its own, so that a place that is not read is missed."""
    space = SearchSpace.from_dict(
        {evil("parameter"): {"low": 0.0, "high": 1.0}, "b": {"choices": [evil("choice"), "y"], "tier": "B"}}
    )
    attributes = {
        "failure": evil("failure"), "traceback": evil("traceback"), "stage": evil("stage"), "stage_index": 1,
        "audit": {"WARN": 1},
    }  # fmt: skip
    trials = [made_trial(u / 10, u / 10, space=space, user_attrs=attributes) for u in range(1, 10)]
    trials.append(made_trial(0.5, state=TrialState.FAIL, space=space, user_attrs=attributes))
    described = Description(SearchPlan(space=space, n_trials=9), evil("metric"), "min")
    study = open_study(evil("study"), optuna.storages.InMemoryStorage(), described, paths)
    study.add_trials(trials)
    finding = {key: evil(key) for key in ("severity", "id", "layer", "sentence", "fix")}
    layer = {"name": evil("unit")[:24], "d": 1.0, "lv": 0.5}
    paths.trial(0).root.mkdir(parents=True)
    paths.trial(0).audit.write_text(json.dumps({"counts": {"WARN": 1}, "findings": [finding], "layers": [layer]}))
    within = {
        "trials": 9, "importance": {evil("parameter"): 1.0}, "between": {evil("parameter"): [0, 1]},
        "at": {"b": evil("held")},
    }  # fmt: skip
    evidence = {
        "disagreements": [evil("disagreement")],
        "edges": [{"sentence": evil("edge")}],
        "stages": [{"name": evil("within"), "within": within}],
        "parameters": {evil("parameter"): {"importance": 0.5, "effect": True, "measured_tier": evil("tier")}},
    }
    result = {
        "test": {evil("test"): 0.1},
        "validation": {evil("validation"): 0.2},
        "best_yaml": evil("file"),
        "seconds": 3,
    }
    text = write_report(read_report(study, paths, evidence, result, NOW)).read_text()
    reader = Reader(text)
    assert "<script>alert" not in text
    assert reader.tags.count("script") == 3
    for place in (
        "parameter", "choice", "metric", "failure", "traceback", "stage", "study", "severity", "id", "layer",
        "sentence", "fix", "disagreement", "edge", "within", "held", "tier", "test", "validation",
    ):  # fmt: skip
        assert evil(place) in reader.seen, place
    assert shlex.quote(evil("file")) in reader.seen
    assert evil("unit")[:24] in reader.seen
    unmeasured = html_report(read_report(study, paths, {"why_not_measured": evil("reason")}, {}, NOW))
    assert evil("reason") in Reader(unmeasured).seen
    assert "<script>alert" not in unmeasured


def test_attributes_and_files_of_any_form_are_left_out_and_stop_nothing(made, paths):
    """What is kept with a study may have been written by anybody."""
    attributes = {
        "audit": {"WARN": "many", "ERROR": None, "INFO": float("nan")}, "seconds": "long", "stage": 3, "tier": None,
        "inactive": None, "failure": ["a", "list"], "traceback": 7,
    }  # fmt: skip
    study = made([made_trial(u / 9, u, user_attrs=attributes) for u in range(9)])
    study.add_trial(made_trial(0.5, state=TrialState.FAIL, user_attrs=attributes))
    paths.trial(0).root.mkdir(parents=True)
    evidence = {
        "parameters": {"momentum": {"importance": "much"}, "dropout": 3}, "stages": [None, {"within": 1}],
        "edges": [{}, {"sentence": None}, "one"], "disagreements": {"a": 1}, "measured_by": "me", "why_not_measured": 5,
    }  # fmt: skip
    result = {"test": {"acc": "good"}, "validation": 3, "seconds": "many"}
    for audit in ("[1, 2]", '{"findings": {"a": 1}, "layers": [{"d": "x"}, {"d": 1.0}], "counts": 4}', "{"):
        paths.trial(0).audit.write_text(audit)
        report = read_report(study, paths, evidence, result, NOW)
        seen = Reader(html_report(report)).seen
        assert "Trial 0 of 10" in seen
        assert "one" in seen
        assert study_note(report, 0, report.flagged).count("['a', 'list']".replace("[", "\\[").replace("]", "\\]")) == 1


def evil(place: str) -> str:
    """A text that would run if it became markup."""
    return f"<script>alert('{place}')</script>"


def test_an_interrupted_write_leaves_the_old_report(made, paths, monkeypatch):
    study = made([made_trial(0.5, 1.0)])
    before = write_report(read_report(study, paths, {}, {}, NOW)).read_text()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_hp.study.paths.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(read_report(study, paths, {}, RESULT, NOW))
    assert paths.report.read_text() == before
    assert [p.name for p in paths.root.iterdir()] == ["report.html"]


def test_ledger_dates_are_shown(made, paths):
    given = {"A": {"learning_rate": 0.1}, "B": {"momentum": 0.9}}
    tuned = events.tuned(
        name="made", study="made", trials=3, hyperparameters_by_tier=given, metric="val_loss", value=1.0,
        now=datetime(2026, 11, 1, tzinfo=UTC),
    )  # fmt: skip
    records.append(paths.ledger, tuned)
    study = made([made_trial(0.5, 1.0)])
    seen = Reader(write_report(read_report(study, paths, {}, {}, NOW)).read_text()).seen
    assert "Fresh until 2026-12-01" in seen
    later = datetime(2027, 2, 10, tzinfo=UTC)
    seen = Reader(write_report(read_report(study, paths, {}, {}, later)).read_text()).seen
    assert "Stale since 2026-12-31" in seen
    assert "lightning-hp retune made" in seen


def test_a_ledger_that_is_none_is_left_out(made, paths, caplog):
    paths.root.mkdir()
    paths.ledger.write_text("not a ledger\n")
    seen = Reader(write_report(read_report(made([made_trial(0.5, 1.0)]), paths, {}, {}, NOW)).read_text()).seen
    assert "When to look again" not in seen


def test_a_figure_cannot_end_its_script():
    page = Page("t")
    name = "</script><script>alert(1)</script>"
    page.plot(go.Figure(go.Scatter(x=[1], y=[2], name=name)), "alternative")
    text = page.render("page.html")
    assert name not in text
    assert json.loads(re.search(r'id="figures">(.*?)</script>', text, re.S)[1])["plot-1"]["data"][0]["name"] == name
