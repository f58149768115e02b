"""Notes, figures and attributes: what they say, that people's words stay, that little is written, nothing raised."""

import json
import logging
import os
import re
import time
import warnings

import optuna
import pytest
from decorated_studies import SPACE, made_trial, run
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note

from lightning_hp.report import notes
from lightning_hp.report.audit_svg import audit_picture
from lightning_hp.report.audits import Audit
from lightning_hp.report.model import read_report
from lightning_hp.report.notes import LINE, decorate
from lightning_hp.report.rendering import _markdown, markdown_text, table_head, table_row
from lightning_hp.report.view import StudyView
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.results import compute_evidence
from lightning_hp.study.storage import open_storage
from lightning_hp.study.upstream import stored_figures

AUDIT = {
    "counts": {"ERROR": 1, "WARN": 0, "INFO": 2},
    "findings": [
        {"severity": "ERROR", "id": "BN02", "layer": "net.1", "sentence": "mean is off | by 0.7", "fix": "Do."}
    ],
    "layers": [{"name": "net.1", "d": 0.7, "lv": -0.2}, {"name": "net.5", "d": 0.01, "lv": None}],
}


@pytest.fixture(scope="module")
def decorated(tmp_path_factory):
    place = StudyPaths(tmp_path_factory.mktemp("runs") / "digits")
    study = run(place)
    best = StudyView.read(study).best
    place.trial(best.number).root.mkdir(parents=True)
    place.trial(best.number).audit.write_text(json.dumps(AUDIT))
    assert decorate(
        study, place, report=read_report(study, place, compute_evidence(study), {"test": {"test_acc": 0.97}})
    )
    return study, place, best


def trial_note(study, number):
    attributes = study._storage.get_study_system_attrs(study._study_id)
    pieces = {k: v for k, v in attributes.items() if k.startswith(f"dashboard:{number}:note_str:")}
    return "".join(pieces[k] for k in sorted(pieces, key=lambda k: int(k.rpartition(":")[2])))


def test_study_note_says_what_was_found(decorated):
    study, _, best = decorated
    note = get_note(study)
    assert f"[trial {best.number}](/dashboard/studies/0/trials?numbers={best.number})" in note
    assert r"test\_acc 0.97" in note
    assert re.search(r"\| out of memory\s+\| 4\s+\| \[trial 4\]", note)
    assert re.search(r"\| diverged\\: the loss was not finite\s+\| 4\s+\|", note)
    for stage in study.sampler.stages(study):
        mine = [t for t in study.trials if stage.first <= t.number < stage.last]
        complete = sum(t.state == TrialState.COMPLETE for t in mine)
        row = rf"\| {stage.name}\s+\| {stage.first} to {stage.last - 1}\s+\| {complete}\s+\|"
        assert re.search(row, note)


def test_every_table_of_a_note_is_a_rectangle(decorated):
    study, _, best = decorated
    for note in (get_note(study), trial_note(study, best.number)):
        for block in re.findall(r"(?:^\|.*\|\n?)+", note, re.M):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}
            assert len(widths) == 1


def test_best_and_flagged_trials_have_notes_and_no_others(decorated):
    study, place, best = decorated
    keys = study._storage.get_study_system_attrs(study._study_id)
    noted = {int(m[1]) for m in (re.match(r"dashboard:(\d+):note_ver", k) for k in keys) if m}
    report = read_report(study, place)
    flagged = {4, 7, 14, 17, 24, 27, 34, 37}
    assert {t.number for t in report.flagged} == flagged
    assert noted == flagged | {t.number for t in report.view.ranked[:3]}
    assert "MemoryError: <b>all gone</b>" in trial_note(study, 4)  # inside a code block, as it was
    assert "mean is off \\| by 0.7 Do." in trial_note(study, best.number)


def test_the_audit_picture_is_an_artifact_uploaded_once(decorated):
    study, place, best = decorated
    found = [m for m in optuna.artifacts.get_all_artifact_meta(study) if m.filename.startswith("audit-")]
    assert len(found) == 1
    assert f"![BatchNorm audit](/artifacts/0/{found[0].artifact_id})" in trial_note(study, best.number)
    assert (place.artifacts / found[0].artifact_id).read_text().startswith("<svg")
    assert decorate(study, place, force=True)
    assert len(optuna.artifacts.get_all_artifact_meta(study)) == 1
    assert list(place.trial(best.number).root.glob("*.svg")) == []


def test_short_attributes(decorated):
    study, _, best = decorated
    assert study.user_attrs["best"] == f"val_loss {best.value:.4g} (trial {best.number})"
    assert study.user_attrs["stage"] == study.trials[-1].user_attrs["stage"]
    assert study.metric_names == ["val_loss"]


def test_figures_are_small_and_fit_the_box(decorated):
    study, _, _ = decorated
    stored = stored_figures(study, "lightning-hp-")
    assert [name.split("-", 2)[2] for name in sorted(stored)][:2] == ["1-zoom", "2-history"]
    assert sum(len(json.dumps(figure)) for figure in stored.values()) < 80_000
    for figure in stored.values():
        assert figure["layout"]["height"] == 450
        assert figure["layout"]["paper_bgcolor"] == "rgba(0,0,0,0)"
        assert figure["layout"]["title"]["text"]


