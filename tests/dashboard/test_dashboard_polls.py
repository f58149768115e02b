"""Open pages in a real browser: they follow a study, draw nothing twice, and rest while nobody looks."""

import optuna
import pytest
from decorated_studies import made_trial, serving

pytestmark = pytest.mark.browser


@pytest.fixture
def study():
    made = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    made.add_trials([made_trial(i / 8, float(i)) for i in range(8)])
    return made


@pytest.fixture
def opened(chromium, study):
    """A page on the study, with what it asked for and its errors."""
    with serving(study._storage) as port:
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        page, asked, problems = context.new_page(), [], []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("response", lambda r: "?after=" in r.url and asked.append((r.status, r.url.rpartition("after=")[2])))
        page.goto(f"http://127.0.0.1:{port}/dashboard/studies/{study._study_id}")
        points(page, 8)
        yield page, asked, problems
        assert problems == []
        context.close()


def points(page, number):
    page.wait_for_function(
        "n => (document.getElementById('plot-history')?.data || []).some(t => (t.x || []).length === n)",
        arg=number,
        timeout=30_000,
    )


def later(page, milliseconds):
    """Have the page believe that it is later."""
    page.evaluate(
        "ms => { performance.now = (plain => () => plain() + ms)(performance.now.bind(performance)); }", milliseconds
    )


def poll(page, after=8):
    """What the page does every few seconds; gives what came of it."""
    return page.evaluate(
        """async after => {
            try { return (await (await fetch(`/api/studies/0?after=${after}`)).json()).trials.length; }
            catch (error) { return error.name; }
        }""",
        arg=after,
    )


def settle(page):
    """Let the page end its work, and the time pass in which it rests from it."""
    page.evaluate("() => { performance.now = (plain => () => plain() + 100000)(performance.now.bind(performance)); }")
    # the driver's own calls count as a person's
    page.evaluate("() => Object.defineProperty(navigator, 'userActivation', {get: () => ({isActive: window.person})})")


def test_what_is_drawn_is_not_drawn_again_and_what_is_new_is(opened, study):
    page, asked, _ = opened
    settle(page)
    before = len(asked)
    assert poll(page) == "AbortError"
    assert asked[before:] == [(304, "8")]
    study.add_trial(made_trial(0.9, -1.0))
    assert poll(page) == 1
    assert asked[-1] == (200, "8")


def test_after_drawing_it_rests_unless_a_person_is_at_work(opened, study):
    page, asked, _ = opened
    settle(page)
    study.add_trial(made_trial(0.9, -1.0))
    assert poll(page) == 1
    page.evaluate(  # it draws, and the browser tells of it a little later
        """() => new Promise(done => setTimeout(() => {
            for (const end = Date.now() + 300; Date.now() < end;);
            setTimeout(done, 300);
        }))"""
    )
    study.add_trial(made_trial(0.8, -2.0))
    before = len(asked)
    assert poll(page) == "AbortError"
    assert asked[before:] == []
    later(page, 9_500)  # it asks every ten seconds: a small study is followed within 15
    assert poll(page) == 2


def test_a_page_of_a_big_study_rests_longer_unless_a_person_is_at_work(opened, study):
    page, asked, _ = opened
    settle(page)
    study.add_trial(made_trial(0.9, -1.0))
    assert poll(page) == 1
    page.evaluate(
        """() => new Promise(done => setTimeout(() => {
            for (const end = Date.now() + 300; Date.now() < end;);
            setTimeout(done, 300);
        }))"""
    )
    study.add_trial(made_trial(0.8, -2.0))
    later(page, 9_500)
    before = len(asked)
    assert poll(page, after=500) == "AbortError"
    assert asked[before:] == []
    page.evaluate("() => { window.person = true; }")
    assert poll(page, after=500) == 0


def test_a_page_that_nobody_sees_asks_for_nothing(opened, study):
    page, asked, _ = opened
    settle(page)
    page.evaluate("() => Object.defineProperty(document, 'hidden', {get: () => true, configurable: true})")
    study.add_trial(made_trial(0.9, -1.0))
    before = len(asked)
    assert poll(page) == "AbortError"
    assert asked[before:] == []
    page.evaluate("() => Object.defineProperty(document, 'hidden', {get: () => false})")
    assert poll(page) == 1


def test_the_page_itself_follows_the_study(opened, study):
    page, asked, _ = opened
    page.goto(page.url + "/trials")  # where it asks every two seconds
    page.get_by_text("Trial 7").first.wait_for()
    study.add_trial(made_trial(0.9, -1.0))
    page.get_by_text("Trial 8").first.wait_for()
    assert asked[-1] == (200, "8")
