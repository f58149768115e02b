"""One model on its way into a stack, and what its own Trainer would have done with it.

A member is built exactly as a sequential trial builds it: seed, module, data, Trainer. `start` then runs the beginning
of ``Trainer.fit`` with it (hooks, optimizer, loaders) and reads off what decides the training. **Every use of
Lightning's private parts in the stack is in this file.**
Units: epochs count from 0, steps are optimizer steps, batch indices count from 0 within an epoch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelSummary, ProgressBar
from lightning.pytorch.plugins.precision import DoublePrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from lightning_hp.training.sampling import BatchSampler
from lightning_hp.training.stacked.protocol import covered_hooks
from lightning_hp.training.stacked.randomness import RandomState, drawing_from
from lightning_hp.training.stacked.refusal import NotStackable

#: callbacks that do nothing to the training; a stack prints and saves nothing of its own
HARMLESS_CALLBACKS: tuple[type[pl.Callback], ...] = (Checkpoint, ModelSummary, ProgressBar)
#: hooks that need a Trainer of their own in every step or epoch
UNSTACKED_HOOKS = (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "optimizer_step",
    "optimizer_zero_grad",
    "backward",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "configure_callbacks",
    "configure_sharded_model",
    "on_validation_model_zero_grad",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


@dataclass(eq=False)
class Member:
    """An ordinary module with the Trainer and the data it would have been fitted with.

    Attributes:
        module: The LightningModule.
        trainer: The Trainer of its run; not yet used. Several members may share one.
        datamodule: Its DataModule, or None.
        train_dataloaders: Its training loader, where there is no DataModule and the module has none.
        val_dataloaders: Its validation loaders, likewise.
        tag: Whatever the caller wants to find again, as a trial.
        stood_in_for: Classes of callbacks whose work the caller does itself.
        structure: What the caller knows to tell members apart that look alike, as a whole number that a step uses
            later: those that differ in it share a stack only where their own step vouches for it (``stack_pads``).
        random_state: The process's generators as they stood after the member was built.
    """

    module: pl.LightningModule
    trainer: pl.Trainer
    datamodule: pl.LightningDataModule | None = None
    train_dataloaders: Any = None
    val_dataloaders: Any = None
    tag: Any = None
    stood_in_for: tuple[type[pl.Callback], ...] = ()
    structure: Hashable = None
    random_state: RandomState = field(default_factory=RandomState.capture)


@dataclass
class Schedule:
    """A learning-rate scheduler and when Lightning steps it."""

    scheduler: Any
    interval: str
    frequency: int
    monitor: str | None
    plateau: bool
    strict: bool


@dataclass
class Start:
    """What the beginning of a fit decided for one member.

    Attributes:
        optimizer: The member's own optimizer.
        schedules: Its schedulers.
        train_loader: The training loader.
        batches: Mini-batches of a training epoch.
        val_loaders: Validation loaders; empty where there is no validation.
        val_batches: Mini-batches of each.
        validate_every_epochs: Epochs between validations.
        validate_every_batches: Mini-batches between the validations of such an epoch.
        grows: Whether Lightning reloads the training loader, because its mini-batches grow.
        accumulate: Mini-batches of one optimizer step.
        clip: Limit of the gradient, or None.
        clip_by: "norm" or "value".
        max_epochs: Where to stop; None for no limit.
        max_steps: Where to stop; None for no limit.
        min_epochs: No early stop before.
        min_steps: No early stop before.
        precision: Lightning's precision plugin (32-bit or 64-bit).
        device: Where the member would train.
    """

    optimizer: Optimizer
    schedules: list[Schedule]
    train_loader: DataLoader[Any]
    batches: int
    val_loaders: list[DataLoader[Any]]
    val_batches: list[int]
    validate_every_epochs: int
    validate_every_batches: int
    grows: bool
    accumulate: int
    clip: float | None
    clip_by: str
    max_epochs: int | None
    max_steps: int | None
    min_epochs: int
    min_steps: int
    precision: Precision
    device: torch.device


def start(member: Member) -> Start:
    """Run the beginning of ``Trainer.fit`` for one member, drawing from its own generators.

    Args:
        member: The member; its module then has its optimizer, its device and its precision.

    Returns:
        What was decided.

    Raises:
        NotStackable: If the module or the Trainer does something that a stack cannot do.
    """
    refuse_trainer(member.trainer, member.stood_in_for)
    refuse_module(member.module, member.datamodule)
    with drawing_from(member.random_state):
        return _start(member)


def refuse_trainer(trainer: pl.Trainer, stood_in_for: tuple[type[pl.Callback], ...] = ()) -> None:
    """Raise NotStackable for settings of a Trainer that a stack does not follow."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if type(callback) is not EarlyStopping and not isinstance(callback, HARMLESS_CALLBACKS + stood_in_for):
            raise NotStackable(f"the callback {type(callback).__name__} needs a Trainer")
    if not isinstance(trainer.strategy, SingleDeviceStrategy) or trainer.world_size > 1:
        raise NotStackable(f"a stack trains on one device, the Trainer has {type(trainer.strategy).__name__}")
    if type(trainer.precision_plugin) not in (Precision, DoublePrecision):
        raise NotStackable(f"precision {trainer.precision} is not stacked, only 32-true and 64-true")
    if trainer.overfit_batches or trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise NotStackable("overfit_batches and fast_dev_run are for one Trainer")
    if trainer.check_val_every_n_epoch is None or getattr(trainer, "_val_check_time_interval", None) is not None:
        raise NotStackable("validation must come at fixed mini-batches of an epoch, not by time or across epochs")


