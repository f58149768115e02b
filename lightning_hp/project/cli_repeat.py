"""Trials of a LightningCLI project: parsed once, then made from what was parsed.

Nine tenths of building a trial from a LightningCLI file go into setting the parser up and reading the files again.
Where trials differ in plain values only, the configuration of the next one is that of the first with these replaced.
That this is so is shown before it is used: the first trial in which a key has another value is parsed as ever, and
both ways must give the same; else all are parsed. So are those of a project with a command of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_hp.project import key_paths
from lightning_hp.project.built import Built
from lightning_hp.project.cli_builder import CliBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.project_cli import Call
from lightning_hp.project.quiet import quiet_lightning


class RepeatingBuilder:
    """Builds trials of one project, one after the other, as :meth:`.CliBuilder.build` does.

    Args:
        builder: Of the project.
    """

    def __init__(self, builder: CliBuilder) -> None:
        self._builder = builder
        self._first: tuple[Call, dict[str, Any]] | None = None
        # a command of the project's own may do more for a trial than its configuration says
        self._may_repeat = builder.cli is None
        self._shown: set[str] = set()

    def build(
        self,
        arguments: Mapping[str, Any],
        folder: Path,
        seed: int,
        callbacks: Sequence[pl.Callback],
        length: TrainingLength,
    ) -> Built:
        """Make the objects of one trial; see :meth:`.CliBuilder.build`."""
        values = self._builder.values_of(arguments, folder, seed, length)
        if self._first is None:
            call = self._builder.called(values, folder, callbacks)
            self._may_repeat &= not call.config.get("ckpt_path")
            self._first = _without_objects(call), values
            return _built(call)
        first, before = self._first
        changed = {key for key, value in values.items() if key not in before or not _is_equal(value, before[key])}
        replaced = self._replaced(values, changed) if self._may_repeat else None
        if replaced is not None and changed <= self._shown:
            apart = self._builder.keeping_apart(folder, callbacks)
            with quiet_lightning():
                return _built(self._builder.project.again(first, *replaced, apart))
        call = self._builder.called(values, folder, callbacks)
        if replaced is not None:
            self._may_repeat = replaced == (call.config, vars(call.cli).get("config_dump"))
            self._shown |= changed
        return _built(call)

    def _replaced(self, values: Mapping[str, Any], changed: Iterable[str]) -> tuple[Any, Any] | None:
        """Configuration and dump of the first trial with other values; None where more than numbers differ."""
        assert self._first is not None
        call, before = self._first
        if values.keys() != before.keys() or "config_dump" not in vars(call.cli):
            return None
        config, dump = call.config.clone(), copy.deepcopy(call.cli.config_dump)
        for key in changed:
            place, value = key_paths.find(dump, key), values[key]
            if place is None or not _is_plain(value) or not _is_plain(key_paths.value_at(dump, place)):
                return None
            for whole in (config, dump):
                key_paths.set_at(whole, place, value)
        return config, dump


def _built(call: Call) -> Built:
    return Built(call.cli.model, call.cli.datamodule, call.cli.trainer, call.train)


def _without_objects(call: Call) -> Call:
    """The call, to be repeated; what it has made goes into a copy of its LightningCLI, which takes its place."""
    cli = call.cli
    call.cli = copy.copy(cli)
    for name in ("config_init", "model", "datamodule", "trainer"):
        vars(cli).pop(name, None)
    return Call(cli)


def _is_equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)
