"""Rules that need no data pass: buffers, settings and counters are enough. Each returns the findings of one rule."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lightning_hp.batchnorm.findings import Finding
from lightning_hp.batchnorm.snapshot import LayerState, Snapshot

__all__ = [
    "bn01_nonfinite",
    "bn02_never_updated",
    "bn03_outside_training",
    "bn05_frozen",
    "bn11_precision",
    "bn12_small_batch",
    "bn13_remainder",
    "bn19_unmeasured",
]

Limits = Mapping[str, float]


def bad_channels(state: LayerState) -> int:
    """Channels whose running mean or variance is not finite, or whose running variance is negative."""
    finite = torch.isfinite(state.running_mean) & torch.isfinite(state.running_var)
    return int((~finite | (state.running_var < 0)).sum())


def is_untouched(state: LayerState) -> bool:
    """True when the statistics are exactly those of a new layer: mean 0, variance 1 in every channel."""
    return bool((state.running_mean == 0).all()) and bool((state.running_var == 1).all())


def bn01_nonfinite(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """NaN, infinity or a negative running variance, now or at any check during training."""
    findings = []
    for name, state in snapshot.layers.items():
        bad, first = bad_channels(state), snapshot.facts.nonfinite.get(name)
        if bad == 0 and first is None:
            continue
        when = "" if first is None else f", first seen at step {first}"
        findings.append(
            Finding(
                "BN01",
                "ERROR",
                name,
                "nonfinite",
                f"{bad} of {state.channels} channels hold a statistic that is not finite or a negative variance{when}.",
                "Go back to the last checkpoint before that step; skip or repair the batch; keep BatchNorm in "
                "float32. Under "
                "mixed precision the scaler skips the optimizer step but not the update of the statistics.",
                {"channels": bad, "step": -1 if first is None else first},
            )
        )
    return findings


def bn02_never_updated(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Statistics of a new layer (0 and 1) in a layer that is used; a momentum of zero."""
    findings = []
    for name, state in snapshot.layers.items():
        reached = not snapshot.data or name in snapshot.data
        if name in snapshot.unmeasured:
            continue  # it may keep its statistics elsewhere; BN19 tells about it
        if is_untouched(state):
            cause = "momentum is 0, so no batch ever counts" if state.momentum == 0 else "no batch was ever averaged"
            if state.updates > 0 and state.momentum != 0:
                cause = f"the counter says {state.updates} updates, so the statistics were reset or not loaded"
            if not reached:
                sentence = "The layer was not called in the recorded steps and its statistics are those of a new layer."
                findings.append(Finding("BN02", "INFO", name, "unused", sentence, "Remove it if it is not needed."))
                continue
            findings.append(
                Finding(
                    "BN02",
                    "ERROR",
                    name,
                    "never_updated",
                    f"Running mean is 0 and running variance 1 in all {state.channels} channels: {cause}. Eval mode "
                    f"does not "
                    "normalise.",
                    "Load a checkpoint that holds the buffers (strict=True), or recalibrate; momentum 0.1 for "
                    "training.",
                    {"updates": state.updates, "channels": state.channels},
                )
            )
        elif state.momentum == 0 and state.training and state.tracking and reached:
            findings.append(
                Finding(
                    "BN02",
                    "WARN",
                    name,
                    "momentum_zero",
                    "Momentum is 0: the layer trains on batch statistics and its running statistics never move.",
                    "Set momentum to 0.1, or put the layer in eval mode if it is meant to be frozen.",
                    {"momentum": 0.0},
                )
            )
    return findings