def refuse_module(module: pl.LightningModule, datamodule: pl.LightningDataModule | None) -> None:
    """Raise NotStackable for a module that needs its own Trainer."""
    if not module.automatic_optimization:
        raise NotStackable(f"{type(module).__name__} optimises by hand (automatic_optimization is False)")
    covered = covered_hooks(module)
    for name in UNSTACKED_HOOKS:
        if name not in covered and _overrides(module, pl.LightningModule, name):
            raise NotStackable(f"{type(module).__name__} overrides {name}, which needs a Trainer")
        if datamodule is not None and _overrides(datamodule, pl.LightningDataModule, name):
            raise NotStackable(f"{type(datamodule).__name__} overrides {name}, which needs a Trainer")
    for child in module.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            if getattr(child, hooks):
                raise NotStackable(f"a hook is registered on {type(child).__name__}")


def _overrides(instance: object, base: type, name: str) -> bool:
    return getattr(type(instance), name, None) is not getattr(base, name, None) or name in vars(instance)


def _start(member: Member) -> Start:
    module, trainer = member.module, member.trainer
    trainer.state.fn, trainer.state.status, trainer.training = TrainerFn.FITTING, TrainerStatus.RUNNING, True
    trainer.strategy.connect(module)
    trainer._data_connector.attach_data(
        module,
        train_dataloaders=member.train_dataloaders,
        val_dataloaders=member.val_dataloaders,
        datamodule=member.datamodule,
    )
    trainer._data_connector.prepare_data()
    if member.datamodule is not None:
        call._call_lightning_datamodule_hook(trainer, "setup", stage=TrainerFn.FITTING)
    call._call_lightning_module_hook(trainer, "setup", stage=TrainerFn.FITTING)
    call._call_configure_model(trainer)
    with _in_this_process(trainer):
        trainer.strategy.setup(trainer)
        trainer.fit_loop.setup_data()
        if trainer.enable_validation:
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
    return _read_off(member)


@contextmanager
def _in_this_process(trainer: pl.Trainer) -> Iterator[None]:
    """Have loaders read without worker processes: iterators are created, and their numbers drawn, but never used."""
    loaders: list[tuple[DataLoader[Any], int]] = []

    def quiet(source: Any) -> Any:
        request = source.dataloader

        def dataloader() -> Any:
            answer = request()
            for loader in _flat(answer):
                if isinstance(loader, DataLoader):
                    loaders.append((loader, loader.num_workers))
                    loader.num_workers = 0
            return answer

        return dataloader

    sources = (trainer.fit_loop._data_source, trainer.fit_loop.epoch_loop.val_loop._data_source)
    for source in sources:
        vars(source)["dataloader"] = quiet(source)
    try:
        yield
    finally:
        for source in sources:
            del vars(source)["dataloader"]
        for loader, workers in reversed(loaders):
            loader.num_workers = workers


def _flat(loaders: Any) -> list[Any]:
    return list(loaders) if isinstance(loaders, Sequence) else [loaders]


