"""Who imports whom, and what an import loads."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_hp

PACKAGE = Path(lightning_hp.__file__).parent
HEAVY = ("torch", "lightning", "optuna", "sklearn", "pandas", "plotly")
#: room -> the rooms, or modules, of ours that it may import
ALLOWED = {
    "space": (),
    "search": ("space",),
    "ledger": (),
    "batchnorm": (),
    "training": ("batchnorm",),
    "callbacks": ("training", "batchnorm", "ledger"),
    "study": ("search", "space", "ledger"),
    "report": ("study", "search", "space", "ledger"),
    "project": ("study", "space"),
    "tuning": ("project", "study", "report", "callbacks", "training", "search", "space", "ledger", "batchnorm"),
    "retests": (
        "tuning",
        "project",
        "study",
        "report",
        "callbacks",
        "training",
        "search",
        "space",
        "ledger",
        "batchnorm",
    ),
    "starting": ("project", "space"),
    "dashboard": ("report", "study"),
    "commands": (
        "starting",
        "retests",
        "project",
        "tuning",
        "dashboard",
        "report",
        "study",
        "callbacks",
        "training",
        "batchnorm",
        "search",
        "space",
        "ledger",
    ),
}
#: room -> packages that it must not import, not even late
FORBIDDEN = {
    "ledger": ("lightning", "optuna"),
    "space": ("torch", "lightning"),
    "search": ("torch", "lightning"),
    "batchnorm": ("lightning", "optuna"),
    "training": ("optuna",),
    "callbacks": ("optuna",),
    "study": ("torch", "lightning"),
    "report": ("torch", "lightning"),
    "dashboard": ("torch", "lightning"),
}
NAMES = [
    "BatchNormClassifier",
    "BatchNormMLP",
    "BatchNormRegressor",
    "CoarseToFineSampler",
    "ConfigError",
    "CurvePruner",
    "DigitsDataModule",
    "PandaBabysitter",
    "Result",
    "SearchSpace",
    "StudyError",
    "TabularDataModule",
    "TrialPruning",
    "TuneConfig",
    "__version__",
    "preset",
    "retune",
    "sample",
    "tune",
    "tune_file",
]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path, module):
    """(imported module, whether it runs when the module loads) for every import but those for type checkers."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node, late):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    base = ".".join([*package.split(".")[: len(package.split(".")) - child.level + 1], base]).rstrip(
                        "."
                    )
                yield base, late
                yield from ((f"{base}.{alias.name}", late) for alias in child.names)
            yield from walk(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


KNOWN = dict(modules())
IMPORTS = {module: list(imports(path, module)) for module, path in KNOWN.items()}


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


@pytest.mark.parametrize("module", [m for m in KNOWN if room(m)])
def test_a_room_imports_only_those_it_may(module):
    own = room(module)
    assert own in ALLOWED, f"the room {own} is not in the plan of the house"
    for imported, _ in IMPORTS[module]:  # late ones, inside functions, count too
        other = room(imported)
        if imported.startswith("lightning_hp.") and other not in ("", own):
            assert other in ALLOWED[own], f"{module} must not import {imported}"


@pytest.mark.parametrize("module", [m for m in KNOWN if room(m) in FORBIDDEN])
def test_a_room_does_not_import_what_its_users_may_not_have(module):
    for imported, _ in IMPORTS[module]:
        assert imported.split(".")[0] not in FORBIDDEN[room(module)], f"{module} must not import {imported}"


@pytest.mark.parametrize("module", ["lightning_hp.ledger.records", "lightning_hp.ledger.dates"])
def test_the_ledger_is_read_with_the_standard_library_only(module):
    for imported, _ in IMPORTS[module]:
        top = imported.split(".")[0]
        assert top == "lightning_hp" or top in sys.stdlib_module_names, f"{module} must not import {imported}"


def test_there_is_no_cycle():
    edges = {m: {i for i, late in found if i in KNOWN and not late and i != m} for m, found in IMPORTS.items()}
    done: set[str] = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for imported in sorted(edges[module]):
                visit(imported, [*path, module])
            done.add(module)

    for module in edges:
        visit(module, [])
    assert len(done) == len(KNOWN)


def test_the_walk_sees_relative_and_late_imports(tmp_path):
    """The test itself: one import of each kind, read back."""
    path = tmp_path / "m.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport a.b\nfrom . import c\nfrom ..x import y\n"
        "if TYPE_CHECKING:\n    import hidden\ndef f():\n    import late\n"
    )
    found = dict(imports(path, "p.q.m"))
    assert found["a.b"] is False
    assert found["p.q.c"] is False
    assert found["p.x.y"] is False
    assert found["late"] is True
    assert "hidden" not in found


def test_every_file_stays_short_and_says_what_it_decides():
    for module, path in KNOWN.items():
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
        assert len(text.splitlines()) < 400, f"{path} is doing two things"


# --- the public names ---


def test_the_public_names_are_these():
    assert sorted(lightning_hp.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(lightning_hp))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_there(name):
    found = getattr(lightning_hp, name)
    if name != "__version__":
        assert found.__name__ == name
        assert getattr(importlib.import_module(found.__module__), name) is found


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'lightning_hp' has no attribute 'tuen'"):
        lightning_hp.tuen  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert lightning_hp.__version__ == version("lightning-hp")


# --- what an import loads ---


def loaded_by(code):
    """The heavy packages, and the time in seconds, that some code costs in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return done.stderr.split(), done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import lightning_hp; dir(lightning_hp)",
        "import lightning_hp.cli",
        "import lightning_hp.ledger.records, lightning_hp.ledger.dates",
        "from lightning_hp import sample; sample(1e-4, 1, 10)",
    ],
)
def test_what_must_be_quick_loads_nothing_heavy(code):
    assert loaded_by(code)[0] == []


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["tune", "--help"], ["fit", "--help"], ["sample", "--low", "1e-4", "--high", "1", "-n", "5"]],
)
def test_help_loads_nothing_heavy(arguments):
    run = f"from lightning_hp.cli import main\ntry:\n    main({arguments!r})"
    heavy, said = loaded_by(f"{run}\nexcept SystemExit as stop:\n    assert not stop.code")
    assert heavy == []
    assert said


def test_the_search_half_loads_neither_torch_nor_lightning():
    heavy, _ = loaded_by(
        "from lightning_hp import CoarseToFineSampler, SearchSpace; CoarseToFineSampler({'x': {'low': 0.1, 'high': 1}})"
    )
    assert set(heavy) & {"torch", "lightning"} == set()
    assert "optuna" in heavy


def test_best_and_report_do_not_load_lightning():
    heavy, _ = loaded_by("import lightning_hp.study.storage, lightning_hp.study.trials, lightning_hp.report.text")
    assert set(heavy) & {"torch", "lightning"} == set()
