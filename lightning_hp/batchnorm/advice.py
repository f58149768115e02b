"""BN16: advice on things that cost little to change and do not make a model wrong.

The severity is INFO, unless a function says otherwise.

Sources: NeuraLint (bias before BN, dropout before BN), Li et al. CVPR 2019 (dropout shifts the variance between modes),
PyTorch's tuning guide (bias), pytorch/pytorch#1402 (weight decay on gamma and beta; contested).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning_hp.batchnorm.findings import Finding
from lightning_hp.batchnorm.snapshot import Snapshot
from lightning_hp.batchnorm.statistics import variance_error

__all__ = ["bn16_advice"]

Limits = Mapping[str, float]


def bn16_advice(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Everything that is only advice; see the functions below."""
    return [
        *_bias(snapshot),
        *_decay(snapshot, limits),
        *_dropout(snapshot, limits),
        *_norm_on_a(snapshot),
        *_settings(snapshot),
        *_only_regulariser(snapshot, limits),
    ]


def _advice(layer: str, topic: str, sentence: str, fix: str, numbers: dict[str, float] | None = None) -> Finding:
    return Finding("BN16", "INFO", layer, topic, sentence, fix, numbers or {})


def _bias(snapshot: Snapshot) -> list[Finding]:
    return [
        _advice(
            layer,
            "redundant_bias",
            f"The bias of {feeder} is cancelled by the mean that this layer subtracts.",
            f"bias=False in {feeder}; beta takes its place.",
        )
        for layer, feeder in snapshot.structure.biased_feeder.items()
        if snapshot.layers[layer].training
    ]


def _decay(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    findings = []
    for layer in snapshot.layers:
        if layer not in snapshot.facts.decayed:
            continue
        shrunk = snapshot.facts.gamma_shrink.get(layer, 0.0)
        findings.append(
            Finding(
                "BN16",
                "WARN" if shrunk > limits["gamma_shrink"] else "INFO",
                layer,
                "decay_on_affine",
                f"gamma and beta are under weight decay; the median |gamma| has fallen by {max(shrunk, 0.0):.0%}.",
                "Put them (and biases) in a parameter group with weight_decay=0.",
                {"shrunk": shrunk},
            )
        )
    return findings


def _dropout(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    findings = []
    for layer in snapshot.structure.order:
        if layer not in snapshot.structure.dropout_before or layer not in snapshot.data:
            continue
        data = snapshot.data[layer]
        lv = variance_error(data.population.variance(), data.train.variance(), snapshot.layers[layer].eps)
        if lv < limits["mode_info"]:
            continue
        findings.append(
            _advice(
                layer,
                "dropout_before",
                f"Dropout before this layer makes its input variance differ by a factor {math.exp(lv):.2f} between "
                f"train and eval "
                "mode.",
                "Put dropout after the last BatchNorm, or recalibrate with dropout off if validation improves.",
                {"lv": lv},
            )
        )
    return findings


def _norm_on_a(snapshot: Snapshot) -> list[Finding]:
    return [
        _advice(
            layer,
            "norm_on_a",
            "The layer normalises activations (its input has been through a ReLU), not pre-activations.",
            "Normalise Z, before the activation, unless the order was compared: beta then shifts what the ReLU cuts.",
        )
        for layer in snapshot.structure.order
        if layer in snapshot.structure.after_relu
    ]


def _settings(snapshot: Snapshot) -> list[Finding]:
    findings = []
    for name, state in snapshot.layers.items():
        if state.instance_norm and state.tracking:
            findings.append(
                _advice(
                    name,
                    "instance_norm_tracking",
                    "InstanceNorm keeps running statistics, so eval mode no longer normalises each example by itself.",
                    "track_running_stats=False, unless eval mode is meant to differ.",
                )
            )
        elif state.momentum is None and state.training:
            findings.append(
                _advice(
                    name,
                    "cumulative_average",
                    "momentum=None averages over all batches since the start, with weights of long ago.",
                    "A momentum between 0.01 and 0.1, or reset the statistics shortly before the end.",
                )
            )
    return findings


def _only_regulariser(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    facts, structure = snapshot.facts, snapshot.structure
    trained = [name for name, state in snapshot.layers.items() if state.training]
    bare = (
        facts.any_decay is False and structure.dropouts == 0 and facts.early_stopping is False and not facts.augmented
    )
    if not trained or not bare or facts.train_metric is None or facts.val_metric is None:
        return []
    gap = facts.val_metric - facts.train_metric
    if gap <= 0.05 or gap <= limits["generalisation_gap"] * abs(facts.train_metric):
        return []
    return [
        _advice(
            "",
            "only_regulariser",
            f"Validation loss {facts.val_metric:.3g} against training loss {facts.train_metric:.3g}, and BatchNorm "
            f"is the only thing "
            "that regularises (no weight decay, dropout or early stopping found). Its noise is a side effect, and "
            "shrinks as "
            "batches grow.",
            "Add weight decay, dropout, augmentation or early stopping.",
            {"train_loss": facts.train_metric, "val_loss": facts.val_metric},
        )
    ]
