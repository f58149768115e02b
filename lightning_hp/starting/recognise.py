"""Which values of a project are hyperparameters that are known, with tier, scale and a range around the project's own.

A guess must be right: a value is taken only where its name is known (:mod:`lightning_hp.space.known`), the value is
one that such a hyperparameter can have, and nothing that was seen of the project speaks against it. What an optimizer
was seen to have (:mod:`.evidence`) needs no known name. All else is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_hp.project.build import CliBuilder
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.space.known import KNOWN, canonical
from lightning_hp.space.parameters import Choice
from lightning_hp.space.space import SearchSpace
from lightning_hp.starting.candidates import Candidate
from lightning_hp.starting.evidence import Evidence, build, changes_optimizer
from lightning_hp.starting.trial_run import ONE_BATCH, ShortRun, run_shortly

#: what only an optimizer has
_OF_OPTIMIZERS = ("learning_rate", "momentum", "beta1", "beta2", "epsilon", "weight_decay")
#: what decides the shapes of weights
_OF_SHAPES = ("hidden_units", "num_layers")
#: a mini-batch of a choice is at most this part of the training rows
_LARGEST_BATCH = 0.5
#: words in the names of arguments that a width has to be a multiple of
_DIVIDERS = ("head", "group")


@dataclass(frozen=True)
class Chosen:
    """A value that is searched.

    Attributes:
        candidate: The value.
        name: What it is known as.
        fields: Tier, scale and range, as an entry of a space.
    """

    candidate: Candidate
    name: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Left:
    """A value that is not searched.

    Attributes:
        candidate: The value.
        why: The reason, empty where the name is simply not known.
    """

    candidate: Candidate
    why: str = ""


def recognise(
    builder: CliBuilder, candidates: Sequence[Candidate], evidence: Evidence, shown: ShortRun | None
) -> tuple[list[Chosen], list[Left]]:
    """Sort the values of a project into those that are searched and those that are not.

    Args:
        builder: Of the project.
        candidates: Its values.
        evidence: What its optimizers and dropout layers hold.
        shown: What a training on one batch showed; None where nothing is to be trained.
    """
    chosen: list[Chosen] = []
    left: list[Left] = []
    for candidate in candidates:
        name = evidence.names.get(candidate.key) or canonical(candidate.key)
        if name not in KNOWN:
            left.append(Left(candidate))
            continue
        why = _implausible(name, candidate, candidates, evidence)
        fields = {} if why else _fields(name, candidate, shown)
        why = why or _refused(builder, candidate, name, fields, evidence, shown)
        if why:
            left.append(Left(candidate, why))
        else:
            chosen.append(Chosen(candidate, name, fields))
    return chosen, left


def _implausible(name: str, candidate: Candidate, candidates: Sequence[Candidate], evidence: Evidence) -> str:
    """Why a value can be no hyperparameter of this name, empty where it can."""
    value = candidate.value
    if value is None:
        return "no value to start from"
    if not candidate.is_number:
        return f"the name says {_words(name)}, the value is no number"
    if not _POSSIBLE[name](value):
        return f"the name says {_words(name)}, {value!r} is an unusual one"
    beside = [c for c in candidates if c.block == candidate.block and c.key != candidate.key]
    if name in ("learning_rate_decay", "batch_growth"):
        return "its meaning differs from project to project"
    beside_names = {canonical(c.key) for c in beside}
    if name in _OF_OPTIMIZERS[1:] and not evidence.readable and "learning_rate" not in beside_names:
        return "no learning rate stands beside it, so it may be no optimizer's"
    if name == "hidden_units" and any(word in c.name for c in beside for word in _DIVIDERS):
        return "it may have to be a multiple of another value"
    if name == "hidden_units" and any("height" in c.name for c in beside):
        return "it may be the width of an image"
    of_data = [canonical(c.key) for c in candidates if c.key.startswith("data.")]
    if name == "batch_size" and not candidate.key.startswith("data.") and "batch_size" in of_data:
        return "the data have a batch size too"
    return ""


def _fields(name: str, candidate: Candidate, shown: ShortRun | None) -> dict[str, Any]:
    name_facts = KNOWN[name]
    fields = name_facts.range_for(candidate.value)
    fields.pop("default", None)  # it is the project's own
    if name == "batch_size" and shown is not None and shown.batches is not None:
        largest = max(shown.batches * candidate.value * _LARGEST_BATCH, candidate.value)
        fields["choices"] = [size for size in fields["choices"] if size <= largest]
    if "choices" not in fields:
        kind = "int" if isinstance(candidate.value, int) else "float"
        fields["scale"] = name_facts.scale_for(kind, fields["low"], fields["high"])
    return {**fields, "tier": name_facts.tier}


def _refused(
    builder: CliBuilder,
    candidate: Candidate,
    name: str,
    fields: Mapping[str, Any],
    evidence: Evidence,
    shown: ShortRun | None,
) -> str:
    """Why the project does not take such values, empty where it does."""
    if len(fields.get("choices", (0, 0))) < 2:
        return "there are too few rows for another one"
    space = SearchSpace.from_dict({candidate.key: dict(fields)}, defaults={candidate.key: candidate.value})
    try:
        builder.check(space)
    except ConfigError as error:
        return str(error)
    seen = candidate.key in evidence.names or not evidence.readable
    if name in _OF_OPTIMIZERS and not seen and not changes_optimizer(builder, candidate):
        return "no setting of an optimizer follows it"
    (parameter,) = space.parameters
    ends = parameter.choices if isinstance(parameter, Choice) else (parameter.low, parameter.high)
    for end in (min(ends), max(ends)):
        try:
            if name not in _OF_SHAPES or shown is None:
                build(builder, {candidate.key: end})
                continue
            shapes = run_shortly(builder, {**ONE_BATCH, candidate.key: end}).shapes
            if shapes == shown.shapes and end != candidate.value:
                return "no weight of the model changes its shape with it"
        except Exception as error:
            return f"{end!r} fails: {_reason(error)}"
    return ""


def _reason(error: Exception) -> str:
    """What a class said, without what a parser that tried several types puts around it."""
    tried = [line.strip(" -") for line in str(error).partition("Errors:\n")[2].splitlines()]
    reasons = [line for line in tried if not line.startswith("Expected a <class 'NoneType'>")]  # in any order
    return " ".join((reasons[0] if reasons else str(error)).strip(" -").split())[:120]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _is_count(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and value >= least


#: what a hyperparameter of a name may be
_POSSIBLE: Mapping[str, Callable[[Any], bool]] = {
    "learning_rate": lambda value: 0 < value <= 10,
    "momentum": lambda value: value == 0 or 0.5 <= value <= 0.995,
    "beta1": lambda value: 0 <= value < 1,
    "beta2": lambda value: 0.5 <= value < 1,
    "epsilon": lambda value: 0 < value <= 0.1,
    "weight_decay": lambda value: 0 <= value <= 1,
    "dropout": lambda value: 0 <= value < 1,
    "hidden_units": _is_count(4),
    "num_layers": _is_count(1),
    "batch_size": _is_count(1),
    "learning_rate_decay": lambda value: True,
    "batch_growth": lambda value: True,
}
