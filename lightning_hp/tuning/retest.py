"""Is the recorded best still the best? Trained again on today's data, against its neighbours and the defaults.

All candidates get the same epochs, and the seed that the recorded best was tuned with: where the data have not moved,
it gives its old value again. They are stopped if they are behind it at a quarter, a half or three quarters of the
training, so that a re-test costs little more than two trainings where nothing has changed. A candidate that ends ahead
has won one race, by chance as well as skill: it and the recorded best are then trained on further seeds that they
share, until it loses one. It counts as better only if it wins on every one of them, by more than those differences
scatter.

The neighbours are not drawn blindly: of many moves the one is taken that the older study's learning curves speak for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.project.build import CliBuilder, PythonBuilder
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.aside import move_aside
from lightning_hp.study.storage import StudyError
from lightning_hp.tuning.caviar import Caviar
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.curve_store import RETEST_LOOKS
from lightning_hp.tuning.listener import SilentListener, StudyListener
from lightning_hp.tuning.objective import trial_seed
from lightning_hp.tuning.runner import StudyRunner

#: Neighbours lie this far from the recorded best, in turn: standard deviations in parts of a parameter's range. The
#: near ones show whether it is still the top of its hill, the far ones whether there is another hill.
NEIGHBOUR_DISTANCES = (0.1, 0.25)
#: A neighbour is the most promising of so many moves, where an older study can say which that is.
MOVES_TRIED = 32
#: Seeds that a challenger and the recorded best are compared on, the first included.
SEEDS = 3
#: A challenger wins by more than this many standard errors of the differences (with three seeds, one in 15 by chance).
STANDARD_ERRORS = 1.5
#: Numbers of a re-test's further seeds are this far from those of a study's trials.
_SEEDS_APART = 100_000


@dataclass(frozen=True)
class Retest:
    """What a re-test found.

    Attributes:
        confirmed: Whether the recorded best is still the best, as far as noise lets one say.
        was: Its value when it was tuned.
        now: Its value on today's data, with the first seed.
        best: Stored values of what is best now.
        best_value: Its value, averaged over the seeds that it was trained with.
        epochs: Epochs trained.
        summary: One sentence with the numbers.
        study: The Optuna study of the re-test.
        folder: Its folder.
    """

    confirmed: bool
    was: float
    now: float
    best: dict[str, Any]
    best_value: float
    epochs: int
    summary: str
    study: optuna.Study
    folder: Path


class BehindPruner(optuna.pruners.BasePruner):
    """Stops what is behind one trial of the study at one of the looks, at the same step.

    Args:
        max_steps: The step of a complete training.
        rival: Number of that trial; it and earlier ones are never stopped.
        looks: Steps, in parts of a complete training.
    """

    def __init__(self, max_steps: int, rival: int = 0, looks: Sequence[float] = RETEST_LOOKS) -> None:
        self._rival = rival
        self._looks = {max(1, math.ceil(part * max_steps)) for part in looks}

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is at a look, and behind."""
        step = trial.last_step
        if step not in self._looks or trial.number <= self._rival:
            return False
        rival = study.get_trials(deepcopy=False)[self._rival].intermediate_values.get(step)
        if rival is None:
            return False
        behind = trial.intermediate_values[step] - rival
        return behind > 0 if study.direction is StudyDirection.MINIMIZE else behind < 0


