"""What pyproject.toml, the constraints and the papers around them say of one another."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"])]


def pinned(file: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {name.lower(): Version(version) for name, version in pairs}


@pytest.mark.parametrize("requirement", NEEDED, ids=lambda requirement: requirement.name)
def test_the_lowest_constraints_are_the_lower_bounds(requirement: Requirement) -> None:
    bounds = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
    assert bounds == [pinned("constraints-lowest.txt")[requirement.name.lower()]]


@pytest.mark.parametrize("requirement", NEEDED, ids=lambda requirement: requirement.name)
def test_the_exact_versions_are_allowed(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pinned("constraints.txt")[requirement.name.lower()])


def test_the_citation_has_the_version_and_date_of_the_last_release() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## 0"))
    assert released == f"## {citation['version']} - {citation['date-released']}"
    assert citation["version"] == PROJECT["version"]


def test_the_workflow_runs_what_a_contributor_runs() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert commands == {"bash .ci/run", "LOWEST=1 bash .ci/run"}
