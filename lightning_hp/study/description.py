"""What a study says of itself in its attributes, so that anybody can continue or read it from storage alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from lightning_hp.search.space import SearchSpace, differences
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError, quiet_optuna

#: the study user attribute that holds the description, and its schema number
ATTRIBUTE = "lightning_hp"
SCHEMA = 1


@dataclass(frozen=True)
class Description:
    """What a study says of itself, so that anybody can continue or read it from storage alone.

    Attributes:
        space: The search space.
        n_trials: Planned total of trials.
        max_steps: Number of validations in a complete training, None without curves.
        monitor: Name of the metric.
        mode: ``min`` or ``max``.
        seed: The study's seed.
        plan: Name of the stage plan.
        preset: Name of the preset that the space came from, None for a mapping.
        versions: Package name to version, as of the first run.
        created: UTC, ISO 8601.
        older: Curves of the study that this one refreshes, see :class:`.CoarseToFineSampler`.
        opens_from: Tier to the number of trials from which it opens, None for the usual plan or the preset's.
        previous: Folder of the study that this one refreshes, None for a first study.
    """

    space: SearchSpace
    n_trials: int
    max_steps: int | None
    monitor: str
    mode: str
    seed: int
    plan: str = "default"
    preset: str | None = None
    versions: Mapping[str, str] | None = None
    created: str = ""
    older: tuple[Mapping[str, Any], ...] = ()
    opens_from: Mapping[str, int] | None = None
    previous: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": SCHEMA,
            "space": self.space.to_dict(),
            "n_trials": self.n_trials,
            "max_steps": self.max_steps,
            "monitor": self.monitor,
            "mode": self.mode,
            "seed": self.seed,
            "plan": self.plan,
            "preset": self.preset,
            "versions": dict(self.versions or {}),
            "created": self.created,
            "older": [dict(curve) for curve in self.older],
            "opens_from": None if self.opens_from is None else dict(self.opens_from),
            "previous": self.previous,
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Description:
        """The inverse of :meth:`to_json`.

        Raises:
            StudyError: If the schema is newer than this version reads.
        """
        if given.get("schema", 0) > SCHEMA:
            raise StudyError(
                f"the study was written by a newer lightning_hp (schema {given['schema']}, this version reads "
                f"{SCHEMA}); upgrade lightning_hp"
            )
        fields = {k: v for k, v in given.items() if k != "schema"}
        space = SearchSpace.from_description(given["space"])
        return cls(**{**fields, "space": space, "older": tuple(given.get("older", ()))})


def open_study(
    name: str,
    storage: BaseStorage,
    wanted: Description,
    paths: StudyPaths,
) -> optuna.Study:
    """Create a study, or continue it if its space, metric, seed and plan are the same.

    Another study that has not finished a single trial is nothing to lose: it makes way, so that a mistake that the
    first trial showed can be mended and the command given again. The study's ask lock must be held.

    Args:
        name: Study name.
        storage: An open storage.
        wanted: What the study is to be; written where the study is new. A changed total of trials is taken over.
        paths: The study folder, where running trials are claimed.

    Raises:
        StudyError: If a study of this name exists with another space, metric, seed or plan.
    """
    direction = StudyDirection.MINIMIZE if wanted.mode == "min" else StudyDirection.MAXIMIZE
    with quiet_optuna():
        try:  # Optuna's load_if_exists would write to the journal at every opening
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
    found = study.user_attrs.get(ATTRIBUTE)
    advice = "choose another `name`, or delete the study folder to start anew"
    if found is None:
        if study.get_trials(deepcopy=False):
            raise StudyError(f"a study named {name!r} exists that lightning_hp did not make; choose another `name`")
        with quiet_optuna():
            study.set_metric_names([wanted.monitor])
        study.set_user_attr(ATTRIBUTE, wanted.to_json())
        return study
    had = Description.from_json(found)
    changed = differences(found["space"], wanted.space.to_dict())
    changed += [
        f"{field} was {getattr(had, field)!r}, is {getattr(wanted, field)!r}"
        for field in ("monitor", "mode", "seed", "plan")
        if getattr(had, field) != getattr(wanted, field)
    ]
    if changed:
        if _nothing_to_lose(study, paths):
            optuna.delete_study(study_name=name, storage=storage)
            return open_study(name, storage, wanted, paths)
        raise StudyError(f"study {name!r} exists with another configuration: {'; '.join(changed)}; {advice}")
    if study.direction != direction:
        raise StudyError(f"study {name!r} exists with direction {study.direction.name.lower()}; {advice}")
    if (had.n_trials, had.max_steps) != (wanted.n_trials, wanted.max_steps):
        study.set_user_attr(ATTRIBUTE, {**found, "n_trials": wanted.n_trials, "max_steps": wanted.max_steps})
    return study


def _nothing_to_lose(study: optuna.Study, paths: StudyPaths) -> bool:
    """Whether a study has no result, and nobody is at work on one."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            return False
        if trial.state is TrialState.RUNNING:
            with paths.trial(trial.number).claim() as orphan:
                if not orphan:
                    return False
    return True


def describe(study: optuna.Study) -> Description:
    """The description of a study.

    Raises:
        StudyError: If lightning_hp did not make the study.
    """
    found = study.user_attrs.get(ATTRIBUTE)
    if found is None:
        raise StudyError(f"study {study.study_name!r} was not made by lightning_hp: it has no attribute {ATTRIBUTE!r}")
    return Description.from_json(found)
