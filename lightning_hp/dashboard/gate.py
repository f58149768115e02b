"""A stage gate: the dashboard asks a person what the next stage shall do, and the study waits, but not for ever.

The question is a trial of a small study of its own, ``NAME gate``, in the same storage: the dashboard shows its form on
the page of a running trial. The study that is tuned is never touched. Each question stays there with its answer, so
a study's decisions can be read back.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

#: what a person may answer, and what the note says of it
CHOICES: tuple[str, ...] = ("zoom here", "widen", "stop")
#: seconds between two looks for the answer
LOOK_EVERY = 2.0


def ask(
    study: optuna.Study,
    question: str,
    timeout: float,
    choices: Sequence[str] = CHOICES,
    *,
    sleep: Callable[[float], Any] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str | None:
    """Ask a person, and wait.

    Args:
        study: The study that is tuned; the question is asked in its storage.
        question: Markdown, shown above the form: what the stage found, and what each choice means.
        timeout: Seconds to wait.
        choices: The answers to choose from, at least two, all different.
        sleep: Waits so many seconds; an argument for tests.
        clock: Seconds; an argument for tests.

    Returns:
        One of the choices, or None where nobody answered in time (the question is then closed).

    Raises:
        ValueError: If there are fewer than two choices, or two are the same.
    """
    from optuna_dashboard import ChoiceWidget, register_objective_form_widgets, save_note

    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise ValueError(f"`choices` must be at least two different answers, got {list(choices)!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        gate = optuna.create_study(
            study_name=f"{study.study_name} gate", storage=study._storage, load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=0),
        )  # fmt: skip
        values = [float(i) for i in range(len(choices))]
        widget = ChoiceWidget(choices=list(choices), values=values, description="What shall the next stage do?")
        register_objective_form_widgets(gate, [widget])
        asked = gate.ask()
        asked.set_user_attr("choices", list(choices))
        save_note(asked, question)
    end = clock() + timeout
    while True:
        trial = gate._storage.get_trial(asked._trial_id)
        if trial.state is TrialState.COMPLETE and trial.value is not None:
            answer = choices[round(trial.value)]
            gate.set_user_attr(f"answer {trial.number}", answer)
            return answer
        if trial.state.is_finished():
            return None
        left = end - clock()
        if left <= 0:
            _close(gate, asked)
            return None
        sleep(min(LOOK_EVERY, left))


def _close(gate: optuna.Study, asked: optuna.Trial) -> None:
    """Close a question that nobody answered; one answered in this very moment keeps its answer in the study."""
    try:
        gate.tell(asked, state=TrialState.FAIL)
    except ValueError:
        return
    gate.set_user_attr(f"answer {asked.number}", "nobody answered")
