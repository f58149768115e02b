"""The trainings of a re-test: heats of settings that share a seed, each against the first of its heat.

They are a study of their own, so what it has trained stays when a re-test is stopped. Where the project's engine trains
trials together, all that wait are asked for at once, and those of one structure are one stack (:mod:`.together` of
``tuning``): the settings of a heat, and the seeds of a setting.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from lightning_hp.project.build import CliBuilder, PythonBuilder
from lightning_hp.study.aside import move_aside
from lightning_hp.study.confirmed import RIVAL
from lightning_hp.study.storage import StudyError
from lightning_hp.tuning.caviar import AUTO, STACKING, Caviar
from lightning_hp.tuning.choose_engine import settle_engine
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.curve_store import RETEST_LOOKS
from lightning_hp.tuning.listener import StudyListener
from lightning_hp.tuning.runner import StudyRunner

#: Stored values and seed of one training.
Setting = tuple[Mapping[str, Any], int]


def engine_of(caviar: Caviar) -> Caviar:
    """How re-tests and refreshing studies are trained: in this process, together where the project's engine does so."""
    return replace(caviar, workers=1) if caviar.engine in (*STACKING, AUTO) else Caviar("in_process")


class BehindPruner(optuna.pruners.BasePruner):
    """Stops a trial that is behind its rival at one of the looks, at the same step.

    Args:
        max_steps: The step of a complete training.
        rivals: Number of a trial to that of its rival; other trials are never stopped.
        looks: Steps, in parts of a complete training.
    """

    def __init__(self, max_steps: int, rivals: Mapping[int, int], looks: Sequence[float] = RETEST_LOOKS) -> None:
        self._rivals = rivals
        self._looks = {max(1, math.ceil(part * max_steps)) for part in looks}

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is at a look, and behind."""
        step = trial.last_step
        if step not in self._looks or trial.number not in self._rivals:
            return False
        rival = study.get_trials(deepcopy=False)[self._rivals[trial.number]].intermediate_values.get(step)
        if rival is None:
            return False
        behind = trial.intermediate_values[step] - rival
        return behind > 0 if study.direction is StudyDirection.MINIMIZE else behind < 0


class Race:
    """The study of a re-test, and what is planned for it.

    Attributes:
        study: The Optuna study.
        together: Whether trials of one structure are trained together.

    Args:
        config: Names the study and its folder; its engine is one of :func:`engine_of`.
        builder: Makes the objects of a trial.
        listener: Is told what happens.
        most: How many trials are planned at first, about.

    Raises:
        ConfigError: If the project does not fit.
        StudyError: If the study cannot be opened.
    """

    def __init__(
        self, config: TuneConfig, builder: CliBuilder | PythonBuilder, listener: StudyListener, most: int
    ) -> None:
        self._config, self._builder, self._listener = config, builder, listener
        self._plan: list[Setting] = []
        self._rivals: dict[int, int] = {}
        with contextlib.closing(StudyRunner(self._planned(most), builder, listener)) as runner:
            self.study = runner.study
            settle_engine(runner)
            engine = runner.config.caviar.engine
        self.together = engine in STACKING
        self._config = replace(config, caviar=replace(config.caviar, engine=engine))

    def run(self, *heats: Sequence[Setting], looks: Sequence[float] = RETEST_LOOKS) -> list[list[FrozenTrial]]:
        """Train heats, those of their trials that are not yet in the study.

        Args:
            heats: Settings of one seed; each but the first is stopped where it is behind the first.
            looks: Where that is looked at, in parts of a complete training.

        Returns:
            The trials of each heat.

        Raises:
            StudyError: If the study had to stop; it is moved aside then.
            KeyboardInterrupt: After the running trial, if Ctrl-C was pressed.
        """
        began = len(self._plan)
        for heat in heats:
            first = len(self._plan)
            self._plan += heat
            self._rivals |= dict.fromkeys(range(first + 1, len(self._plan)), first)
        try:
            self._run(self._planned(len(self._plan)), looks)
        except StudyError:  # a fault of the configuration: once it is mended the same command tests anew
            move_aside(self._config.folder, self._config.name, "journal")
            raise
        trials = iter(self.study.get_trials(deepcopy=False)[began:])
        return [[next(trials) for _ in heat] for heat in heats]

    def _planned(self, n_trials: int) -> TuneConfig:
        return replace(self._config, search=replace(self._config.search, n_trials=n_trials))

    def _run(self, config: TuneConfig, looks: Sequence[float]) -> None:
        def pruner(max_steps: int) -> BehindPruner:
            return BehindPruner(max_steps, self._rivals, looks)

        with contextlib.closing(StudyRunner(config, self._builder, self._listener, pruner)) as runner:
            self.study = runner.study
            there = len(self.study.get_trials(deepcopy=False))
            for number, (params, seed) in list(enumerate(self._plan))[there:]:
                rival = self._rivals.get(number, number)
                self.study.enqueue_trial(dict(params), user_attrs={"seed": seed, RIVAL: rival})
            self._listener.study_planned(len(self._plan))
            runner.catch_up()
            runner.work()
            if runner.stopping.is_set():
                raise KeyboardInterrupt
            if self.together and (runner.together is None or runner.together.cohort is None):
                self.together = False  # it was tried, and said why not
                self._config = replace(self._config, caviar=Caviar("in_process"))
