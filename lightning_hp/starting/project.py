"""Which project is meant: its files, its command, its name; for a project without LightningCLI, a file for it."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_hp.project.build import CliBuilder
from lightning_hp.project.project_cli import import_path
from lightning_hp.project.yaml_file import ConfigError

#: names of files that say nothing about what is trained
_NO_NAMES = ("config", "train", "fit", "main", "default", "best", "base")
#: names of folders that say nothing either
_NO_FOLDERS = ("config", "configs", "conf", "cfg", "yaml", "experiments")
#: keys of a tune.yaml that no LightningCLI file has
_OF_STUDIES = ("config", "space", "monitor", "budget", "caviar")
_OF_TRAININGS = ("model", "data", "trainer", "optimizer", "seed_everything")


def is_train_file(mapping: Mapping[str, Any]) -> bool:
    """Whether a YAML file is a LightningCLI file, and no ``tune.yaml``."""
    return any(key in mapping for key in _OF_TRAININGS) and not any(key in mapping for key in _OF_STUDIES)


def study_name(file: Path) -> str:
    """A name for the study of a file: the file's own, or that of a folder it is in where the file has a general one."""
    folders = [folder.name for folder in file.absolute().parents if folder.name.lower() not in _NO_FOLDERS]
    name = file.stem if file.stem.lower() not in _NO_NAMES else folders[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "study"


def builder_of(files: list[Path], model: str | None, data: str | None, cli: str | None) -> CliBuilder:
    """The builder of a project.

    Args:
        files: LightningCLI files.
        model: Class path, for files that name no model.
        data: Class path, for files that name no data.
        cli: The project's own LightningCLI: class, function or script.

    Raises:
        ConfigError: If the files do not load; it names scripts that may be the project's command.
    """
    builder = CliBuilder(files[0] if len(files) == 1 else tuple(files), model, data, cli)
    try:
        _ = builder.own
    except ConfigError as error:
        scripts = [] if cli else _scripts_with_a_cli()
        if not scripts:
            raise
        raise ConfigError(f"{error}; where {' or '.join(scripts)} is your command, add --cli {scripts[0]}") from error
    return builder


def file_for_classes(model: str, data: str | None, max_epochs: int | None) -> str:
    """A LightningCLI file for a project that has none.

    Args:
        model: ``package.module:Module``.
        data: The same of the data; None for the only data module beside the module, or the module's own loaders.
        max_epochs: Length of a training.

    Raises:
        ConfigError: If a class cannot be imported, or is none of Lightning's.
    """
    if model.endswith(".py"):
        raise ConfigError(_instead_of_script(Path(model)))
    module = _class(model, pl.LightningModule, "project")
    _check_makeable(module, model)
    if max_epochs is None:
        raise ConfigError(f"`--max_epochs` is missing: nothing says how long a training of {model} is")
    lines = ["# Train it with: lightning-hp fit THIS_FILE", f"model: {{class_path: {_path(module)}}}"]
    if data is not None:
        lines.append(f"data: {{class_path: {_path(_class(data, pl.LightningDataModule, '--data_class'))}}}")
    elif module.train_dataloader is pl.LightningModule.train_dataloader:
        beside = _data_modules_beside(module)
        if len(beside) != 1:
            raise ConfigError(_no_data(model, module, beside))
        lines.append(f"data: {{class_path: {_path(beside[0])}}}")
    return "\n".join([*lines, f"trainer: {{max_epochs: {max_epochs}}}"]) + "\n"


def _check_makeable(kind: type, path: str) -> None:
    """Refuse a class that needs arguments: the file that is written has none to give."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise ConfigError(
            f"`project` must be a class whose arguments have defaults, got {path}, which needs {', '.join(needed)}; "
            "give them in a LightningCLI file and run init on that, or tune from Python, where a function makes the "
            f"module: lightning_hp.tune(lambda lr, ...: {kind.__name__}(...), ...)"
        )


def _no_data(model: str, module: type, beside: list[type]) -> str:
    if beside:
        names = ", ".join(f"{one.__module__}:{one.__name__}" for one in beside)
        return f"`--data_class` is missing: {model} has no loaders, and beside it are {names}"
    return (
        f"`--data_class` is missing: {model} has no loaders, and beside it is no LightningDataModule; name one as "
        f"package.module:Data, or tune from Python, where a function that makes loaders will do: "
        f"lightning_hp.tune({module.__name__}, make_loaders, ...)"
    )


def _instead_of_script(script: Path) -> str:
    """What to type instead of a script's name."""
    text = script.read_text(encoding="utf-8", errors="ignore") if script.is_file() else ""
    line = f"`project` must be a LightningCLI file or package.module:Module, got the script {str(script)!r}"
    if re.search(r"CLI\(", text):
        return f"{line}; for its LightningCLI: lightning-hp init FILE.yaml --cli {shlex.quote(str(script))}"
    modules = re.findall(r"^class (\w+)\((?:\w+\.)*LightningModule\)", text, re.MULTILINE)
    package = ".".join(script.with_suffix("").parts)
    return f"{line}; it has {', '.join(f'{package}:{name}' for name in modules)}" if modules else line


def _class(path: str, kind: type, what: str) -> Any:
    imported = import_path(path.replace(":", "."), what)
    if not (isinstance(imported, type) and issubclass(imported, kind)):
        raise ConfigError(f"`{what}` must name a {kind.__name__} as package.module:Class, got {path!r}")
    return imported


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _data_modules_beside(module: type) -> list[type]:
    source = inspect.getmodule(module)
    kinds = [one for one in vars(source).values() if isinstance(one, type)]
    return [
        k for k in kinds if issubclass(k, pl.LightningDataModule) and k.__module__ == getattr(source, "__name__", "")
    ]


def _scripts_with_a_cli() -> list[str]:
    """Scripts of this folder that may make the LightningCLI call."""
    return [
        str(file)
        for file in sorted(Path().glob("*.py"))
        if re.search(r"CLI\(", file.read_text(encoding="utf-8", errors="ignore"))
    ]
