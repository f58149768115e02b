"""Moments of every layer's input on validation data, stored with the model; new data is compared with them.

The reference is taken in eval mode from the user's own validation loop. Running statistics are no reference:
augmentation and dropout make them differ from validation data in healthy nets. A layer's shift is `d` (standard
deviations of the mean, rms over channels) and `lv` (log variance ratio), each also over the noise that `n` new rows
and `N` reference rows have: `R_d = d / sqrt(a (1/n + 1/N))`, `R_lv = lv / sqrt(b (1/n + 1/N))`. `a` is the variance
between rows of a row's mean over the total variance (1 without spatial dimensions), `b` the relative variance between
rows of a row's squared deviation (kurtosis - 1 there).

Nothing here changes running statistics: on label-shifted data that broke nets (accuracy 0.986 to 0.894, measured).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hp.batchnorm.findings import Finding, resolve_thresholds, times
from lightning_hp.batchnorm.inputs import input_hooks
from lightning_hp.batchnorm.observe import Step, preserved, replay
from lightning_hp.batchnorm.recalibrate import population_statistics, temporary_statistics
from lightning_hp.batchnorm.statistics import LayerNames, Moments, find_layers, sum_over_ranks

__all__ = ["InputMoments", "LayerShift", "Reference", "ReferenceLayer", "absorption", "layer_shifts", "shift_findings"]


@dataclass(frozen=True)
class ReferenceLayer:
    """Moments of one layer's input.

    Attributes:
        rows: examples behind them. mean, var: `C`-vectors.
        mean_spread: `a` of the module docstring. var_spread: `b`.
    """

    rows: float
    mean: Tensor
    var: Tensor
    mean_spread: float
    var_spread: float


@dataclass(frozen=True)
class Reference:
    """Moments by layer, in order of execution."""

    layers: dict[str, ReferenceLayer]

    def to_dict(self) -> dict[str, Any]:
        """Plain types (floats and lists), for a checkpoint or JSON."""
        return {
            name: {
                "rows": layer.rows,
                "mean": [float(f"{v:.7g}") for v in layer.mean.tolist()],
                "var": [float(f"{v:.7g}") for v in layer.var.tolist()],
                "mean_spread": layer.mean_spread,
                "var_spread": layer.var_spread,
            }
            for name, layer in self.layers.items()
        }

    def moments(self) -> dict[str, Moments]:
        """The same as `Moments`, counted in rows."""
        return {
            name: Moments(layer.rows, layer.mean, layer.var * max(layer.rows - 1.0, 0.0))
            for name, layer in self.layers.items()
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Reference:
        """Inverse of `to_dict`.

        Raises:
            ValueError: if a layer lacks a field.
        """
        layers = {}
        for name, values in plain.items():
            missing = {"rows", "mean", "var", "mean_spread", "var_spread"} - set(values)
            if missing:
                raise ValueError(f"`reference` layer {name!r} must hold {sorted(missing)}, got {sorted(values)!r}")
            layers[name] = ReferenceLayer(
                float(values["rows"]),
                torch.tensor(values["mean"], dtype=torch.float64),
                torch.tensor(values["var"], dtype=torch.float64),
                float(values["mean_spread"]),
                float(values["var_spread"]),
            )
        return cls(layers)


class InputMoments:
    """Collects moments of layer inputs while somebody else runs the model (their validation or test loop).

    Args:
        layers: the layers to look at.
        max_rows: rows after which nothing more is collected.
    """

    def __init__(self, layers: LayerNames, max_rows: int = 8192) -> None:
        if max_rows < 1:
            raise ValueError(f"`max_rows` must be at least 1, got {max_rows!r}")
        self.layers = layers
        self.max_rows = max_rows
        self._pooled: dict[str, Moments] = {}
        self._rows: dict[str, float] = {}
        self._spread: dict[str, Tensor] = {}  # sums over batches: row-mean variance, row-deviation variance, degrees

    @property
    def full(self) -> bool:
        """True when every layer seen has `max_rows` rows."""
        return bool(self._rows) and min(self._rows.values()) >= self.max_rows

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect from every call inside; hooks come off at the end, also after an exception."""
        with input_hooks({} if self.full else self.layers, self._add, live=True):
            yield

    def _add(self, name: str, x: Tensor) -> None:
        layer = self.layers[name]
        if x.dim() < 2 or x.shape[0] < 1 or x.shape[1] != layer.running_mean.numel():  # type: ignore[union-attr]
            return
        moments = Moments.of(x)
        self._pooled[name] = self._pooled[name].merge(moments) if name in self._pooled else moments
        self._rows[name] = self._rows.get(name, 0.0) + x.shape[0]
        if x.shape[0] < 2:
            return
        values = x.detach().float().reshape(x.shape[0], x.shape[1], -1)
        mean = values.mean((0, 2), keepdim=True)
        row_means = values.mean(2).var(0, correction=0).double().cpu()
        row_squares = (values - mean).square().mean(2)
        row_spread = row_squares.var(0, correction=0).double().cpu()
        variance = row_squares.mean(0).double().cpu()
        alive = variance > 1e-12
        degrees = x.shape[0] - 1
        if not bool(alive.any()):
            return
        sums = torch.tensor(
            [
                float((row_means / variance)[alive].mean()) * degrees,
                float((row_spread / variance.square())[alive].mean()) * degrees,
                degrees,
            ],
            dtype=torch.float64,
        )
        self._spread[name] = self._spread.get(name, torch.zeros(3, dtype=torch.float64)) + sums

    def result(self) -> Reference:
        """What was collected, summed over ranks; layers that were not called are missing."""
        layers = {}
        for name, layer in self.layers.items():
            channels = layer.running_mean.numel()  # type: ignore[union-attr]
            pooled = self._pooled.get(name, Moments.empty(channels)).over_ranks()
            if pooled.n == 0:
                continue
            rows = float(sum_over_ranks(torch.tensor([self._rows.get(name, 0.0)], dtype=torch.float64)).item())
            spread = sum_over_ranks(self._spread.get(name, torch.zeros(3, dtype=torch.float64)))
            degrees = max(float(spread[2]), 1.0)
            layers[name] = ReferenceLayer(
                rows,
                pooled.mean,
                pooled.variance(),
                float(spread[0]) / degrees or 1.0,
                float(spread[1]) / degrees or 2.0,
            )
        return Reference(layers)


