"""``lightning-hp worker STUDY``: one more worker of a study that is run elsewhere, until there are no more trials."""

from __future__ import annotations

import json
import os
from pathlib import Path

from jsonargparse import Namespace

from lightning_hp.commands.output import write_line
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import (
    StudyError,
    find_study,
    load_study,
    open_storage,
    pointed_storage,
    write_study_pointer,
)
from lightning_hp.study.urls import STORAGE
from lightning_hp.tuning.progress import StudyDisplay
from lightning_hp.tuning.tune import cli_builder
from lightning_hp.tuning.workers.joining import ON_TERM, config_of, join
from lightning_hp.tuning.yaml_values import duration


def worker_verb(options: Namespace) -> int:
    """Join a study and run trials.

    Raises:
        ConfigError: If an option does not fit, or a trial showed that the configuration cannot work.
        StudyError: If there is no such study, it cannot be joined, or it has to stop.
    """
    if options.on_term not in ON_TERM:
        raise ConfigError(f"`--on-term` must be {' or '.join(ON_TERM)}, got {options.on_term!r}")
    if options.max_trials is not None and options.max_trials < 1:
        raise ConfigError(f"`--max-trials` must be a whole number of at least 1, got {options.max_trials}")
    seconds = None if options.max_time is None else duration(options.max_time, "--max-time")
    storage = options.storage or os.environ.get(STORAGE)
    if storage is None:
        study, paths = find_study(options.study)
        storage = pointed_storage(json.loads(paths.study.read_text(encoding="utf-8")))
        folder = paths.root if options.folder is None else Path(options.folder)
    else:
        folder = Path(options.folder or f"runs/{options.study}")
        if storage == "journal" and not StudyPaths(folder).journal.is_file():
            raise StudyError(f"`--folder` must be the study's folder, got {str(folder)!r}: there is no journal in it")
        opened = open_storage(storage, StudyPaths(folder), must_exist=True, say=write_line)
        study = load_study(options.study, opened)
    config = config_of(study, storage, folder)
    write_study_pointer(StudyPaths(folder), config.name, storage)
    with StudyDisplay(config.name, config.search.n_trials, config.monitor, config.mode) as display:
        ended = join(config, cli_builder(config), display, options.max_trials, seconds, options.on_term)
    write_line(f"this worker ended {ended} trial{'' if ended == 1 else 's'} of study {config.name}")
    return 0