def neighbours(
    space: SearchSpace,
    best: Mapping[str, Any],
    k: int,
    seed: int,
    expected: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> list[dict[str, Any]]:
    """Stored values of k points around a point, every searched parameter moved; different from it and each other.

    Args:
        space: The parameters.
        best: Stored values.
        k: How many.
        seed: Of the moves.
        expected: What is known of unit positions, shape (m, d): the expected loss, shape (m,). None for blind moves.
    """
    rng = np.random.default_rng(seed)
    centre = space.unit([best])[0]
    keep = np.array([p.is_categorical for p in space.parameters])
    points: list[dict[str, Any]] = []
    for _ in range(100 * max(k, 1)):
        if len(points) == k:
            break
        distance = NEIGHBOUR_DISTANCES[len(points) % len(NEIGHBOUR_DISTANCES)]
        moved = centre + distance * rng.standard_normal((1 if expected is None else MOVES_TRIED, len(space)))
        moved = np.where((moved < 0) | (moved > 1), 2 * centre - moved, moved)  # reflect what would leave the range
        moved = np.where(keep, centre, np.clip(moved, 0.0, 1.0))
        point = space.at(moved[0 if expected is None else int(np.argmin(expected(moved)))])
        if point != best and point not in points:
            points.append(point)
    return points


def retest(
    config: TuneConfig,
    builder: CliBuilder | PythonBuilder,
    best: Mapping[str, Any],
    was: float,
    seed: int,
    k: int = 4,
    expected: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    decide: bool = True,
    listener: StudyListener | None = None,
) -> Retest:
    """Train the recorded best against k neighbours and the defaults.

    Args:
        config: Names the re-test's own study and folder; its space, metric and epochs are those of the study.
        builder: Makes the objects of a trial, with today's data.
        best: Stored values of the recorded best.
        was: Its value when it was tuned.
        seed: That it was trained with then; the first seed of the re-test.
        k: How many neighbours.
        expected: See :func:`neighbours`.
        decide: Whether to train a candidate that is ahead on further seeds; without, the record stays unbeaten.
        listener: Is told what happens.

    Raises:
        StudyError: If the recorded best cannot be trained any more.
        KeyboardInterrupt: After the running trial, if Ctrl-C was pressed.
    """
    space, listener = config.space, listener or SilentListener()
    candidates = [dict(best), space.defaults(), *neighbours(space, best, k, config.search.seed, expected)]
    candidates = [c for i, c in enumerate(candidates) if c not in candidates[:i]]
    plan = [(c, seed) for c in candidates]
    # what is left to a new study to decide it learns from better if it was trained to the end
    study = _race(config, builder, plan, listener, looks=RETEST_LOOKS if decide else RETEST_LOOKS[:-1])
    trials = study.get_trials(deepcopy=False)
    sign = 1.0 if config.mode == "min" else -1.0
    recorded = _value(trials[0])
    if recorded is None:
        move_aside(config.folder, config.name, "journal")
        raise StudyError(
            f"the recorded best cannot be trained any more: {trials[0].user_attrs.get('failure', 'pruned')}"
        )
    ahead = [t for t in trials[1 : len(candidates)] if (v := _value(t)) is not None and sign * v < sign * recorded]
    challenger = min(ahead, key=lambda t: sign * (t.value or 0.0), default=None)
    losses = {0: [recorded]}
    if challenger is not None and decide:
        losses[challenger.number] = [challenger.value or 0.0]
        for further in range(1, SEEDS):
            rival, shared = len(plan), trial_seed(seed, _SEEDS_APART + further)
            plan += [(candidates[0], shared), (candidates[challenger.number], shared)]
            study = _race(config, builder, plan, listener, rival)
            trials = study.get_trials(deepcopy=False)
            for candidate, trial in ((0, trials[rival]), (challenger.number, trials[rival + 1])):
                value = _value(trial)
                losses[candidate].append(sign * math.inf if value is None else value)
            if sign * losses[challenger.number][-1] >= sign * losses[0][-1]:
                break  # it has to win on every seed
    beaten = challenger is not None and decide and clearly_better(losses[challenger.number], losses[0], sign)
    winner = challenger.number if beaten and challenger is not None else 0
    value = float(np.mean(losses[winner]))
    epochs = sum(t.user_attrs.get("epochs", 0) for t in trials)
    values_text = f"{config.monitor} {recorded:.5g} now, {was:.5g} when tuned"
    if beaten:
        summary = f"beaten: another configuration reaches {value:.5g} over {SEEDS} seeds, the recorded best "
        summary += f"{float(np.mean(losses[0])):.5g} ({values_text})"
    else:
        ahead_text = "none ahead" if challenger is None else "one ahead within noise" if decide else "one ahead"
        verdict = "still the best" if decide else "tried again"
        summary = f"{verdict}: {values_text}; against {len(candidates) - 1} others, {ahead_text}"
    return Retest(not beaten, was, recorded, candidates[winner], value, epochs, summary, study, config.folder)


def clearly_better(challenger: Sequence[float], recorded: Sequence[float], sign: float) -> bool:
    """Whether a challenger is ahead on every shared seed, by more than the differences scatter.

    Args:
        challenger: Values by seed.
        recorded: Values of the recorded best with the same seeds.
        sign: 1 where lower is better, -1 where higher is.
    """
    gains = sign * (np.asarray(recorded, np.float64) - np.asarray(challenger, np.float64))
    if not np.all(np.isfinite(gains)) or np.any(gains <= 0):
        return False
    error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return bool(gains.mean() > STANDARD_ERRORS * error)


def _value(trial: FrozenTrial) -> float | None:
    good = trial.state is TrialState.COMPLETE and not trial.user_attrs.get("diverged")
    return trial.value if good else None


def _race(
    config: TuneConfig,
    builder: CliBuilder | PythonBuilder,
    plan: Sequence[tuple[Mapping[str, Any], int]],
    listener: StudyListener,
    rival: int = 0,
    looks: Sequence[float] = RETEST_LOOKS,
) -> optuna.Study:
    """Run (stored values, seed) one after the other, those that are not yet in the study; see BehindPruner."""
    planned = replace(config, search=replace(config.search, n_trials=len(plan)), caviar=Caviar())
    try:
        runner = StudyRunner(planned, builder, listener, lambda max_steps: BehindPruner(max_steps, rival, looks))
        there = len(runner.study.get_trials(deepcopy=False))
        for params, seed in plan[there:]:
            runner.study.enqueue_trial(dict(params), user_attrs={"seed": seed})
        listener.study_planned(len(plan))
        runner.catch_up()
        runner.work()
        if runner.stopping.is_set():
            raise KeyboardInterrupt
    except StudyError:  # a fault of the configuration: once it is mended the same command tests anew
        move_aside(config.folder, config.name, "journal")
        raise
    return runner.study
