"""A stage gate: the dashboard asks a person what the next stage shall do, and the study waits, but not for ever.

The question is a trial of a small study of its own, ``NAME gate``, in the same storage: the dashboard shows its form on
the page of a running trial. The study that is tuned is never touched. Each question stays there with its answer, so
a study's decisions can be read back.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.report.axes import value_text
from lightning_hp.report.rendering import render_markdown
from lightning_hp.search.boxes import ranked
from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.search.stages import DECISIONS, Stage, apply_decisions
from lightning_hp.space.parameters import Parameter
from lightning_hp.study.questions import gate_name
from lightning_hp.study.upstream import storage_of, study_number, trial_number

#: seconds between two looks for the answer
LOOK_EVERY = 1.0
_ABOUT = "about"


def ask(
    study: optuna.Study,
    question: str,
    timeout: float,
    choices: Sequence[str] = DECISIONS,
    *,
    about: str = "",
    sleep: Callable[[float], Any] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str | None:
    """Ask a person, and wait.

    Args:
        study: The study that is tuned; the question is asked in its storage.
        question: Markdown, shown above the form: what the stage found, and what each choice means.
        timeout: Seconds to wait.
        choices: The answers to choose from, at least two, all different.
        about: What the question is about. One about the same that was left open, by a process that was stopped, is
            taken up again.
        sleep: Waits so many seconds; what it raises leaves the question open.
        clock: Seconds; an argument for tests.

    Returns:
        One of the choices, or None where nobody answered in time (the question is then closed).

    Raises:
        ValueError: If there are fewer than two choices, or two are the same.
    """
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise ValueError(f"`choices` must be at least two different answers, got {list(choices)!r}")
    end = clock() + timeout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        gate = optuna.create_study(
            study_name=gate_name(study.study_name), storage=storage_of(study), load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=0),
        )  # fmt: skip
        number = _open_question(gate, about) or _new_question(gate, question, choices, about)
    while True:
        trial = storage_of(gate).get_trial(number)
        if trial.state is TrialState.COMPLETE and trial.value is not None:
            answer = choices[round(trial.value)]
            gate.set_user_attr(f"answer {trial.number}", answer)
            return answer
        if trial.state.is_finished():
            return None
        left = end - clock()
        if left > 0:
            sleep(min(LOOK_EVERY, left))
        elif _close(gate, trial.number):
            return None


def _open_question(gate: optuna.Study, about: str) -> int | None:
    """The trial of a question about the same that still waits for its answer, or has got it since."""
    for trial in reversed(gate.get_trials(deepcopy=False)):
        waits = trial.state in (TrialState.RUNNING, TrialState.COMPLETE)
        if about and waits and trial.user_attrs.get(_ABOUT) == about:
            return trial_number(trial)
    return None


def _new_question(gate: optuna.Study, question: str, choices: Sequence[str], about: str) -> int:
    from optuna_dashboard import ChoiceWidget, register_objective_form_widgets, save_note

    gate.set_metric_names(["answer"])
    values = [float(i) for i in range(len(choices))]
    widget = ChoiceWidget(choices=list(choices), values=values, description="What shall the next stage do?")
    register_objective_form_widgets(gate, [widget])
    trial = gate.ask()
    trial.set_user_attr("choices", list(choices))
    trial.set_user_attr(_ABOUT, about)
    save_note(trial, question)
    return trial_number(trial)


def _close(gate: optuna.Study, number: int) -> bool:
    """Close a question that nobody answered; False if it was answered in this very moment."""
    try:
        gate.tell(number, state=TrialState.FAIL)
    except ValueError:
        return False
    gate.set_user_attr(f"answer {number}", "nobody answered")
    return True


def question(
    study: optuna.Study, sampler: CoarseToFineSampler, planned: Sequence[Stage], stage: Stage, until: str
) -> str:
    """What is asked before a stage, as Markdown: what has been found, and the box that each answer would give.

    Args:
        study: The study that is tuned.
        sampler: Its sampler, which knows the boxes.
        planned: Its stages, with what was decided about them so far.
        stage: The stage that is about to begin.
        until: When the study goes on by itself, as text.
    """
    space = sampler.space
    direction = "maximize" if study.direction is StudyDirection.MAXIMIZE else "minimize"
    trials = study.get_trials(deepcopy=False)
    best = next((t for t in ranked(trials, direction) if t.state is TrialState.COMPLETE), None)
    before = planned[: stage.index]

    def box_after(answer: str) -> Mapping[str, tuple[float, float]]:
        decided = apply_decisions(before, {str(stage.first): answer})
        return sampler.with_boxes(study, decided)[-1].box or {}

    zoomed, wide = box_after("zoom here"), box_after("widen")
    so_far = sampler.with_boxes(study, before[:-1])[-1].box or {}
    searched = [parameter for parameter in space.parameters if parameter.tier in stage.tiers]
    active = dict(zip(space.parameters, space.active(space.defaults() if best is None else best.params), strict=True))
    rows = [
        RangesRow(
            parameter.name,
            None if best is None or not active[parameter] else _best_text(parameter, best),
            None if parameter.tier in stage.new else _side_text(parameter, so_far),
            _side_text(parameter, zoomed),
            _side_text(parameter, wide),
        )
        for parameter in searched
    ]
    return render_markdown(
        "gate_question.md",
        stage=stage,
        study=study.study_name,
        number=study_number(study),
        n_trials=len(trials),
        best=best,
        rows=rows,
        nothing_is_wider=all(wide[parameter.stored_name] == (0.0, 1.0) for parameter in searched),
        until=until,
    )


@dataclass(frozen=True)
class RangesRow:
    """One parameter of the question: its best value and the ranges of the answers, as text.

    Attributes:
        name: Its name.
        best: The best value, None where it was not in use.
        so_far: Where the last stage searched, None if the coming stage is the first to search it.
        zoomed: Where the stage searches after ``zoom here``.
        wide: Where it searches after ``widen``.
    """

    name: str
    best: str | None
    so_far: str | None
    zoomed: str
    wide: str


def _best_text(parameter: Parameter, best: FrozenTrial) -> str:
    return value_text(parameter, parameter.natural(best.params[parameter.stored_name]))


def _side_text(parameter: Parameter, box: Mapping[str, tuple[float, float]]) -> str:
    """A side of a box in natural values, the smaller first."""
    if parameter.is_categorical:
        return "all"
    low, high = box[parameter.stored_name]
    inset = 1e-9 if parameter.cardinality is not None else 0.0
    ends = (parameter.natural(parameter.at(unit)) for unit in (low + inset, high - inset))  # type: ignore[arg-type]
    return " – ".join(value_text(parameter, natural) for natural in sorted(ends))
