"""`PandaBabysitter`: the Trainer callback that watches one training and nudges its hyperparameters.

It only wires. What to do is decided by a policy (`rules`, `probes`, `replay`) from the `History`; how a state is kept
and restored is in `snapshot`; where a value lives is in `values`. Per batch it keeps one detached loss; everything else
happens at the checks, every `check_every` optimiser steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn  # type: ignore[attr-defined]

from lightning_hp.callbacks.panda import company, control, rules, snapshot
from lightning_hp.callbacks.panda.beside import Neighbours
from lightning_hp.callbacks.panda.history import BEST, GOOD, START, Done, History, Intervention, Validation
from lightning_hp.callbacks.panda.journal import Journal, rows_of
from lightning_hp.callbacks.panda.meter import WindowMeter
from lightning_hp.callbacks.panda.policies import Policy, RulesPolicy
from lightning_hp.callbacks.panda.probes import ProbePolicy, running_probe
from lightning_hp.callbacks.panda.settings import Settings, bounds_from, settings_from
from lightning_hp.callbacks.panda.values import LoaderReload, read_values, write_values

MODES = ("rules", "probe")


class PandaBabysitter(Callback):
    """Watches one training, changes its hyperparameters where that helps, and writes down why.

    Args:
        mode: ``rules`` decides from what it sees; ``probe`` also tries neighbouring values from one snapshot.
        monitor: Validation metric, for overfitting. Training losses come from ``training_step`` itself.
        monitor_mode: ``min`` or ``max``.
        hyperparameters: Range, scale and tier by name, as in the ``space`` of ``tune.yaml``; see
            `lightning_hp.callbacks.panda.settings.DEFAULTS`.
        settings: Thresholds by name, see `Settings`.
        check_every: Optimiser steps between checks; None for a sixtieth of the training, from 5 to 100.
        scheduler: What happens to a learning-rate scheduler of the module: ``take_over`` removes it and starts from its
            initial rate; ``leave`` never touches what it sets. None means ``leave``, and says so.
        policy: Decides instead of ``mode``; a `ReplayPolicy`, for example.
        dirpath: Folder of ``panda.jsonl``; None for the logger's folder, else the Trainer's root. "" writes no files.
        picture: Write ``panda.html`` (about 5 MB) beside the log at the end of training.

    Raises:
        ValueError: If an argument is not one of the above.

    Example:
        >>> trainer = Trainer(callbacks=[PandaBabysitter()])
        >>> trainer.fit(model, datamodule)
    """

    def __init__(
        self,
        mode: str = "rules",
        monitor: str = "val_loss",
        monitor_mode: str = "min",
        hyperparameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        check_every: int | None = None,
        scheduler: str | None = None,
        policy: Policy | None = None,
        dirpath: str | Path | None = None,
        picture: bool = True,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {MODES}, got {mode!r}")
        if monitor_mode not in ("min", "max"):
            raise ValueError(f"`monitor_mode` must be 'min' or 'max', got {monitor_mode!r}")
        if check_every is not None and (not isinstance(check_every, int) or check_every < 2):
            raise ValueError(f"`check_every` must be None or an integer of at least 2, got {check_every!r}")
        if scheduler is not None and scheduler not in company.SCHEDULERS:
            raise ValueError(f"`scheduler` must be None or one of {company.SCHEDULERS}, got {scheduler!r}")
        if policy is not None and (settings or hyperparameters):
            raise ValueError("`policy` must be None with `settings` or `hyperparameters`: it brings its own")
        self.mode, self.monitor, self.monitor_mode = mode, monitor, monitor_mode
        kind = ProbePolicy if mode == "probe" else RulesPolicy
        self.policy: Policy = policy or kind(settings_from(settings, bounds_from(hyperparameters)))
        self.check_every, self.scheduler, self.dirpath, self.picture = check_every, scheduler, dirpath, picture
        self.history = History(direction=1 if monitor_mode == "min" else -1)
        self.journal = Journal()
        self.snapshots: dict[str, snapshot.Snapshot] = {}
        self._meter = WindowMeter()
        self._window = self._length = check_every or 5
        self._hands_off: tuple[str, ...] = ()
        self._alone = False
        self._reload = LoaderReload()
        self._neighbours = Neighbours()
        self._resumed = self._missed = False
        self._best = math.inf  # of the monitored metric, smaller is better

    @property
    def settings(self) -> Settings:
        """Thresholds and bounds of the policy."""
        return self.policy.settings

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of the log so far."""
        return self.journal.rows

    # --- beginning ---

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check what is trained, settle who owns the schedule, and take up a batch size from a checkpoint.

        Raises:
            ValueError: Unless the module has one optimizer and automatic optimization, and every process all weights.
        """
        company.refuse_what_cannot_be_watched(trainer, pl_module)
        optimizer = trainer.optimizers[0]
        self._alone = company.watches_only(optimizer)
        self._hands_off = () if self._alone else company.settle_scheduler(trainer, self.scheduler)
        size = self.history.values.get("batch_size")
        if self._resumed and size is not None:
            write_values(optimizer, {"batch_size": size}, trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the values as they are, plan the checks, and keep the first snapshot."""
        folder = self._folder(trainer)
        if not self._resumed:  # the callback may have served another fit
            self.history, self._best = History(direction=self.history.direction), math.inf
            self._neighbours.end()
        history = self.history
        history.hands_off, planned = self._hands_off, company.planned_steps(trainer)
        if history.loader_since < 0:  # else planned anew when the batch size changed
            history.planned = history.planned if planned is None else planned
        values = read_values(trainer.optimizers[0], trainer.datamodule)  # type: ignore[attr-defined]
        if self._resumed:
            self._resumed = False
            self._go_on(trainer, folder, values)
            return
        history.values = values
        self._meter.restart(trainer.global_step)
        self._plan_windows(trainer)
        first = snapshot.take(trainer, pl_module, trainer.global_step)
        self.snapshots = {START: first, GOOD: first}
        self.journal.begin(folder)
        numbers = {"check_every": self._window, "planned": history.planned, "values": dict(values)}
        self._event(trainer, "new", "running", f"babysitting begins ({self.mode})", numbers=numbers)

    def _folder(self, trainer: pl.Trainer) -> Path | None:
        folder = trainer.log_dir if self.dirpath is None else self.dirpath  # log_dir is a collective: every rank asks
        if self.dirpath is None and folder is None:
            folder = trainer.default_root_dir
        dry = bool(getattr(trainer, "fast_dev_run", False)) or not trainer.is_global_zero
        return None if folder in (None, "") or dry else Path(str(folder))

    def _plan_windows(self, trainer: pl.Trainer) -> None:
        self._window = self.check_every or max(3, min(100, (self.history.planned or 3000) // 60))
        self._length = self.policy.window(self.history, self._window, trainer.global_step)

    def _go_on(self, trainer: pl.Trainer, folder: Path | None, values: dict[str, float]) -> None:
        """Go on after a checkpoint: the log forgets nothing, and says so if the optimizer has other values."""
        self.journal.go_on(folder, self.history)
        other = {name: value for name, value in values.items() if value != self.history.values.get(name)}
        self.history.values = values
        why = "goes on from a checkpoint"
        if other and not self._hands_off:
            why += f"; found {', '.join(f'{name} {value:g}' for name, value in other.items())} in the optimizer"
        self._event(trainer, "stopped", "running", why, numbers={"values": dict(values)})

    # --- every step ---

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Train the neighbours of a probe on the mini-batch that comes."""
        if self._neighbours.beside is not None:
            self._neighbours.train(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Take the gradient's norm once a window; it is read at the check."""
        if self._meter.grad_norm is None:
            self._meter.add_gradient(optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss; check when the window is full."""
        loss = outputs["loss"] if outputs else None
        if loss is None:
            return
        meter = self._meter
        if trainer.accumulate_grad_batches == 1:
            meter.losses.append(loss)
        else:
            meter.add_part(trainer, loss)
        if len(meter.losses) >= self._length:
            self._check(trainer, pl_module, batch)

    # --- validation ---

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Meet a loss that is not finite before it is validated: other callbacks may stop the training for it."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self._meter.losses:
            return
        if self._meter.broke(trainer, pl_module):
            self._check(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Enter the monitored metric, and keep the best state if overfitting is watched."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        metric = trainer.callback_metrics.get(self.monitor)
        if metric is None and self.settings.on_overfitting is not None and not self._missed:
            names, self._missed = ", ".join(trainer.callback_metrics) or "no metric", True
            rank_zero_warn(
                f"PandaBabysitter finds no metric {self.monitor!r} (logged: {names}) and does not watch for"
                " overfitting; `monitor` names another"
            )
        value = trainer.strategy.broadcast(math.nan if metric is None else float(metric))  # some log on one rank only
        if not math.isfinite(value):
            return
        history = self.history
        history.validations.append(Validation(trainer.global_step, trainer.current_epoch, value))
        better = history.direction * value < self._best
        self._best = min(self._best, history.direction * value)
        if better and self.settings.on_overfitting is not None and not self._alone:
            self.snapshots[BEST] = snapshot.take(trainer, pl_module, trainer.global_step, randomness=False)

    # --- a check ---

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any = None) -> None:
        history = self.history
        history.values = read_values(trainer.optimizers[0], trainer.datamodule)  # type: ignore[attr-defined]
        good = self.snapshots.get(GOOD) if rules.needs_distance(history, self.settings) else None
        window = self._meter.window(trainer, pl_module, good, history.values)
        history.windows.append(window)
        history.beside = self._neighbours.windows(window)
        self._meter.restart(trainer.global_step)
        self.journal.window(window)
        if not self._alone:
            self._answer_commands(trainer, pl_module)
            intervention = self._allowed(self.policy.decide(history))
            if intervention is not None and intervention.beside:
                intervention = self._begin_beside(trainer, pl_module, intervention, batch)
            if intervention is None or intervention.restore is None:
                for name in self.policy.keep(history):
                    self.snapshots[name] = snapshot.take(trainer, pl_module, trainer.global_step, randomness=False)
            if intervention is not None:
                self._carry_out(trainer, pl_module, intervention)
            if not history.loader_pending and history.start_progress > self.settings.start_share:
                self.snapshots.pop(START, None)
        self._length = self.policy.window(history, self._window, trainer.global_step)
        self.journal.status("running", history, trainer.current_epoch)

    def _begin_beside(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, what: Intervention, batch: Any
    ) -> Intervention | None:
        """Begin a probe whose neighbours train beside; where they cannot, say so once and decide without that."""
        reason = self._neighbours.begin(trainer, pl_module, what, batch)
        if reason is None:
            return what
        if what.by == "replay":
            raise ValueError(f"`policy` must replay probes that this training can make, got a stack: {reason}")
        self.history.not_stacked = reason
        rank_zero_info(f"PandaBabysitter probes one value after the other, not as a stack: {reason}")
        self._event(trainer, None, "one after the other", f"no stack: {reason}", "probes")
        return self._allowed(self.policy.decide(self.history))

    def _allowed(self, intervention: Intervention | None) -> Intervention | None:
        """Leave out what a scheduler owns, and an intervention of which nothing remains."""
        if intervention is None or not self._hands_off:
            return intervention
        values = {name: value for name, value in intervention.values.items() if name not in self._hands_off}
        if not values and intervention.restore is None and not intervention.stop:
            return None
        return dataclasses.replace(intervention, values=values)

    def _carry_out(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, what: Intervention, command: str | None = None
    ) -> None:
        """Save, restore, set; then read the values back, so that the log says what the optimizer has."""
        history, optimizer, datamodule = self.history, trainer.optimizers[0], trainer.datamodule  # type: ignore[attr-defined]
        before, back_to = dict(history.values), None
        for name in what.save:
            beside, step = self._neighbours.state_of(name, trainer.global_step), trainer.global_step
            self.snapshots[name] = beside or snapshot.take(trainer, pl_module, step, randomness=name != GOOD)
        if not what.beside:  # the probe is over
            self._neighbours.end()
        if what.restore is not None:
            kept = self.snapshots.get(what.restore) or self.snapshots[GOOD]
            snapshot.restore(trainer, pl_module, kept, groups=not self._hands_off)
            back_to = kept["step"]
            self.snapshots[GOOD] = kept  # movement is measured from here
        for name in what.drop:
            self.snapshots.pop(name, None)
        write_values(optimizer, what.values, datamodule)
        history.values = read_values(optimizer, datamodule)
        if history.values.get("batch_size") != before.get("batch_size"):
            history.loader_pending = True
            self._reload.ask(trainer)
        history.done.append(Done(trainer.global_step, trainer.current_epoch, what, before, back_to))
        if what.stop:
            trainer.should_stop = True
        more = {} if command is None else {"command": command}
        self.journal.write(rows_of(history.done[-1], history.values, len(history.done), more))
        self._log_values(trainer)

    def _answer_commands(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Carry out or refuse what a person asked for; every rank does the same. A probe is ended first."""
        if running_probe(self.history):
            return
        commands = control.pending(self.journal.folder) if self.journal.folder is not None else []
        if trainer.world_size > 1:
            commands = trainer.strategy.broadcast(commands)
        for command in commands:
            answer = control.answer(command, self.history, self.settings.bounds, self._hands_off)
            if answer.paused is not None:
                self.history.paused = answer.paused
            if answer.intervention is not None:
                self._carry_out(trainer, pl_module, answer.intervention, command.id)
            else:
                text = {"accepted": answer.accepted, "by": "person", "command": command.id}
                self._event(trainer, None, command.action, answer.reason, "command", values=command.values, **text)
            if self.journal.folder is not None:
                control.done(self.journal.folder, command)

    # --- mini-batches of another size ---

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """With the loader of a changed batch size in place: plan the steps anew, and measure from here."""
        history = self.history
        if not self._reload.settle(trainer):
            if history.planned is None and trainer.current_epoch:  # an epoch of a stream has shown its length
                history.planned = company.planned_from(trainer, trainer.current_epoch, trainer.global_step)
                self._plan_windows(trainer)
            return
        history.loader_pending, history.loader_since = False, trainer.global_step
        self._meter.restart(trainer.global_step)
        again = rules.begin_again(history) if START in self.snapshots and not self._alone else None
        again = self._allowed(again)
        if again is not None:
            self._carry_out(trainer, pl_module, again)
        if history.planned is not None:
            planned = company.planned_from(trainer, trainer.current_epoch, trainer.global_step)
            history.planned = history.planned if planned is None else planned
        self._plan_windows(trainer)

    # --- the end, and the log ---

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last line and the picture."""
        self._reload.settle(trainer)
        self._neighbours.end()
        self._event(trainer, "running", "ended", "the training is over", numbers={"values": dict(self.history.values)})
        self.journal.status("ended", self.history, trainer.current_epoch, always=True)
        if self.picture and self.journal.folder is not None:
            from lightning_hp.callbacks.panda.picture import write_picture

            write_picture(self.journal.folder)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say in the status that the run was interrupted."""
        self._reload.settle(trainer)
        self.journal.status("interrupted", self.history, trainer.current_epoch, always=True)

    def _event(self, trainer: pl.Trainer, old: Any, new: Any, why: str, what: str = "training", **more: Any) -> None:
        self.journal.event(trainer.global_step, trainer.current_epoch, what, old, new, why, **more)
        self._log_values(trainer)

    def _log_values(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                scalars = {f"panda/{name}": value for name, value in self.history.values.items()}
                logger.log_metrics(scalars, step=trainer.global_step)

    # --- checkpoint ---

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs to go on with the same policy; loads with ``weights_only=True``."""
        return {
            "history": self.history.to_dict(),
            "rows": self.journal.rows,
            "snapshots": self.snapshots,
            "window": self._window,
            "length": self._length,
            "meter": self._meter.state_dict(),
            "neighbours": self._neighbours.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the checkpoint left off."""
        self.history = History.from_dict(state_dict["history"])
        self._best = min((self.history.direction * one.value for one in self.history.validations), default=math.inf)
        self.journal.rows = list(state_dict["rows"])
        self.snapshots = dict(state_dict["snapshots"])
        self._window, self._length = int(state_dict["window"]), int(state_dict["length"])
        self._meter.load_state_dict(state_dict["meter"])
        self._neighbours.load_state_dict(state_dict.get("neighbours"))
        self._resumed = bool(self.snapshots)  # Lightning's finders save and load before a training has begun
