"""What the stores behind Lightning's loggers are given beside numbers: files, as artefacts, and tuned values.

MLflow keeps the files with the logger's run; W&B keeps an artefact of that run; TensorBoard shows texts (Markdown and
YAML). All other loggers have no common way to take a file, and get none. A store that cannot be reached costs a
warning, never the training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

__all__ = ["give_files", "give_values", "keeps_checkpoints"]

#: what TensorBoard is shown as text, and the language it is marked as; None for what is Markdown itself
_TEXTS = {".md": None, ".yaml": "yaml"}
#: what MLflow takes in no name of a parameter; ``betas[0].x`` is ``betas.0.x`` there
_NOT_IN_NAMES = re.compile(r"[^-./ \w]+\.?")


def give_files(loggers: Sequence[Logger], kind: str, files: Sequence[Path]) -> None:
    """Give files to every logger that has a store for them.

    Args:
        loggers: Of a Trainer, on rank zero.
        kind: What they are together, such as ``audit``: the artefact's type, and its folder.
        files: Those that do not exist are left out.
    """
    present = [file for file in files if file.is_file()]
    for logger in loggers if present else ():
        with _at_most_a_warning(logger, kind):
            _give(logger, kind, present)


def give_values(loggers: Sequence[Logger], values: Mapping[str, Any]) -> None:
    """Give tuned values to MLflow (as parameters) and W&B (in the configuration), under ``tuned/NAME``.

    Args:
        loggers: Of a Trainer, on rank zero.
        values: Key as the space has it -> value.
    """
    named = {"tuned/" + _NOT_IN_NAMES.sub(".", name).rstrip("."): value for name, value in values.items()}
    for logger in loggers:
        if isinstance(logger, MLFlowLogger | WandbLogger):
            with _at_most_a_warning(logger, "tuned values"):
                logger.log_hyperparams(named)


def keeps_checkpoints(logger: Logger) -> bool:
    """Whether its settings ask for checkpoints to be kept in the store (``log_model``)."""
    return bool(getattr(logger, "_log_model", False))


def _give(logger: Logger, kind: str, files: Sequence[Path]) -> None:
    if isinstance(logger, MLFlowLogger):
        for file in files:
            logger.experiment.log_artifact(logger.run_id, str(file), kind)
    elif isinstance(logger, WandbLogger):
        from wandb import Artifact

        run: Any = logger.experiment
        artifact = Artifact(f"{kind}-{run.id}", kind)
        for file in files:
            artifact.add_file(str(file))
        run.log_artifact(artifact)
    elif isinstance(logger, TensorBoardLogger):
        for file in files:
            if file.suffix in _TEXTS:
                text, language = file.read_text(encoding="utf-8"), _TEXTS[file.suffix]
                shown = text if language is None else f"```{language}\n{text}\n```"
                logger.experiment.add_text(f"{kind}/{file.name}", shown)


@contextmanager
def _at_most_a_warning(logger: Logger, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        rank_zero_warn(f"{type(logger).__name__} did not take {what}: {type(error).__name__}: {error}")
