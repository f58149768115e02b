"""What a worker needs to join a study with nothing but its storage: the content of ``tune.yaml`` and of what it names.

It is kept as an attribute of the study that the dashboard does not show. Storage, its password and the folder are no
part of it: these are each worker's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from lightning_hp.study.paths import write_text
from lightning_hp.study.storage_error import StudyError
from lightning_hp.study.upstream import storage_of, study_number, system_attributes

_KEY = "lightning_hp:recipe"
#: keys of ``tune.yaml`` that are each worker's own, or that are already in the study's description
_OWN = ("storage", "folder", "start")


@dataclass(frozen=True)
class Recipe:
    """How a study is run.

    Attributes:
        mapping: The mapping of ``tune.yaml``, options of the command included; empty for a study of Python classes.
        base: Folder that its ``config`` is relative to, as seen from where the command ran.
        files: Each file of ``config``, as it is named, to its text.
    """

    mapping: Mapping[str, Any]
    base: str = "."
    files: Mapping[str, str] | None = None

    @classmethod
    def of(cls, mapping: Mapping[str, Any], base: Path) -> Recipe:
        """The recipe of a ``tune.yaml``, with the texts of its LightningCLI files."""
        own = {key: value for key, value in mapping.items() if key not in _OWN}
        own = json.loads(json.dumps(own, default=str))  # YAML has dates
        texts = {name: (base / name).read_text(encoding="utf-8") for name in _names(mapping)}
        return cls(own, str(base), texts)

    def unpack(self, folder: Path) -> Path:
        """The base for this worker: where the project's files are, if they are here; else ``folder``, written there."""
        for base in (Path(self.base), Path()):
            if all((base / name).is_file() for name in self.files or {}):
                return base
        for name, text in (self.files or {}).items():
            write_text(folder / name.replace("..", "_").lstrip("/"), text)
        return folder


def _names(mapping: Mapping[str, Any]) -> Sequence[str]:
    names = mapping.get("config") or []
    return [names] if isinstance(names, str) else names


def write_recipe(study: optuna.Study, recipe: Recipe) -> None:
    """Keep a recipe with a study, if it is another one than before."""
    if system_attributes(study).get(_KEY) != (stored := asdict(recipe)):
        storage_of(study).set_study_system_attr(study_number(study), _KEY, stored)


def read_recipe(study: optuna.Study) -> Recipe:
    """The recipe of a study.

    Raises:
        StudyError: If it has none that another process can follow; says what to do instead.
    """
    stored: dict[str, Any] | None = system_attributes(study).get(_KEY)
    if stored is None:
        raise StudyError(
            f"study {study.study_name!r} was begun before workers could join it: give its `tune` command once more"
        )
    recipe = Recipe(**stored)
    if not recipe.mapping:
        raise StudyError(
            f"study {study.study_name!r} is tuned by a Python script, whose classes only that script knows: run the "
            "same script here, with the same `name`, `folder` and `storage`, and it joins the study"
        )
    return recipe
