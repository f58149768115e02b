"""A stage gate: the dashboard asks a person what the next stage shall do, and the study waits, but not for ever.

The question is a trial of a small study of its own, ``NAME gate``, in the same storage: the dashboard shows its form on
the page of a running trial. The study that is tuned is never touched. Each question stays there with its answer, so
a study's decisions can be read back.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Container, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from lightning_hp.report.axes import number_text, value_text
from lightning_hp.search.boxes import ranked, with_boxes
from lightning_hp.search.parameters import Parameter
from lightning_hp.search.space import SearchSpace
from lightning_hp.search.stages import DECISIONS, Stage, apply_decisions
from lightning_hp.study.upstream import storage_of, study_number, trial_number

#: seconds between two looks for the answer
LOOK_EVERY = 1.0
_ABOUT, _NAMED = "about", " gate"


def gate_name(study: str) -> str:
    """The name of the small study that holds a study's questions."""
    return study + _NAMED


def tuned_name(gate: str) -> str:
    """The inverse of :func:`gate_name`; a name that is none of a gate stays."""
    return gate.removesuffix(_NAMED)


def is_gate(study: str, studies: Container[str]) -> bool:
    """Whether a study holds the questions of another one.

    Args:
        study: Its name.
        studies: The names of all studies.
    """
    return study.endswith(_NAMED) and tuned_name(study) in studies


def open_question(storage: BaseStorage, study: str) -> tuple[int, int] | None:
    """The study and the trial number of a question that waits for its answer, None if there is none.

    Args:
        storage: Where the study that is tuned is.
        study: Its name, or that of its gate.
    """
    try:
        gate = storage.get_study_id_from_name(gate_name(tuned_name(study)))
    except KeyError:
        return None
    waiting = storage.get_all_trials(gate, deepcopy=False, states=(TrialState.RUNNING,))
    return (gate, waiting[-1].number) if waiting else None


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
        asked = _open_question(gate, about) or _new_question(gate, question, choices, about)
    while True:
        trial = storage_of(gate).get_trial(asked)
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
    asked = gate.ask()
    asked.set_user_attr("choices", list(choices))
    asked.set_user_attr(_ABOUT, about)
    save_note(asked, question)
    return trial_number(asked)


def _close(gate: optuna.Study, number: int) -> bool:
    """Close a question that nobody answered; False if it was answered in this very moment."""
    try:
        gate.tell(number, state=TrialState.FAIL)
    except ValueError:
        return False
    gate.set_user_attr(f"answer {number}", "nobody answered")
    return True


def question(study: optuna.Study, space: SearchSpace, planned: Sequence[Stage], stage: Stage, until: str) -> str:
    """What is asked before a stage, as Markdown: what has been found, and the box that each answer would give.

    Args:
        study: The study that is tuned.
        space: Its parameters.
        planned: Its stages, with what was decided about them so far.
        stage: The stage that is about to begin.
        until: When the study goes on by itself, as text.
    """
    direction = "maximize" if study.direction is StudyDirection.MAXIMIZE else "minimize"
    trials = study.get_trials(deepcopy=False)
    best = next((t for t in ranked(trials, direction) if t.state is TrialState.COMPLETE), None)
    before = planned[: stage.index]
    boxes = {
        answer: with_boxes(space, trials, apply_decisions(before, {str(stage.first): answer}), direction)[-1].box or {}
        for answer in ("zoom here", "widen")
    }
    so_far = with_boxes(space, trials, before[:-1], direction)[-1].box or {}
    rows = []
    point = space.defaults() if best is None else best.params
    for parameter, active in zip(space.parameters, space.active(point), strict=True):
        name = parameter.stored_name
        if parameter.tier not in stage.tiers:
            continue
        is_new = parameter.tier in stage.new
        found = value_text(parameter, parameter.natural(best.params[name])) if best is not None and active else "–"
        cells = ["*opens*" if is_new else _side(parameter, so_far[name])]
        cells += [_side(parameter, boxes[answer][name]) for answer in boxes]
        rows.append(_row(parameter.name, found, *cells))
    link = f"/dashboard/studies/{study_number(study)}"
    said = "no trial is complete yet"
    if best is not None:
        where = f"[trial {best.number}]({link}/trials?numbers={best.number})"
        said = f"the best is {where} with **{number_text(best.value)}**"
    wide = "they search the ranges in the column *widen*; choose it where the best lies near an end"
    if all(boxes["widen"][p.stored_name] == (0.0, 1.0) for p in space.parameters if p.tier in stage.tiers):
        wide = "they search the full ranges; nothing is wider"
    as_planned = "zooms" if stage.zoom else "searches the full ranges"
    return "\n".join(
        [
            f"## Before stage {stage.name}",
            "",
            f"{len(trials)} trials of [{study.study_name}]({link}) have ended; {said}. "
            f"The next {stage.last - stage.first} trials are up to you:",
            "",
            "* **zoom here**: they search the ranges in the column *zoom here*, around the good trials",
            f"* **widen**: {wide}",
            "* **stop**: the study ends here, with its best evaluated and its report written",
            "",
            _row("parameter", "best", "so far", "zoom here", "widen"),
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Choose below and press Submit. At {until} the study goes on by itself, as planned: it {as_planned}.",
        ]
    )


def _row(first: str, *others: str) -> str:
    """A row of a table, with room before its cells, since the page draws none and no lines either."""
    return f"| {first} |" + "".join(f" \N{EM SPACE}{cell} |" for cell in others)


def _side(parameter: Parameter, side: tuple[float, float]) -> str:
    """A side of a box in natural values."""
    if parameter.is_categorical:
        return "all"
    inset = 1e-9 if parameter.cardinality is not None else 0.0
    ends = (parameter.natural(parameter.at(at)) for at in (side[0] + inset, side[1] - inset))  # type: ignore[arg-type]
    low, high = sorted(ends)
    return f"{value_text(parameter, low)} – {value_text(parameter, high)}"
