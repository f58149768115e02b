import logging

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningCLI
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error, r2_score
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.training import BatchNormClassifier, BatchNormRegressor, DigitsDataModule
from lightning_hp.training.data import InMemoryDataModule


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def trainer(**arguments):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return pl.Trainer(**{**quiet, "enable_model_summary": False, "num_sanity_val_steps": 0, **arguments})


class Line(InMemoryDataModule):
    """y is 1000 + 500 x, with a little noise."""

    num_features, num_targets, target_mean, target_scale = 1, 1, 1000.0, 500.0

    def load(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(500, 1)).astype(np.float32)
        y = (1000 + 500 * x[:, 0] + rng.normal(0, 5, 500)).astype(np.float32)
        sets = [
            TensorDataset(torch.from_numpy(x[a:b]), torch.from_numpy(y[a:b]))
            for a, b in ((0, 300), (300, 400), (400, 500))
        ]
        self.train_set, self.val_set, self.test_set = sets


def some_loader():
    return DataLoader(TensorDataset(torch.randn(32, 5), torch.arange(32) % 3), batch_size=16)


def test_a_classifier_learns_digits_and_logs_what_scikit_learn_computes():
    pl.seed_everything(0)
    model, data = BatchNormClassifier(hidden_units=64, learning_rate=0.05), DigitsDataModule()
    t = trainer(max_epochs=8)
    t.fit(model, data)
    logged = {**t.callback_metrics, **t.test(model, data, verbose=False)[0]}
    assert {"train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy"} == set(logged)
    for split in ("val", "test"):
        x, y = getattr(data, f"{split}_set").tensors
        with torch.no_grad():
            p = model.eval()(x).double().softmax(1).numpy()
        assert float(logged[f"{split}_accuracy"]) == pytest.approx(accuracy_score(y, p.argmax(1)), abs=1e-6)
        assert float(logged[f"{split}_loss"]) == pytest.approx(log_loss(y, p), rel=1e-4)
    assert float(logged["test_accuracy"]) > 0.94
    probabilities = torch.cat(t.predict(model, data))
    np.testing.assert_allclose(probabilities.numpy(), p, atol=1e-5)


def test_train_loss_is_the_mean_over_the_rows_of_the_epoch():
    losses = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append((outputs["loss"].item(), len(batch[0])))

    t = trainer(max_epochs=1, callbacks=[Keep()])
    t.fit(BatchNormClassifier(), DigitsDataModule(batch_size=100, drop_last=False))
    values, rows = np.asarray(losses).T
    assert len(set(rows)) == 2, "the last mini-batch is smaller"
    assert float(t.callback_metrics["train_loss"]) == pytest.approx(np.average(values, weights=rows), rel=1e-5)


def test_a_regressor_learns_on_the_standard_scale_and_reports_in_the_targets_unit():
    pl.seed_everything(0)
    model, data = BatchNormRegressor(hidden_units=16, num_layers=1, learning_rate=0.1), Line(batch_size=32)
    t = trainer(max_epochs=10)
    t.fit(model, data)
    logged = {**t.callback_metrics, **t.test(model, data, verbose=False)[0]}
    y = data.test_set.tensors[1].numpy()
    prediction = torch.cat(t.predict(model, data))[:, 0].numpy()
    assert logged["test_mae"] == pytest.approx(mean_absolute_error(y, prediction), rel=1e-4)
    assert logged["test_r2"] == pytest.approx(r2_score(y, prediction), abs=1e-5)
    assert logged["test_loss"] == pytest.approx(mean_squared_error(y, prediction) / 500**2, rel=1e-4)
    assert logged["test_r2"] > 0.97
    assert {"train_loss", "val_loss", "val_mae", "val_r2"} <= set(logged)


def test_a_checkpoint_is_loaded_without_data(tmp_path):
    t = trainer(max_epochs=1)
    for model, data in ((BatchNormClassifier(), DigitsDataModule()), (BatchNormRegressor(), Line())):
        t = trainer(max_epochs=1)
        t.fit(model, data)
        t.save_checkpoint(tmp_path / "m.ckpt")
        loaded = type(model).load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
        x = data.test_set.tensors[0]
        torch.testing.assert_close(loaded.eval().predict_step(x, 0), model.eval().predict_step(x, 0))
    assert (loaded.hparams["target_mean"], loaded.hparams["target_scale"]) == (1000.0, 500.0)


def test_a_restored_regressor_keeps_the_scale_it_learned_on():
    model = BatchNormRegressor(1, 1, target_mean=3.0, target_scale=2.0)
    trainer(max_epochs=1).fit(model, Line())
    assert (model.hparams["target_mean"], model.hparams["target_scale"]) == (3.0, 2.0)


def test_sizes_may_come_with_the_arguments_and_data_without_a_datamodule():
    loader = some_loader()
    model = BatchNormClassifier(num_features=5, num_classes=3)
    assert model(torch.zeros(4, 5)).shape == (4, 3)
    trainer(max_epochs=1).fit(model, loader, loader)
    assert model.hparams["num_features"] == 5


