"""Which trials a study runs together, and what it does with those that cannot be.

Used by the runner in place of running one trial after the other. Everything is told to the study as for a single
trial, in the order of the trials' numbers; the best members leave their checkpoints before they are told.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import optuna

from lightning_hp.project.built import Built
from lightning_hp.search.stages import stage_at
from lightning_hp.study.confirmed import CONFIRMS
from lightning_hp.study.journal import in_one_go
from lightning_hp.study.trials import best_trials
from lightning_hp.study.upstream import storage_of
from lightning_hp.tuning.checkpoints import drop_checkpoints
from lightning_hp.tuning.cohort_plan import cohort_size, fixed_parameters, newcomers, repeats, together_with
from lightning_hp.tuning.cohorts import Candidate, Cohort, Trained, build_of
from lightning_hp.tuning.objective import structure

if TYPE_CHECKING:
    from lightning_hp.tuning.runner import StudyRunner


class Together:
    """A runner's way of running trials in cohorts.

    Attributes:
        cohort: How trials are trained together; None once that has failed for a whole cohort.
    """

    def __init__(self, runner: StudyRunner, build: Callable[..., Built] | None = None) -> None:
        """Take the study's settings from its runner, and what makes the objects of a trial where that has begun."""
        self._runner, config = runner, runner.config
        self.cohort: Cohort | None = Cohort(
            build or build_of(runner.builder),
            config.monitor,
            config.mode,
            runner.length,
            runner.max_steps,
            prune=config.prune,
            grace=config.grace,
            curve_points=config.curve_points,
            say=runner.say,
            audited=config.audit,
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
        n_trials, caviar = runner.config.search.n_trials, runner.config.caviar
        size = cohort_size(n_trials, caviar.cohort, structures=caviar.structures)
        further = newcomers(n_trials, size, caviar.structures)
        if repeats(trial):
            size, further = together_with(runner.study, caviar.workers), 0
        first = self._candidate(trial, arguments)
        candidates = [first, *self._companions([first], size - 1, claims)]
        # known values may share a stack though their whole numbers differ: their module's own step decides
        waiting = [candidates] if repeats(trial) else self._by_structure(candidates)
        while waiting and not runner.stopping.is_set():  # what is left keeps its values for whoever goes on
            group = waiting.pop(0)
            waiting += self._train(group, further, claims)

    def _by_structure(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """Group candidates: one that was enqueued, or left by a process that died, has its own structure."""
        groups: dict[Any, list[Candidate]] = {}
        for one in candidates:
            groups.setdefault(one.structure, []).append(one)
        return list(groups.values())

    def _train(self, group: Sequence[Candidate], further: int, claims: contextlib.ExitStack) -> list[list[Candidate]]:
        """Train a group, and trials that take the places of those that leave it early.

        Args:
            group: Of one structure.
            further: How many trials may take free places.
            claims: Takes the claims of those.

        Returns:
            Trials of other structures that were met when asking for them.
        """
        if self.cohort is None:
            for one in group:
                self._run_alone([Trained(one)], whole=0)
            return []
        others: list[list[Candidate]] = []
        errors: list[Exception] = []
        cohort, most = list(group), len(group) + further

        def refill(free: int, ended: Sequence[Trained]) -> list[Candidate]:
            nonlocal most
            mine: list[Candidate] = []
            try:
                self._tell(ended)  # what comes next is proposed with all results so far
                if others or errors or len(cohort) >= most:
                    return []
                joining = self._companions(cohort, min(free, most - len(cohort)), claims)
                if not joining:
                    most = 0  # the study is at its end, or the stage
                for one in self._by_structure([group[0], *joining]):
                    if one[0] is group[0]:
                        mine = one[1:]
                    else:
                        others.append(one)
                cohort.extend(mine)
            except Exception as error:  # of the storage, say: the stack is trained to its end first
                errors.append(error)
            return mine

        results = self.cohort.train(group, refill)
        self._tell(results)
        if errors:
            raise errors[0]
        self._run_alone([result for result in results if result.outcome is None], whole=len(results))
        return others

    def _candidate(self, trial: optuna.Trial, arguments: dict[str, Any]) -> Candidate:
        runner = self._runner
        shape = structure(runner.description.space, trial.params)
        return Candidate(trial, arguments, runner.paths.trial(trial.number), runner.seed_of(trial), shape)

    def _companions(self, cohort: Sequence[Candidate], most: int, claims: contextlib.ExitStack) -> list[Candidate]:
        """Ask for further trials of the structure of a cohort's first trial, within its stage."""
        runner, trial = self._runner, cohort[0].trial
        space, planned = runner.description.space, runner.sampler.planned
        fixed = {p.stored_name: trial.params[p.stored_name] for p in space.parameters if p.cardinality is not None}
        stage = stage_at(planned, trial.number)
        is_free = stage is planned[-1] or repeats(trial)  # which belongs to no stage
        end = math.inf if is_free else stage.last
        companions: list[Candidate] = []
        newest = max(one.trial.number for one in cohort)
        with fixed_parameters(runner.study, fixed, most):
            while len(companions) < most and newest + 1 < end and not self._is_over():
                answer = runner.ask(claims)
                if not isinstance(answer, tuple):
                    break
                newest = max(newest, answer[0].number)
                if not runner.skip_known(answer[0]):
                    companions.append(self._candidate(*answer))
        return companions

    def _is_over(self) -> bool:
        return self._runner.stopping.is_set() or time.monotonic() >= self._runner.deadline

    def _tell(self, trained: Sequence[Trained]) -> None:
        """Tell the study about trained members once; the best of them leave their checkpoints first."""
        runner = self._runner
        results = [result for result in trained if result.outcome is not None and not result.is_told]
        keep = runner.config.keep_checkpoints
        for result in self._worth_keeping(results, keep):
            result.write_checkpoint()
        with in_one_go(storage_of(runner.study)):
            for result in results:
                assert result.outcome is not None
                result.write_curve()
                runner.tell(result.candidate.trial, result.outcome)
        for result in results:
            result.release()
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
