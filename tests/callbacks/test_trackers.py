"""What MLflow, W&B and TensorBoard hold afterwards, read back from their own local stores."""

import json
import threading
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp import tune
from lightning_hp.callbacks import BatchNormAuditor
from lightning_hp.callbacks.trackers import give_files, give_values


class Rows(pl.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16)

    val_dataloader = test_dataloader = train_dataloader


class Norm(pl.LightningModule):
    def __init__(self, learning_rate: float = 0.1):
        super().__init__()
        self.save_hyperparameters()  # what the module itself gives the loggers must not be in our way
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", self.training_step(batch, index))

    def test_step(self, batch, index):
        self.log("test_loss", self.training_step(batch, index))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.learning_rate)


@pytest.fixture
def mlflow_store(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


def runs_of(store, experiment):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, {run.info.run_name: run for run in found}


def artefacts(client, run, folder):
    return sorted(Path(entry.path).name for entry in client.list_artifacts(run.info.run_id, folder))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_study_leaves_values_audits_and_its_winner_in_mlflow(tmp_path, monkeypatch, mlflow_store):
    monkeypatch.chdir(tmp_path)
    logger = MLFlowLogger(tracking_uri=mlflow_store, log_model=True)
    trainer = {"accelerator": "cpu", "logger": logger, "log_every_n_steps": 1}
    space = {"learning_rate": {"low": 0.01, "high": 1.0}}
    result = tune(Norm, Rows, space, name="norm", folder=tmp_path / "norm", trials=2, max_epochs=2, trainer=trainer)
    client, runs = runs_of(mlflow_store, "norm")
    assert sorted(runs) == ["norm-0000", "norm-0001", "norm-best"]
    for number in range(2):
        run = runs[f"norm-{number:04d}"]
        assert float(run.data.params["tuned/learning_rate"]) == float(run.data.params["learning_rate"])
        assert artefacts(client, run, "audit") == ["audit.json", "audit.md"]
    best = runs["norm-best"]
    assert float(best.data.params["tuned/learning_rate"]) == result.natural["learning_rate"]
    assert best.data.metrics["test_loss"] == pytest.approx(result.test["test_loss"])
    expected = ["audit.json", "audit.md", "report.html", "result.json", result.checkpoint.name]
    assert artefacts(client, best, "best") == sorted(expected)
    kept = json.loads(Path(client.download_artifacts(best.info.run_id, "best/result.json")).read_text())
    assert kept["trial"] == result.trial


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trials_of_a_stack_have_their_values_in_mlflow_too(tmp_path, monkeypatch, mlflow_store):
    monkeypatch.chdir(tmp_path)
    trainer = {"accelerator": "cpu", "logger": MLFlowLogger(tracking_uri=mlflow_store), "log_every_n_steps": 1}
    space = {"learning_rate": {"low": 0.01, "high": 1.0}}
    result = tune(Norm, Rows, space, name="norm", trials=2, max_epochs=2, trainer=trainer, engine="stacked")
    client, runs = runs_of(mlflow_store, "norm")
    assert all("cohort" in trial.user_attrs for trial in result.study.trials), "the case that is meant"
    values = [float(runs[f"norm-{number:04d}"].data.params["tuned/learning_rate"]) for number in range(2)]
    assert values == [trial.params["learning_rate"] for trial in result.study.trials]
    assert artefacts(client, runs["norm-best"], "audit") == ["audit.json", "audit.md"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_study_leaves_its_winner_with_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    taken, log_artifact = [], wandb.Run.log_artifact

    def taking(run, artifact):
        taken.append((run, artifact))
        return log_artifact(run, artifact)

    monkeypatch.setattr("wandb.Run.log_artifact", taking)
    trainer = {"accelerator": "cpu", "logger": WandbLogger(project="mine", offline=True), "log_every_n_steps": 1}
    space = {"learning_rate": {"low": 0.01, "high": 1.0}}
    result = tune(Norm, Rows, space, name="norm", folder=tmp_path / "norm", trials=1, max_epochs=1, trainer=trainer)
    assert [(run.name, artifact.type) for run, artifact in taken] == [("norm-0000", "audit"), ("norm-best", "best")]
    run, artifact = taken[1]
    assert sorted(artifact.manifest.entries) == ["audit.json", "audit.md", "report.html", "result.json"]
    assert run.config["tuned/learning_rate"] == result.natural["learning_rate"]


@pytest.mark.filterwarnings("ignore")
def test_a_study_ends_with_the_winner_in_tensorboard_and_no_writer_that_holds_anything_back(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def writers():
        return {t for t in threading.enumerate() if type(t).__name__ == "_AsyncWriterThread" and t.is_alive()}

    monkeypatch.chdir(tmp_path)
    before = writers()
    trainer = {"accelerator": "cpu", "logger": TensorBoardLogger("logs", name="mine"), "log_every_n_steps": 1}
    space = {"learning_rate": {"low": 0.01, "high": 1.0}}
    tune(Norm, Rows, space, name="norm", trials=1, max_epochs=1, trainer=trainer)
    assert writers() <= before
    tags = set()
    for events in (tmp_path / "runs/norm/best").rglob("events.*"):
        tags |= set(EventAccumulator(str(events)).Reload().Tags()["tensors"])
    assert any(tag.startswith("best") for tag in tags)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_plain_trainer_with_the_auditor_shows_the_audit_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        callbacks=[BatchNormAuditor(on_finding="log")],
        **quiet,
    )
    trainer.fit(Norm(), Rows())
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0})
    events.Reload()
    (event,) = events.Tensors("audit/audit.md/text_summary")
    (text,) = event.tensor_proto.string_val
    assert text.decode() == (Path(logger.log_dir) / "audit.md").read_text()


def test_a_store_that_cannot_be_reached_costs_a_warning(tmp_path, monkeypatch, mlflow_store):
    file = tmp_path / "a.md"
    file.write_text("x")
    logger = MLFlowLogger("e", tracking_uri=mlflow_store)

    def gone(*_):
        raise OSError("no route")

    monkeypatch.setattr(type(logger.experiment), "log_artifact", gone)
    with pytest.warns(UserWarning, match="MLFlowLogger did not take audit: OSError: no route"):
        give_files([logger], "audit", [file])


def test_loggers_without_a_store_are_given_nothing(tmp_path):
    logger = CSVLogger(tmp_path)
    file = tmp_path / "a.md"
    file.write_text("x")
    give_files([logger], "audit", [file, tmp_path / "missing.md"])
    give_values([logger], {"lr": 0.1})
    assert dict(logger.experiment.hparams) == {}
    assert [path.name for path in Path(logger.log_dir).glob("**/*")] == []


def test_names_with_brackets_are_ones_that_mlflow_takes(mlflow_store):
    logger = MLFlowLogger("e", tracking_uri=mlflow_store)
    give_values([logger], {"optimizer.betas[0]": 0.9, "model.init_args.widths[1].size": 64})
    _, runs = runs_of(mlflow_store, "e")
    (run,) = runs.values()
    assert run.data.params == {"tuned/optimizer.betas.0": "0.9", "tuned/model.init_args.widths.1.size": "64"}
