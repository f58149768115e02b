"""``tune.yaml``: the only reader of YAML. Every error is one line with the path of the key at fault.

Relative ``config`` is looked for beside the file that names it; ``folder`` (``runs/NAME``) is relative to where the
command runs, as are the paths inside the LightningCLI file itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from lightning_hp.ledger.dates import intervals_by_tier
from lightning_hp.search.presets import preset
from lightning_hp.search.space import SearchSpace
from lightning_hp.tuning.curve_store import FEWEST, POINTS

#: seconds that a person has for an answer unless told otherwise
GATE_TIMEOUT = 1800.0
ENGINES = ("in_process", "local")
PLANS = ("default", "opening", "tiers")
_KEYS = (
    "name",
    "config",
    "monitor",
    "mode",
    "budget",
    "space",
    "caviar",
    "retune_after",
    "storage",
    "seed",
    "plan",
    "prune",
    "curve_points",
    "gate",
    "audit",
    "keep_checkpoints",
    "folder",
    "model",
    "data",
    "cli",
)


class ConfigError(ValueError):
    """A key of ``tune.yaml``, or an argument of ``tune``, is not what it must be; one line."""


@dataclass(frozen=True)
class Budget:
    """How much a study may cost.

    Attributes:
        trials: Total number of trials, also when resumed.
        max_epochs: Length of a complete training in epochs; None takes the LightningCLI file's ``trainer.max_epochs``.
        seconds: No new trial starts after so many seconds of a run; None for no limit.
    """

    trials: int = 60
    max_epochs: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Caviar:
    """Where trials run.

    Attributes:
        engine: ``in_process`` (one after the other, here) or ``local`` (worker processes on this machine).
        workers: Number of worker processes of ``local``.
    """

    engine: str = "in_process"
    workers: int = 1


@dataclass(frozen=True)
class TuneConfig:
    """What ``tune.yaml`` says, checked.

    Attributes:
        name: Study name.
        config: The LightningCLI file; None for a study of Python classes.
        space: The search space.
        monitor: Name of the metric, as the model logs it.
        mode: ``min`` or ``max``.
        budget: See :class:`Budget`.
        caviar: See :class:`Caviar`.
        folder: Where the study's files are.
        storage: ``journal`` or an Optuna URL.
        seed: Seed of the study; each trial's seed follows from it and the trial's number.
        plan: Stage plan.
        preset: Name of the preset that the space came from.
        prune: Whether hopeless trials are stopped.
        curve_points: How many points of a learning curve are stored, see :mod:`lightning_hp.tuning.curve_store`.
        gate: Seconds that a person has between two stages to decide about the next one; None for no questions.
        audit: Whether BatchNorm layers are audited at the end of every trial.
        keep_checkpoints: How many of the best trials keep their checkpoints.
        retune_after: Interval such as ``30d``, or tier to interval; None for the ledger's defaults.
        model: Class path for LightningCLI files that name no model class.
        data: Class path for LightningCLI files that name no data class.
        cli: Class path of the project's own LightningCLI subclass.
        source: The file that this was read from.
        older: Of a study that refreshes another, see :class:`lightning_hp.study.storage.Description`; not in the file.
        opens_from: Likewise.
        previous: Likewise.
    """

    name: str
    config: Path | None
    space: SearchSpace
    monitor: str = "val_loss"
    mode: str = "min"
    budget: Budget = field(default_factory=Budget)
    caviar: Caviar = field(default_factory=Caviar)
    folder: Path = Path("runs")
    storage: str = "journal"
    seed: int = 0
    plan: str = "default"
    preset: str | None = None
    prune: bool = True
    curve_points: int = POINTS
    gate: float | None = None
    audit: bool = True
    keep_checkpoints: int = 3
    retune_after: str | dict[str, str] | None = None
    model: str | None = None
    data: str | None = None
    cli: str | None = None
    source: Path | None = None
    older: tuple[Mapping[str, Any], ...] = ()
    opens_from: Mapping[str, int] | None = None
    previous: str | None = None

    @classmethod
    def from_file(cls, path: str | Path) -> TuneConfig:
        """Read ``tune.yaml``.

        Raises:
            ConfigError: One line that names the file or the key, what was expected and what was given.
        """
        path = Path(path)
        return cls.from_dict(read_yaml(path, "config"), base=path.parent, source=path)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], base: Path = Path("."), source: Path | None = None) -> TuneConfig:
        """Check the mapping of ``tune.yaml``.

        Args:
            given: The mapping.
            base: Folder that a relative ``config`` is looked for in.
            source: The file that the mapping comes from.

        Raises:
            ConfigError: See :meth:`from_file`.
        """
        _known(given, _KEYS, "")
        config = base / _text(given, "config", None)
        if not config.is_file():
            raise ConfigError(f"`config` must be a LightningCLI file, got {str(config)!r}: no such file")
        if "space" not in given:
            raise ConfigError("`space` is missing; expected a preset name or a mapping from parameters to ranges")
        space = given["space"]
        return cls(
            config=config,
            space=_space(space, paths=True),
            preset=space if isinstance(space, str) else None,
            budget=_budget(given.get("budget", {})),
            caviar=_caviar(given.get("caviar", {})),
            model=_text(given, "model", "") or None,
            data=_text(given, "data", "") or None,
            cli=_text(given, "cli", "") or None,
            source=source,
            **_settings(given),
        )

    @classmethod
    def from_arguments(
        cls, space: SearchSpace | Mapping[str, Any] | str, trials: int, max_epochs: int | None, given: Mapping[str, Any]
    ) -> TuneConfig:
        """Check the arguments of :func:`lightning_hp.tune`; there is no file.

        Raises:
            ConfigError: Naming the argument, what was expected and what was given.
        """
        budget = {"trials": trials} if max_epochs is None else {"trials": trials, "max_epochs": max_epochs}
        return cls(
            config=None,
            space=_space(space, paths=False),
            preset=space if isinstance(space, str) else None,
            budget=_budget(budget, ""),
            **_settings(given),
        )


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a file and a call of ``tune`` say in the same words."""
    name = _text(given, "name", None)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"`name` must be letters, digits, '.', '_' or '-', got {name!r}")
    storage = _text(given, "storage", "journal")
    if storage != "journal" and "://" not in storage:
        raise ConfigError(f"`storage` must be journal or an Optuna URL such as sqlite:///study.db, got {storage!r}")
    retune_after = given.get("retune_after")
    if retune_after is not None:
        try:
            intervals_by_tier(retune_after)
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error
    return {
        "name": name,
        "monitor": _text(given, "monitor", "val_loss"),
        "mode": _one_of(given, "mode", ("min", "max"), "min"),
        "folder": Path(_text(given, "folder", f"runs/{name}")),
        "storage": storage,
        "seed": _whole(given, "seed", 0, 0, "seed"),
        "plan": _one_of(given, "plan", PLANS, "default"),
        "prune": _switch(given, "prune", True),
        "curve_points": _whole(given, "curve_points", POINTS, FEWEST, "curve_points"),
        "gate": _gate(given.get("gate", False)),
        "audit": _switch(given, "audit", True),
        "keep_checkpoints": _whole(given, "keep_checkpoints", 3, 1, "keep_checkpoints"),
        "retune_after": retune_after,
    }


