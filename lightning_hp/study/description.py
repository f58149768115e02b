"""The description of a study, kept in its attributes: with it a study is continued or read from storage alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.leases import Lease, Worker, is_alive, lease_of
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError, quiet_optuna
from lightning_hp.study.trials import ATTRIBUTE as ATTRIBUTE
from lightning_hp.study.trials import ranked_since
from lightning_hp.study.upstream import storage_of, study_number

#: schema number of a description
SCHEMA = 1
#: system attributes of a study that has no trial yet: the workers that have opened it
_AT_WORK = "lightning_hp:opened:"


@dataclass(frozen=True)
class Description:
    """Everything that is needed to continue or read a study from storage alone.

    Attributes:
        plan: How it searches: space, number of trials, seed, stage plan; makes its sampler.
        monitor: Name of the metric.
        mode: ``min`` or ``max``.
        length: The length of a complete training, as arguments of the Trainer (``max_epochs``, ``max_steps``); empty in
            studies that were written before it was kept.
        fixed: What all trials share: the resolved configuration without the tuned keys, and the signatures of the
            classes; empty where it is not known.
        versions: Package name to version, as of the first run.
        created: UTC, ISO 8601.
        previous: Folder of the study that this one refreshes, None for a first study.
        since: Number of the first trial of the present project: of later ones than an accepted change. Earlier trials
            are learned from, and are not the winner once a later one is complete.
    """

    plan: SearchPlan
    monitor: str
    mode: str
    length: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    previous: str | None = None
    since: int = 0

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.plan.space

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": SCHEMA,
            **self.plan.to_json(),
            "monitor": self.monitor,
            "mode": self.mode,
            "length": dict(self.length),
            "fixed": dict(self.fixed),
            "versions": dict(self.versions),
            "created": self.created,
            "previous": self.previous,
            "since": self.since,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Description:
        """The inverse of :meth:`to_json`; descriptions of earlier versions are read too.

        Raises:
            StudyError: If the schema is newer than this version reads.
        """
        if stored.get("schema", 0) > SCHEMA:
            raise StudyError(
                f"the study was written by a newer lightning_hp (schema {stored['schema']}, this version reads "
                f"{SCHEMA}); upgrade lightning_hp"
            )
        return cls(
            plan=SearchPlan.from_json(stored),
            monitor=stored["monitor"],
            mode=stored["mode"],
            length=stored.get("length") or {},
            fixed=stored.get("fixed") or {},
            versions=stored.get("versions") or {},
            created=stored.get("created") or "",
            previous=stored.get("previous"),
            since=stored.get("since", 0),
        )


def open_study(
    name: str,
    storage: BaseStorage,
    wanted: Description,
    paths: StudyPaths,
    accept_changes: bool = False,
    worker: Worker | None = None,
) -> optuna.Study:
    """Create a study, or continue it if nothing has changed that its result depends on.

    An existing study without finished trials that nobody works on is deleted and begun anew, so that a mistake that the
    first trial showed can be mended and the command given again. The study's ask lock must be held.

    Args:
        name: Study name.
        storage: An open storage.
        wanted: What the study is to be; written where the study is new. A changed total of trials is taken over.
        paths: The study folder, where workers of this machine hold their locks.
        accept_changes: Continue although the fixed part or the length of a training differs; what is wanted now is
            kept with the study from then on, and the best values so far are trained again first.
        worker: Who is about to work on it; None for nobody.

    Raises:
        StudyError: If a study of this name exists with another space, metric, seed, plan, fixed part or length.
    """
    study = _opened(name, storage, wanted, paths, accept_changes)
    if worker is not None and not study.get_trials(deepcopy=False):
        presence = asdict(worker.presence(datetime.now(UTC)))
        storage.set_study_system_attr(study_number(study), f"{_AT_WORK}{worker.name}", presence)
    return study


def _opened(
    name: str, storage: BaseStorage, wanted: Description, paths: StudyPaths, accept_changes: bool
) -> optuna.Study:
    direction = StudyDirection.MINIMIZE if wanted.mode == "min" else StudyDirection.MAXIMIZE
    with quiet_optuna():
        try:  # Optuna's load_if_exists would write to the journal at every opening
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
    stored = study.user_attrs.get(ATTRIBUTE)
    if stored is None:
        if study.get_trials(deepcopy=False):
            raise StudyError(f"a study named {name!r} exists that lightning_hp did not make; choose another `name`")
        with quiet_optuna():
            study.set_metric_names([wanted.monitor])
        study.set_user_attr(ATTRIBUTE, wanted.to_json())
        return study
    before = Description.from_json(stored)
    advice = "choose another `name`, or move the study aside with `--restart` (`restart=True` in Python)"
    changed = wanted.plan.changes(before.plan)
    changed += [
        f"{attribute} was {getattr(before, attribute)!r}, is {getattr(wanted, attribute)!r}"
        for attribute in ("monitor", "mode")
        if getattr(before, attribute) != getattr(wanted, attribute)
    ]
    moved = fixed_part_changes(before, wanted)
    if (changed or moved) and not (accept_changes and not changed):
        if _nothing_to_lose(study, paths):
            optuna.delete_study(study_name=name, storage=storage)
            return _opened(name, storage, wanted, paths, accept_changes)
        if changed:
            raise StudyError(f"study {name!r} exists with another configuration: {'; '.join(changed)}; {advice}")
        raise StudyError(
            f"study {name!r} was tuned with another project: {'; '.join(moved)}; {advice}, or go on with "
            "`--accept-changes` (`accept_changes=True`)"
        )
    if study.direction != direction:
        raise StudyError(f"study {name!r} exists with direction {study.direction.name.lower()}; {advice}")
    now = replace(
        before,
        plan=replace(before.plan, n_trials=wanted.plan.n_trials, max_steps=wanted.plan.max_steps),
        length=wanted.length,
        fixed=wanted.fixed,
    )
    if moved:
        trials = study.get_trials(deepcopy=False)
        now = replace(now, since=len(trials))
        best = ranked_since(trials, direction is StudyDirection.MINIMIZE, before.since)[:1]
        for trial in best:
            study.enqueue_trial(dict(trial.params), user_attrs={"trained_before_in": trial.number})
    if now != before:
        study.set_user_attr(ATTRIBUTE, now.to_json())
    return study


def fixed_part_changes(before: Description, now: Description, most: int = 5) -> list[str]:
    """What differs between two projects of one study: a short sentence for each value; empty where it is not known.

    Args:
        before: The description that was stored.
        now: That of today's project.
        most: At most so many values are named.
    """
    changes: list[str] = []
    if before.length and now.length and dict(before.length) != dict(now.length):
        changes.append(f"the length of a training was {_length_text(before.length)}, is {_length_text(now.length)}")
    if before.fixed and now.fixed:
        old, new = _flat(before.fixed), _flat(now.fixed)
        for key in dict.fromkeys([*old, *new]):
            if old.get(key, _MISSING) != new.get(key, _MISSING):
                was, value = (repr(part[key]) if key in part else "not set" for part in (old, new))
                changes.append(f"{key} was {was}, is {value}")
    more = [f"and {len(changes) - most} more"] if len(changes) > most else []
    return changes[:most] + more


_MISSING = object()


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _length_text(length: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in length.items())


def _nothing_to_lose(study: optuna.Study, paths: StudyPaths) -> bool:
    """Whether a study has no finished trial, and no process that works on one, or is about to."""
    now = datetime.now(UTC)
    kept = storage_of(study).get_study_system_attrs(study_number(study))
    present = [Lease(**presence) for key, presence in kept.items() if key.startswith(_AT_WORK)]
    if any(is_alive(lease, paths.root, now) for lease in present):
        return False
    for trial in study.get_trials(deepcopy=False):
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            return False
        if trial.state is TrialState.RUNNING:
            lease = lease_of(trial)
            if lease is not None and is_alive(lease, paths.root, now):
                return False
    return True


def describe(study: optuna.Study) -> Description:
    """The description of a study.

    Raises:
        StudyError: If lightning_hp did not make the study.
    """
    stored = study.user_attrs.get(ATTRIBUTE)
    if stored is None:
        raise StudyError(f"study {study.study_name!r} was not made by lightning_hp: it has no attribute {ATTRIBUTE!r}")
    return Description.from_json(stored)