def test_nothing_is_written_where_nothing_changed(decorated):
    study, place, _ = decorated
    report = read_report(study, place, compute_evidence(study), {"test": {"test_acc": 0.97}})
    assert decorate(study, place, report=report, force=True)
    before = place.journal.stat().st_size
    assert decorate(study, place, report=report, force=True)
    assert place.journal.stat().st_size == before


def test_what_people_write_stays(paths):
    study = run(paths, n_trials=12)
    save_note(study, "My thoughts.")
    assert decorate(study, paths)
    first = get_note(study)
    assert first.startswith("## digits")
    assert first.endswith(LINE + "\nMy thoughts.")
    save_note(study, first + "\nAnd more.")
    study.optimize(lambda trial: SPACE.suggest(trial)["dropout"] + 0.01, n_trials=1)
    assert decorate(study, paths, force=True)
    assert get_note(study) != first
    assert get_note(study).endswith(LINE + "\nMy thoughts.\nAnd more.")


def test_at_most_one_decoration_in_a_while(made, paths):
    study = made([made_trial(0.5, 1.0)])
    assert decorate(study, paths)
    assert not decorate(study, paths)
    assert decorate(study, paths, force=True)


@pytest.mark.parametrize(
    ("took", "ago", "done"), [(0.1, 29, False), (0.1, 31, True), (2.0, 99, False), (2.0, 101, True)]
)
def test_a_slow_decoration_is_done_more_seldom(made, paths, took, ago, done):
    study = made([made_trial(0.5, 1.0)])
    assert decorate(study, paths)
    stamp = paths.root / "locks" / "decorated"
    stamp.write_text(str(took))
    os.utime(stamp, (time.time() - ago,) * 2)
    assert decorate(study, paths) is done


def test_another_process_at_work_is_not_waited_for(made, paths):
    from filelock import FileLock

    (paths.root / "locks").mkdir(parents=True)
    with FileLock(paths.root / "locks" / "decorate.lock"):
        assert not decorate(made([made_trial(0.5, 1.0)]), paths)


def test_a_failure_is_logged_and_never_raised(made, paths, monkeypatch, caplog):
    def broken(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(notes, "_save", broken)
    with caplog.at_level(logging.WARNING):
        assert not decorate(made([made_trial(0.5, 1.0)]), paths)
    assert "could not be decorated" in caplog.text
    assert not decorate(optuna.create_study(), paths)


@pytest.mark.parametrize("trials", [[], [made_trial(0.5, state=TrialState.FAIL)], [made_trial(0.2, 0.1)] * 25])
def test_poor_studies_are_decorated_too(made, paths, trials):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decorate(made(trials), paths)


def test_text_from_outside_is_escaped(made, paths):
    evil = "<img src=x onerror=alert(1)> | **b** [x](javascript:alert(1)) `c`"
    space = SearchSpace.from_dict({"a|<b>": {"low": 0.0, "high": 1.0}})
    attrs = {"failure": evil, "traceback": "```\n" + evil, "stage": evil}
    study = made([made_trial(0.5, state=TrialState.FAIL, space=space, user_attrs=attrs)], space=space, name=evil)
    evidence = {"edges": [evil], "disagreements": [evil]}
    assert decorate(study, paths, report=read_report(study, paths, evidence, {"test": {evil: 1.0}}))
    outside_code = re.sub(r"```text\n.*?\n```", "", get_note(study) + trial_note(study, 0), flags=re.S)
    assert outside_code.count(r"\<img src=x onerror=alert(1)\> \| \*\*b\*\* \[x\](javascript\:alert(1)) \`c\`") >= 5
    assert not re.search(r"(?<!\\)<img|(?<!\\)\*\*b|(?<!\\)\[x|(?<!\\)`c", outside_code)
    assert trial_note(study, 0).count("```") == 2


def test_text_and_tables_in_markdown():
    assert markdown_text("a|b\nc_d") == r"a\|b c\_d"
    assert markdown_text(markdown_text("a|b")) == r"a\|b"  # what is markup already stays
    assert table_head("lr", "a", "b") + "\n" + table_row(1, "2") == "| a\u2003 | b |\n|:--|--:|\n| 1\u2003 | 2 |"


def test_a_note_escapes_what_its_template_does_not_think_of():
    note = _markdown().from_string("{{ name }}|{% for n in names %}{{ n }}{% endfor %}|{{ names | join(', ') }}")
    assert note.render(name="<b>", names=["*a*", "`c`"]) == r"\<b\>|\*a\*\`c\`|\*a\*, \`c\`"


def test_picture_orders_layers_by_how_far_they_are_off():
    drawn = audit_picture(Audit.read(AUDIT))
    assert drawn.index("net.1") < drawn.index("net.5")
    widths = [
        float(w) for w in re.findall(r'<rect x="190" y="\d+" width="([\d.]+)" height="9" rx="2"', drawn) if w != "9"
    ]
    assert widths[1] / widths[0] == pytest.approx(0.2 / 0.7, rel=0.01)
    assert audit_picture(Audit.read({"layers": [{"name": "<x>", "d": 1.0}]})).count("&lt;x&gt;") == 1
    assert audit_picture(Audit.read({"layers": []})) == ""
    assert audit_picture(Audit.read({"layers": [{"name": "a", "d": None}]})) == ""


def test_decorated_study_opens_again(decorated):
    _, place, best = decorated
    again = optuna.load_study(study_name="digits", storage=open_storage("journal", place))
    assert f"trial {best.number}" in get_note(again)
