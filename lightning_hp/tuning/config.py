"""``tune.yaml``, checked. Every error is one line with the path of the key at fault.

Relative ``config`` is looked for beside the file that names it; ``folder`` (``runs/NAME``) is relative to where the
command runs, as are the paths inside the LightningCLI file itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from lightning_hp.ledger.dates import intervals_by_tier
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.yaml_file import ConfigError, read_yaml
from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace
from lightning_hp.tuning.caviar import Caviar, caviar_of
from lightning_hp.tuning.curve_store import FEWEST, POINTS
from lightning_hp.tuning.start import with_start
from lightning_hp.tuning.yaml_values import (
    check_keys,
    class_block,
    gate_seconds,
    one_of,
    part,
    seconds,
    study_name,
    switch,
    text_of,
    whole,
)

#: the value of ``seed`` that trains all trials with one seed
SAME_SEED = "fixed"
PLANS = ("default", "opening", "tiers")
_KEYS = (
    "name",
    "config",
    "monitor",
    "mode",
    "budget",
    "space",
    "start",
    "caviar",
    "retune_after",
    "storage",
    "seed",
    "plan",
    "prune",
    "confirm",
    "grace",
    "pruner",
    "sampler",
    "curve_points",
    "gate",
    "audit",
    "keep_checkpoints",
    "folder",
    "model",
    "data",
    "cli",
)


@dataclass(frozen=True)
class Budget:
    """How much a study may cost, its number of trials apart.

    Attributes:
        length: Limits of a complete training that replace the Trainer's own; empty to keep those.
        seconds: No new trial starts after so many seconds of a run; None for no limit.
        until_converged: Whether the study ends when the rest of the budget is expected to gain less than one training
            scatters.
    """

    length: TrainingLength = field(default_factory=TrainingLength)
    seconds: float | None = None
    until_converged: bool = False


@dataclass(frozen=True)
class Confirmation:
    """How the winner is confirmed, see :mod:`lightning_hp.tuning.confirmation`.

    Attributes:
        candidates: So many of the best configurations are trained again.
        seeds: On so many fresh seeds each, at most.
    """

    candidates: int = 3
    seeds: int = 2


@dataclass(frozen=True)
class TuneConfig:
    """What ``tune.yaml`` says, checked.

    Attributes:
        name: Study name.
        config: The LightningCLI file, or several, later ones over earlier ones; None for a study of Python classes.
        search: The search space, the number of trials, the seed and the stage plan.
        monitor: Name of the metric, as the model logs it.
        mode: ``min`` or ``max``.
        budget: See :class:`Budget`.
        caviar: See :class:`Caviar`.
        folder: Where the study's files are.
        storage: ``journal`` or an Optuna URL.
        same_seed: Whether all trials are trained with the same seed.
        prune: Whether hopeless trials are stopped.
        confirm: How the best configurations are trained again at the end; None for not at all.
        grace: No trial is stopped before this part of its training, from 0 to 1.
        pruner: ``class_path`` and ``init_args`` of an Optuna pruner in place of ours.
        sampler: ``class_path`` and ``init_args`` of an Optuna sampler that proposes the points of fine stages.
        curve_points: How many points of a learning curve are stored, see :mod:`lightning_hp.tuning.curve_store`.
        gate: Seconds to wait for a person's decision before each stage; None to ask nobody.
        audit: Whether BatchNorm layers are audited at the end of every trial.
        keep_checkpoints: How many of the best trials keep their checkpoints.
        retune_after: Interval such as ``30d``, or tier to interval; None for the ledger's defaults.
        model: Class path for LightningCLI files that name no model class.
        data: Class path for LightningCLI files that name no data class.
        cli: The project's own command: the class path of a LightningCLI subclass, the path of a function that makes
            the call, or a script.
        source: The file that this was read from.
        previous: Folder of the study that this one refreshes; not in the file.
        accept_changes: Whether to continue a study although the project has changed; not in the file.
        mapping: What all this was read from, empty for a study of Python classes.
        base: Folder that the mapping's ``config`` is relative to.
    """

    name: str
    config: Path | tuple[Path, ...] | None
    search: SearchPlan
    monitor: str = "val_loss"
    mode: str = "min"
    budget: Budget = field(default_factory=Budget)
    caviar: Caviar = field(default_factory=Caviar)
    folder: Path = Path("runs")
    storage: str = "journal"
    same_seed: bool = False
    prune: bool = True
    confirm: Confirmation | None = field(default_factory=Confirmation)
    grace: float = 0.0
    pruner: Mapping[str, Any] | None = None
    sampler: Mapping[str, Any] | None = None
    curve_points: int = POINTS
    gate: float | None = None
    audit: bool = True
    keep_checkpoints: int = 3
    retune_after: str | dict[str, str] | None = None
    model: str | None = None
    data: str | None = None
    cli: str | None = None
    source: Path | None = None
    previous: str | None = None
    accept_changes: bool = False
    mapping: Mapping[str, Any] = field(default_factory=dict)
    base: Path = Path()

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.search.space

    @classmethod
    def from_file(cls, path: str | Path) -> TuneConfig:
        """Read ``tune.yaml``.

        Raises:
            ConfigError: One line that names the file or the key, what was expected and what was given.
        """
        path = Path(path)
        return cls.from_dict(read_yaml(path, "config"), base=path.parent, source=path)

    @classmethod
    def from_dict(
        cls,
        mapping: Mapping[str, Any],
        base: Path = Path("."),
        source: Path | None = None,
        project: Project | None = None,
    ) -> TuneConfig:
        """Check the mapping of ``tune.yaml``.

        Args:
            mapping: The mapping.
            base: Folder that a relative ``config`` is looked for in.
            source: The file that the mapping comes from.
            project: Knows the project's own values, where the study starts; None reads them from ``config``.

        Raises:
            ConfigError: See :meth:`from_file`.
        """
        check_keys(mapping, _KEYS, "")
        config = _files(mapping, base)
        if "space" not in mapping:
            raise ConfigError("`space` is missing; expected a preset name or a mapping from parameters to ranges")
        budget = mapping.get("budget", {})
        return cls(
            config=config,
            budget=_budget(budget),
            caviar=caviar_of(mapping.get("caviar", {})),
            model=text_of(mapping, "model", "") or None,
            data=text_of(mapping, "data", "") or None,
            cli=text_of(mapping, "cli", "") or None,
            source=source,
            mapping=mapping,
            base=base,
            **_settings(mapping),
            search=_search(
                mapping["space"], _trials(budget), mapping, project or _project_of(config, mapping), base, paths=True
            ),
        )

    @classmethod
    def from_arguments(
        cls,
        space: SearchSpace | Mapping[str, Any] | str,
        budget: Mapping[str, Any],
        settings: Mapping[str, Any],
        project: Project | None = None,
    ) -> TuneConfig:
        """Check the arguments of :func:`lightning_hp.tune`; there is no file.

        Args:
            space: As for ``tune``.
            budget: ``trials``, and ``max_epochs`` and ``max_steps`` where they are given.
            settings: The other arguments, under the names of the keys of ``tune.yaml``.
            project: Knows the project's own values; None leaves the defaults of the space to the space.

        Raises:
            ConfigError: Naming the argument, what was expected and what was given.
        """
        return cls(
            config=None,
            budget=_budget(budget, ""),
            search=_search(space, _trials(budget, ""), settings, project, Path(), paths=False),
            caviar=caviar_of(settings.get("caviar", {})),
            **_settings(settings),
        )


def _settings(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """What a file and a call of ``tune`` say in the same words."""
    name = study_name(mapping)
    storage = text_of(mapping, "storage", "journal")
    if storage != "journal" and "://" not in storage:
        raise ConfigError(f"`storage` must be journal or an Optuna URL such as sqlite:///study.db, got {storage!r}")
    retune_after = mapping.get("retune_after")
    if retune_after is not None:
        try:
            intervals_by_tier(retune_after)
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error
    if isinstance(mapping.get("monitor"), list | tuple):
        raise ConfigError(
            f"`monitor` must be one metric, since trials are ranked by one value, got {mapping['monitor']!r}; log one "
            "score that combines them, or use SearchSpace.suggest in an Optuna study with several objectives"
        )
    return {
        "name": name,
        "monitor": text_of(mapping, "monitor", "val_loss"),
        "mode": one_of(mapping, "mode", ("min", "max"), "min"),
        "folder": Path(text_of(mapping, "folder", f"runs/{name}")),
        "storage": storage,
        "same_seed": mapping.get("seed") == SAME_SEED,
        "prune": switch(mapping, "prune", True),
        "confirm": _confirm(mapping.get("confirm", True)),
        "grace": part(mapping, "grace"),
        "pruner": class_block(mapping, "pruner"),
        "sampler": class_block(mapping, "sampler"),
        "curve_points": whole(mapping, "curve_points", POINTS, FEWEST, "curve_points"),
        "gate": gate_seconds(mapping.get("gate", False)),
        "audit": switch(mapping, "audit", True),
        "keep_checkpoints": whole(mapping, "keep_checkpoints", 3, 1, "keep_checkpoints"),
        "retune_after": retune_after,
        "accept_changes": switch(mapping, "accept_changes", False),
    }


class Project(Protocol):
    """Knows what a project is tuned from: its own values, where the study starts."""

    def takes(self) -> list[str]:
        """The keys that the model and the data take."""
        ...

    def defaults(self, keys: Iterable[str]) -> dict[str, Any]:
        """The project's own value of each key; one that it has none of is left out."""
        ...


