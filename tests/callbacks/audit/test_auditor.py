"""The auditor in a Trainer: it changes nothing, finds what it should, tells it once, repairs, and keeps its state."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_hp.batchnorm.statistics import find_layers
from lightning_hp.callbacks import BatchNormAuditError, BatchNormAuditor, BatchNormWarning


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    yield
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)


pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def rows(count: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator) * 2 + 1
    return TensorDataset(x, (x[:, 0] + x[:, 1] > 2).long() + (x[:, 2] > 1).long())


class Module(pl.LightningModule):
    def __init__(self, momentum: float = 0.1, dropout: float = 0.2) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(),
            nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(16, 3),
        )  # fmt: skip

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.loss(batch))

    def predict_step(self, batch: Any, index: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def trainer(*callbacks: pl.Callback, epochs: int = 4, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": epochs, "callbacks": list(callbacks), "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "log_every_n_steps": 1,
    }  # fmt: skip
    return pl.Trainer(**{**defaults, **options})


def loaders(count: int = 640, **options: Any) -> tuple[DataLoader, DataLoader]:
    options = {"batch_size": 32, "shuffle": True, "drop_last": True, **options}
    return DataLoader(rows(count), **options), DataLoader(rows(200, 1), 100)


def fit(*callbacks: pl.Callback, module: pl.LightningModule | None = None, **options: Any) -> pl.LightningModule:
    pl.seed_everything(7, verbose=False)
    module = module or Module()
    trainer(*callbacks, **options).fit(module, *loaders())
    return module


def told(auditor: BatchNormAuditor) -> list[tuple[str, str, str]]:
    return [(f["id"], f["severity"], f["layer"]) for f in auditor.result()["findings"]]


def test_training_is_bit_identical_with_the_auditor_on() -> None:
    torch.manual_seed(7)
    start = Module().state_dict()

    def trained(*callbacks: pl.Callback) -> dict[str, Tensor]:
        module = Module()
        module.load_state_dict(start)
        return fit(*callbacks, module=module).state_dict()

    without = trained()
    auditor = BatchNormAuditor(every_n_steps=1, dirpath="")
    with_it = trained(auditor)
    assert all(torch.equal(value, without[name]) for name, value in with_it.items())
    assert auditor.counts() == {"INFO": 0, "WARN": 0, "ERROR": 0}
    assert auditor.result()["rows"] >= 512
    assert [row["epoch"] for row in auditor.result()["history"]] == [0, 1, 3, 4]


def test_hooks_are_gone_after_training_and_after_a_crash() -> None:
    class Crash(Module):
        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = super().training_step(batch, index)
            if index == 3:
                raise RuntimeError("broken batch")
            return loss

    def hooks(module: Module) -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.net.modules())

    whole, broken = Module(), Crash()
    fit(BatchNormAuditor(every_n_steps=1, on_finding="log", dirpath=""), module=whole, epochs=1)
    with pytest.raises(RuntimeError, match="broken batch"):
        fit(BatchNormAuditor(every_n_steps=1, on_finding="log", dirpath=""), module=broken, epochs=1)
    assert (hooks(whole), hooks(broken)) == (0, 0)


def test_short_run_is_warned_about_once_and_written(tmp_path: Path) -> None:
    auditor = BatchNormAuditor(
        every_n_steps=1, dirpath=tmp_path / "audits", clock=lambda: datetime(2026, 1, 2, tzinfo=UTC)
    )
    with pytest.warns(BatchNormWarning, match="BN10 net.1: After 40 updates at momentum 0.01") as caught:
        fit(auditor, module=Module(momentum=0.01), epochs=2)
    assert len([w for w in caught if w.category is BatchNormWarning]) == 1
    written = json.loads((tmp_path / "audits" / "audit.json").read_text())
    assert written == auditor.result()
    assert written["created_at"] == "2026-01-02T00:00:00+00:00"
    assert written["layers"][0]["population_mean"][0] == pytest.approx(written["layers"][0]["population_mean"][0])
    assert [layer["name"] for layer in written["layers"]] == ["net.1", "net.4"]
    assert "| net.1 | 16 | 0.01 | 40 |" in (tmp_path / "audits" / "audit.md").read_text()
    reference = json.loads((tmp_path / "audits" / "audit_reference.json").read_text())["layers"]
    assert [(name, layer["rows"]) for name, layer in reference.items()] == [("net.1", 200), ("net.4", 200)]
    assert sorted(p.name for p in (tmp_path / "audits").iterdir()) == ["audit.json", "audit.md", "audit_reference.json"]


def test_reactions() -> None:
    with pytest.raises(BatchNormAuditError, match="ERROR BN07"):
        fit(BatchNormAuditor(on_finding="raise", dirpath=""), module=Module(momentum=0.01), epochs=1)
    auditor = BatchNormAuditor(on_finding="log", dirpath="")
    with warnings.catch_warnings():
        warnings.simplefilter("error", BatchNormWarning)
        fit(auditor, module=Module(momentum=0.01), epochs=1)
    assert auditor.counts()["ERROR"] > 0


def test_wrong_arguments_are_refused_at_once() -> None:
    for arguments, message in (
        ({"every_n_steps": 0}, "`every_n_steps` must be a positive integer, got 0"),
        ({"on_finding": "shout"}, "`on_finding` must be one of .* got 'shout'"),
        ({"recalibrate": "always"}, "`recalibrate` must be one of .* got 'always'"),
        ({"recalibrate": "end", "data_pass": False}, "`data_pass` must be True"),
        ({"rules": ["BN77"]}, r"`rules` must hold ids .* got \['BN77'\]"),
        ({"thresholds": {"x": 1}}, "`thresholds` must use names .* got 'x'"),
        ({"max_rows": 0}, "`max_rows` must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchNormAuditor(**arguments)


def test_model_without_batchnorm_and_without_data_pass_stays_quiet() -> None:
    class Plain(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 3)

    auditor = BatchNormAuditor(dirpath="")
    fit(auditor, module=Plain(), epochs=1)
    assert auditor.counts() == {"INFO": 0, "WARN": 0, "ERROR": 0}
    assert (auditor.result()["findings"], auditor.result()["layers"]) == ([], [])
    auditor = BatchNormAuditor(data_pass=False, dirpath="")
    fit(auditor, epochs=1)
    assert auditor.counts() == {"INFO": 0, "WARN": 0, "ERROR": 0}
    assert auditor.result()["rows"] == 0


def test_training_mode_in_validation_is_found_also_when_it_is_the_sanity_check_only() -> None:
    class Careless(Module):
        def validation_step(self, batch: Any, index: int) -> None:
            if self.trainer.sanity_checking:
                self.net.train()
            super().validation_step(batch, index)

    with pytest.warns(BatchNormWarning, match="BN03"):
        fit(BatchNormAuditor(dirpath=""), module=Careless(), epochs=4)


def test_nan_batch_is_reported_during_training_with_its_step() -> None:
    class Broken(Module):
        def training_step(self, batch: Any, index: int) -> Tensor:
            if index == 7 and self.current_epoch == 0:
                with torch.no_grad():
                    self.net(torch.full_like(batch[0], float("nan")))
            return super().training_step(batch, index)

    auditor = BatchNormAuditor(every_n_steps=1, on_finding="raise", dirpath="")
    with pytest.raises(BatchNormAuditError, match=r"BN01 net.1: .* first seen at step 8"):
        fit(auditor, module=Broken(), epochs=2)


def test_repair_at_the_end_is_judged_by_validation_and_disturbs_nothing() -> None:
    auditor = BatchNormAuditor(recalibrate="end", on_finding="log", dirpath="")
    plain, repaired = fit(module=Module(0.01), epochs=2), fit(auditor, module=Module(0.01), epochs=2)
    (done,) = auditor.result()["repairs"]
    assert done["kept"]
    assert done["after"] < done["before"]
    x = rows(640).tensors[0]
    torch.testing.assert_close(repaired.net[1].running_mean, repaired.net[0](x).mean(0).detach(), rtol=0.0, atol=0.05)
    names = {n for n, _ in plain.named_parameters()}
    state = repaired.state_dict()
    assert names
    assert all(state[n].shape == value.shape for n, value in plain.state_dict().items())


def test_repair_before_validation_is_seen_by_metrics_and_checkpoints(tmp_path: Path) -> None:
    losses = {}
    for repair in (None, "validation"):
        checkpoint = ModelCheckpoint(tmp_path / str(repair), monitor="val_loss")
        auditor = BatchNormAuditor(recalibrate=repair, on_finding="log", dirpath="")
        pl.seed_everything(7, verbose=False)
        run = trainer(auditor, checkpoint, epochs=1, enable_checkpointing=True)
        run.fit(Module(momentum=0.01), *loaders())
        losses[repair] = float(run.callback_metrics["val_loss"])
        module = Module()
        module.load_state_dict(torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"])
        module.eval()
        data = rows(200, 1).tensors
        with torch.no_grad():
            loss = float(F.cross_entropy(module.net(data[0]), data[1]))
        assert loss == pytest.approx(losses[repair], rel=1e-4)
    assert losses["validation"] < losses[None]


def test_state_travels_in_the_checkpoint_and_new_data_is_compared_with_it(tmp_path: Path) -> None:
    auditor = BatchNormAuditor(dirpath="")
    pl.seed_everything(7, verbose=False)
    module, run = Module(), trainer(auditor, epochs=4)
    run.fit(module, *loaders())
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert content["callbacks"]["BatchNormAuditor"]["reference"]["net.1"]["rows"] == 200

    again = BatchNormAuditor(on_finding="log", dirpath=tmp_path)
    late = trainer(again)
    late.validate(module, loaders()[1], ckpt_path=path, verbose=False)
    assert again.counts() == {"INFO": 0, "WARN": 0, "ERROR": 0}
    shifted = TensorDataset(rows(200, 1).tensors[0] + 3.0, rows(200, 1).tensors[1])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    late.predict(module, DataLoader(shifted, 100), ckpt_path=path)
    assert told(again)[0] == ("DR01", "WARN", "net.1")
    assert json.loads((tmp_path / "audit_shift.json").read_text())["shift"][0]["layer"] == "net.1"
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(not p.is_inference() for p in [*module.parameters(), *module.buffers()])
    late.fit_loop.max_epochs = 5
    late.fit(module, *loaders(), ckpt_path=path)  # and the module still trains


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(*rows(640).tensors, strict=True))


class Dictionaries(Dataset):
    def __len__(self) -> int:
        return 640

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = rows(640)[index]
        return {"x": x, "y": y}


class Manual(Module):
    """Two optimizers, stepped by hand, batches that are dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        for optimizer in self.optimizers():
            loss = F.cross_entropy(self.net(batch["x"]), batch["y"])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.net[:4].parameters(), 0.01), torch.optim.SGD(self.net[4:].parameters(), 0.01)]