def _space(given: Any, paths: bool) -> SearchSpace:
    if isinstance(given, SearchSpace):
        return given
    try:
        return SearchSpace.from_dict(preset(given, paths=paths) if isinstance(given, str) else given)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of everyday: 1e-4 is one, and 1:00:00:00 is a time, not a number to the base of 60."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        first: [(tag, found) for tag, found in pairs if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"([-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9_]+([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.
        what: What errors call it.

    Raises:
        ConfigError: If there is no such file, it cannot be read, it is no YAML, or no mapping.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise ConfigError(f"`{what}` must be a file that exists, got {str(path)!r}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{what}` must be a readable text file, got {str(path)!r}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"`{what}` must be YAML, got {str(path)!r}{where}: {problem}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"`{what}` must hold keys and values, got {str(path)!r} with {type(loaded).__name__}")
    return loaded


def _known(given: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(given, Mapping):
        raise ConfigError(f"`{where or 'tune.yaml'}` must be a mapping with the keys {', '.join(keys)}, got {given!r}")
    for key in given:
        if key not in keys:
            path = f"{where}.{key}" if where else str(key)
            close = difflib.get_close_matches(str(key), keys, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"`{path}` is not a known key{hint}; expected one of {', '.join(keys)}")


def _text(given: Mapping[str, Any], key: str, default: str | None) -> str:
    value = given.get(key, default)
    if value is None:
        raise ConfigError(f"`{key}` is missing; expected a text")
    if not isinstance(value, str):
        raise ConfigError(f"`{key}` must be a text, got {value!r}")
    return value


def _one_of(given: Mapping[str, Any], key: str, allowed: tuple[str, ...], default: str) -> str:
    value = given.get(key, default)
    if value not in allowed:
        raise ConfigError(f"`{key}` must be one of {', '.join(allowed)}, got {value!r}")
    return str(value)


def _switch(given: Mapping[str, Any], key: str, default: bool) -> bool:
    value = given.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"`{key}` must be true or false, got {value!r}")
    return value


def _whole(given: Mapping[str, Any], key: str, default: int, least: int, path: str) -> int:
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"`{path}` must be a whole number of at least {least}, got {value!r}")
    return value


def _budget(given: Any, where: str = "budget.") -> Budget:
    _known(given, ("trials", "max_epochs", "time"), "budget")
    epochs = None
    if "max_epochs" in given:
        epochs = _whole(given, "max_epochs", 1, 1, f"{where}max_epochs")
    seconds = _seconds(given["time"]) if "time" in given else None
    return Budget(_whole(given, "trials", 60, 1, f"{where}trials"), epochs, seconds)


def _seconds(given: Any, path: str = "budget.time", more: str = "") -> float:
    if isinstance(given, int | float) and not isinstance(given, bool) and given > 0:
        return float(given)
    parts = re.fullmatch(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}):(\d{1,2})", str(given))
    days, hours, minutes, seconds = (int(p or 0) for p in parts.groups()) if parts else (0, 0, 0, 0)
    total = float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if total == 0:
        raise ConfigError(f"`{path}` must be {more}HH:MM:SS, DD:HH:MM:SS or seconds above 0, got {given!r}")
    return total


def _gate(given: Any) -> float | None:
    if isinstance(given, bool):
        return GATE_TIMEOUT if given else None
    if not isinstance(given, Mapping):
        raise ConfigError(f"`gate` must be true, false or a mapping such as {{timeout: 30m}}, got {given!r}")
    _known(given, ("timeout",), "gate")
    timeout = given.get("timeout", GATE_TIMEOUT)
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", timeout) if isinstance(timeout, str) else None
    if parts and float(parts[1]) > 0:
        return float(parts[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[parts[2]]
    return _seconds(timeout, "gate.timeout", "such as 30m or 2h, ")


def _caviar(given: Any) -> Caviar:
    _known(given, ("engine", "workers"), "caviar")
    engine = given.get("engine", "in_process")
    if engine not in ENGINES:
        raise ConfigError(f"`caviar.engine` must be one of {', '.join(ENGINES)}, got {engine!r}")
    workers = _whole(given, "workers", 2 if engine == "local" else 1, 1, "caviar.workers")
    if engine == "in_process" and workers > 1:
        raise ConfigError(f"`caviar.workers` must be 1 for the engine in_process (use local), got {workers}")
    return Caviar(engine, workers)
