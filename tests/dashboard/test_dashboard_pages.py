"""The dashboard in a real browser, on a study that the digits demo made: drawn, linked, guarded, harmless."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from decorated_studies import made_trial, serving
from optuna.trial import TrialState

from lightning_hp.report.figures import FEWEST_FOR_LANDSCAPE
from lightning_hp.report.model import read_report
from lightning_hp.report.notes import decorate
from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.description import Description, open_study
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import find_study, open_storage, write_study_pointer

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CONFIGS = Path(__file__).parents[2] / "configs"
EVIL = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> [x](javascript:window.hit=1)'


#: contrast of an element's text with the page, after WCAG 2.1 (relative luminance)
CONTRAST = """element => {
  const luminance = colour => {
    const linear = colour.match(/[\\d.]+/g).slice(0, 3).map(Number)
      .map(c => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const both = [getComputedStyle(element).color, getComputedStyle(document.body).backgroundColor].map(luminance);
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The demo, shortened, beside a study whose texts try to be markup."""
    root = tmp_path_factory.mktemp("demo")
    shutil.copytree(CONFIGS, root / "configs")
    told = ["tune", "configs/digits/tune.yaml", "--trials", "20", "--max_epochs", "4", "--workers", "1"]
    script = f"import sys; from lightning_hp.cli import main; sys.exit(main({told!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=root, timeout=280, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    study, paths = find_study("digits", root / "runs")
    assert decorate(study, paths, force=True)
    _hostile(StudyPaths(root / "runs" / "hostile"))
    return root / "runs"


def _hostile(paths):
    space = SearchSpace.from_dict({"a": {"low": 0.0, "high": 1.0}, "b": {"low": 0.0, "high": 1.0}})
    described = Description(SearchPlan(space=space, n_trials=20), EVIL, "min")
    study = open_study(EVIL, open_storage("journal", paths), described, paths)
    attributes = {"failure": EVIL, "traceback": EVIL, "stage": EVIL, "diverged": False}
    study.add_trials([made_trial(i / 20, i / 20, space=space, user_attrs=attributes) for i in range(20)])
    study.add_trial(made_trial(0.5, state=TrialState.FAIL, space=space, user_attrs=attributes))
    write_study_pointer(paths, EVIL, "journal")
    assert decorate(study, paths, report=read_report(study, paths, {"edges": [EVIL], "disagreements": [EVIL]}))


@pytest.fixture(scope="module")
def base(folder):
    with serving(folder) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(params=["light", "dark"])
def page(request, chromium, base):
    """A page that may ask this server only, and that fails the test on any error in it."""
    with _page(chromium, base, color_scheme=request.param) as (opened, problems):
        yield opened
        assert problems == []


class _page:
    def __init__(self, chromium, base, **options):
        self.context = chromium.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page, self.problems = self.context.new_page(), []
        self.page.set_default_timeout(30_000)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.route(lambda url: not url.startswith((base, "data:", "blob:")), lambda route: route.abort())

    def __enter__(self):
        return self.page, self.problems

    def __exit__(self, *raised):
        self.context.close()


def drawn(page, dom_id, least):
    """Wait until a plot holds data; its axes appear before."""
    page.wait_for_function(
        "([id, least]) => (document.getElementById(id)?.data || []).some(t => (t.x || t.y || []).length >= least)",
        arg=[dom_id, least],
    )


def number_of(page, base, name):
    listed = page.request.get(f"{base}/api/studies").json()["study_summaries"]
    return next(s["study_id"] for s in listed if s["study_name"] == name)


def test_study_page_draws_every_figure_and_shows_the_line(page, base):
    number = number_of(page, base, "digits")
    page.goto(f"{base}/dashboard/studies/{number}")
    drawn(page, "plot-history", 10)
    stored = page.request.get(f"{base}/api/studies/{number}").json()["plotly_graph_objects"]
    names = [one["id"] for one in stored]
    assert names == sorted(names)
    complete = sum(t["state"] == "Complete" for t in page.request.get(f"{base}/api/studies/{number}").json()["trials"])
    assert {"lightning-hp-1-zoom", "lightning-hp-2-history", "lightning-hp-5-audit"} <= set(names)
    assert ("lightning-hp-4-landscape" in names) == (complete >= FEWEST_FOR_LANDSCAPE)
    for name in names:
        drawn(page, f"user-defined-plot:{name}", 1)
        box = page.locator(f"[id='user-defined-plot:{name}']").bounding_box()
        assert (
            page.locator(f"[id='user-defined-plot:{name}'] .main-svg").first.bounding_box()["height"] <= box["height"]
        )
    banner = page.locator("#hp-banner")
    page.wait_for_function("document.querySelector('#hp-banner')?.textContent.includes('; fresh until')")
    assert "best 0." in banner.text_content()
    banner.click()
    page.wait_for_url(f"{base}/hp/")
    assert page.get_by_role("link", name="digits").count() == 1


def test_notes_are_rendered_and_pictures_loaded(page, base):
    number = number_of(page, base, "digits")
    page.goto(f"{base}/dashboard/studies/{number}/note")
    page.get_by_role("heading", name="Stages").wait_for()
    assert page.locator("table").count() >= 3
    page.wait_for_function(f"({CONTRAST})(document.querySelector('td a, p a')) >= 4.5")
    page.locator("a", has_text=re.compile(r"^trial \d+$")).first.click()
    page.wait_for_url(re.compile(rf"/dashboard/studies/{number}/trials\?numbers=\d+$"))
    page.get_by_role("heading", name="BatchNorm audit").wait_for()
    page.wait_for_function("document.querySelector('img[alt=\"BatchNorm audit\"]')?.naturalWidth > 0")


@pytest.mark.parametrize("path", ["", "/analytics", "/trials", "/note"])
def test_hostile_text_is_text_on_every_page(page, base, path):
    number = number_of(page, base, EVIL)
    page.goto(f"{base}/dashboard/studies/{number}{path}")
    page.wait_for_function("document.querySelector('#hp-banner')?.textContent.includes('best 0')")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.hit") is None
    page.goto(f"{base}/hp/")
    assert page.evaluate("window.hit") is None


def test_report_opens_from_the_overview_and_has_no_rights(page, base):
    page.goto(f"{base}/hp/")
    page.locator("a", has_text="report").first.click()
    page.wait_for_url(f"{base}/hp/report/*")
    page.wait_for_function("(document.querySelector('.plot')?.data || []).length > 0")
    assert page.evaluate("window.origin") == "null"
    refused = page.evaluate("fetch('/api/studies').then(a => a.ok, () => 'refused')")
    assert refused == "refused"


@pytest.mark.parametrize("width", [390, 1280])
def test_overview_fits_the_window(chromium, base, width):
    with _page(chromium, base) as (page, problems):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{base}/hp/")
        page.get_by_role("link", name="digits").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert problems == []


def test_read_only_refuses_a_delete_with_a_message(chromium, folder):
    with serving(folder, read_only=True) as port:
        base = f"http://127.0.0.1:{port}"
        with _page(chromium, base) as (page, _):
            page.goto(f"{base}/dashboard")
            page.get_by_text("digits").first.wait_for()
            page.locator("button[aria-label='delete study'], button:has(svg[data-testid='DeleteIcon'])").first.click()
            page.get_by_role("button", name="Yes").click()
            page.get_by_text("Failed to delete study").first.wait_for()
            assert page.locator("#hp-banner").text_content().startswith("read-only")
            assert len(page.request.get(f"{base}/api/studies").json()["study_summaries"]) == 2


def test_password_is_asked_for_by_every_page(chromium, folder):
    with serving(folder, password="open sesame") as port:
        base = f"http://127.0.0.1:{port}"
        with _page(chromium, base) as (page, _):
            for path in ("/dashboard", "/hp/", "/hp/banner.js", "/api/studies", "/static/bundle.js"):
                assert page.request.get(base + path).status == 401
        with _page(chromium, base, http_credentials={"username": "me", "password": "open sesame"}) as (page, problems):
            page.goto(f"{base}/dashboard/studies/{number_of(page, base, 'digits')}")
            drawn(page, "plot-history", 10)
            page.wait_for_function("document.querySelector('#hp-banner')?.textContent.includes('best')")
            assert problems == []
