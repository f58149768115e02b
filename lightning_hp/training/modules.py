"""LightningModules around `BatchNormMLP`: the loss, the metrics, and how flat hyperparameters reach the optimizer.

All arguments are scalars with a default (widths may be a list), so that every one of them can be tuned by name from a
LightningCLI file. Sizes that only the data knows (features, classes, targets) may be left None: they are taken from
``trainer.datamodule`` before the fit and written back to ``hparams``, so ``load_from_checkpoint`` needs no data.
Shapes: N rows of a mini-batch, F features, C classes, T targets.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanAbsoluteError, Metric, R2Score
from torchmetrics.classification import MulticlassAccuracy

from lightning_hp.training.metrics import RowMean
from lightning_hp.training.mlp import BatchNormMLP, check_mlp_arguments, layer_widths
from lightning_hp.training.optimizers import (
    build_optimizer,
    build_schedule,
    check_optimizer_arguments,
    check_schedule_arguments,
)
from lightning_hp.training.stacked.modules import StackedClassifier, StackedRegressor, mlp_key

Batch = Sequence[Tensor]


class _BatchNormModule(pl.LightningModule):
    """What the classifier and the regressor share: network, optimizer, schedule, and the training loss.

    Attributes:
        net: The network, shape (N, F) to (N, O); None until the sizes are known.
    """

    net: BatchNormMLP | None
    _outputs_name: str  # the hyperparameter that holds the number of outputs

    def _check_and_build(self) -> None:
        """Check the saved hyperparameters, and build the network if the data's sizes are known."""
        hp = self.hparams
        layer_widths(hp["hidden_units"], hp["num_layers"])
        check_mlp_arguments(hp["activation"], hp["norm"], hp["bn_epsilon"], hp["bn_momentum"], hp["dropout"])
        check_optimizer_arguments(**{k: hp[k] for k in _OPTIMIZER_ARGUMENTS if k != "decay_norm_and_bias"})
        check_schedule_arguments(hp["schedule"], hp["learning_rate_decay"], hp["step_every"])
        # a plain tensor, not a metric: a metric's update on every step costs more than the step's own loss
        self._loss_sum = torch.zeros(())
        self._loss_rows = 0
        self.net = None
        if hp["num_features"] is not None and hp[self._outputs_name] is not None:
            self._build()

    def _build(self) -> None:
        hp = self.hparams
        self.net = BatchNormMLP(hp["num_features"], hp[self._outputs_name], **{k: hp[k] for k in _MLP_ARGUMENTS})
        self.train_mean_loss, self.val_mean_loss, self.test_mean_loss = RowMean(), RowMean(), RowMean()
        self._build_metrics()

    def _build_metrics(self) -> None:
        raise NotImplementedError

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def _datamodule(self) -> Any:
        """Return the Trainer's DataModule, or None; `load_from_checkpoint` configures a model without a Trainer."""
        try:
            return getattr(self.trainer, "datamodule", None)
        except RuntimeError:
            return None

    def _take_from_data(self, names: Sequence[str]) -> None:
        """Fill the hyperparameters that are still None from the Trainer's DataModule."""
        datamodule = self._datamodule()
        for name in names:
            if self.hparams[name] is None:
                value = getattr(datamodule, name, None)
                if value is None:
                    raise ValueError(
                        f"`{name}` must be given, or be an attribute of the DataModule, got None from"
                        f" {'no DataModule' if datamodule is None else type(datamodule).__name__}"
                    )
                self.hparams[name] = value

    def configure_model(self) -> None:
        """Build the network if the sizes were not known at construction."""
        if self.net is None:
            self._take_from_data(("num_features", self._outputs_name))
            self._build()

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, F) to the network's outputs (N, O)."""
        if self.net is None:
            raise RuntimeError("The network must be built first: give its sizes, or fit with a DataModule")
        output: Tensor = self.net(x)
        return output

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a mini-batch."""
        x, y = batch
        loss = self._loss(self(x), y)
        self._loss_sum.add_(loss.detach(), alpha=len(x))
        self._loss_rows += len(x)
        return loss

    def on_train_epoch_start(self) -> None:
        """Start the epoch's mean of the training loss."""
        self._loss_sum = torch.zeros((), device=self.device)
        self._loss_rows = 0

    def on_train_epoch_end(self) -> None:
        """Log ``train_loss``: the mean over the epoch's rows, measured while the weights were changing."""
        if self._loss_rows:
            self.train_mean_loss.update(self._loss_sum / self._loss_rows, self._loss_rows)
            self.log("train_loss", self.train_mean_loss)

    def _evaluate(self, batch: Batch, split: str) -> tuple[Tensor, Tensor]:
        x, y = batch
        output = self(x)
        metric: RowMean = getattr(self, f"{split}_mean_loss")
        metric.update(self._loss(output, y), len(x))
        self.log(f"{split}_loss", metric, batch_size=len(x), on_step=False, on_epoch=True)
        return output, y

    def _log_metric(self, name: str, prediction: Tensor, target: Tensor) -> None:
        metric: Metric = getattr(self, name)
        metric.update(prediction, target)
        self.log(name, metric, batch_size=len(target), on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        """Build the optimizer and, where the rate is not constant, a schedule stepped once an epoch."""
        hp = self.hparams
        optimizer = build_optimizer(self, **{k: hp[k] for k in _OPTIMIZER_ARGUMENTS})
        epochs = self.trainer.max_epochs
        if hp["schedule"] == "cosine" and hp["learning_rate_decay"] > 0 and (epochs is None or epochs < 1):
            raise ValueError(f"`max_epochs` of the Trainer must be 1 or more with schedule 'cosine', got {epochs!r}")
        scheduler = build_schedule(optimizer, hp["schedule"], hp["learning_rate_decay"], hp["step_every"], epochs)
        return optimizer if scheduler is None else {"optimizer": optimizer, "lr_scheduler": scheduler}


_MLP_ARGUMENTS = ("hidden_units", "num_layers", "activation", "norm", "bn_epsilon", "bn_momentum", "dropout")
_OPTIMIZER_ARGUMENTS = (
    "optimizer",
    "learning_rate",
    "momentum",
    "nesterov",
    "beta1",
    "beta2",
    "epsilon",
    "weight_decay",
    "decay_norm_and_bias",
)


class BatchNormClassifier(StackedClassifier, _BatchNormModule):
    """A BatchNorm MLP that predicts one of C classes, trained with cross-entropy.

    Logs ``train_loss`` (mean over the epoch's mini-batches, in train mode), ``val_loss``, ``val_accuracy``,
    ``test_loss`` and ``test_accuracy``. ``predict_step`` returns class probabilities, shape (N, C).

    Example:
        >>> model = BatchNormClassifier(num_features=64, num_classes=10, hidden_units=128, learning_rate=0.01)
        >>> sum(p.numel() for p in model.parameters())
        26378
    """

    _outputs_name = "num_classes"

    def stack_key(self) -> Hashable:
        """Return what models that are trained as one have in common: see `lightning_hp.training.stacked`."""
        return mlp_key(self)

    def __init__(
        self,
        num_features: int | None = None,
        num_classes: int | None = None,
        hidden_units: int | list[int] = 128,
        num_layers: int | None = 2,
        activation: str = "relu",
        norm: str = "z",
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        dropout: float = 0.0,
        optimizer: str = "sgd",
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        nesterov: bool = False,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        decay_norm_and_bias: bool = False,
        schedule: str = "exponential",
        learning_rate_decay: float = 0.0,
        step_every: int = 10,
    ) -> None:
        """Check and save the hyperparameters.

        Args:
            num_features: F; None to take it from the DataModule.
            num_classes: C; None to take it from the DataModule.
            hidden_units: One width for all hidden layers, or one per layer.
            num_layers: Number of hidden layers; None with a list of widths.
            activation: "relu", "leaky_relu", "elu", "gelu", "silu" or "tanh".
            norm: BatchNorm before the activation ("z"), after it ("a"), or "none".
            bn_epsilon: Added to the variance.
            bn_momentum: Weight of the newest mini-batch in the running statistics.
            dropout: Probability that a hidden unit is zeroed in training.
            optimizer: "sgd", "adam" or "adamw".
            learning_rate: Of the first epoch.
            momentum: Of SGD.
            nesterov: SGD with Nesterov's momentum.
            beta1: Of Adam: decay of the average of gradients.
            beta2: Of Adam: decay of the average of squared gradients.
            epsilon: Of Adam: added to the denominator.
            weight_decay: On weights; gamma, beta and biases are left out.
            decay_norm_and_bias: Also decay gamma, beta and biases.
            schedule: "none", "exponential", "cosine", "step" or "inverse_time"; formulas in
                `lightning_hp.training.optimizers`.
            learning_rate_decay: Strength of the schedule; 0 keeps the rate constant.
            step_every: Epochs between two steps of "step".

        Raises:
            ValueError: If an argument is out of range, with its name.
            TypeError: If ``hidden_units`` is neither an integer nor a list of integers.
        """
        super().__init__()
        self.save_hyperparameters()
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"`num_classes` must be 2 or more, got {num_classes!r}")
        self._check_and_build()

    def _build_metrics(self) -> None:
        classes = self.hparams["num_classes"]
        self.val_accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)
        self.test_accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of the validation split."""
        self._log_metric("val_accuracy", *self._evaluate(batch, "val"))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of the test split."""
        self._log_metric("test_accuracy", *self._evaluate(batch, "test"))

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Return class probabilities, shape (N, C), for features alone or for features with targets."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        scores: Tensor = self(x)
        return scores.softmax(dim=1)


