"""Weights that are swapped for evaluation: schedule-free optimizers, weight averaging, a project's own hooks."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.callbacks import BatchNormAuditor

FEATURES = 8


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    yield
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)


def rows(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=generator) * 2 + 1
    return TensorDataset(x, (x[:, 0] + x[:, 1] > 2).long() + (x[:, 2] > 1).long())


TRAIN, VAL = rows(640, 0), rows(200, 1)


class Plain(pl.LightningModule):
    """A net with a BatchNorm after the first layer: its right statistics follow from the data in one line."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 16, bias=False), nn.BatchNorm1d(16, affine=True), nn.ReLU(), nn.Linear(16, 3)
        )
        self.seen: list[tuple[float, float]] = []  # validation loss, and what it should be

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("val_loss", loss)
        if not self.trainer.sanity_checking:
            self.seen.append((loss.item(), self.right_loss(batch)))

    def right_loss(self, batch: Any) -> float:
        """Loss with the population statistics of the weights at hand."""
        right = copy.deepcopy(self.net).eval()
        z = right[0](TRAIN.tensors[0])
        right[1].running_mean.copy_(z.mean(0))
        right[1].running_var.copy_(z.var(0))
        return F.cross_entropy(right(batch[0]), batch[1]).item()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


class ScheduleFree(Plain):
    """As the optimizer's documentation says: train() for training, eval() for evaluation and for what is saved."""

    def configure_optimizers(self) -> Any:
        return AdamWScheduleFree(self.parameters(), lr=2 * self.lr, betas=(0.1, 0.99))  # far from its average

    def on_train_epoch_start(self) -> None:
        self.optimizers(use_pl_optimizer=False).train()

    def on_validation_epoch_start(self) -> None:
        self.optimizers(use_pl_optimizer=False).eval()

    def on_validation_end(self) -> None:
        self.optimizers(use_pl_optimizer=False).train()


class EarlySwap(ScheduleFree):
    """The same with the hook that runs before any callback's `on_validation_start`."""

    def on_validation_epoch_start(self) -> None:
        pass

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self.optimizers(use_pl_optimizer=False).eval()


class OwnAverage(Plain):
    """A moving average by hand, parameters only, as many projects write it."""

    def on_fit_start(self) -> None:
        self.average = [p.detach().clone() for p in self.net.parameters()]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for mean, p in zip(self.average, self.net.parameters(), strict=True):
            mean.lerp_(p.detach(), 0.02)

    def _swap(self) -> None:
        for mean, p in zip(self.average, self.net.parameters(), strict=True):
            kept = p.data.clone()
            p.data.copy_(mean)
            mean.copy_(kept)

    def on_validation_epoch_start(self) -> None:
        self._swap()

    def on_validation_epoch_end(self) -> None:
        self._swap()


class InStep(OwnAverage):
    """The weights are put in inside the step, as `with ema.average_parameters():` does."""

    def on_validation_epoch_start(self) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        pass

    def validation_step(self, batch: Any, index: int) -> None:
        self._swap()
        super().validation_step(batch, index)
        self._swap()


class Teacher(Plain):
    """The average is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = AveragedModel(self.net, avg_fn=lambda mean, p, n: mean + 0.02 * (p - mean))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), self.lr, momentum=0.9)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.teacher.update_parameters(self.net)  # its statistics become those of the net

    def validation_step(self, batch: Any, index: int) -> None:
        student, self.net = self.net, self.teacher.module
        try:
            super().validation_step(batch, index)
        finally:
            self.net = student


class ThroughForward(Teacher):
    """The same where training calls the LightningModule itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


def averaging() -> pl.Callback:
    return EMAWeightAveraging(decay=0.98, use_buffers=False)


CASES: dict[str, tuple[type[Plain], list[Any], str]] = {
    "schedule-free": (ScheduleFree, [], "the optimizer AdamWScheduleFree"),
    "schedule-free, early": (EarlySwap, [], "the optimizer AdamWScheduleFree"),
    "own average": (OwnAverage, [], "a hook of the project"),
    "weight averaging": (Plain, [averaging], "the callback EMAWeightAveraging"),
    "in the step": (InStep, [], "a hook of the project"),
    "teacher": (Teacher, [], "teacher.module, a copy of net"),
    "teacher, through forward": (ThroughForward, [], "teacher.module, a copy of net"),
}


def fit(module: Plain, *callbacks: pl.Callback, epochs: int = 4, **options: Any) -> pl.Trainer:
    pl.seed_everything(3, verbose=False)
    defaults: dict[str, Any] = {
        "max_epochs": epochs, "callbacks": list(callbacks), "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
    }  # fmt: skip
    trainer = pl.Trainer(**{**defaults, **options})
    train = DataLoader(TRAIN, 32, shuffle=True, drop_last=True)
    trainer.fit(module, train, DataLoader(VAL, 200))
    return trainer


def layers_of(case: str) -> list[str]:
    return ["net.1", "teacher.module.1"] if "teacher" in case else ["net.1"]


def findings(auditor: BatchNormAuditor) -> dict[str, dict[str, Any]]:
    return {finding["id"]: finding for finding in reversed(auditor.result()["findings"])}