@dataclass(frozen=True)
class LayerShift:
    """Shift of one layer's input: effect sizes and ratios to noise, see the module docstring.

    `row_d` is the mean's shift in standard deviations of a row's own mean. Without spatial dimensions it equals `d`.
    In a map a row's mean varies much less than its pixels, so a shift can be small against pixels and large against
    rows.
    """

    layer: str
    d: float
    ratio_d: float
    lv: float
    ratio_lv: float
    rows: float
    row_d: float = 0.0

    def hit(self, limits: Mapping[str, float]) -> bool:
        """True when an effect is large and beyond noise."""
        large = self.d > limits["shift_mean"] or self.row_d > limits["shift_row_mean"]
        by_mean = large and self.ratio_d > limits["shift_ratio"]
        by_var = self.lv > limits["shift_var"] and self.ratio_lv > limits["shift_ratio"]
        return self.rows >= 16 and (by_mean or by_var)


def layer_shifts(reference: Reference, seen: Reference, eps: float = 1e-5) -> list[LayerShift]:
    """Shift of every layer both have, in the order of `seen`.

    Args:
        reference: stored moments of validation data.
        seen: moments of the new data.
        eps: added to variances.
    """
    shifts = []
    for name, new in seen.layers.items():
        old = reference.layers.get(name)
        if old is None or old.mean.shape != new.mean.shape:
            continue
        floor = eps + 1e-3 * float(old.var.median())  # a channel that was constant has no scale of its own
        d = float(((new.mean - old.mean).square() / (old.var + floor)).mean().sqrt())
        lv = float(((new.var + floor) / (old.var + floor)).log().square().mean().sqrt())
        rows = 1.0 / max(new.rows, 1.0) + 1.0 / max(old.rows, 1.0)
        shifts.append(
            LayerShift(
                name,
                d,
                d / math.sqrt(max(old.mean_spread * rows, 1e-12)),
                lv,
                lv / math.sqrt(max(old.var_spread * rows, 1e-12)),
                new.rows,
                d / math.sqrt(max(old.mean_spread, 1e-12)),
            )
        )
    return shifts


