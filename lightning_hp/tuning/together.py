"""Which trials a study runs together, and what it does with those that cannot be.

Used by the runner in place of running one trial after the other. Everything is told to the study as for a single
trial, in the order of the trials' numbers; the best members leave their checkpoints before they are told.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna

from lightning_hp.search.stages import stage_at
from lightning_hp.study.confirmed import CONFIRMS
from lightning_hp.study.journal import in_one_go
from lightning_hp.study.trials import best_trials
from lightning_hp.study.upstream import storage_of
from lightning_hp.tuning.checkpoints import drop_checkpoints
from lightning_hp.tuning.cohorts import Candidate, Cohort, Trained, cohort_size, fixed_parameters
from lightning_hp.tuning.objective import structure

if TYPE_CHECKING:
    from lightning_hp.tuning.runner import StudyRunner


class Together:
    """A runner's way of running trials in cohorts.

    Attributes:
        cohort: How trials are trained together; None once that has failed for a whole cohort.
    """

    def __init__(self, runner: StudyRunner) -> None:
        """Take the study's settings from its runner."""
        self._runner, config = runner, runner.config
        self.cohort: Cohort | None = Cohort(
            runner.builder,
            config.monitor,
            config.mode,
            runner.length,
            runner.max_steps,
            prune=config.prune,
            grace=config.grace,
            curve_points=config.curve_points,
            say=runner.say,
        )

    def run(self, trial: optuna.Trial, arguments: dict[str, Any], claims: contextlib.ExitStack) -> None:
        """Run a trial together with further ones of its structure, which are asked for here.

        Args:
            trial: The first one.
            arguments: Its natural values.
            claims: Takes the claims of the others.
        """
        runner = self._runner
        if self.cohort is None:
            runner.run_alone(trial, arguments)
            return
        asked = [self._candidate(trial, arguments), *self._companions(trial, claims)]
        groups: dict[Any, list[Candidate]] = {}
        for candidate in asked:  # trials taken over from a process that died may have other structures
            groups.setdefault(structure(runner.description.space, candidate.trial.params), []).append(candidate)
        for group in groups.values():
            results = self.cohort.train(group) if self.cohort is not None else [Trained(one) for one in group]
            self._tell([result for result in results if result.outcome is not None])
            self._run_alone([result for result in results if result.outcome is None], whole=len(results))

    def _candidate(self, trial: optuna.Trial, arguments: dict[str, Any]) -> Candidate:
        return Candidate(trial, arguments, self._runner.paths.trial(trial.number), self._runner.seed_of(trial))

    def _companions(self, first: optuna.Trial, claims: contextlib.ExitStack) -> list[Candidate]:
        """Ask for further trials of the first one's structure, within its stage."""
        runner = self._runner
        space, planned = runner.description.space, runner.sampler.planned
        fixed = {p.stored_name: first.params[p.stored_name] for p in space.parameters if p.cardinality is not None}
        stage = stage_at(planned, first.number)
        is_free = stage is planned[-1] or CONFIRMS in first.user_attrs  # a confirmation belongs to no stage
        end = math.inf if is_free else stage.last
        size = cohort_size(runner.config.search.n_trials, runner.config.caviar.cohort)
        companions: list[Candidate] = []
        newest = first.number
        with fixed_parameters(runner.study, fixed, size - 1):
            while len(companions) + 1 < size and newest + 1 < end and not runner.stopping.is_set():
                asked = runner.ask(claims)
                if not isinstance(asked, tuple):
                    break
                newest = max(newest, asked[0].number)
                if not runner.skip_known(asked[0]):
                    companions.append(self._candidate(*asked))
        return companions

    def _tell(self, results: Sequence[Trained]) -> None:
        """Tell the study about trained members; the best of them leave their checkpoints first."""
        runner = self._runner
        keep = runner.config.keep_checkpoints
        for result in self._worth_keeping(results, keep):
            result.write_checkpoint()
        with in_one_go(storage_of(runner.study)):
            for result in results:
                assert result.outcome is not None
                result.write_curve()
                runner.tell(result.candidate.trial, result.outcome)
        for result in results:
            runner.announce(result.candidate.trial)
        if results:
            drop_checkpoints(runner.study, runner.paths, keep, runner.cleaned)

    def _worth_keeping(self, results: Sequence[Trained], keep: int) -> list[Trained]:
        """The members that may be among the best ``keep`` of the study once they are told.

        Every confirmation may: its configuration is ranked by the mean of all its trainings.
        """
        confirming = [r for r in results if r.outcome is not None and CONFIRMS in r.candidate.trial.user_attrs]
        sign = 1.0 if self._runner.description.mode == "min" else -1.0
        ranked = [(sign * (trial.value or 0.0), None) for trial in best_trials(self._runner.study, keep)]
        mine = [
            (sign * result.outcome.value, result)
            for result in results
            if result.outcome is not None and result.outcome.value is not None
            if result.outcome.state == "complete" and not result.outcome.diverged
        ]
        best = sorted([*ranked, *mine], key=lambda pair: pair[0])[:keep]
        return list(dict.fromkeys([*confirming, *(result for _, result in best if result is not None)]))

    def _run_alone(self, results: Sequence[Trained], whole: int) -> None:
        """Run trials that were not trained together; where that is a whole cohort, so are all that follow."""
        runner = self._runner
        if results and self.cohort is not None:
            reason = results[0].reason
            if len(results) == whole:
                self.cohort = None
                runner.say(f"trials are trained one after another: {reason}")
            else:
                numbers = ", ".join(str(result.candidate.trial.number) for result in results)
                runner.say(f"trained by itself: trial {numbers}: {reason}")
        for result in results:
            if runner.stopping.is_set():
                return  # they keep their values, and are run by whoever goes on with the study
            if result.reason:
                result.candidate.trial.set_user_attr("not_stacked", result.reason)
            runner.run_alone(result.candidate.trial, dict(result.candidate.arguments))
