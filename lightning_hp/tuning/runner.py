"""Runs a study to its end: asks, trains, tells; takes over what another process left behind; stops when it should.

All state is in storage, so any number of processes may run the same study at once, and a study that was killed goes on
where it was: a trial whose process died is run again, with the same number, values and seed. Who runs a trial holds its
lease (:mod:`lightning_hp.study.leases`); who asks for one, or looks for orphans, holds the study's lock.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import lightning.pytorch as pl
import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.callbacks.audit.auditor import BatchNormAuditor
from lightning_hp.project.build import CliBuilder, PythonBuilder
from lightning_hp.project.length import TrainingLength, curve_steps
from lightning_hp.project.quiet import quick_collection, remembered_plugins, suppress_repeated_warnings
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.search.convergence import convergence, keep_convergence
from lightning_hp.study.confirmed import CONFIRMS
from lightning_hp.study.description import Description, describe, open_study
from lightning_hp.study.journal import in_one_go
from lightning_hp.study.leases import Leases, Worker
from lightning_hp.study.only_process import OnlyProcess
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.patience import is_away, patiently
from lightning_hp.study.storage import StudyError, open_storage, write_study_pointer
from lightning_hp.study.study_lock import study_lock
from lightning_hp.study.upstream import stored_trial, trial_number
from lightning_hp.tuning.checkpoints import drop_checkpoints
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.confirmation import enqueue_leader, go_on, kept, left_to_search, reserved
from lightning_hp.tuning.deaths import count_death, forget_deaths, is_to_blame
from lightning_hp.tuning.failures import SKIPPED, enqueue_reruns, out_of_memory, stop_on_same_failures
from lightning_hp.tuning.interrupts import interruptible
from lightning_hp.tuning.listener import SilentListener, StudyListener
from lightning_hp.tuning.objective import Outcome, is_disk_full, run_trial, structure, trial_seed
from lightning_hp.tuning.optuna_objects import base_sampler, pruner_of
from lightning_hp.tuning.stage_gate import StageGate
from lightning_hp.tuning.telling import store, store_kept
from lightning_hp.tuning.together import Together
from lightning_hp.tuning.workers.keeper import LeaseGuard, TrialTakenError, renewed

#: so many proposals in a row whose structure is known to run out of memory stop a study
MOST_SKIPPED = 20


class StudyRunner:
    """One process's part in a study.

    Args:
        config: What to do.
        builder: Makes the objects of a trial.
        listener: Is told what happens, in this process.
        pruner: Makes what stops hopeless trials, from the step of a complete training; None for the sampler's own.

    Raises:
        ConfigError: If the space or the length of a training does not fit the project.
        StudyError: If the study cannot be opened or continued.
    """

    def __init__(
        self,
        config: TuneConfig,
        builder: CliBuilder | PythonBuilder,
        listener: StudyListener | None = None,
        pruner: Callable[[int], optuna.pruners.BasePruner] | None = None,
    ) -> None:
        self.config = config
        self.builder = builder
        self.listener: StudyListener = listener or SilentListener()
        self.paths = StudyPaths(config.folder)
        settings = builder.trainer_settings()
        self.length = TrainingLength.of_trainer(settings).with_limits(config.budget.length)
        if not self.length.is_limited:
            raise ConfigError(
                "`budget.max_epochs` (or `budget.max_steps`) is missing, and the Trainer has no max_epochs or max_steps"
            )
        self.max_steps = curve_steps(self.length, settings)
        self.wanted = Description(
            plan=replace(config.search, max_steps=self.max_steps),
            monitor=config.monitor,
            mode=config.mode,
            length=self.length.to_json(),
            fixed=builder.fixed_part(config.space),
            versions={name: version(name) for name in ("torch", "lightning", "optuna")},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            previous=config.previous,
        )
        self.stopping = threading.Event()
        self.deadline = math.inf  # as time.monotonic() counts
        self._announced: set[int] = set()
        self.cleaned: set[int] = set()
        self.callbacks: list[pl.Callback] = []  # further ones for every trial
        self.only = OnlyProcess.of(config.storage)
        self._storage = storage = open_storage(config.storage, self.paths, say=self.say)
        worker = Worker(self.paths.root)
        self.description = describe(patiently(lambda: self._opened(worker), say=self.say))
        self.sampler = self.description.plan.sampler(base_sampler(config.sampler))
        self.study = optuna.load_study(
            study_name=config.name,
            storage=storage,
            sampler=self.sampler,
            pruner=pruner_of(config, self.sampler, self.max_steps, pruner),
        )
        self.leases = Leases(self.study, worker, config.caviar.lease)
        patiently(self._take_up, say=self.say)
        self.together = Together(self) if config.caviar.stacks else None
        self.gate: StageGate | None = None
        if config.gate is not None:
            self.gate = StageGate(self.study, self.sampler, self.paths, config.gate, self.say, self.stopping)

    def _opened(self, worker: Worker) -> optuna.Study:
        name, changes = self.config.name, self.config.accept_changes
        with self.lock():
            study = open_study(name, self._storage, self.wanted, self.paths, changes, worker)
            write_study_pointer(self.paths, name, self.config.storage, self.config.source)
        return study

    def _take_up(self) -> None:
        """What was left behind: trials whose failures stopped the study, and results that could not be stored."""
        with self.lock():
            again = enqueue_reruns(self.study)
            store_kept(self.study, self.paths, self.description.mode, self.say)
        if again:
            trials = f"trial{'s' if len(again) > 1 else ''} {', '.join(map(str, again))}"
            self.say(f"running {trials} again: their failures stopped the study")

    def close(self) -> None:
        """Give up what this process holds of the study."""
        self.leases.worker.close()
        if self.only is not None:
            self.only.close()

    def lock(self) -> contextlib.AbstractContextManager[object]:
        """The lock under which trials are asked for and taken over."""
        return study_lock(self._storage, self.paths, self.config.name)

    # --- the loop ---

    def work(self) -> None:
        """Run trials until the budget is spent, a stop is asked for, or the study has to stop.

        Raises:
            ConfigError: If a trial showed that the configuration cannot work.
            StudyError: If three trials in a row failed with the same cause.
        """
        with (
            interruptible(self.stopping, self.say),
            suppress_repeated_warnings(),
            quick_collection(),
            renewed(self.leases),
            remembered_plugins(),
        ):
            self.deadline = time.monotonic() + (self.config.budget.seconds or math.inf)
            skipped = 0
            while not self.stopping.is_set() and time.monotonic() < self.deadline and skipped < MOST_SKIPPED:
                self.catch_up()
                with contextlib.ExitStack() as leases:
                    next_up = self.ask(leases)
                    if next_up is None:
                        break
                    if isinstance(next_up, StageGate):
                        before = time.monotonic()
                        next_up.wait()
                        self.deadline += time.monotonic() - before  # a person's time is not the study's
                        continue
                    trial, arguments = next_up
                    skipped = skipped + 1 if self.skip_known(trial) else 0
                    if not skipped:
                        if self.together is not None:
                            self.together.run(trial, arguments, leases)
                        else:
                            self.run_alone(trial, arguments)
                stop_on_same_failures(self.study, self.paths)
            if skipped >= MOST_SKIPPED:
                raise StudyError(
                    f"{MOST_SKIPPED} proposals in a row have a structure that runs out of memory; narrow `space`"
                )

    def say(self, text: str) -> None:
        """Tell the listener one line."""
        self.listener.message(text)

    def ask(self, leases: contextlib.ExitStack) -> tuple[optuna.Trial, dict[str, Any]] | StageGate | None:
        """The next trial to run; the gate where a person decides first; None when the study is at its end.

        Args:
            leases: Takes the trial's lease; when it is closed, a trial that has not ended is handed back.
        """

        def attempt() -> tuple[optuna.Trial, dict[str, Any]] | StageGate | None:
            with contextlib.ExitStack() as taken:
                next_up = self._ask(taken)
                leases.push(taken.pop_all())  # that of an attempt that failed is handed back
            return next_up

        next_up = patiently(attempt, say=self.say)  # as a whole: the lock may have been lost with the storage
        if isinstance(next_up, tuple):
            self.paths.trial(next_up[0].number).root.mkdir(parents=True, exist_ok=True)
        return next_up

    def _ask(self, leases: contextlib.ExitStack) -> tuple[optuna.Trial, dict[str, Any]] | StageGate | None:
        with self.lock(), in_one_go(self._storage):
            trials = self.study.get_trials(deepcopy=False)
            for frozen in trials:
                if frozen.state is TrialState.RUNNING and self._orphaned(frozen):
                    if self._given_up(frozen):
                        continue
                    trial = optuna.Trial(self.study, trial_number(frozen))
                    leases.enter_context(self.leases.hold(trial))
                    self.listener.trial_resumed(frozen)
                    return trial, self._suggest(trial)
            if not any(t.state is TrialState.WAITING for t in trials):
                if not self._goes_on(trials):
                    return None
                if self.gate is not None and self.gate.is_closed(trials):
                    return self.gate
                if (leader := enqueue_leader(self.study, self.sampler.planned, self.config)) is not None:
                    self.say(f"training trial {leader} again on a fresh seed: it stopped all others lately")
            trial = self.study.ask()
            leases.enter_context(self.leases.hold(trial))
            self.listener.trial_started(stored_trial(trial.study, trial))
            return trial, self._suggest(trial)

    def _goes_on(self, trials: list[FrozenTrial]) -> bool:
        """Whether the search has trials left, and neither a person nor convergence (told once) has ended it."""
        if left_to_search(self.study, trials, self.config) <= 0:
            return False
        if self.config.budget.until_converged:
            most = self.config.search.n_trials - kept(self.study, trials, self.config)
            result = convergence(self.study, self.sampler.engine, most)
            if result is not None and result.converged:
                if keep_convergence(self.study, result):
                    self.say(f"converged: {result}")
                return False
        return self.gate is None or not self.gate.is_over(trials)

    def _orphaned(self, frozen: FrozenTrial) -> bool:
        """Whether a trial's worker has died, or has been silent for too long; the study's lock must be held."""
        # it may have ended, or its lease been renewed, since the list was read
        return self.leases.is_free(frozen) and stored_trial(self.study, frozen).state is TrialState.RUNNING

    def _given_up(self, frozen: FrozenTrial) -> bool:
        """Count the death of a trial's worker; fail the trial when there were too many."""
        deaths = count_death(self.study, frozen, self.leases.worker.name)
        if not is_to_blame(self.study, frozen, deaths):
            return False
        trial = optuna.Trial(self.study, trial_number(frozen))
        trial.set_user_attr("failure", f"its process died {deaths} times")
        self.study.tell(trial, state=TrialState.FAIL)
        self.announce(trial)
        return True

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        try:
            return self.description.space.suggest(trial)
        except Exception as error:
            if not is_disk_full(error) and not is_away(error):  # after those, as after a kill, the trial is run again
                # a trial that stays RUNNING without values would be avoided by every sampler for ever
                self.study.tell(trial, state=TrialState.FAIL)
            raise

    def skip_known(self, trial: optuna.Trial) -> bool:
        """Fail a trial at once whose structure has already run out of memory."""
        other = out_of_memory(self.study, self.description.space, structure(self.description.space, trial.params))
        if other is None:
            return False
        trial.set_user_attr("failure", f"{SKIPPED}: trial {other} ran out of memory with this structure")
        self.study.tell(trial, state=TrialState.FAIL)
        self.announce(trial)
        return True

    def run_alone(self, trial: optuna.Trial, arguments: dict[str, Any]) -> None:
        """Train one trial by its own Trainer, and tell the study."""
        auditor = self.auditor(trial.number) if self.config.audit else None
        guard = LeaseGuard(lambda: self.leases.is_lost(trial))
        try:
            outcome = run_trial(
                trial,
                arguments,
                self.builder,
                self.paths.trial(trial.number),
                self.description.monitor,
                self.description.mode,
                self.seed_of(trial),
                self.length,
                self.max_steps,
                callbacks=[*self.callbacks, guard] if auditor is None else [*self.callbacks, guard, auditor],
                prune=self.config.prune and CONFIRMS not in trial.user_attrs,
                curve_points=self.config.curve_points,
                grace=self.config.grace,
            )
        except TrialTakenError:
            self._say_late(trial)
            return
        if outcome.stop is not None:
            # told nothing: it is run again, with the same values, once the cause is gone
            with contextlib.suppress(OSError):
                forget_deaths(self.study, trial)
            raise outcome.stop
        if auditor is not None and auditor.result().get("layers"):
            outcome.attributes["audit"] = auditor.counts()
        self.tell(trial, outcome)
        self.announce(trial)
        drop_checkpoints(self.study, self.paths, self.config.keep_checkpoints, self.cleaned)

    def seed_of(self, trial: optuna.Trial | FrozenTrial) -> int:
        """The seed that a trial is or was trained with; a re-test gives several trials one ``seed_number``."""
        if "seed" in trial.user_attrs:  # of a study of another seed, if it was brought from a re-test
            return int(trial.user_attrs["seed"])
        own = 0 if self.config.same_seed else trial.number
        return trial_seed(self.description.plan.seed, trial.user_attrs.get("seed_number", own))

    def auditor(self, number: int) -> BatchNormAuditor:
        """Looks at the BatchNorm layers once, at the end of a trial; writes ``audit.json`` into its folder."""
        return BatchNormAuditor(on_finding="log", history=False, dirpath=self.paths.trial(number).root)

    def tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        """Store how a trial ended, unless it has been given to another worker meanwhile."""
        paths = self.paths.trial(trial.number)
        if store(self.study, trial, outcome, self.leases, paths, self.description.mode) is not None:
            self._say_late(trial)

    def _say_late(self, trial: optuna.Trial) -> None:
        owner = self.leases.present_owner(trial) or "another worker"
        self.say(
            f"trial {trial.number} was given to {owner}, since nothing was heard of this worker for "
            f"{self.leases.seconds:g} s; what this worker made of it is not counted"
        )

    def announce(self, trial: optuna.Trial) -> None:
        """Tell the listener that a trial has ended; one that was given away has not."""
        ended = stored_trial(self.study, trial)
        if ended.state.is_finished() and trial.number not in self._announced:
            self._announced.add(trial.number)
            self.listener.trial_finished(ended)

    def catch_up(self) -> set[int]:
        """Announce as known what has been finished by others, or before; gives the numbers of all announced."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.number not in self._announced:
                self._announced.add(trial.number)
                self.listener.trial_known(trial)
        return self._announced

    def confirm(self) -> bool:
        """Ask for the next trainings that confirm the winner; whether any are left, or trials to search on with."""

        def attempt() -> tuple[list[int] | None, int, bool]:
            with self.lock():
                numbers, more = go_on(self.study, self.sampler.engine, self.config, self.together is not None)
                return numbers, more, numbers != [] or self._goes_on(self.study.get_trials(deepcopy=False))

        numbers, more, goes_on = patiently(attempt, say=self.say) if reserved(self.config) else ([], 0, False)
        again = f"training the best again on fresh seeds: trials {', '.join(map(str, numbers or ()))}"
        if numbers or more:
            self.say(again if numbers else f"searching on: the confirmation has left {more} more trials than it needs")
        return goes_on

    def wait_for_others(self, poll: float = 0.5) -> bool:
        """Wait until no process runs a trial of this study; False if orphans are left, or a stop is asked for.

        Args:
            poll: Seconds between looks.
        """
        with interruptible(self.stopping, self.say):
            announced = False
            while not self.stopping.is_set():
                trials = patiently(self._running, say=self.say)
                if trials is None:
                    return False
                running = [trial.number for trial in trials]
                self.catch_up()
                if not running:
                    return True
                if not announced:
                    announced = True
                    self.say(f"waiting for trial {', '.join(map(str, running))} of another process")
                time.sleep(poll)
        return False

    def _running(self) -> list[FrozenTrial] | None:
        """The trials that run; None where one of them is free."""
        # under the lock, since between being asked for and having a lease a trial looks like an orphan
        with self.lock():
            trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            return None if any(self._orphaned(trial) for trial in trials) else trials