def test_a_size_that_nobody_knows_is_named():
    loader = some_loader()
    with pytest.raises(ValueError, match=r"`num_classes` must be given, .* got None from no DataModule"):
        trainer(max_epochs=1).fit(BatchNormClassifier(num_features=5), loader, loader)
    with pytest.raises(ValueError, match=r"`num_targets` must be given, .* got None from DigitsDataModule"):
        trainer(max_epochs=1).fit(BatchNormRegressor(), DigitsDataModule())
    with pytest.raises(RuntimeError, match="The network must be built first"):
        BatchNormClassifier()(torch.zeros(2, 64))


def test_targets_of_another_shape_are_said():
    with pytest.raises(ValueError, match=r"`target` must have shape \(4, 2\), got \(4, 1\)"):
        BatchNormRegressor(3, 2).training_step((torch.zeros(4, 3), torch.zeros(4)), 0)


def test_the_learning_rate_falls_once_an_epoch_and_groups_keep_their_decay():
    seen = []

    class Keep(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append([(g["lr"], g["weight_decay"]) for g in trainer.optimizers[0].param_groups])

    model = BatchNormClassifier(learning_rate=0.2, weight_decay=0.01, schedule="inverse_time", learning_rate_decay=1.0)
    trainer(max_epochs=3, callbacks=[Keep()]).fit(model, DigitsDataModule(batch_size=256))
    assert seen == [[(pytest.approx(0.2 / (1 + t)), 0.01), (pytest.approx(0.2 / (1 + t)), 0.0)] for t in range(3)]


def test_the_learning_rate_monitor_works(tmp_path):
    t = trainer(
        max_epochs=1, logger=pl.loggers.CSVLogger(tmp_path), callbacks=[LearningRateMonitor()], log_every_n_steps=1
    )
    t.fit(BatchNormClassifier(schedule="cosine", learning_rate_decay=0.5), DigitsDataModule(batch_size=256))
    assert list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize("cls", [BatchNormClassifier, BatchNormRegressor])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -1.0}, "`learning_rate` must be above 0 and finite, got -1.0"),
        ({"momentum": 1.0}, "`momentum` must be at least 0 and below 1, got 1.0"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1, got 1.0"),
        ({"norm": "x"}, "`norm` must be one of z, a, none, got 'x'"),
        ({"hidden_units": [3], "num_layers": 2}, r"`num_layers` must be the length .* got 2"),
        ({"schedule": "x"}, "`schedule` must be one of none, .* got 'x'"),
        ({"optimizer": "x"}, "`optimizer` must be one of sgd, .* got 'x'"),
        ({"num_features": 0, "num_classes": 2, "num_targets": 2}, "`num_features` must be 1 or more, got 0"),
    ],
)
def test_a_wrong_hyperparameter_is_named_at_construction(cls, arguments, message):
    other = "num_targets" if cls is BatchNormClassifier else "num_classes"
    with pytest.raises(ValueError, match=message):
        cls(**{name: value for name, value in arguments.items() if name != other})


def test_wrong_numbers_of_classes_and_scales_are_named():
    with pytest.raises(ValueError, match="`num_classes` must be 2 or more, got 1"):
        BatchNormClassifier(num_classes=1)
    with pytest.raises(ValueError, match=r"`target_scale` must be above 0, got 0\.0"):
        BatchNormRegressor(target_scale=0.0)
    with pytest.raises(
        ValueError, match="`max_epochs` of the Trainer must be 1 or more with schedule 'cosine', got -1"
    ):
        trainer(max_epochs=-1, max_steps=3).fit(
            BatchNormClassifier(schedule="cosine", learning_rate_decay=0.5), DigitsDataModule()
        )


@pytest.mark.parametrize("name", ["digits", "tabular"])
def test_the_configs_are_ordinary_lightningcli_files(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr("sys.argv", ["train.py"])
    overrides = ["--trainer.max_epochs", "2", "--model.init_args.hidden_units", "[16, 8]", "--seed_everything", "1"]
    overrides += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(tmp_path)]
    overrides += ["--trainer.log_every_n_steps", "1"]
    cli = LightningCLI(
        run=False, save_config_callback=None, args=["--config", f"configs/{name}/train.yaml", *overrides]
    )
    cli.trainer.fit(cli.model, cli.datamodule)
    hparams = cli.trainer.logger.experiment.hparams
    assert hparams["batch_size"] == cli.datamodule.batch_size
    assert hparams["learning_rate"] == cli.model.hparams["learning_rate"]
    assert {"val_loss", "val_accuracy"} <= cli.trainer.callback_metrics.keys()
    assert cli.model.net.widths == (16, 8)
    cli.trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = BatchNormClassifier.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert loaded.hparams["num_classes"] == cli.datamodule.num_classes
