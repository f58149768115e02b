"""Rules about inputs of layers: are batches independent draws, are the two modes alike, is validation like training."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_hp.batchnorm.findings import Finding
from lightning_hp.batchnorm.snapshot import Snapshot
from lightning_hp.batchnorm.statistics import mean_error, variance_error

__all__ = ["bn14_independence", "bn17_modes", "bn18_validation"]

Limits = Mapping[str, float]


def bn14_independence(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Batch means that spread more than independent rows would: unshuffled, sorted or grouped data.

    The first layer tells.
    """
    for name in snapshot.structure.order or tuple(snapshot.data):
        data = snapshot.data.get(name)
        if data is None or data.steps < limits["iid_steps"] or data.rows < 4 or not snapshot.layers[name].training:
            continue
        if data.iid_ratio < limits["iid_ratio"]:
            continue
        return [
            Finding(
                "BN14",
                "WARN",
                name,
                "not_independent",
                f"Batch means vary {data.iid_ratio:.1f} times as much as those of independent rows: batches differ "
                f"in content.",
                "Shuffle the training data (and groups within it). Recalibration does not help: the weights "
                "themselves were trained "
                "with batch statistics that depend on the class or group.",
                {"iid_ratio": data.iid_ratio},
            )
        ]
    return []


def bn17_modes(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Same data and population statistics, yet other inputs in eval mode: something upstream depends on the mode."""
    for name in snapshot.structure.order:
        state, data = snapshot.layers[name], snapshot.data.get(name)
        if data is None or data.population.n == 0 or data.values < 16 or not state.training:
            continue
        if name in snapshot.structure.dropout_before:
            continue  # reported as advice by BN16
        variance = data.train.variance()
        d = mean_error(data.population.mean, data.train.mean, variance, state.eps)
        lv = variance_error(data.population.variance(), variance, state.eps)
        noise = data.batch_noise / data.steps**0.5
        if max(d, lv) < limits["mode_info"] or (d < 2 * noise and lv < 2 * data.batch_noise_var / data.steps**0.5):
            continue
        severity = "WARN" if max(d, lv) >= limits["mode_warn"] else "INFO"
        return [
            Finding(
                "BN17",
                severity,
                name,
                "mode_dependent",
                f"On the same data the layer's input moves by {d:.2f} sd and its log variance by {lv:.2f} between "
                f"train and eval "
                "mode; no running average can fit both.",
                "Look for code that depends on self.training before this layer, or for batches so small that batch "
                "statistics "
                "differ from population statistics.",
                {"d": d, "lv": lv},
            )
        ]
    return []


def bn18_validation(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Validation inputs against training inputs, both in eval mode; the first layer hit.

    Augmentation may explain small ones.
    """
    for name in snapshot.structure.order:
        data, seen = snapshot.data.get(name), snapshot.facts.validation.get(name)
        if data is None or seen is None or seen.n < 64 or data.population.n == 0:
            continue
        eps, variance = snapshot.layers[name].eps, data.population.variance()
        d = mean_error(seen.mean, data.population.mean, variance, eps)
        lv = variance_error(seen.variance(), variance, eps)
        noise = (data.batch_noise**2 * data.values * (1.0 / seen.n + 1.0 / data.train.n)) ** 0.5
        if (d < limits["noise_ratio"] * noise and lv < limits["var_warn"]) or max(d, lv) < limits["val_info"]:
            continue
        return [
            Finding(
                "BN18",
                "WARN" if max(d, lv) >= limits["val_warn"] else "INFO",
                name,
                "validation_differs",
                f"Validation inputs of the layer lie {d:.2f} sd from training inputs (log variance {lv:.2f} apart), "
                f"in the same mode.",
                "Compare the two transforms (normalisation, scaling, resizing). Augmentation in training only can "
                "be the reason.",
                {"d": d, "lv": lv},
            )
        ]
    return []