class BatchNormRegressor(StackedRegressor, _BatchNormModule):
    """A BatchNorm MLP that predicts T real numbers, trained with the squared error of standardised targets.

    The network learns ``(target - target_mean) / target_scale``, so that a good learning rate does not depend on the
    unit of the target. ``train_loss``, ``val_loss`` and ``test_loss`` are mean squared errors on that scale (1 is as
    good as predicting the mean); ``val_mae``, ``test_mae`` and predictions are in the target's unit, ``val_r2`` and
    ``test_r2`` have none.
    """

    _outputs_name = "num_targets"

    def stack_key(self) -> Hashable:
        """Return what models that are trained as one have in common: see `lightning_hp.training.stacked`."""
        return mlp_key(self)

    def __init__(
        self,
        num_features: int | None = None,
        num_targets: int | None = None,
        hidden_units: int | list[int] = 128,
        num_layers: int | None = 2,
        activation: str = "relu",
        norm: str = "z",
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        dropout: float = 0.0,
        optimizer: str = "sgd",
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        nesterov: bool = False,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        decay_norm_and_bias: bool = False,
        schedule: str = "exponential",
        learning_rate_decay: float = 0.0,
        step_every: int = 10,
        target_mean: float | list[float] | None = None,
        target_scale: float | list[float] | None = None,
    ) -> None:
        """Check and save the hyperparameters.

        Args:
            num_features: F; None to take it from the DataModule.
            num_targets: T; None to take it from the DataModule.
            hidden_units: One width for all hidden layers, or one per layer.
            num_layers: Number of hidden layers; None with a list of widths.
            activation: "relu", "leaky_relu", "elu", "gelu", "silu" or "tanh".
            norm: BatchNorm before the activation ("z"), after it ("a"), or "none".
            bn_epsilon: Added to the variance.
            bn_momentum: Weight of the newest mini-batch in the running statistics.
            dropout: Probability that a hidden unit is zeroed in training.
            optimizer: "sgd", "adam" or "adamw".
            learning_rate: Of the first epoch.
            momentum: Of SGD.
            nesterov: SGD with Nesterov's momentum.
            beta1: Of Adam: decay of the average of gradients.
            beta2: Of Adam: decay of the average of squared gradients.
            epsilon: Of Adam: added to the denominator.
            weight_decay: On weights; gamma, beta and biases are left out.
            decay_norm_and_bias: Also decay gamma, beta and biases.
            schedule: "none", "exponential", "cosine", "step" or "inverse_time"; formulas in
                `lightning_hp.training.optimizers`.
            learning_rate_decay: Strength of the schedule; 0 keeps the rate constant.
            step_every: Epochs between two steps of "step".
            target_mean: Subtracted from the targets, one number or T; None to take it from the DataModule, else 0.
            target_scale: Divides the targets, above 0; None to take it from the DataModule, else 1.

        Raises:
            ValueError: If an argument is out of range, with its name.
            TypeError: If ``hidden_units`` is neither an integer nor a list of integers.
        """
        super().__init__()
        self.save_hyperparameters()
        if target_scale is not None and not (torch.as_tensor(target_scale) > 0).all():
            raise ValueError(f"`target_scale` must be above 0, got {target_scale!r}")
        self.register_buffer("_mean", torch.zeros(()), persistent=False)
        self.register_buffer("_scale", torch.ones(()), persistent=False)
        self._mean: Tensor
        self._scale: Tensor
        self._set_target_scale()
        self._check_and_build()

    def _set_target_scale(self) -> None:
        mean, scale = self.hparams["target_mean"], self.hparams["target_scale"]
        self._mean = torch.as_tensor(0.0 if mean is None else mean, dtype=torch.float32, device=self.device)
        self._scale = torch.as_tensor(1.0 if scale is None else scale, dtype=torch.float32, device=self.device)

    def configure_model(self) -> None:
        """Take sizes and the targets' scale from the DataModule where they were not given."""
        super().configure_model()
        datamodule = self._datamodule()
        for name, default in (("target_mean", 0.0), ("target_scale", 1.0)):
            if self.hparams[name] is None:
                self.hparams[name] = getattr(datamodule, name, default)
        self._set_target_scale()

    def _build_metrics(self) -> None:
        self.val_mae, self.test_mae = MeanAbsoluteError(), MeanAbsoluteError()
        self.val_r2, self.test_r2 = R2Score(), R2Score()

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        target = target.reshape(len(target), -1)
        if target.shape != output.shape:
            raise ValueError(f"`target` must have shape {tuple(output.shape)}, got {tuple(target.shape)}")
        return functional.mse_loss(output, (target - self._mean) / self._scale)

    def _log_metrics(self, batch: Batch, split: str) -> None:
        output, target = self._evaluate(batch, split)
        prediction, target = output * self._scale + self._mean, target.reshape(len(target), -1)
        for name in (f"{split}_mae", f"{split}_r2"):
            self._log_metric(name, prediction, target)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss, mean absolute error and R2 of the validation split."""
        self._log_metrics(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss, mean absolute error and R2 of the test split."""
        self._log_metrics(batch, "test")

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Return predictions in the target's unit, shape (N, T)."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        prediction: Tensor = self(x) * self._scale + self._mean
        return prediction
