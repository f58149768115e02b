"""The documentation as a whole: pictures are what their script draws, pages are reachable, keys are explained."""

import re
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from lightning_hp.space.known import _ALIASES, KNOWN, canonical

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MAKE = DOCS / "make"
PICTURES = runpy.run_path(str(MAKE / "pictures.py"))["PICTURES"]
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def navigation(entry):
    if isinstance(entry, str):
        return [entry]
    return [page for inner in (entry if isinstance(entry, list) else entry.values()) for page in navigation(inner)]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_the_one_that_its_script_draws(name):
    drawn = PICTURES[name]()
    assert (DOCS / "images" / name).read_text() == drawn, "python docs/make/pictures.py"
    ElementTree.fromstring(drawn)


def test_rows_of_the_scales_picture_are_even_on_the_axis_that_matters_only_with_the_right_scale():
    """Bar heights, read back from the picture: even where the scale is right, and not where it is not."""
    rows = re.findall(r'<rect class="bar"[^>]*y="[\d.]+"[^>]*height="([\d.]+)"', PICTURES["scales.svg"]())
    heights = [[float(h) for h in rows[i : i + 24]] for i in range(0, 96, 24)]
    lowest = [min(row) / max(row) for row in heights]
    assert [low > 0.7 for low in lowest] == [False, True, False, True]


def test_every_page_is_in_the_navigation_or_made():
    made = {"benchmarks.md", "examples.md", "changes.md", "performance.md"}
    made |= {"reference/commands.md", "reference/configuration.md"}
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(navigation(nav)) == sorted({*PAGES, *made})


def test_every_picture_is_told_in_words():
    for page in PAGES:
        text = (DOCS / page).read_text()
        for image in re.finditer(r"!\[([^\]]*)\]\(([^)]*)\)", text):
            after = text[image.end() :].strip()
            assert image[1], f"{page}: {image[2]} has no text in its place"
            told = len(after) > 60 and not after.startswith("#")
            assert told, f"{page}: nothing is told after {image[2]}"


def test_the_audit_page_says_of_every_rule_what_it_finds_and_how_to_mend_it():
    from lightning_hp.batchnorm.rules import RULES

    rows = [line for line in (DOCS / "audit.md").read_text().splitlines() if re.match(r"\| (BN|DR)\d\d", line)]
    ids = [rule for line in rows for rule in re.findall(r"\b(?:BN|DR)\d\d\b", line.split("|")[1])]
    assert {rule for names, _ in RULES for rule in names} <= {*ids}
    assert all(ids.count(rule) == 2 for rule in ids), "one row finds, one mends"


def test_the_drawn_pictures_stand_on_a_ground_of_their_own():
    """A page can be switched to dark where the reader's setting is light: text must not rest on the page's colour."""
    for draw in PICTURES.values():
        drawn = draw()
        width, height = re.search(r'viewBox="0 0 (\d+) (\d+)"', drawn).groups()
        assert drawn.index(f'<rect class="paper" width="{width}" height="{height}"/>') < drawn.index("<text")
        assert drawn.count(".paper { fill: ") == 2


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(str(MAKE))
    monkeypatch.delitem(sys.modules, "reference", raising=False)
    return runpy.run_path(str(MAKE / "reference.py"))


def test_the_reference_has_every_key_and_the_page_explains_it(reference):
    made = reference["configuration_page"]()
    page = (DOCS / "tune_yaml.md").read_text()
    for key in reference["FIELDS"]:
        assert f"| `{key}` |" in made
        assert f"`{key.split('.')[0]}" in page, f"docs/tune_yaml.md says nothing of {key}"
    assert "| `keep_checkpoints` | How many of the best trials keep their checkpoints. | `3` |" in made


def test_the_reference_and_the_page_name_the_same_default(reference):
    """Of keys that have a row of their own on the page; the first word decides, ``0.0`` is ``0``."""
    pages = (reference["configuration_page"](), (DOCS / "tune_yaml.md").read_text())
    made, page = (
        {key: cell.strip() for key, cell in re.findall(r"^\| `([\w.]+)` \| .* \|([^|]*)\|$", text, re.MULTILINE)}
        for text in pages
    )
    for key in {*made} & {*page}:
        words = [
            re.split(r"[;,( ]", text.replace("`", ""), maxsplit=1)[0].removesuffix(".0")
            for text in (made[key], page[key])
        ]
        assert words[0] == words[1] or "none" in made[key], (
            f"{key}: {made[key]} in the reference, {page[key]} on the page"
        )
    assert len({*made} & {*page}) > 20


def test_the_reference_has_every_command_and_option(reference):
    from lightning_hp.cli import _VERBS

    made = reference["commands_page"]()
    for verb in [*_VERBS, "fit", "babysit"]:
        assert f"\n## {verb}\n" in made
    assert "--accept-changes" in made
    assert "--monitor_mode" in made, "babysit has a parser of its own"


def test_the_python_page_has_every_public_name():
    import lightning_hp
    from lightning_hp import callbacks, search

    page = (DOCS / "reference/python.md").read_text()
    named = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    public = {*lightning_hp.__all__, *search.__all__, *callbacks.__all__} - {"__version__", "PRESETS"}
    assert public == named


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_serves_machines_too(tmp_path, caplog, monkeypatch):
    build = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is not installed")
    config = pytest.importorskip("mkdocs.config")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    loaded = config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    build.build(loaded)  # strict: it raises where there is a warning
    site = tmp_path / "site"
    listed = re.findall(r"\]\(([^)]*)\)", (site / "llms.txt").read_text())
    assert {*PAGES} <= {*listed}
    for page in listed:
        assert (site / page).stat().st_size > 100
    assert "learning rate, linear" in (site / "images/scales.svg").read_text()
    python = (site / "reference/python.md").read_text()
    assert ":::" not in python
    assert "```python\ntune(module: " in python
    assert "#### from_dict" in python
    for text in (python, (site / "reference/python/index.html").read_text()):
        assert not re.search(r":(class|func|meth):[`<]", text), "roles of Sphinx are no words"


def test_every_well_known_name_is_in_the_table_and_no_other():
    section = (DOCS / "tune_yaml.md").read_text().partition("The known names are:")[2].partition("Learning rate,")[0]
    names = set(re.findall(r"`([^`]+)`", section))
    assert names >= {*KNOWN, *_ALIASES}
    for row in re.findall(r"^\| (?!what|-)[^|]+\| (.+) \|$", section, re.MULTILINE):
        for half in row.split("; "):
            meant = {canonical(name) for name in re.findall(r"`([^`]+)`", half)}
            assert len(meant) == 1, half
            assert meant <= {*KNOWN}, half
