"""A project built from its LightningCLI file, with a checkpoint in the model, for commands that look at it offline.

The project's own `validation_step` feeds the model: it is run over batches, the model calls inside are recorded, and
what is asked of the data is worked out from these. Nothing of the project is imported but what its configuration names.
Checkpoints are loaded with `weights_only=True`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_hp.batchnorm.reference import Reference
from lightning_hp.callbacks.audit.files import REFERENCE_FILE
from lightning_hp.callbacks.audit.offline import EvaluationRecorder, record_evaluation
from lightning_hp.project.build import Built, CliBuilder
from lightning_hp.project.quiet import quiet_lightning
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.results import stored_classes

FAILED, USAGE = 1, 2


class UsageError(Exception):
    """A wrong argument; its text goes to the user."""


@dataclass
class CheckpointedProject:
    """A project built from its configuration, with the checkpoint in the model."""

    model: pl.LightningModule
    data: pl.LightningDataModule | None
    trainer: pl.Trainer
    checkpoint: dict[str, Any]
    missing: list[str]

    def loader(self, split: str) -> Any:
        """The loader of a split; a list of loaders gives its first."""
        source: Any = self.data if self.data is not None else self.model
        if self.data is not None:
            self.data.trainer = self.trainer
            self.data.prepare_data()
            self.data.setup({"train": "fit", "val": "validate"}.get(split, split))
        name = f"{split}_dataloader"
        if not hasattr(source, name):
            raise UsageError(f"`shift` must be a split that the data has, got {split!r}")
        loaders = getattr(source, name)()
        return loaders[0] if isinstance(loaders, (list, tuple)) else loaders

    def run(self, loader: Any, rows: int, predict: bool = False) -> tuple[EvaluationRecorder, dict[str, float]]:
        """Run the project's evaluation over (at most) `rows` rows of a loader; also returns its metrics."""
        return record_evaluation(self.model, self.trainer, loader, rows, predict)

    def reference(self, checkpoint_path: Path) -> Reference | None:
        """The stored validation moments: of the auditor's state in the checkpoint, else the file beside it."""
        for state in (self.checkpoint.get("callbacks") or {}).values():
            if isinstance(state, dict) and state.get("reference"):
                return Reference.from_dict(state["reference"])
        for folder in (checkpoint_path.parent, checkpoint_path.parent.parent):
            if (folder / REFERENCE_FILE).is_file():
                content = json.loads((folder / REFERENCE_FILE).read_text(encoding="utf-8"))
                return Reference.from_dict(content["layers"])
        return None


def open_project(
    config: Path,
    ckpt: Path,
    replacements: Iterable[str],
    classes: Mapping[str, str | None],
    folder: Path,
) -> CheckpointedProject:
    """Build a project and load a checkpoint into its model.

    Args:
        config: The project's LightningCLI file.
        ckpt: A checkpoint of it.
        replacements: KEY=VALUE in place of the file's values.
        classes: ``model``, ``data`` and ``cli``, as :class:`.CliBuilder` takes them; with none of them a study's
            ``best.yaml`` has its project's.
        folder: ``default_root_dir`` of its Trainer.

    Raises:
        UsageError: If a file is missing, a replacement is no KEY=VALUE, or the checkpoint does not fit the model.
        ConfigError: If the configuration cannot be built.
    """
    for path, name in ((config, "config"), (ckpt, "ckpt")):
        if not path.is_file():
            raise UsageError(f"`{name}` must be a file, got {str(path)!r}")
    values: dict[str, Any] = {"trainer.callbacks": None, "trainer.devices": 1}
    for replacement in replacements:
        key, equals, value = replacement.partition("=")
        if not equals:
            raise UsageError(f"`data` must hold key=value, got {replacement!r}")
        values[key.removeprefix("--")] = value
    if not any(classes.values()):
        classes = {option.removesuffix("_class"): path for option, path in stored_classes(config).items()}
    built = CliBuilder(config, **classes).build(values, folder, seed=0)
    checkpoint = torch.load(ckpt, map_location="cpu", weights_only=True)
    if "state_dict" not in checkpoint:
        raise UsageError(f"`ckpt` must be a Lightning checkpoint with a 'state_dict', got {str(ckpt)!r}")
    built.model.on_load_checkpoint(checkpoint)
    if not set(checkpoint["state_dict"]) & set(built.model.state_dict()):
        _build_late(built)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    result = built.model.load_state_dict(checkpoint["state_dict"], strict=False)
    # Missing statistics are a finding (BN02), not a failure; anything else means that the file and the model do not
    # fit.
    wrong = [key for key in result.missing_keys if not key.endswith(statistics)] + list(result.unexpected_keys)
    if wrong:
        raise UsageError(f"`ckpt` must fit the model of {config}, got other keys: {', '.join(wrong[:5])}")
    return CheckpointedProject(built.model, built.data, built.trainer, checkpoint, list(result.missing_keys))


def _build_late(built: Built) -> None:
    """Run the hooks of a fit before its first step, for models that make their layers only there."""
    built.model.trainer = built.trainer
    if built.data is not None:
        built.trainer._data_connector.attach_datamodule(built.model, built.data)  # sets `trainer.datamodule`
        built.data.prepare_data()
        built.data.setup("fit")
    built.model.setup("fit")
    built.model.configure_model()


def exit_code_of(work: Callable[[Path], int]) -> int:
    """Do some work in a temporary folder and return its exit code; an exception becomes one line on standard error."""
    try:
        with tempfile.TemporaryDirectory() as folder, quiet_lightning():
            return int(work(Path(folder)))
    except (UsageError, ConfigError) as error:
        return write_error(str(error), USAGE)
    except Exception as error:
        return write_error(f"{type(error).__name__}: {error}", FAILED)


def write_error(text: str, code: int) -> int:
    """Write one line to standard error; gives the exit code back."""
    sys.stderr.write(f"error: {text}\n")
    return code
