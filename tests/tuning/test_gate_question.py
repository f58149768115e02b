"""The stage gate: a person's answer as the dashboard stores it, nobody's answer, and a study left alone."""

import http.client
import json
import re

import optuna
import pytest
from decorated_studies import made_trial, serving
from optuna.trial import TrialState
from optuna_dashboard import get_note

from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace
from lightning_hp.tuning.gate_question import ask, question


class Clock:
    """Time that passes by sleeping only; ``act`` is done at the third sleep."""

    def __init__(self, act=None):
        self.now, self.sleeps, self.act = 0.0, 0, act

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds
        self.sleeps += 1
        if self.act is not None and self.sleeps == 3:
            self.act()


@pytest.fixture
def study():
    made = optuna.create_study(study_name="digits", storage=optuna.storages.InMemoryStorage())
    made.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    return made


def gate_of(study):
    return optuna.load_study(study_name="digits gate", storage=study._storage)


@pytest.mark.parametrize(("value", "answer"), [(0.0, "zoom here"), (1.0, "widen"), (2.0, "stop")])
def test_the_answer_given_in_the_page_is_returned(study, value, answer):
    """The form is sent as the page sends it: values for the objectives, to the trial."""
    with serving(study._storage) as port:

        def submit():
            trial = gate_of(study).trials[-1]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            body = json.dumps({"state": "Complete", "values": [value]})
            connection.request(
                "POST", f"/api/trials/{trial._trial_id}/tell", body, {"Content-Type": "application/json"}
            )
            status = connection.getresponse().status
            connection.close()
            assert status == 200

        clock = Clock(submit)
        assert ask(study, "Stage 2 is done.", 60, sleep=clock.sleep, clock=clock) == answer
    assert clock.sleeps == 3
    assert gate_of(study).user_attrs["answer 0"] == answer


def test_nobody_answers(study):
    clock = Clock()
    assert ask(study, "?", 5, sleep=clock.sleep, clock=clock) is None
    assert clock.now == pytest.approx(5)
    assert [t.state for t in gate_of(study).trials] == [TrialState.FAIL]
    assert gate_of(study).user_attrs["answer 0"] == "nobody answered"


def test_the_tuned_study_is_not_touched_and_questions_add_up(study):
    before = study._storage.get_all_trials(study._study_id)
    for text in ("first", "second"):
        clock = Clock()
        ask(study, text, 1, sleep=clock.sleep, clock=clock)
    assert study._storage.get_all_trials(study._study_id) == before
    gate = gate_of(study)
    assert [get_note(optuna.trial.Trial(gate, t._trial_id)) for t in gate.trials] == ["first", "second"]


def test_a_question_that_was_dismissed_in_the_page_ends_the_wait(study):
    clock = Clock(lambda: gate_of(study).tell(0, state=TrialState.FAIL))
    assert ask(study, "?", 1000, sleep=clock.sleep, clock=clock) is None
    assert clock.sleeps == 3


@pytest.mark.parametrize("choices", [[], ["a"], ["a", "a"]])
def test_choices_are_checked(study, choices):
    with pytest.raises(ValueError, match="`choices` must be at least two different answers"):
        ask(study, "?", 1, choices)


def test_an_open_question_about_the_same_is_taken_up_again(study):
    class Left(Exception):
        pass

    def leave(seconds):
        raise Left("left")

    for about in ("a", "a", "b"):
        with pytest.raises(Left, match="left"):
            ask(study, "?", 60, about=about, sleep=leave)
    gate = gate_of(study)
    assert [t.user_attrs["about"] for t in gate.trials] == ["a", "b"]
    gate.tell(0, 1.0)
    assert ask(study, "?", 60, about="a", sleep=leave) == "widen"


def test_an_answer_in_the_moment_of_closing_counts(study, monkeypatch):
    """The page tells its answer between the last look and the closing."""
    plain = optuna.Study.tell
    clock = Clock()

    def late(gate, number, *values, **options):
        monkeypatch.setattr(optuna.Study, "tell", plain)
        plain(gate, number, 2.0)
        return plain(gate, number, *values, **options)

    monkeypatch.setattr(optuna.Study, "tell", late)
    assert ask(study, "?", 5, sleep=clock.sleep, clock=clock) == "stop"


@pytest.mark.browser
def test_a_person_finds_the_form_answers_and_is_not_told_of_an_error(study, chromium):
    with serving(study._storage) as port:
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        page, problems = context.new_page(), []
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        seen = []

        def person():
            page.goto(f"http://127.0.0.1:{port}/")
            page.locator("#hp-banner", has_text="digits waits for your answer").click()
            page.get_by_role("heading", name="Before stage 2").wait_for()
            page.get_by_label("widen").check()
            page.get_by_role("button", name="Submit").click()
            page.get_by_text("Best Trial").first.wait_for()
            page.locator("#hp-banner", has_text="waits").wait_for(state="detached")
            seen.append(page.locator("body").inner_text())

        clock = Clock(person)
        assert ask(study, "## Before stage 2", 60, sleep=clock.sleep, clock=clock) == "widen"
        assert "Failed" not in seen[0]
        assert problems == []
        page.goto(f"http://127.0.0.1:{port}/hp/")
        assert page.get_by_role("link", name="digits").all_inner_texts() == ["digits"]
        context.close()


def test_a_question_shows_what_each_answer_searches_and_names_are_text():
    evil = "a|<b>*c*"
    space = SearchSpace.from_dict(
        {evil: {"low": 0.0, "high": 1.0, "tier": "A"}, "late": {"choices": ["x|y", "z"], "tier": "B"}}
    )
    sampler = SearchPlan(space=space, n_trials=40).sampler()
    asked = optuna.create_study(study_name="*s* [x]", sampler=sampler)
    asked.add_trials([made_trial(u / 8, abs(u / 8 - 0.5), space=space) for u in range(1, 8)])
    stage = sampler.planned[1]
    note = question(asked, sampler, sampler.planned, stage, "noon")
    assert note.startswith(
        f"## Before stage {stage.name}\n\n7 trials of [\\*s\\* \\[x\\]](/dashboard/studies/0) have ended"
    )
    assert f"[trial 3](/dashboard/studies/0/trials?numbers=3) with **0**. The next {stage.last - stage.first}" in note
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in note.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {5}
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    best, so_far, zoomed, wide = cells[r"a\|\<b\>\*c\*"]
    assert (best, so_far) == ("0.5", "0 – 1")
    low, high = (float(end) for end in zoomed.split(" – "))
    assert 0 <= low < 0.5 < high <= 1
    assert float(wide.split(" – ")[0]) <= low
    assert re.search(r"here\*, around the good trials\n\* \*\*widen\*\*: .*\n\* \*\*stop\*\*", note)
