"""Moves a study out of the way, so that a new one can begin in its place."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from lightning_hp.study.leases import is_alive, lease_of
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError, load_study, open_storage


def move_aside(folder: Path, name: str, storage: str) -> Path | None:
    """Rename a study folder, so that a new study can begin in its place; nothing is deleted.

    Args:
        folder: The study folder.
        name: Study name.
        storage: ``journal``, or an Optuna URL.

    Returns:
        The folder's new place, ``NAME.old-1``, ``NAME.old-2``, ...; None if there was no folder.

    Raises:
        StudyError: If the study is in a database, where it keeps its name; or a process is at work on it.
    """
    if not folder.exists():
        return None
    if storage != "journal":
        raise StudyError(
            f"`--restart` must be used with a study in its own folder; study {name!r} is in a database: choose another "
            "`name`, or another `storage`"
        )
    paths = StudyPaths(folder)
    for trial in _running(name, paths):
        lease = lease_of(trial)
        if lease is not None and is_alive(lease, folder, datetime.now(UTC)):
            raise StudyError(f"study {name!r} is running: trial {trial.number} belongs to {lease.worker}")
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def _running(name: str, paths: StudyPaths) -> list[FrozenTrial]:
    """The running trials of a study in its own folder; none where its journal cannot be read."""
    if not paths.journal.is_file():
        return []
    try:
        study = load_study(name, open_storage("journal", paths))
    except StudyError:
        return []
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
