"""The two ways of building a trial. Both builders offer the same calls.

``build`` makes the objects of one trial, ``check`` refuses before the first trial what cannot be tuned,
``trainer_settings`` gives the Trainer's arguments, which say how long a training is where the study does not, and
``fixed_part`` gives what all trials share.
"""

from __future__ import annotations

from lightning_hp.project.built import Built
from lightning_hp.project.cli_builder import CliBuilder
from lightning_hp.project.python_builder import PythonBuilder

__all__ = ["Built", "CliBuilder", "PythonBuilder"]
