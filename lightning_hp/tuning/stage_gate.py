"""A person decides at the boundary between two stages: who asks, who waits, and where the answer is kept.

The question is asked when the next trial would be the first of a stage and all trials before it have ended. Of several
processes one asks; the others wait with it, since the box of the stage depends on the answer. What was decided is
kept as an attribute of the study, by the number of the stage's first trial, so that everybody, now and after
a resume, comes to the same stages; that nobody answered is kept too, and nobody is asked twice.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.search.stages import DECIDED, Stage, apply_decisions, stage_at
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import quiet_optuna
from lightning_hp.study.upstream import stored_attributes
from lightning_hp.tuning.gate_question import ask, question

#: what stands in the study where nobody answered
NOBODY = "as planned"
#: the study attribute that says, in words, whether an answer is waited for
ATTRIBUTE = "gate"
#: seconds between two looks of a process that waits for another one's answer
LOOK_EVERY = 0.5


class StageGate:
    """One process's part in asking.

    Args:
        study: The study that is tuned.
        sampler: Its sampler.
        paths: Its folder.
        timeout: Seconds to wait for an answer.
        say: Is told, in a sentence, what is waited for and what was answered.
        stopping: Set when this process shall stop.
    """

    def __init__(
        self,
        study: optuna.Study,
        sampler: CoarseToFineSampler,
        paths: StudyPaths,
        timeout: float,
        say: Callable[[str], None],
        stopping: threading.Event,
    ) -> None:
        self._study, self._sampler, self._paths = study, sampler, paths
        self._timeout, self._say, self._stopping = timeout, say, stopping

    def decisions(self) -> dict[str, str]:
        """What was decided so far: number of a stage's first trial, as text, to the answer."""
        return dict(stored_attributes(self._study).get(DECIDED) or {})

    def is_closed(self, trials: list[FrozenTrial]) -> bool:
        """Whether no trial may be asked for now, since the next one is the first of a stage and nobody decided yet."""
        stage = self._next(trials)
        return stage.index > 1 and stage.first == len(trials) and str(stage.first) not in self.decisions()

    def is_over(self, trials: list[FrozenTrial]) -> bool:
        """Whether the study was ended by a person."""
        return self.decisions().get(str(self._next(trials).first)) == "stop"

    def ending(self) -> str | None:
        """In a sentence, that a person ended the study; None if not."""
        trials = self._study.get_trials(deepcopy=False)
        if not self.is_over(trials):
            return None
        stage = self._next(trials)
        return f"ended in the dashboard before stage {stage.name}; `gate: false`, or more trials, goes on"

    def _next(self, trials: list[FrozenTrial]) -> Stage:
        return stage_at(self._sampler.planned, len(trials))

    def wait(self) -> None:
        """Wait a while, or, once all trials before the stage have ended and if no other process does, ask and wait."""
        if any(t.state is TrialState.RUNNING for t in self._study.get_trials(deepcopy=False)):
            self._stopping.wait(LOOK_EVERY)
            return
        try:
            with FileLock(self._paths.root / "locks" / "gate.lock", timeout=0):
                trials = self._study.get_trials(deepcopy=False)
                if self.is_closed(trials):
                    self._ask(self._next(trials))
        except Timeout:
            self._stopping.wait(LOOK_EVERY)

    def _ask(self, stage: Stage) -> None:
        from lightning_hp.report.notes import decorate

        decorate(self._study, self._paths, force=True)
        until = datetime.now(UTC) + timedelta(seconds=self._timeout)
        planned = apply_decisions(self._sampler.planned, self.decisions())
        question_number = question(self._study, self._sampler, planned, stage, f"{until:%Y-%m-%d %H:%M} UTC")
        self._tell(f"{stage.name} waits for your answer until {until:%H:%M} UTC")
        # a study of the same name may have been here before, so the question names the moment at which this one began
        begun = self._study.get_trials(deepcopy=False)[0].datetime_start
        with quiet_optuna():
            try:
                about = f"trial {stage.first} of the study begun at {begun}"
                answer = ask(self._study, question_number, self._timeout, about=about, sleep=self._sleep)
            except _StoppedError:
                return
        self._study.set_user_attr(DECIDED, {**self.decisions(), str(stage.first): answer or NOBODY})
        self._tell(f"{stage.name}: {answer or 'nobody answered, it goes on as planned'}")

    def _tell(self, text: str) -> None:
        self._study.set_user_attr(ATTRIBUTE, text)
        self._say(self.last_message() or text)

    def last_message(self) -> str | None:
        """What was last said at the gate, by whatever process, and where the form is if an answer is waited for."""
        message = stored_attributes(self._study).get(ATTRIBUTE)
        if message is None or " waits " not in message:
            return None if message is None else f"stage {message}"
        return f"stage {message}: `lightning-hp dashboard {shlex.quote(str(self._paths.root))}` leads to the form"

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise _StoppedError


class _StoppedError(Exception):
    """This process shall stop; the question stays open."""