def test_iterable_data_accumulation_limits_and_amp() -> None:
    auditor = BatchNormAuditor(dirpath="")
    run = trainer(auditor, limit_train_batches=18, accumulate_grad_batches=2, precision="bf16-mixed", epochs=4)
    pl.seed_everything(7, verbose=False)
    run.fit(Module(), DataLoader(Stream(), 32), loaders()[1])
    assert auditor.result()["pass_error"] is None
    assert auditor.result()["layers"][0]["batches"] >= 8
    assert auditor.counts()["ERROR"] == 0


def test_manual_optimisation_with_two_calls_a_batch() -> None:
    auditor = BatchNormAuditor(dirpath="")
    pl.seed_everything(7, verbose=False)
    run = trainer(auditor, epochs=3, limit_val_batches=0)
    table = [Dictionaries()[i] for i in range(640)]
    run.fit(Manual(), DataLoader(table, 32, shuffle=True))
    assert {(f["topic"], f["severity"]) for f in auditor.result()["findings"]} == {("several_updates", "INFO")}
    assert auditor.result()["layers"][0]["updates_per_step"] == pytest.approx(2.0)


@pytest.mark.parametrize("first", [True, False])
def test_weight_averaging_is_judged_on_the_averaged_model(first: bool) -> None:
    auditor = BatchNormAuditor(on_finding="log", dirpath="", thresholds={"mean_info": 9.0, "var_info": 9.0})
    averaging = EMAWeightAveraging(decay=0.9, use_buffers=True)
    module = fit(*([auditor, averaging] if first else [averaging, auditor]), epochs=2)
    row = auditor.result()["layers"][0]
    torch.testing.assert_close(
        torch.tensor(row["running_mean"]), module.net[1].running_mean.double().float(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("first", [True, False])
def test_stochastic_weight_averaging_is_judged_when_its_momenta_are_back(first: bool) -> None:
    auditor = BatchNormAuditor(on_finding="log", dirpath="")
    averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=2)
    module = fit(*([auditor, averaging] if first else [averaging, auditor]), epochs=4)
    assert auditor.result()["pass_error"] is None
    assert [row["momentum"] for row in auditor.result()["layers"]] == [0.1, 0.1]
    assert "cumulative_average" not in [finding["topic"] for finding in auditor.result()["findings"]]
    assert module.net[1].momentum == 0.1
    # 20 batches, all with the same weight
    row = auditor.result()["layers"][0]
    assert row["noise_mean"] * row["values_per_batch"] ** 0.5 == pytest.approx(20**-0.5, rel=0.5)


def test_one_batch_gets_no_absurd_number() -> None:
    auditor = BatchNormAuditor(on_finding="log", dirpath="")
    fit(auditor, fast_dev_run=True)
    ratios = [row[key] for row in auditor.result()["layers"] for key in ("ratio_d", "ratio_lv")]
    assert len(ratios) == 4
    assert max(ratios) < 100


def test_model_that_cannot_be_replayed_is_judged_from_its_buffers() -> None:
    class OneWay(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net, self.key = net, 0

        def forward(self, x: Tensor, key: int) -> Tensor:
            if key <= self.key:
                raise RuntimeError("keys must rise")
            self.key = key
            return self.net(x)

    class Once(Module):
        def __init__(self) -> None:
            super().__init__(momentum=0.01)
            self.net = OneWay(self.net)
            self.calls = 0

        def loss(self, batch: Any) -> Tensor:
            self.calls += 1
            return F.cross_entropy(self.net(batch[0], self.calls), batch[1])

    auditor = BatchNormAuditor(on_finding="log", dirpath="")
    fit(auditor, module=Once(), epochs=1)
    assert "keys must rise" in auditor.result()["pass_error"]


def test_compiled_module_is_judged_from_its_buffers() -> None:
    auditor = BatchNormAuditor(every_n_steps=1, on_finding="log", dirpath="")
    module = Module(momentum=0.01)
    module.net = torch.compile(module.net, backend="eager")
    fit(auditor, module=module, epochs=2)
    assert auditor.result()["pass_error"] is None
    assert ("BN10", "WARN", "net._orig_mod.1") in told(auditor)

    auditor = BatchNormAuditor(every_n_steps=1, on_finding="log", dirpath="")
    pl.seed_everything(7, verbose=False)
    whole = Module(momentum=0.01, dropout=0.0)
    trainer(auditor, epochs=8).fit(torch.compile(whole, backend="eager"), *loaders())
    assert auditor.result()["rows"] == 0
    assert ("BN06", "net.1") in {(rule, layer) for rule, _, layer in told(auditor)}


def test_persistent_workers_do_not_shorten_epochs() -> None:
    class Counting(Module):
        steps = 0

        def training_step(self, batch: Any, index: int) -> Tensor:
            self.steps += 1
            return super().training_step(batch, index)

    module = Counting()
    pl.seed_everything(7, verbose=False)
    loader = DataLoader(rows(320), 32, shuffle=True, num_workers=1, persistent_workers=True)
    trainer(BatchNormAuditor(dirpath="", on_finding="log"), epochs=2).fit(module, loader, loaders()[1])
    assert module.steps == 20


def test_scalars_reach_the_logger(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(BatchNormAuditor(), epochs=2, logger=logger)
    header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0]
    assert {"bn/mean_error", "bn/var_error", "bn/kl", "bn/warn"} <= set(header.split(","))
    assert (Path(logger.log_dir) / "audit.json").is_file()


def test_lazy_layers_are_found_once_they_have_a_shape() -> None:
    class Lazy(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(16, 3))

    auditor = BatchNormAuditor(dirpath="")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Lazy modules are a new feature")
        warnings.filterwarnings("ignore", ".*ninitialized.*")
        module = Lazy()
        pl.seed_everything(7, verbose=False)
        run = trainer(auditor, epochs=3, num_sanity_val_steps=0)
        run.fit(module, *loaders())
    assert [layer["name"] for layer in auditor.result()["layers"]] == list(find_layers(module)) == ["net.1"]