def bn03_outside_training(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Update counters that moved between start and end of a validation, test or prediction run."""
    return [
        Finding(
            "BN03",
            "ERROR",
            name,
            "eval_updates",
            f"The statistics were updated {updates} times during validation, test or prediction: they learn from "
            f"data that "
            "the model is judged on.",
            "Leave the model in eval mode there (no model.train() in validation_step, no training forward in "
            "callbacks).",
            {"updates": updates},
        )
        for name, updates in snapshot.facts.eval_updates.items()
        if updates and name in snapshot.layers
    ]


def bn05_frozen(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Frozen parameters with moving statistics; a tracking flag switched off on a layer that has statistics."""
    findings = []
    for name, state in snapshot.layers.items():
        moves = snapshot.facts.updates_per_step.get(name, 1.0 if snapshot.facts.trained_steps else 0.0) > 0
        if not state.tracking and state.training:
            findings.append(
                Finding(
                    "BN05",
                    "WARN",
                    name,
                    "tracking_off",
                    "track_running_stats was switched off on a layer that has statistics: training normalises by "
                    "the batch, eval "
                    "mode by statistics that no longer move.",
                    "Keep the flag on and put the layer in eval mode instead (for a frozen layer: at every "
                    "on_train_batch_start, "
                    "because train() turns it back).",
                )
            )
        elif state.frozen and state.training and moves:
            findings.append(
                Finding(
                    "BN05",
                    "WARN",
                    name,
                    "frozen_moving",
                    "gamma and beta are frozen but the layer is in train mode: its statistics drift to the new data "
                    "under "
                    "weights that cannot follow.",
                    "Put frozen BatchNorm layers in eval mode at every on_train_batch_start.",
                    {"updates": state.updates},
                )
            )
    return findings


def bn11_precision(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Half-precision buffers. bfloat16 stalls: with momentum 0.01 the mean ends 0.97 sd off (measured)."""
    findings = []
    for name, state in snapshot.layers.items():
        if state.dtype not in ("float16", "bfloat16"):
            continue
        stalls = state.dtype == "bfloat16" and state.momentum is not None and state.momentum < 0.1
        findings.append(
            Finding(
                "BN11",
                "ERROR" if stalls else "WARN",
                name,
                "half_precision",
                f"Running statistics are kept in {state.dtype} (momentum {state.momentum}): small updates are "
                f"rounded away.",
                "Keep BatchNorm in float32 (precision '16-mixed' or 'bf16-mixed' does), then recalibrate.",
                {"momentum": state.momentum or 0.0},
            )
        )
    return findings


def bn12_small_batch(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Too few values behind each batch statistic: the train-time normalisation itself is noise.

    Recalibration cannot help.

    Convolutions see `rows * height * width` values that are not independent. Their effective number is measured as
    1 / (batch noise)^2: the iid count that would make batch means as noisy as they are.
    """
    findings = []
    split = snapshot.facts.world_size > 1 or snapshot.facts.accumulate > 1
    for name, data in snapshot.data.items():
        state = snapshot.layers[name]
        if not state.training or state.instance_norm:
            continue
        synced = "Sync" in state.kind and snapshot.facts.world_size > 1
        rows = data.rows * (snapshot.facts.world_size if synced else 1)
        effective = min(data.values, max(data.iid_ratio, 1.0) / max(data.batch_noise, 1e-6) ** 2)
        limit = limits["small_rank_batch"] if split and not synced else limits["small_batch"]
        if data.values < limit or (rows < limit and effective < limit):
            how = f" on each of {snapshot.facts.world_size} ranks" if snapshot.facts.world_size > 1 else ""
            how += f", accumulated over {snapshot.facts.accumulate} batches" if snapshot.facts.accumulate > 1 else ""
            findings.append(
                Finding(
                    "BN12",
                    "WARN",
                    name,
                    "small_batch",
                    f"A batch has {data.rows:.0f} rows{how}, {data.values:.0f} values per channel: its mean is off by "
                    f"{data.batch_noise:.2f} sd from batch to batch.",
                    "Larger batches"
                    + (", or Trainer(sync_batchnorm=True)" if snapshot.facts.world_size > 1 else "")
                    + ", or GroupNorm. Gradient accumulation does not enlarge the batch that BatchNorm sees.",
                    {"rows": data.rows, "values": data.values, "effective": effective},
                )
            )
    return findings[:1]


def bn19_unmeasured(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Layers with a `forward` of their own that does not show what is normalised: no verdict, no repair."""
    return [
        Finding(
            "BN19",
            "INFO",
            name,
            "not_measurable",
            f"{snapshot.layers[name].kind} normalises by code of its own, so what its statistics should be cannot be "
            "measured: they are not compared with data, and never repaired.",
            "Call F.batch_norm with self.running_mean and self.running_var in its forward, in both modes, to have it "
            "audited.",
        )
        for name in snapshot.layers
        if name in snapshot.unmeasured
    ]


def bn13_remainder(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """A last batch of one row, which BatchNorm1d cannot normalise ("Expected more than 1 value per channel")."""
    facts = snapshot.facts
    if not facts.dataset_rows or not facts.batch_size or facts.drop_last or facts.batch_size == 1:
        return []
    if facts.dataset_rows % facts.batch_size != 1:
        return []
    flat = [n for n, s in snapshot.layers.items() if s.kind.endswith("1d") and not s.instance_norm]
    seen = [n for n, d in snapshot.data.items() if d.values == d.rows]
    names = seen or (flat if not snapshot.data else [])
    if not names:
        return []
    return [
        Finding(
            "BN13",
            "ERROR",
            names[0],
            "remainder_one",
            f"{facts.dataset_rows} rows in batches of {facts.batch_size} leave a last batch of one row, on which "
            f"BatchNorm fails "
            "in train mode.",
            "DataLoader(drop_last=True), or another batch size.",
            {"rows": facts.dataset_rows, "batch_size": facts.batch_size},
        )
    ]
