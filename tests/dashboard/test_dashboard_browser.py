"""The report in a real browser: it draws, follows the dark setting, fits a phone, and asks the network for nothing."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lightning_hp.report.html_report import write_report
from lightning_hp.report.model import read_report
from lightning_hp.search.evidence import evidence

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(finished):
    study, paths = finished
    found = evidence(study.sampler.space, study.trials, "minimize", study.sampler.stages(study))
    return write_report(read_report(study, paths, found, {}, datetime(2026, 11, 21, tzinfo=UTC))).as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_report_draws_everything_without_network(chromium, address, scheme, width):
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems, asked = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        # not wait_for_function: the oldest Playwright evaluates a string there, which the page's policy forbids
        plot.locator(".trace, .contour, .contourlayer path").first.wait_for(state="attached", timeout=30_000)
        assert plot.evaluate("plot => (plot.data || []).some(trace => trace.x.length)")
    assert page.locator(".plot").count() == 11
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background.removeprefix("rgb(").rstrip(")").split(","))
    assert (brightness < 150) == (scheme == "dark")
    ink = page.evaluate("document.querySelector('.plot text').style.fill")
    dim = page.evaluate("getComputedStyle(document.querySelector('.sub')).color")
    assert ink == dim
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert problems == []
    page.close()
