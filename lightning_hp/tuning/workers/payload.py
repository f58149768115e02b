"""What a worker process is given by the process that starts it: the study's configuration and its builder.

It comes through the child's standard input, so that nothing of it (a storage's password) is seen in a list of
processes or left in a file. Functions and classes go by their import path where they have one; those of a script, a
notebook or a test go by value (cloudpickle).
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import BinaryIO

import cloudpickle

from lightning_hp.tuning.build import CliBuilder, PythonBuilder
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.yaml_file import ConfigError


def packed(config: TuneConfig, builder: CliBuilder | PythonBuilder) -> bytes:
    """A study as bytes.

    Raises:
        ConfigError: If something of it exists in this process only; names what to pass instead.
    """
    values = [getattr(builder, field.name) for field in fields(builder)]
    for field, value in zip(fields(builder), values, strict=True):
        _pickle(value, "datamodule" if field.name == "data" else field.name)
    study = _pickle((config, type(builder), values), "study")
    return pickle.dumps((_import_path(), study))


def _pickle(value: object, name: str) -> bytes:
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"`{name}` must be something that worker processes can be given a copy of ({reason}); pass a class or a "
            "function of a module, or use engine='in_process'"
        ) from error


def unpacked(stream: BinaryIO) -> tuple[TuneConfig, CliBuilder | PythonBuilder]:
    """The inverse of :func:`packed`, in the process that is started."""
    path, study = pickle.loads(stream.read())
    sys.path[:] = [*path, *(place for place in sys.path if place not in path)]
    config, kind, values = pickle.loads(study)
    return config, kind(*values)


def _import_path() -> Sequence[str]:
    """Where this process imports from; the first place of a script or of ``python -c`` is where it was started."""
    return [place or "." for place in sys.path]
