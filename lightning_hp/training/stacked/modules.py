"""How our own modules offer their stacked step: what members share, what may differ, and which step to take."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from lightning_hp.training.stacked.mlp import ClassifierStep, MLPStep, RegressorStep, any_above_zero
from lightning_hp.training.stacked.protocol import StackedStep

#: the hooks keep the mean training loss of an epoch
COVERS = ("on_train_epoch_start", "on_train_epoch_end")


def mlp_key(module: Any) -> Hashable:
    """Return what members must share; units of the hidden layers, rates, momentum and epsilon may differ.

    A hidden unit whose weights are all zero stays so: every activation is 0 at 0, and so are its normalised values and
    all its gradients, if the norm divides by an epsilon above 0.
    """
    hp, net = module.hparams, module.net
    widths = len(net.widths) if hp["bn_epsilon"] > 0 or hp["norm"] == "none" else net.widths
    sides = next(net.parameters()).shape[1], net.output.out_features
    return "BatchNormMLP", sides, widths, hp["activation"], hp["norm"]


def mlp_settings(module: Any) -> dict[str, float]:
    """Return the scalars in which members may differ."""
    return {name: float(module.hparams[name]) for name in ("dropout", "bn_momentum", "bn_epsilon")}


def mlp_step(kind: type[MLPStep], module: Any, settings: Mapping[str, Sequence[float]]) -> MLPStep:
    """Return the step for members with these settings."""
    hp = module.hparams
    return kind(len(module.net.widths), hp["activation"], hp["norm"], any_above_zero(settings, "dropout"))


class StackedClassifier:
    """Gives `BatchNormClassifier` its stacked step."""

    stack_covers = COVERS
    stack_train_metric = "train_loss"
    stack_pads = True

    def stack_settings(self) -> dict[str, float]:
        """Return dropout rate, momentum and epsilon of the batch norms."""
        return mlp_settings(self)

    def stack_step(self, settings: Mapping[str, Sequence[float]]) -> StackedStep:
        """Return the step for members with these settings."""
        step: ClassifierStep = mlp_step(ClassifierStep, self, settings)  # type: ignore[assignment]
        return step


class StackedRegressor:
    """Gives `BatchNormRegressor` its stacked step."""

    stack_covers = COVERS
    stack_train_metric = "train_loss"
    stack_pads = True

    def stack_settings(self) -> dict[str, float]:
        """Return dropout rate, momentum and epsilon of the batch norms."""
        return mlp_settings(self)

    def stack_step(self, settings: Mapping[str, Sequence[float]]) -> StackedStep:
        """Return the step for members with these settings."""
        step: RegressorStep = mlp_step(RegressorStep, self, settings)  # type: ignore[assignment]
        return step
