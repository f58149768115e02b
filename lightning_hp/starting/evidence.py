"""What a project does with its values, seen from outside: which of them its optimizers and dropout layers have.

All numbers of the model and the optimizer are changed a little, each by a part of its own, and the project is trained
on one batch. A setting of an optimizer that then has exactly the changed value of a key is that key's: ``b1`` is Adam's
beta1 and ``lr_generator`` a learning rate, whatever they are called.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_hp.project.build import CliBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.quiet import suppress_repeated_warnings
from lightning_hp.starting.candidates import Candidate
from lightning_hp.starting.trial_run import ONE_BATCH, run_shortly

#: a value is changed by so large a part of itself, the next one by twice as much
_PART = 1e-4


@dataclass(frozen=True)
class Evidence:
    """What was seen.

    Attributes:
        names: Key -> what an optimizer or a dropout layer has it as.
        readable: Whether optimizers were looked at; if not, the absence of a key says nothing.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    readable: bool = False


def look(builder: CliBuilder, candidates: Sequence[Candidate]) -> Evidence:
    """Train on one batch with all numbers changed a little, and see where they are.

    Args:
        builder: Of the project.
        candidates: Its values.
    """
    numbers = [c for c in candidates if isinstance(c.value, float) and not c.key.startswith("data.")]
    changed = {c.key: _changed(c.value, place) for place, c in enumerate(numbers, 1)}
    try:
        settings = run_shortly(builder, {**ONE_BATCH, **changed}).settings
    except Exception:  # the project checks its values in a way of its own; names are what is left
        return Evidence()
    names: dict[str, str] = {}
    for key, value in changed.items():
        matches = {name for name, held in settings if math.isclose(held, value, rel_tol=1e-9)}
        if len(matches) == 1:
            names[key] = matches.pop()
    return Evidence(names, any(name != "dropout" for name, _ in settings))


def changes_optimizer(builder: CliBuilder, candidate: Candidate) -> bool:
    """Whether some setting of some optimizer follows a value.

    Args:
        builder: Of the project.
        candidate: Its value, a number.
    """
    changed = {candidate.key: _changed(float(candidate.value), 1)}
    return run_shortly(builder, {**ONE_BATCH, **changed}).settings != run_shortly(builder, ONE_BATCH).settings


def build(builder: CliBuilder, values: Mapping[str, Any]) -> None:
    """Make the objects of the project with some values replaced; nothing is trained, and no folder is left."""
    with tempfile.TemporaryDirectory() as folder, suppress_repeated_warnings():
        quiet = {"trainer.logger": False, **values}
        builder.build(quiet, Path(folder), 0, length=TrainingLength(max_epochs=1)).close()


def _changed(value: float, place: int) -> float:
    return value * (1 - _PART * place) if value else _PART * place
