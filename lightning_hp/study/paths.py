"""Every file name of a study folder, and how files are written: under another name, then renamed into place."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lightning_hp.study.locks import FolderLock

#: seconds that the results of a study may take to write: then another machine takes their writer for dead
LONGEST_FINISH = 900.0


@dataclass(frozen=True)
class StudyPaths:
    """The files of one study.

    Attributes:
        root: The study folder, ``runs/NAME``.
    """

    root: Path

    @property
    def journal(self) -> Path:
        """Optuna's journal, where the study is kept unless a storage URL is given."""
        return self.root / "journal.log"

    @property
    def study(self) -> Path:
        """Which study in which storage this folder belongs to, JSON."""
        return self.root / "study.json"

    @property
    def best(self) -> Path:
        """The winner as a LightningCLI file."""
        return self.root / "best.yaml"

    @property
    def result(self) -> Path:
        """The winner's values and metrics, JSON."""
        return self.root / "result.json"

    @property
    def evidence(self) -> Path:
        """What mattered, JSON."""
        return self.root / "evidence.json"

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.root / "report.html"

    @property
    def ledger(self) -> Path:
        """When the hyperparameters were tuned, and on what."""
        return self.root / "ledger.jsonl"

    @property
    def reference(self) -> Path:
        """Validation moments of the winner's BatchNorm inputs, JSON; new data is compared with them."""
        return self.root / "audit_reference.json"

    @property
    def artifacts(self) -> Path:
        """Files that the dashboard shows."""
        return self.root / "artifacts"

    def trial(self, number: int) -> TrialPaths:
        """The files of one trial."""
        return TrialPaths(self.root / "trials" / f"{number:04d}")

    def ask_lock(self) -> FolderLock:
        """The lock that is held while a trial is drawn or taken over, so that two workers never run the same one."""
        return FolderLock(self._lock_file("ask"))

    def finish_lock(self) -> FolderLock:
        """The lock that is held while the results of a study are written."""
        return FolderLock(self._lock_file("finish"), patience=LONGEST_FINISH)

    def _lock_file(self, name: str) -> Path:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.lock"


@dataclass(frozen=True)
class TrialPaths:
    """The files of one trial.

    Attributes:
        root: The trial folder, ``runs/NAME/trials/0007``.
    """

    root: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoint of the best validation."""
        return self.root / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """Checkpoint of the best validation, under a name that no checkpoint of the user's own has."""
        earlier = self.checkpoints / "best.ckpt"  # as studies before version 0.2 have it
        own = self.checkpoints / "lightning_hp-best.ckpt"
        return earlier if earlier.is_file() and not own.is_file() else own

    @property
    def project_checkpoints(self) -> Path:
        """Folder of what the project's own checkpoint callbacks save."""
        return self.checkpoints / "project"

    @property
    def unfinished(self) -> Path:
        """Checkpoint from which an interrupted training goes on; it is there only while the training is unfinished."""
        return self.checkpoints / "lightning_hp-unfinished.ckpt"

    @property
    def error(self) -> Path:
        """The traceback of a trial that crashed."""
        return self.root / "error.txt"

    @property
    def outcome(self) -> Path:
        """How the trial ended, JSON; it is there only while that could not be stored."""
        return self.root / "outcome.json"

    @property
    def audit(self) -> Path:
        """Findings of the BatchNorm audit, JSON."""
        return self.root / "audit.json"


def write_text(path: Path, text: str) -> None:
    """Write a file beside ``path`` and rename it: a reader sees the old or the new file, never a part.

    Raises:
        OSError: If the disk is full or the folder cannot be written; the old file, if there was one, is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
