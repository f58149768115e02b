"""``lightning-hp retune``: re-test a study's best on today's data, and refresh the study where it is beaten."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jsonargparse import Namespace

from lightning_hp.commands.output import write_line
from lightning_hp.commands.tune import show_end
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.retests.retune import retune_study
from lightning_hp.study.storage import find_study
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.progress import StudyDisplay
from lightning_hp.tuning.tune import cli_builder
from lightning_hp.tuning.workers.processes import threads_of_worker


def retune_verb(options: Namespace) -> int:
    """Re-test, refresh if need be, and print what came of it.

    Raises:
        ConfigError: If an option or today's ``tune.yaml`` does not fit the study.
        StudyError: If there is no such study, or it has no best trial.
    """
    if options.k < 0:
        raise ConfigError(f"`k` must be a whole number of at least 0, got {options.k}")
    _, paths = find_study(options.study)
    source = options.config or json.loads(paths.study.read_text(encoding="utf-8")).get("source")
    if source is None:
        raise ConfigError(
            f"`config` is missing: {options.study} does not say which tune.yaml it came from; a study that a script "
            f"made is refreshed there, by lightning_hp.retune({options.study!r}, ...)"
        )
    config = TuneConfig.from_file(Path(source))
    # as the workers that tuned it had: the same sums in the same order
    torch.set_num_threads(threads_of_worker(config.caviar.workers))
    with StudyDisplay(config.name, config.search.n_trials, config.monitor, config.mode) as display:
        retuned = retune_study(
            str(paths.root),
            config,
            cli_builder(config),
            k=options.k,
            trials=options.trials,
            test=not options.force,
            search=not options.retest_only,
            listener=display,
        )
    if retuned.test is not None:
        write_line(retuned.test.summary)
    if retuned.result is not None:
        show_end(retuned.result)
    return 0