def run(case: str, recalibrate: str | None, first: bool = True, **options: Any) -> tuple[Plain, BatchNormAuditor]:
    kind, others, _ = CASES[case]
    torch.manual_seed(0)
    module, auditor = kind(), BatchNormAuditor(on_finding="log", dirpath="", recalibrate=recalibrate)
    extra = [make() for make in others]
    fit(module, *([auditor, *extra] if first else [*extra, auditor]), **options)
    return module, auditor


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_bad_validation_under_other_weights_is_explained(case: str, first: bool) -> None:
    module, auditor = run(case, None, first)
    loss, right = module.seen[-1]
    assert loss > 1.2 * right  # what users see: training is fine, validation is not
    finding = findings(auditor)["BN20"]
    assert (finding["layer"], finding["topic"]) == (layers_of(case)[-1], "other_weights")
    assert finding["severity"] in ("WARN", "ERROR")
    assert CASES[case][2] in finding["sentence"]
    assert 'recalibrate="validation"' in finding["fix"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_recalibration_is_right_for_the_weights_of_validation_from_the_first_batch_on(case: str, first: bool) -> None:
    module, auditor = run(case, "validation", first)
    assert len(module.seen) == 4
    for loss, right in module.seen:
        assert loss == pytest.approx(right, rel=0.02)
    told = findings(auditor)
    assert (told["BN20"]["severity"], told["BN20"]["topic"]) == ("INFO", "repaired")
    assert CASES[case][2] in told["BN20"]["sentence"]
    assert [f for f in auditor.result()["findings"] if f["severity"] != "INFO"] == []
    assert [repair["layers"] for repair in auditor.result()["repairs"]] == [layers_of(case)] * 4


@pytest.mark.parametrize("interval", [0.25, 7])
@pytest.mark.parametrize("case", ["schedule-free", "schedule-free, early"])
def test_validation_in_the_middle_of_an_epoch_is_right_too(case: str, interval: float) -> None:
    module, auditor = run(case, "validation", val_check_interval=interval)
    assert len(module.seen) > 6
    for loss, right in module.seen:
        assert loss == pytest.approx(right, rel=0.05)  # the first validations have few recorded rows
    assert findings(auditor)["BN20"]["topic"] == "repaired"
    module, auditor = run(case, None, val_check_interval=interval)
    assert findings(auditor)["BN20"]["topic"] == "other_weights"


def test_a_checkpoint_of_the_validation_weights_holds_their_statistics(tmp_path: Any) -> None:
    class Saved(ScheduleFree):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.eval()
            checkpoint["state_dict"] = {k: v.clone() for k, v in self.state_dict().items()}
            optimizer.train()

    torch.manual_seed(0)
    module = Saved()
    auditor = BatchNormAuditor(on_finding="log", dirpath="", recalibrate="validation")
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="last")
    fit(module, auditor, checkpoint, enable_checkpointing=True)
    loaded = Saved()
    loaded.load_state_dict(torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"])
    loaded.eval()
    with torch.no_grad():
        loss = F.cross_entropy(loaded.net(VAL.tensors[0]), VAL.tensors[1]).item()
        assert loss == pytest.approx(loaded.right_loss(VAL.tensors), rel=0.02)
    assert loss == pytest.approx(module.seen[-1][0], rel=1e-4)


def test_the_training_is_bit_identical_when_nothing_is_repaired() -> None:
    plain, watched = ScheduleFree(), ScheduleFree()
    watched.load_state_dict(plain.state_dict())
    fit(plain)
    fit(watched, BatchNormAuditor(on_finding="log", dirpath=""))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_weights_that_a_project_clips_after_a_batch_are_not_swapped() -> None:
    class Clipped(Plain):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            for p in self.net[0].parameters():
                p.data.clamp_(-0.2, 0.2)

    torch.manual_seed(0)
    module = Clipped()
    auditor = BatchNormAuditor(on_finding="log", dirpath="")
    fit(module, auditor)
    assert "BN20" not in findings(auditor)


def test_averages_that_bring_their_own_right_statistics_are_no_finding() -> None:
    torch.manual_seed(0)
    auditor = BatchNormAuditor(on_finding="log", dirpath="")
    module = Plain(lr=0.01)
    fit(module, auditor, EMAWeightAveraging(decay=0.8, use_buffers=True), epochs=6)
    assert module.seen[-1][0] == pytest.approx(module.seen[-1][1], rel=0.05)
    assert "BN20" not in findings(auditor)


def test_no_swap_says_nothing_of_other_weights() -> None:
    torch.manual_seed(0)
    auditor = BatchNormAuditor(on_finding="log", dirpath="", recalibrate="validation")
    fit(Plain(), auditor)
    assert "BN20" not in findings(auditor)
    assert len(auditor.result()["repairs"]) == 4


def test_repair_at_the_end_leaves_weights_that_are_not_validated_alone() -> None:
    _, auditor = run("schedule-free", "end")
    (repair,) = auditor.result()["repairs"]
    assert (repair["kept"], repair["layers"]) == (False, [])
    assert 'recalibrate="validation"' in repair["reason"]


def test_a_copy_that_validation_does_not_call_is_no_finding() -> None:
    class Kept(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.best = copy.deepcopy(self.net)

    torch.manual_seed(0)
    auditor = BatchNormAuditor(on_finding="log", dirpath="")
    fit(Kept(), auditor)
    assert "BN20" not in findings(auditor)


def test_hooks_are_gone_after_validation() -> None:
    module, _ = run("teacher", "validation")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())