def shift_findings(
    shifts: Sequence[LayerShift], disagreement: float | None = None, thresholds: Mapping[str, float] | None = None
) -> list[Finding]:
    """DR01 (the first layer hit) and DR02 (how many predictions depend on whose statistics are used).

    Args:
        shifts: result of `compare`, in order of execution.
        disagreement: result of `absorption`, if it was measured.
        thresholds: overrides by name.
    """
    limits = resolve_thresholds(thresholds)
    hits = [shift for shift in shifts if shift.hit(limits)]
    if not hits:
        return []
    first, others = hits[0], len(hits) - 1
    also = f" and {others} later layers" if others else ""
    findings = [
        Finding(
            "DR01",
            "WARN",
            first.layer,
            "covariate_shift",
            f"New data ({first.rows:.0f} rows) differs from the validation data at the input of this layer{also}: "
            f"mean by "
            f"{first.d:.2f} sd ({times(first.ratio_d)} the noise), log variance by {first.lv:.2f} "
            f"({times(first.ratio_lv)}).",
            "Look at the data before this layer. A shift is not yet harm: compare the metric on labelled rows.",
            {"d": first.d, "ratio_d": first.ratio_d, "lv": first.lv, "ratio_lv": first.ratio_lv, "rows": first.rows},
        )
    ]
    if disagreement is not None and disagreement > limits["shift_disagree"]:
        findings.append(
            Finding(
                "DR02",
                "WARN",
                first.layer,
                "absorbable",
                f"{disagreement:.1%} of the predictions change when statistics of the new data are put in: "
                f"BatchNorm could absorb that "
                "part of the shift.",
                "If the mix of classes is unchanged, recalibrate on new data on request and check on labels; else "
                "train again.",
                {"disagreement": disagreement},
            )
        )
    return findings


def absorption(model: nn.Module, steps: Sequence[Step]) -> float:
    """Share of rows whose predicted class changes when statistics of the recorded (new) data replace the stored ones.

    For outputs that are not `rows x classes`: rms change over spread, capped at 1. The model is left as it was.

    Args:
        model: the model.
        steps: recorded calls on the new data.
    """
    if not steps or not find_layers(model):
        return 0.0
    fresh = population_statistics(model, steps)
    first: list[Tensor] = []
    second: list[Tensor] = []
    with preserved(model):
        model.eval()
        replay(model, steps, on_output=lambda i, j, out: first.append(out) if isinstance(out, Tensor) else None)
        with temporary_statistics(model, fresh):
            replay(model, steps, on_output=lambda i, j, out: second.append(out) if isinstance(out, Tensor) else None)
    changed = total = 0.0
    for a, b in zip(first, second, strict=True):
        if a.dim() == 2 and a.shape[1] > 1:
            changed += float((a.argmax(1) != b.argmax(1)).sum())
            total += a.shape[0]
        elif a.is_floating_point() and a.numel() > 1:
            relative = float((a - b).double().square().mean().sqrt() / a.double().std().clamp_min(1e-9))
            changed += min(relative, 1.0) * a.shape[0]
            total += a.shape[0]
    sums = sum_over_ranks(torch.tensor([changed, total], dtype=torch.float64))
    return float(sums[0] / sums[1].clamp_min(1.0))
