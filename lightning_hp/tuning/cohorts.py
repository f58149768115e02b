"""Trials of one structure, trained together: each is built as a trial of its own, and recorded as one.

A cohort is a few trials whose whole numbers and choices (layers, units, batch size) are the same and whose other values
differ: the sampler proposes the first one, and for the others everything but the structure (a split-plot design). The
cohort is trained by :mod:`lightning_hp.training.stacked`. The pruner is asked about every member at every validation,
and members that it stops leave the stack. What cannot be stacked, and what fails, is handed back with the reason: the
caller trains it by a Trainer of its own, whose errors are then those of any sequential trial.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import optuna
import torch
from torch import Tensor

from lightning_hp.callbacks.audit.environment import EnvironmentAuditor
from lightning_hp.callbacks.trackers import give_values
from lightning_hp.project.build import Built, CliBuilder, PythonBuilder
from lightning_hp.project.cli_repeat import RepeatingBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.trial_outputs import MetricsLog
from lightning_hp.search.pruner import CurvePruner
from lightning_hp.study.confirmed import CONFIRMS
from lightning_hp.study.journal import in_one_go
from lightning_hp.study.paths import TrialPaths
from lightning_hp.study.storage import one_line
from lightning_hp.study.upstream import storage_of
from lightning_hp.training.stacked import Member, NotStackable, Outcome, Report, train_stacked
from lightning_hp.training.stacked.member import tell_progress
from lightning_hp.tuning.curve_store import ThinCurve
from lightning_hp.tuning.objective import Outcome as TrialOutcome
from lightning_hp.tuning.objective import is_out_of_memory

#: seconds after which the points of learning curves are written while members train
WRITE_EVERY = 2.0


@dataclass(eq=False)
class Candidate:
    """A trial that has its values and waits to be trained.

    Attributes:
        trial: The live trial.
        arguments: Its natural values, keyed as the builder takes them.
        paths: Its folder.
        seed: Its seed.
        structure: Its whole numbers and choices.
    """

    trial: optuna.Trial
    arguments: Mapping[str, Any]
    paths: TrialPaths
    seed: int
    structure: Hashable = None


@dataclass(eq=False)
class Trained:
    """What became of a candidate.

    Attributes:
        candidate: The candidate.
        outcome: How its training ended; None if it was not trained here.
        reason: Why not, in one line.
        is_told: Whether the study was told.
    """

    candidate: Candidate
    outcome: TrialOutcome | None = None
    reason: str = ""
    _built: Built | None = None
    _best: dict[str, Tensor] = field(default_factory=dict)
    _counts: tuple[int, int] = (0, 0)
    _curve: ThinCurve | None = None
    is_told: bool = False

    def release(self) -> None:
        """Note that the study was told, and let go of the model."""
        self.is_told, self._built, self._best = True, None, {}

    def write_curve(self) -> None:
        """Write the points of its learning curve that wait."""
        if self._curve is not None:
            self._curve.flush()

    def write_checkpoint(self) -> None:
        """Write ``best.ckpt``: the weights at the best validation, as ``Trainer.validate`` and others load them."""
        if self._built is None or not self._best:
            return
        self._built.model.load_state_dict(self._best)
        tell_progress(self._built.trainer, *self._counts)
        file = self.candidate.paths.best_checkpoint
        file.parent.mkdir(parents=True, exist_ok=True)
        self._built.trainer.save_checkpoint(file, weights_only=True)


#: from the number of free places and what has ended so far to further candidates
Refill = Callable[[int, Sequence[Trained]], Sequence[Candidate]]


@dataclass
class Cohort:
    """How the trials of a study are trained together.

    Attributes:
        build: Makes the objects of a trial, see :func:`build_of`.
        monitor: Name of the metric.
        mode: ``min`` or ``max``.
        length: Of a complete training.
        max_steps: In how many units a curve counts it, see :mod:`.length`.
        prune: Whether the study's pruner may stop trials.
        grace: The pruner is not asked before this part of the training.
        curve_points: How many points of a curve are stored, see :mod:`.curve_store`.
        say: Is told, in one line, what a user should know.
        audited: Whether the study audits its winner itself.
    """

    build: Callable[..., Built]
    monitor: str
    mode: str
    length: TrainingLength
    max_steps: int
    prune: bool
    grace: float
    curve_points: int
    say: Callable[[str], None]
    audited: bool = True

    def train(self, candidates: Sequence[Candidate], refill: Refill | None = None) -> list[Trained]:
        """Train trials of one structure together; never raises for what the training did.

        Args:
            candidates: At least one.
            refill: Called at the end of an epoch with the number of free places and all that have ended so far;
                returns further candidates of the same structure, at most as many.

        Returns:
            In their order, those of ``refill`` last; those without an outcome are to be trained by themselves.
        """
        results = {candidate: Trained(candidate) for candidate in candidates}
        self._train(list(candidates), results, refill)
        return list(results.values())

    def _train(self, candidates: list[Candidate], results: dict[Candidate, Trained], refill: Refill | None) -> None:
        run = _CohortRun(self, results, refill)
        try:
            run.train(candidates)
        except NotStackable as refusal:
            run.give_back(refusal.reason)
        except Exception as error:
            left = run.left()
            if not is_out_of_memory(error) or len(left) < 2:
                run.give_back(one_line(error))
                return
            del run
            _free()
            numbers = ", ".join(str(candidate.trial.number) for candidate in left)
            self.say(f"out of memory with {len(left)} trials together: trained in halves: trials {numbers}")
            for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                self._train(half, results, refill)


class _CohortRun:
    """One attempt at training candidates together."""

    def __init__(self, cohort: Cohort, results: dict[Candidate, Trained], refill: Refill | None) -> None:
        self.cohort, self.results, self.more = cohort, results, refill
        self.members: list[Member] = []
        self.curves: dict[Member, _MemberCurve] = {}
        self.building: dict[Member, float] = {}  # seconds
        self.candidates: list[Candidate] = []
        self.written = time.monotonic()

    def train(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = list(candidates)
        members = [self._member(candidate) for candidate in candidates]
        refill = None if self.more is None else self._refill
        train_stacked(members, should_stop=self._should_stop, refill=refill, finished=self._finished)

    def _member(self, candidate: Candidate) -> Member:
        cohort, began = self.cohort, time.monotonic()
        built = cohort.build(candidate.arguments, candidate.paths.root, candidate.seed, [], cohort.length)
        member = member_of(built, cohort.audited, candidate, candidate.structure)
        self.members.append(member)
        self.curves[member] = _MemberCurve(cohort, candidate.trial)
        self.results[candidate]._built = built
        self.building[member] = time.monotonic() - began
        return member

    def _refill(self, free: int) -> list[Member]:
        assert self.more is not None
        members = []
        for candidate in self.more(free, [result for result in self.results.values() if result.outcome is not None]):
            self.results[candidate] = Trained(candidate)
            self.candidates.append(candidate)
            try:
                members.append(self._member(candidate))
            except Exception as error:  # its own: the others go on
                self.results[candidate].reason = one_line(error)
        return members

    def left(self) -> list[Candidate]:
        """The candidates of which nothing is known yet."""
        results = self.results
        return [one for one in self.candidates if results[one].outcome is None and not results[one].reason]

    def give_back(self, reason: str) -> None:
        for candidate in self.left():
            self.results[candidate].reason = reason

    def _should_stop(self, reports: Sequence[Report]) -> list[bool]:
        study = self.members[0].tag.trial.study
        curves = [self.curves[report.member] for report in reports]
        stopped = [curve.report(report) for curve, report in zip(curves, reports, strict=True)]
        together = isinstance(study.pruner, CurvePruner)
        if not together or time.monotonic() - self.written > WRITE_EVERY:
            self._write_curves(study)
        at_step: dict[int, list[int]] = {}  # those that came later are at another point of their training
        for i, curve in enumerate(curves):
            if not stopped[i] and curve.may_be_stopped:
                at_step.setdefault(reports[i].step, []).append(i)
        for judged in at_step.values():
            if together:
                verdicts = study.pruner.cull(study, [curves[i].thin.shown() for i in judged])
            else:
                verdicts = [curves[i].thin.should_prune() for i in judged]
            for i, verdict in zip(judged, verdicts, strict=True):
                stopped[i] = curves[i].pruned = verdict
        return stopped

    def _write_curves(self, study: optuna.Study) -> None:
        self.written = time.monotonic()
        with in_one_go(storage_of(study)):
            for curve in self.curves.values():
                curve.thin.flush()

    def _finished(self, outcome: Outcome) -> None:
        result = self.results[outcome.member.tag]
        if outcome.refused is not None:
            result.reason = outcome.refused
            return
        curve = self.curves[outcome.member]
        curve.thin.close()
        result._curve = curve.thin
        result.outcome = curve.outcome()
        result.outcome.attributes |= {
            "seed": result.candidate.seed,
            "seconds": round(outcome.seconds + self.building[outcome.member], 3),
            "fit_seconds": round(outcome.seconds, 3),
            "epochs": outcome.epochs,
            "cohort": f"{self.candidates[0].trial.number}",
        }
        result._best, result._counts = curve.best_state, curve.best_counts
        self._write_logs(outcome, curve)

    def _write_logs(self, outcome: Outcome, curve: _MemberCurve) -> None:
        """What a trial's own loop would have written as it went: ``metrics.csv``, and the project's loggers."""
        trainer: Any = outcome.member.trainer
        for callback in trainer.callbacks:
            if isinstance(callback, MetricsLog) and curve.rows:
                callback.write(curve.rows)
        for logger in trainer.loggers:
            if hparams := outcome.member.module.hparams:
                logger.log_hyperparams(hparams)
            give_values([logger], outcome.member.tag.arguments)
            for row in curve.rows:
                logger.log_metrics({name: value for name, value in row.items() if name != "step"}, step=row["step"])
            logger.save()
            logger.finalize("success")
        built = self.results[outcome.member.tag]._built
        assert built is not None
        built.close()


class _MemberCurve:
    """The learning curve of one member: stored, shown to the pruner, and the weights at its best point."""

    def __init__(self, cohort: Cohort, trial: optuna.Trial) -> None:
        self.cohort = cohort
        may_be_stopped = cohort.prune and CONFIRMS not in trial.user_attrs  # a confirmation is trained to its end
        prune_from = math.ceil(cohort.grace * cohort.max_steps) if may_be_stopped else None
        self.thin = ThinCurve(trial, cohort.max_steps, cohort.curve_points, prune_from=prune_from, deferred=True)
        self.rows: list[dict[str, Any]] = []
        self.best_state: dict[str, Tensor] = {}
        self.best_counts = (0, 0)
        self._values: dict[int, float] = {}
        self.pruned = self._diverged = self._ended = False

    @property
    def may_be_stopped(self) -> bool:
        """Whether the pruner may be asked now."""
        return self.thin.may_be_stopped and not self._ended

    def report(self, report: Report) -> bool:
        """Take in a validation; whether the member has diverged and stops now."""
        cohort = self.cohort
        if cohort.monitor not in report.logged:
            raise NotStackable(f"{cohort.monitor} is not logged by validation")
        self.rows.append({"epoch": report.epoch, "step": report.step, **dict(sorted(report.metrics.items()))})
        value = report.logged[cohort.monitor]
        step = max(self._values, default=0) + 1
        if report.progress is not None:
            step = max(step, round(report.progress * cohort.max_steps))
        before = self.best()
        self._values[step] = value
        if not math.isfinite(value):
            self._diverged = True
            return True
        if before is None or (value < before if cohort.mode == "min" else value > before):
            self.best_state = {name: t.detach().clone() for name, t in report.member.module.state_dict().items()}
            self.best_counts = (report.epoch, report.step)
        self.thin.report(value, step)
        self._ended = report.progress is not None and report.progress >= 1.0
        return False

    def best(self) -> float | None:
        finite = [value for value in self._values.values() if math.isfinite(value)]
        return (min(finite) if self.cohort.mode == "min" else max(finite)) if finite else None

    def outcome(self) -> TrialOutcome:
        if self._diverged:
            return TrialOutcome("complete", self.best(), diverged=True, attributes={"diverged": True})
        if self.best() is None:
            raise NotStackable(f"{self.cohort.monitor} was not logged before training ended")
        return TrialOutcome("pruned" if self.pruned else "complete", self.best())


def build_of(builder: CliBuilder | PythonBuilder) -> Callable[..., Built]:
    """Build as a builder does; what the trials of a study have in common is parsed once."""
    return RepeatingBuilder(builder).build if isinstance(builder, CliBuilder) else builder.build


def stood_in_for(audited: bool) -> tuple[type[pl.Callback], ...]:
    """Callbacks of a trial's Trainer that a stack may leave out, since the study does their work.

    Args:
        audited: Whether the study audits its winner, so that ``LIGHTNING_HP_AUDIT`` need not.
    """
    return (MetricsLog, EnvironmentAuditor) if audited else (MetricsLog,)


def member_of(built: Built, audited: bool, tag: Any = None, structure: Hashable = None) -> Member:
    """The member of a stack that a trial's objects are.

    Args:
        built: The objects.
        audited: Whether the study audits its winner itself.
        tag: Whatever the caller wants to find again.
        structure: As of a `Candidate`.

    Raises:
        NotStackable: If the project's command does more around the fit than to fit.
    """
    refuse_own_start(built)
    idle = stood_in_for(audited)
    return Member(built.model, built.trainer, built.data, tag=tag, stood_in_for=idle, structure=structure)


def refuse_own_start(built: Built) -> None:
    """Refuse a project whose command does more around the fit than to fit.

    Raises:
        NotStackable: Naming what it does.
    """
    from lightning.pytorch.cli import LightningCLI

    call: Any = getattr(built.train, "__self__", None)
    if call is None:
        return
    if call.arguments is not None:
        positional, named = call.arguments
        plain = {*map(id, positional), *map(id, named.values())} <= {id(built.model), id(built.data)}
        if not plain:
            raise NotStackable("the project's command fits with more than its module and data module")
    for name in ("before_fit", "after_fit", "fit"):
        if getattr(type(call.cli), name, None) is not getattr(LightningCLI, name, None):
            raise NotStackable(f"{type(call.cli).__name__} has a {name} of its own")
    if call.config.get("ckpt_path"):
        raise NotStackable("the project's training goes on from a checkpoint (ckpt_path)")


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()  # nothing, where there is none