def _read_off(member: Member) -> Start:
    module, trainer = member.module, member.trainer
    if len(trainer.optimizers) != 1:
        raise NotStackable(f"a stack has one optimizer a model, {type(module).__name__} has {len(trainer.optimizers)}")
    combined = trainer.fit_loop._combined_loader
    train = [] if combined is None else combined.flattened
    if len(train) != 1:
        raise NotStackable(f"a stack reads one training loader, got {len(train)}")
    val_loop = trainer.fit_loop.epoch_loop.val_loop
    validates = trainer.enable_validation and val_loop._combined_loader is not None
    val_loaders = val_loop._combined_loader.flattened if validates and val_loop._combined_loader is not None else []
    for loader in (*train, *val_loaders):
        _refuse_loader(loader)
    if trainer.reload_dataloaders_every_n_epochs and not _plans_its_epochs(train[0]):  # type: ignore[attr-defined]
        raise NotStackable("the loaders are reloaded during training (reload_dataloaders_every_n_epochs)")
    max_epochs = trainer.max_epochs
    if max_epochs is None:
        max_epochs = 1000 if trainer.max_steps == -1 else -1
    return Start(
        optimizer=trainer.optimizers[0],
        schedules=[
            Schedule(c.scheduler, c.interval, c.frequency, c.monitor, c.reduce_on_plateau, c.strict)
            for c in trainer.lr_scheduler_configs
        ],
        train_loader=train[0],
        batches=int(trainer.num_training_batches),
        val_loaders=list(val_loaders),
        val_batches=[int(count) for count in (val_loop._max_batches if validates else [])],
        validate_every_epochs=int(trainer.check_val_every_n_epoch or 1),
        validate_every_batches=int(trainer.val_check_batch or 1),
        grows=bool(trainer.reload_dataloaders_every_n_epochs),  # type: ignore[attr-defined]
        accumulate=int(trainer.accumulate_grad_batches),
        clip=clip_of(trainer)[0],
        clip_by=clip_of(trainer)[1],
        max_epochs=None if max_epochs == -1 else max_epochs,
        max_steps=None if trainer.max_steps == -1 else trainer.max_steps,
        min_epochs=trainer.min_epochs or 0,
        min_steps=trainer.min_steps or 0,
        precision=trainer.precision_plugin,
        device=trainer.strategy.root_device,
    )


def clip_of(trainer: pl.Trainer) -> tuple[float | None, str]:
    """Return the limit of the gradient, None for no limit (0 is none to Lightning), and "norm" or "value"."""
    limit = trainer.gradient_clip_val
    kind = str(trainer.gradient_clip_algorithm or "norm").rpartition(".")[2].lower()
    return None if limit is None or limit <= 0 else float(limit), kind


def _refuse_loader(loader: Any) -> None:
    if not isinstance(loader, DataLoader):
        raise NotStackable(f"a stack reads DataLoaders, got {type(loader).__name__}")
    if isinstance(loader.dataset, IterableDataset):
        raise NotStackable(f"{type(loader.dataset).__name__} is iterable: its order cannot be drawn for each member")


def _plans_its_epochs(loader: DataLoader[Any]) -> bool:
    """Whether a new epoch number is all that a reload would have brought, as with our own sampler."""
    return isinstance(loader.sampler, BatchSampler)


def set_epoch(loader: DataLoader[Any], epoch: int) -> None:
    """Tell the loader's samplers which epoch begins, as Lightning does."""
    _set_sampler_epoch(loader, epoch)


def epoch_plan(trainer: pl.Trainer, loader: DataLoader[Any]) -> tuple[int, int]:
    """Return the mini-batches of the epoch that begins, and those between its validations, where mini-batches grow."""
    batches = int(_parse_num_batches(RunningStage.TRAINING, len(loader), trainer.limit_train_batches))
    interval = trainer.val_check_interval
    return batches, interval if isinstance(interval, int) else max(1, int(batches * interval))


def tell_progress(trainer: pl.Trainer, epochs: int, steps: int) -> None:
    """Have a Trainer count what its member has done in a stack, for the checkpoints that it writes."""
    current: Any = trainer.fit_loop.epoch_progress.current
    current.processed = current.completed = epochs
    progress: Any = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
    progress.optimizer.step.total.completed = steps
