"""Several studies, each in a storage of its own, as one Optuna storage: what the dashboard is given.

A study folder has its own journal, in which study and trial numbers start at 0. Here the k-th storage's numbers are
moved up by k times a stride: in what is asked, in what is answered, in the keys under which the dashboard keeps notes,
and in the links within notes. The first storage's numbers stay as they are, so that a single study
has the same addresses as in a plain dashboard. Storages that appear in the folder while it is served are added.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.dashboard.upstream.curve_limit import with_few_curves
from lightning_hp.dashboard.upstream.numbers import moved_study, moved_trial
from lightning_hp.study.description import ATTRIBUTE
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.questions import open_question
from lightning_hp.study.storage import StudyError, open_storage, pointed_storage
from lightning_hp.study.upstream import study_number

if TYPE_CHECKING:
    from lightning_hp.dashboard.upstream.numbers import FrozenStudy

_log = logging.getLogger(__name__)
#: room for the numbers of one storage, of studies (people see them) and of trials; JavaScript counts exactly to 9e15
STUDY_STRIDE, TRIAL_STRIDE = 100_000, 1_000_000_000
#: seconds after which the folder is looked through again
SCAN_EVERY = 5.0
_NOTE_KEY = re.compile(r"^dashboard:(\d+):")
_NOTE_TEXT = re.compile(r"^(dashboard:(?:\d+:)?note_str:)(\d+)$")
_LINK = re.compile(r"(/artifacts/|/dashboard/studies/)(\d+)(?:/(\d+)(?=/))?")


@dataclass(frozen=True)
class Mount:
    """One storage, and what its numbers are moved up by.

    Attributes:
        storage: The underlying Optuna storage.
        folders: Study name to study folder, for the studies that have one.
        index: Its position; numbers are moved up by so many strides.
        url: ``journal``, or the URL of a storage that several study folders may share.
    """

    storage: BaseStorage
    folders: dict[str, StudyPaths]
    index: int
    url: str = "journal"

    @property
    def studies(self) -> int:
        """What study numbers are moved up by."""
        return self.index * STUDY_STRIDE

    @property
    def trials(self) -> int:
        """What trial numbers are moved up by."""
        return self.index * TRIAL_STRIDE


class CombinedStorage(BaseStorage):
    """Several storages as one.

    Args:
        storages: Storages that stand alone, with the study folders of their studies, by name.
        folder: A study folder, or a folder of such; it is looked through again and again. None for no more storages.
    """

    def __init__(
        self,
        storages: Sequence[tuple[BaseStorage, Mapping[str, StudyPaths]]] = (),
        folder: Path | None = None,
    ) -> None:
        self._mounts = [Mount(storage, dict(folders), i) for i, (storage, folders) in enumerate(storages)]
        self._folder = folder
        self._scanned = float("-inf")
        self._lock = threading.Lock()
        self._scan()

    def _scan(self) -> None:
        """Mount study folders that are new, at most every few seconds."""
        if self._folder is None:
            return
        with self._lock:
            if time.monotonic() - self._scanned < SCAN_EVERY:
                return
            self._scanned = time.monotonic()
            mounted = {paths.root for mount in self._mounts for paths in mount.folders.values()}
            for root in study_folders(self._folder):
                if root not in mounted:
                    self._mount(StudyPaths(root))

    def _mount(self, paths: StudyPaths) -> None:
        """Open the storage of a study folder, unless another folder has opened it already."""
        try:
            pointer = json.loads(paths.study.read_text(encoding="utf-8"))
            name, url = str(pointer["name"]), pointed_storage(pointer)
            mount = next((mount for mount in self._mounts if mount.url == url != "journal"), None)
            if mount is None:
                storage = open_storage(url, paths)
                storage.get_all_studies()
                mount = Mount(storage, {}, len(self._mounts), url)
                self._mounts.append(mount)
            mount.folders[name] = paths
        except (StudyError, OSError, ValueError, KeyError, TypeError):
            _log.warning("%s cannot be opened", paths.root, exc_info=True)

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """All storages mounted by now."""
        self._scan()
        return tuple(self._mounts)

    def _mount_of(self, number: int, stride: int) -> Mount:
        alone = len(self._mounts) == 1 and self._folder is None
        index = 0 if alone else number // stride
        if not 0 <= index < len(self._mounts):
            raise KeyError(f"no study or trial {number}")
        return self._mounts[index]

    def _study(self, number: int) -> tuple[Mount, int]:
        """The storage of a study and the study's number there."""
        mount = self._mount_of(number, STUDY_STRIDE)
        return mount, number - mount.studies

    def _trial(self, number: int) -> tuple[Mount, int]:
        """The storage of a trial and the trial's number there."""
        mount = self._mount_of(number, TRIAL_STRIDE)
        return mount, number - mount.trials

    def folder_of(self, study_id: int) -> StudyPaths | None:
        """The folder of a study, None where it has none.

        Raises:
            KeyError: If there is no such study.
        """
        mount, local = self._study(study_id)
        return mount.folders.get(mount.storage.get_study_name_from_id(local))

    def form_of(self, study_id: int) -> str | None:
        """The address of the form in which a person answers a study's open question, None if there is none.

        Raises:
            KeyError: If there is no such study.
        """
        mount, local = self._study(study_id)
        question = open_question(mount.storage, mount.storage.get_study_name_from_id(local))
        if question is None:
            return None
        gate, trial = question
        return f"/dashboard/studies/{gate + mount.studies}/trials?numbers={trial}"

    # --- studies ---

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study in the only storage; a folder of studies takes none from here."""
        if len(self._mounts) != 1 or self._folder is not None:
            raise RuntimeError("studies of a folder are created by `lightning-hp tune`")
        return self._mounts[0].storage.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """Delete a study from its storage; the files of its folder stay."""
        mount, local = self._study(study_id)
        mount.storage.delete_study(local)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """See Optuna."""
        mount, local = self._study(study_id)
        mount.storage.set_study_user_attr(local, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """See Optuna; keys and links of notes are moved back."""
        mount, local = self._study(study_id)
        kept = _moved_links(value, mount, -1) if isinstance(value, str) and _NOTE_TEXT.match(key) else value
        mount.storage.set_study_system_attr(local, _moved_key(key, -mount.trials), kept)

    def get_study_id_from_name(self, study_name: str) -> int:
        """See Optuna; the first of that name."""
        for mount in self.mounts:
            for study in mount.storage.get_all_studies():
                if study.study_name == study_name:
                    return study_number(study) + mount.studies
        raise KeyError(f"no study named {study_name!r}")

    def get_study_name_from_id(self, study_id: int) -> str:
        """See Optuna."""
        mount, local = self._study(study_id)
        return mount.storage.get_study_name_from_id(local)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See Optuna."""
        mount, local = self._study(study_id)
        return mount.storage.get_study_directions(local)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See Optuna."""
        mount, local = self._study(study_id)
        return mount.storage.get_study_user_attrs(local)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See Optuna; keys and links of notes are moved."""
        mount, local = self._study(study_id)
        return _moved_attributes(mount.storage.get_study_system_attrs(local), mount)

    def get_all_studies(self) -> list[FrozenStudy]:
        """See Optuna; studies of one name are told apart by their folders, and our long attribute is left out."""
        studies = [
            (mount, moved_study(
                study, mount.studies, _moved_attributes(study.system_attrs, mount),
                {name: value for name, value in study.user_attrs.items() if name != ATTRIBUTE},
            ))
            for mount in self.mounts
            for study in mount.storage.get_all_studies()
        ]  # fmt: skip
        names = Counter(study.study_name for _, study in studies)
        for mount, study in studies:
            if names[study.study_name] > 1 and study.study_name in mount.folders:
                study.study_name = f"{study.study_name} ({mount.folders[study.study_name].root.name})"
        return [study for _, study in studies]

    # --- trials ---

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See Optuna."""
        mount, local = self._study(study_id)
        return mount.storage.create_new_trial(local, template_trial) + mount.trials

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See Optuna."""
        mount, local = self._trial(trial_id)
        mount.storage.set_trial_param(local, param_name, param_value_internal, distribution)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """See Optuna."""
        mount, local = self._study(study_id)
        return mount.storage.get_trial_id_from_study_id_trial_number(local, trial_number) + mount.trials

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See Optuna."""
        mount, local = self._trial(trial_id)
        return mount.storage.set_trial_state_values(local, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """See Optuna."""
        mount, local = self._trial(trial_id)
        mount.storage.set_trial_intermediate_value(local, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See Optuna."""
        mount, local = self._trial(trial_id)
        mount.storage.set_trial_user_attr(local, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See Optuna."""
        mount, local = self._trial(trial_id)
        mount.storage.set_trial_system_attr(local, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See Optuna."""
        mount, local = self._trial(trial_id)
        return moved_trial(mount.storage.get_trial(local), mount.trials)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See Optuna; of a big study most come without their curves."""
        mount, local = self._study(study_id)
        trials = mount.storage.get_all_trials(local, deepcopy, states)
        moved = [moved_trial(t, mount.trials) for t in trials] if mount.index else trials
        return with_few_curves(moved, mount.storage.get_study_directions(local)[0])

    def trials_as_kept(self, study_id: int) -> tuple[list[FrozenTrial], int]:
        """The trials of a study as its own storage keeps them, and by how much their numbers are to be moved up."""
        mount, local = self._study(study_id)
        return mount.storage.get_all_trials(local, deepcopy=False), mount.trials


class CombinedArtifacts:
    """The artifacts of all folders as one store; an identifier is looked for in each.

    Args:
        combined: Whose folders.
    """

    def __init__(self, combined: CombinedStorage) -> None:
        self._combined = combined

    def _stores(self) -> list[optuna.artifacts.FileSystemArtifactStore]:
        folders = [paths.artifacts for mount in self._combined.mounts for paths in mount.folders.values()]
        return [optuna.artifacts.FileSystemArtifactStore(folder) for folder in folders if folder.is_dir()]

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """See Optuna."""
        reader: BinaryIO = self._first(lambda store: store.open_reader(artifact_id), artifact_id)
        return reader

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """See Optuna; an upload from the page goes to the first folder that keeps artifacts."""
        stores = self._stores()
        if not stores:
            raise optuna.artifacts.exceptions.ArtifactNotFound("no study folder keeps artifacts")
        stores[0].write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """See Optuna."""
        self._first(lambda store: store.remove(artifact_id), artifact_id)

    def _first(self, act: Callable[[optuna.artifacts.FileSystemArtifactStore], Any], artifact_id: str) -> Any:
        for store in self._stores():
            try:
                return act(store)
            except optuna.artifacts.exceptions.ArtifactNotFound:
                continue
        raise optuna.artifacts.exceptions.ArtifactNotFound(artifact_id)


def study_folders(folder: Path) -> list[Path]:
    """The study folders in a folder, or itself if it is one, in the order in which their first trials began."""
    if StudyPaths(folder).study.is_file():
        return [folder]
    folders = [p for p in folder.iterdir() if StudyPaths(p).study.is_file()] if folder.is_dir() else []
    return sorted(folders, key=lambda p: (_begun(StudyPaths(p).journal), p.name))


def _begun(journal: Path) -> str:
    """When the first trial of a journal began; empty where the journal does not say."""
    try:
        with open(journal, encoding="utf-8") as file:
            match = re.search(r'"datetime_start": ?"([^"]+)"', file.read(65536))
    except OSError:
        return ""
    return match[1] if match else ""


def _moved_key(key: str, by: int) -> str:
    return _NOTE_KEY.sub(lambda m: f"dashboard:{int(m[1]) + by}:", key) if by else key


def _moved_links(text: str, mount: Mount, way: int) -> str:
    """The links of a note, moved up (``way`` 1) or back (-1)."""
    if not mount.index:
        return text

    def moved(match: re.Match[str]) -> str:
        trial = f"/{int(match[3]) + way * mount.trials}" if match[3] else ""
        return f"{match[1]}{int(match[2]) + way * mount.studies}{trial}"

    return _LINK.sub(moved, text)


def _moved_attributes(attributes: dict[str, Any], mount: Mount) -> dict[str, Any]:
    """System attributes with the keys and links of notes moved.

    A note is cut into pieces, and a link may lie across two of them, so its whole text is put into the first piece.
    """
    if not mount.index:
        return attributes
    moved = {_moved_key(key, mount.trials): value for key, value in attributes.items()}
    pieces: dict[str, list[tuple[int, str]]] = {}
    for key, value in moved.items():
        match = _NOTE_TEXT.match(key)
        if match and isinstance(value, str):
            pieces.setdefault(match[1], []).append((int(match[2]), value))
    for prefix, parts in pieces.items():
        whole = _moved_links("".join(text for _, text in sorted(parts)), mount, 1)
        moved.update({f"{prefix}{i}": whole if i == 0 else "" for i, _ in parts})
    return moved
