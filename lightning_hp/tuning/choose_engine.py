"""The engine ``auto``: trials are stacked where that works and pays, else trained one after another or by workers.

It works where a few trials of the space pass the stack's own checks, and where nothing of the project's needs a Trainer
in every trial: a logger of its own is told every step by a Trainer only, a checkpoint callback of its own writes only
there. It pays where a step in the stack costs less than PAYS of what a Trainer's step costs, measured on the project
itself; the smallest cohort that pays is taken, since trials of one cohort share their structure and learn nothing from
each other. One line says what was chosen and why.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Checkpoint

from lightning_hp.project.build import Built, CliBuilder
from lightning_hp.study.storage import one_line
from lightning_hp.training.stacked import Member, NotStackable, Stack
from lightning_hp.training.stacked.check import check_stack
from lightning_hp.training.stacked.cost import step_seconds
from lightning_hp.training.stacked.randomness import RandomState
from lightning_hp.training.stacked.seat import seat
from lightning_hp.tuning.caviar import AUTO
from lightning_hp.tuning.cohort_plan import cohort_size
from lightning_hp.tuning.cohorts import build_of, refuse_own_start, stood_in_for
from lightning_hp.tuning.confirmation import reserved
from lightning_hp.tuning.failures import counted
from lightning_hp.tuning.together import Together

if TYPE_CHECKING:
    from lightning_hp.tuning.runner import StudyRunner

#: a step in a stack costs at most this part of a Trainer's, or it does not pay
PAYS = 0.5
#: seconds that a Trainer's loop adds to a step, a low estimate (0.8 to 1.2 ms were measured)
LOOP_SECONDS = 5e-4
#: sizes of a cohort that are tried, the largest first: the smallest that pays learns most from its trials
_SIZES = (8, 4, 2)
#: bytes of weights from which on a model keeps a machine busy alone
_LARGE = 100_000_000


def settle_engine(runner: StudyRunner) -> None:
    """Decide what ``auto`` is for a study, before its next trial; nothing where another engine was asked for.

    Args:
        runner: Of the study; its ``config`` then names the engine.
    """
    config = runner.config
    if config.caviar.engine != AUTO:
        return
    workers = config.caviar.workers
    alone = "local" if workers > 1 else "in_process"
    engine, size = alone, config.caviar.cohort
    build = build_of(runner.builder)
    if _has_more(runner):
        random_state = RandomState.capture()
        try:
            few, together, single = _measured(runner, build)
            engine = "stacked"
            size = cohort_size(config.search.n_trials, size, few, config.caviar.structures)
            costs = f"{1e3 * together:.2g} ms a step instead of {1e3 * single:.2g} ms"
            runner.say(f"engine stacked: up to {size} trials of one structure are trained together ({costs})")
        except NotStackable as refusal:
            runner.say(f"engine {alone}: {refusal.reason}")
        except Exception as error:  # the first trial will say it in its own words
            runner.say(f"engine {alone}: trials could not be tried together ({one_line(error)})")
        finally:
            random_state.restore()
    runner.config = replace(config, caviar=replace(config.caviar, engine=engine, cohort=size))
    runner.together = Together(runner, build) if runner.config.caviar.stacks else None


def _has_more(runner: StudyRunner) -> bool:
    """Whether trials are left to run."""
    trials = runner.study.get_trials(deepcopy=False)
    unfinished = any(not trial.state.is_finished() for trial in trials)
    return unfinished or counted(trials, runner.study) < runner.config.search.n_trials - reserved(runner.config)


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
    sizes = (
        [size for size in _SIZES if size <= largest] if config.caviar.cohort is None else [min(largest, *_SIZES[:1])]
    )
    defaults = space.unit([space.defaults()])[0]
    with tempfile.TemporaryDirectory() as folder:
        members: list[Member] = []
        for number in range(sizes[0]):
            stored = {
                p.stored_name: p.at(float(at)) if p.cardinality is not None else p.at((number + 0.5) / sizes[0])
                for p, at in zip(space.parameters, defaults, strict=True)
            }
            built = build(space.arguments(stored), Path(folder, str(number)), number, [], runner.length)
            refuse_own_start(built)
            _refuse_own_checkpoints(built)
            weights = sum(p.numel() * p.element_size() for p in built.model.parameters())
            if weights > _LARGE:
                raise NotStackable(f"a model of {weights / 1e6:.0f} MB keeps the machine busy by itself")
            members.append(Member(built.model, built.trainer, built.data, stood_in_for=stood_in_for(config.audit)))
        stack = Stack([seat(member) for member in members])
        check_stack(stack)
        pays: tuple[int, float, float] | None = None
        for size in sizes:
            if size < len(stack):
                stack.keep(range(size))
            together, single = step_seconds(stack)
            single += LOOP_SECONDS
            if together <= PAYS * single:
                pays = size, together, single
            elif pays is None:
                raise NotStackable(
                    f"a step of one model costs {1e3 * together:.2g} ms in a stack, and {1e3 * single:.2g} ms alone"
                )
            else:
                break
    assert pays is not None
    return pays


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
