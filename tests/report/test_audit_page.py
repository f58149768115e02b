"""The page of one audit: text from outside is text, layers of any version are shown, flagged layers come first."""

import json
import re

import pytest

from lightning_hp.report.audit_page import audit_page

MOMENTS = {
    "running_mean": [0.5, 0.0], "population_mean": [0.0, 0.0], "running_var": [1.0, 4.0], "population_var": [1.0, 1.0],
    "eps": 0.0,
}  # fmt: skip


def finding(layer: str, severity: str = "WARN") -> dict:
    return {"severity": severity, "id": "BN06", "layer": layer, "sentence": "off", "fix": "Train longer."}


def figures(page: str) -> dict:
    return json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S)[1])


def test_text_from_outside_is_never_markup():
    evil = "<img src=x onerror=alert(1)>"
    page = audit_page(
        {
            "findings": [dict.fromkeys(("severity", "id", "layer", "sentence", "fix"), evil)],
            "layers": [{"name": evil, "kind": evil, "channels": evil, **MOMENTS}],
            "checkpoint": evil,
            "verdict": evil,
            "shift": [{"layer": evil, "d": 0.1, "lv": 0.2}],
            "history": [{"step": 1, "d": 0.1, "lv": 0.2}, {"step": 2, "d": 0.1, "lv": 0.2}],
        },
        title=evil,
    )
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 12
    assert "None: &lt;img" in audit_page({"verdict": evil})


def test_flagged_layers_are_pictured_first_with_errors_of_each_channel():
    layers = [{"name": name, **MOMENTS} for name in ("a", "b", "c")]
    page = audit_page({"findings": [finding("c"), finding("b", "INFO")], "layers": layers})
    assert list(re.findall(r'<h3 class="gap"><code>(.)</code>', page)) == ["c", "a", "b"]
    means, variances = (figures(page)[f"plot-{i}"]["data"][0]["y"] for i in (1, 2))
    assert means == pytest.approx([0.5, 0.0])
    assert variances == pytest.approx([0.0, 1.3862943611])  # log 4


def test_layers_without_names_or_numbers_are_shown():
    page = audit_page({"layers": [{}, {"name": "net.1", "d": 0.25, "ratio_d": None}]})
    assert "net.1" in page
    assert "0.25" in page
