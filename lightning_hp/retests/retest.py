"""Is the recorded best still the best? Trained again on today's data, against its neighbours and the defaults.

All candidates get the same epochs, and the seed that the recorded best was tuned with: where the data have not moved,
it gives its old value again (but for dropout, where it was or is trained in a stack: that draws other numbers). They
are stopped if they are behind it at a quarter, a half or three quarters of the training, so that a re-test costs
little more than two trainings where nothing has changed. A candidate that ends ahead has won one race, by chance as
well as skill: it and the recorded best are then trained on further seeds that they share, until it loses one. It
counts as better only if it wins on every one of them, by more than those differences scatter.

The neighbours are not drawn blindly: of many moves the one is taken that the older study's learning curves speak for.
Where trials are trained together (:mod:`.race`) they have the structure of the recorded best, so that all of them are
one stack, and the further seeds are trained at once, since a stack costs little more than its slowest member.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.project.build import CliBuilder, PythonBuilder
from lightning_hp.retests.neighbours import neighbours
from lightning_hp.retests.race import Race
from lightning_hp.study.aside import move_aside
from lightning_hp.study.storage import StudyError
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.curve_store import RETEST_LOOKS
from lightning_hp.tuning.listener import SilentListener, StudyListener
from lightning_hp.tuning.objective import trial_seed

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
    space = config.space
    race = Race(config, builder, listener or SilentListener(), 2 + k)
    moved = neighbours(space, best, k, config.search.seed, expected, race.together)
    candidates = [dict(best), space.defaults(), *moved]
    candidates = [c for i, c in enumerate(candidates) if c not in candidates[:i]]
    # what is left to a new study to decide it learns from better if it was trained to the end
    looks = RETEST_LOOKS if decide else RETEST_LOOKS[:-1]
    (trials,) = race.run([(candidate, seed) for candidate in candidates], looks=looks)
    sign = 1.0 if config.mode == "min" else -1.0
    recorded = _value(trials[0])
    if recorded is None:
        move_aside(config.folder, config.name, "journal")
        raise StudyError(
            f"the recorded best cannot be trained any more: {trials[0].user_attrs.get('failure', 'pruned')}"
        )
    ahead = [t for t in trials[1:] if (v := _value(t)) is not None and sign * v < sign * recorded]
    challenger = min(ahead, key=lambda t: sign * (t.value or 0.0), default=None)
    losses, beaten = ([recorded], [recorded]), False
    if challenger is not None and decide:
        losses = _on_further_seeds(race, (trials[0], challenger), seed, sign)
        beaten = clearly_better(losses[1], losses[0], sign)
    winner = candidates[0] if challenger is None or not beaten else candidates[challenger.number]
    value = float(np.mean(losses[1 if beaten else 0]))
    epochs = sum(t.user_attrs.get("epochs", 0) for t in race.study.get_trials(deepcopy=False))
    values_text = f"{config.monitor} {recorded:.5g} now, {was:.5g} when tuned"
    if beaten:
        summary = f"beaten: another configuration reaches {value:.5g} over {SEEDS} seeds, the recorded best "
        summary += f"{float(np.mean(losses[0])):.5g} ({values_text})"
    else:
        ahead_text = "none ahead" if challenger is None else "one ahead within noise" if decide else "one ahead"
        verdict = "still the best" if decide else "tried again"
        summary = f"{verdict}: {values_text}; against {len(candidates) - 1} others, {ahead_text}"
    return Retest(not beaten, was, recorded, winner, value, epochs, summary, race.study, config.folder)


def _on_further_seeds(
    race: Race, pair: tuple[FrozenTrial, FrozenTrial], seed: int, sign: float
) -> tuple[list[float], list[float]]:
    """Train a pair of trials on further seeds that they share, until the second one loses to the first.

    Returns:
        The values of either by seed, that of the first seed included; infinitely bad where it was stopped or failed.
    """
    losses = ([pair[0].value or 0.0], [pair[1].value or 0.0])
    heats = [[(t.params, trial_seed(seed, _SEEDS_APART + further)) for t in pair] for further in range(1, SEEDS)]
    trained = iter(race.run(*heats)) if race.together else (race.run(heat)[0] for heat in heats)
    for heat in trained:
        for values, trial in zip(losses, heat, strict=True):
            value = _value(trial)
            values.append(sign * math.inf if value is None else value)
        if sign * losses[1][-1] >= sign * losses[0][-1]:
            break  # it has to win on every seed
    return losses


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
