"""What is public: names, their arguments, and what their docstrings say of them."""

import inspect
import re

import lightning.pytorch as pl
import pytest

import lightning_hp
from lightning_hp import callbacks, search

#: names beside those of ``lightning_hp`` itself, which tests/test_imports.py pins
CALLBACKS = [
    "BatchNormAuditError",
    "BatchNormAuditor",
    "BatchNormWarning",
    "PandaBabysitter",
    "ReplayPolicy",
    "StalenessTracker",
    "TrialPruning",
]
SEARCH = [
    "PRESETS",
    "Choice",
    "CoarseToFineSampler",
    "CurvePruner",
    "Float",
    "Int",
    "SearchPlan",
    "SearchSpace",
    "StopWhenConverged",
    "preset",
    "sample",
    "space_of_study",
]
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (lightning_hp, callbacks, search)
    for name in module.__all__
    if name not in ("__version__", "PRESETS")
}


def test_the_public_names_are_these():
    assert sorted(callbacks.__all__) == sorted(CALLBACKS)
    assert sorted(search.__all__) == sorted(SEARCH)


def sections(doc):
    """The parts of a Google docstring: heading to text."""
    parts = re.split(r"^(Args|Attributes|Returns|Raises|Yields):\n", inspect.cleandoc(doc), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def docs_of(value):
    """The docstrings of an object: a class may describe its arguments in `__init__`."""
    own = vars(value).get("__init__") if inspect.isclass(value) else None
    return [doc for doc in (value.__doc__, getattr(own, "__doc__", "")) if doc]


def described(text):
    return set(re.findall(r"^ {4}\*{0,2}(\w+): \S", text, flags=re.MULTILINE))


def callables():
    for path, value in PUBLIC.items():
        yield path, value
        if inspect.isclass(value):
            for name, member in vars(value).items():
                member = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                hook = hasattr(pl.Callback, name) or hasattr(pl.LightningModule, name)  # Lightning describes those
                if not name.startswith("_") and inspect.isfunction(member) and not hook:
                    yield f"{path}.{name}", member


ALL = dict(callables())


@pytest.mark.parametrize("path", ALL)
def test_every_public_object_has_a_docstring(path):
    assert (ALL[path].__doc__ or "").strip(), path


@pytest.mark.parametrize("path", PUBLIC)
def test_every_argument_of_a_public_object_is_described(path):
    value = PUBLIC[path]
    if isinstance(value, type) and issubclass(value, Exception | Warning):
        return
    parts = sections("\n".join(inspect.cleandoc(doc) for doc in docs_of(value)))
    told = described(parts.get("Args", "")) | described(parts.get("Attributes", ""))
    parameters = inspect.signature(value).parameters.values()
    assert {p.name for p in parameters if p.name != "self"} <= told, path


@pytest.mark.parametrize("path", PUBLIC)
def test_what_raises_says_so(path):
    """A public function or constructor whose own body raises has a `Raises:` section."""
    value = PUBLIC[path]
    bodies = [value] if inspect.isfunction(value) else [vars(value).get(name) for name in ("__init__", "__post_init__")]
    source = "".join(inspect.getsource(body) for body in bodies if inspect.isfunction(body) and not _made(body))
    if re.search(r"^ +raise \w+Error", source, flags=re.MULTILINE):
        assert "Raises" in sections("\n".join(inspect.cleandoc(doc) for doc in docs_of(value))), path


def _made(function):
    """Whether a dataclass made it: it has no source."""
    return function.__code__.co_filename.startswith("<")