def _project_of(config: Path | tuple[Path, ...], mapping: Mapping[str, Any]) -> Project:
    """The project of a ``tune.yaml``."""
    from lightning_hp.project.cli_builder import CliBuilder  # it loads Lightning

    classes = [text_of(mapping, key, "") or None for key in ("model", "data", "cli")]
    return CliBuilder(config, *classes)


def _search(
    space: SearchSpace | Mapping[str, Any] | str,
    n_trials: int,
    mapping: Mapping[str, Any],
    project: Project | None,
    base: Path,
    paths: bool,
) -> SearchPlan:
    seed = 0 if mapping.get("seed") == SAME_SEED else whole(mapping, "seed", 0, 0, "seed")
    plan = one_of(mapping, "plan", PLANS, "default")
    takes, own = None, {}
    if project is not None and isinstance(space, str):
        takes = project.takes()
        own = project.defaults(takes)
    elif project is not None and isinstance(space, Mapping):
        own = project.defaults(map(str, space))
    try:
        search = SearchPlan.of(space, paths=paths, takes=takes, defaults=own, n_trials=n_trials, seed=seed, plan=plan)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return replace(search, space=with_start(search.space, mapping.get("start"), base))


def _files(mapping: Mapping[str, Any], base: Path) -> Path | tuple[Path, ...]:
    """The LightningCLI files that ``config`` names: one, or a list."""
    names = mapping.get("config")
    if not isinstance(names, list):
        names = [text_of(mapping, "config", None)]
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"`config` must be a LightningCLI file or a list of them, got {names!r}")
    files = tuple(base / name for name in names)
    for file in files:
        if not os.path.isfile(file):  # False too for what no file can be called, where `Path.is_file` raises an error
            raise ConfigError(f"`config` must be a LightningCLI file, got {str(file)!r}: no such file")
    return files[0] if len(files) == 1 else files


def _budget(budget: Any, where: str = "budget.") -> Budget:
    check_keys(budget, ("trials", "max_epochs", "max_steps", "time", "until"), "budget")
    limits = {n: whole(budget, n, 1, 1, f"{where}{n}") for n in ("max_epochs", "max_steps") if n in budget}
    limit = seconds(budget["time"]) if "time" in budget else None
    until = one_of(budget, "until", ("spent", "converged"), "spent", f"{where}until")
    return Budget(TrainingLength(**limits), limit, until == "converged")


def _trials(budget: Any, where: str = "budget.") -> int:
    """The planned total number of trials."""
    return whole(budget if isinstance(budget, Mapping) else {}, "trials", 60, 1, f"{where}trials")


def _confirm(value: Any) -> Confirmation | None:
    if isinstance(value, bool):
        return Confirmation() if value else None
    check_keys(value, ("candidates", "seeds"), "confirm")
    return Confirmation(
        candidates=whole(value, "candidates", 3, 2, "confirm.candidates"),
        seeds=whole(value, "seeds", 2, 1, "confirm.seeds"),
    )
