"""The engine ``auto``: trials are stacked where that works and pays, else trained one after another or by workers.

It works where a few trials of the space pass the stack's own checks, and where nothing of the project's needs a Trainer
in every trial: a logger of its own is told every step by a Trainer only, a checkpoint callback of its own writes only
there. It pays where a step in the stack costs less than PAYS of what a Trainer's step costs, measured on the project
itself; the smallest cohort that pays is taken, since trials of one cohort share their structure and learn nothing from
each other. One line says what was chosen and why. What was chosen is kept in the study: a machine that is busier when
the study goes on, or another worker's, does not change which trials are proposed.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Checkpoint

from lightning_hp.project.build import Built, CliBuilder
from lightning_hp.study.patience import patiently
from lightning_hp.study.storage import one_line
from lightning_hp.study.upstream import stored_attributes
from lightning_hp.training.stacked import Member, NotStackable, Stack
from lightning_hp.training.stacked.check import check_stack
from lightning_hp.training.stacked.cost import step_seconds
from lightning_hp.training.stacked.randomness import RandomState
from lightning_hp.training.stacked.seat import seat
from lightning_hp.tuning.caviar import AUTO
from lightning_hp.tuning.cohort_plan import cohort_size
from lightning_hp.tuning.cohorts import build_of, member_of
from lightning_hp.tuning.confirmation import left_to_search
from lightning_hp.tuning.together import Together

if TYPE_CHECKING:
    from lightning_hp.tuning.runner import StudyRunner

#: a step in a stack costs at most this part of a Trainer's, or it does not pay
PAYS = 0.5
#: seconds that a Trainer's loop adds to a step, a low estimate (0.8 to 1.2 ms were measured)
LOOP_SECONDS = 5e-4
#: sizes of a cohort that are tried, until one pays: the smallest that pays learns most from its trials
_SIZES = (2, 4, 8)
#: bytes of weights from which on a model keeps a machine busy alone
_LARGE = 100_000_000
#: user attribute of a study: what was chosen for it
ATTRIBUTE = "engine"


def settle_engine(runner: StudyRunner) -> None:
    """Decide what ``auto`` is for a study, before its next trial; nothing where another engine was asked for.

    Args:
        runner: Of the study; its ``config`` then names the engine.
    """
    config = runner.config
    if config.caviar.engine != AUTO:
        return
    has_more = _has_more(runner)
    build = build_of(runner.builder)
    choice = _kept(runner) or (_measured_choice(runner, build) if has_more else _Choice())
    alone = "local" if config.caviar.workers > 1 else "in_process"
    engine = "stacked" if choice.size is not None else alone
    if choice.why and has_more:
        message = f"up to {choice.size} trials of one structure are trained together" if choice.size else choice.why
        runner.say(f"engine {engine}: {message}{f' ({choice.why})' if choice.size else ''}")
    cohort = choice.size or config.caviar.cohort
    runner.config = replace(config, caviar=replace(config.caviar, engine=engine, cohort=cohort))
    runner.together = Together(runner, build) if runner.config.caviar.stacks else None


@dataclass(frozen=True)
class _Choice:
    """What was chosen for a study.

    Attributes:
        size: Members of a cohort; None where trials are not stacked.
        why: The reason, in one line.
        structures: The share of structures that was asked for.
    """

    size: int | None = None
    why: str = ""
    structures: float | None = None


def _measured_choice(runner: StudyRunner, build: Callable[..., Built]) -> _Choice:
    """What a measurement says, which is then kept in the study."""
    caviar, random_state = runner.config.caviar, RandomState.capture()
    try:
        few, together, single = _measured(runner, build)
        size = cohort_size(runner.config.search.n_trials, caviar.cohort, few, caviar.structures)
        choice = _Choice(size, f"{_step(together)} a step instead of {_step(single)}", caviar.structures)
    except NotStackable as refusal:
        choice = _Choice(None, refusal.reason, caviar.structures)
    except Exception as error:  # the first trial will say it in its own words
        return _Choice(why=f"trials could not be tried together ({one_line(error)})")
    finally:
        random_state.restore()

    def keep() -> _Choice:
        with runner.lock():
            first = _kept(runner)  # of a process that began at the same time
            if first is None:
                runner.study.set_user_attr(ATTRIBUTE, asdict(choice))
            return first or choice

    return patiently(keep, say=runner.say)


def _kept(runner: StudyRunner) -> _Choice | None:
    """What was chosen for the study; None for nothing, or if cohorts that are wanted now are other ones."""
    kept = patiently(lambda: stored_attributes(runner.study), say=runner.say).get(ATTRIBUTE)
    if not isinstance(kept, dict):
        return None
    choice, caviar = _Choice(**kept), runner.config.caviar
    other_size = choice.size is not None and caviar.cohort not in (None, choice.size)
    return None if other_size or choice.structures != caviar.structures else choice


def _has_more(runner: StudyRunner) -> bool:
    """Whether trials are left to run."""
    trials = runner.study.get_trials(deepcopy=False)
    unfinished = any(not trial.state.is_finished() for trial in trials)
    return unfinished or left_to_search(runner.study, trials, runner.config) > 0


def _measured(runner: StudyRunner, build: Callable[..., Built]) -> tuple[int, float, float]:
    """The smallest cohort that pays, and seconds of a step in it and of a Trainer's step.

    Raises:
        NotStackable: If trials cannot be stacked, or it does not pay; with the reason.
    """
    _refuse_own_outputs(runner)
    config, space = runner.config, runner.description.space
    largest = cohort_size(config.search.n_trials, config.caviar.cohort, max(_SIZES), config.caviar.structures)
    if config.caviar.structures is not None and largest < 2:
        raise NotStackable("`caviar.structures` has every trial bring a structure of its own")
    sizes = [min(largest, max(_SIZES))]
    if config.caviar.cohort is None:
        sizes = [size for size in _SIZES if size <= largest]
    defaults = space.unit([space.defaults()])[0]
    together = single = math.inf
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first trial gives them

        def member(number: int, size: int) -> Member:
            stored = {
                p.stored_name: p.at(float(at)) if p.cardinality is not None else p.at((number + 0.5) / size)
                for p, at in zip(space.parameters, defaults, strict=True)
            }
            built = build(space.arguments(stored), Path(folder, str(number)), number, [], runner.length)
            _refuse_own_checkpoints(built)
            weights = sum(p.numel() * p.element_size() for p in built.model.parameters())
            if weights > _LARGE:
                raise NotStackable(f"a model of {weights / 1e6:.0f} MB keeps the machine busy by itself")
            return member_of(built, config.audit)

        for size in sizes:
            stack = Stack([seat(member(number, size)) for number in range(size)])
            together, single = step_seconds(stack, check_stack(stack))
            single += LOOP_SECONDS
            if together <= PAYS * single:
                return size, together, single
    raise NotStackable(f"a step of one model costs {_step(together)} in a stack, and {_step(single)} alone")


def _refuse_own_outputs(runner: StudyRunner) -> None:
    settings: Any = runner.builder.trainer_settings()
    logger = settings.get("logger")
    if logger not in (None, True, False, [], ()):
        named = logger.get("class_path", "logger") if isinstance(logger, dict) else type(logger).__name__
        raise NotStackable(f"the project's logger ({named}) is told every step by a Trainer only")
    if isinstance(runner.builder, CliBuilder) and runner.builder.cli is not None:
        raise NotStackable("the project's own command may do more for a trial than to train it")


def _refuse_own_checkpoints(built: Built) -> None:
    for callback in built.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint) and getattr(callback, "dirpath", None):
            raise NotStackable(f"the project's {type(callback).__name__} writes its checkpoints in a Trainer only")


def _step(seconds: float) -> str:
    """Such as ``0.84 ms`` or ``280 ms``."""
    milliseconds = 1e3 * seconds
    return f"{milliseconds:.2g} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"
