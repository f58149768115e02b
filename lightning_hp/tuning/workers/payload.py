"""What a process is given by the one that starts it: how objects are built, and the study or the trial that it is for.

It comes through the child's standard input, so that nothing of it (a storage's password) is seen in a list of
processes or left in a file. Functions and classes go by their import path where they have one; those of a script, a
notebook or a test go by value (cloudpickle).
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, BinaryIO

import cloudpickle

from lightning_hp.project.build import CliBuilder, PythonBuilder
from lightning_hp.project.yaml_file import ConfigError


def pack(builder: CliBuilder | PythonBuilder, more: Any) -> bytes:
    """A builder, and more that it goes with, as bytes.

    Raises:
        ConfigError: If something of it exists in this process only; names what to pass instead.
    """
    values = [getattr(builder, field.name) for field in fields(builder)]
    for field, value in zip(fields(builder), values, strict=True):
        _pickle(value, "datamodule" if field.name == "data" else field.name)
    return pickle.dumps((_import_path(), _pickle((more, type(builder), values), "study")))


def _pickle(value: object, name: str) -> bytes:
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"`{name}` must be something that worker processes can be given a copy of ({reason}); pass a class or a "
            "function of a module, or use engine='in_process'"
        ) from error


def unpack(stream: BinaryIO) -> tuple[CliBuilder | PythonBuilder, Any]:
    """The inverse of :func:`pack`, in the process that is started."""
    path, study = pickle.loads(stream.read())
    sys.path[:] = [*path, *(place for place in sys.path if place not in path)]
    more, kind, values = pickle.loads(study)
    return kind(*values), more


def _import_path() -> Sequence[str]:
    """Where this process imports from; the first place of a script or of ``python -c`` is where it was started."""
    return [place or "." for place in sys.path]
