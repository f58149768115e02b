"""Rules that compare the running statistics of the layers with the moments of the data pass.

Each function returns the findings of one rule.

A statistic is *suspect* when its error is both large and larger than the noise a running average has anyway:
`d >= mean_info and R_d >= noise_ratio` (d in standard deviations), or `lv >= var_info and R_lv >= noise_ratio` (lv a
log ratio). One number alone alarms on healthy nets: d >= 0.05 flagged half of them, lv >= 0.1 a third (measured).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from lightning_hp.batchnorm.findings import Finding, times
from lightning_hp.batchnorm.rules_state import bad_channels, is_untouched
from lightning_hp.batchnorm.snapshot import LayerData, LayerState, Snapshot
from lightning_hp.batchnorm.statistics import (
    Averaging,
    Moments,
    effective_rows,
    mean_error,
    variance_error,
    without_start,
)

__all__ = [
    "bn04_domains",
    "bn06_bn07_statistics",
    "bn08_outputs",
    "bn09_noise",
    "bn10_warmup",
    "bn15_channels",
    "bn20_other_weights",
    "suspects",
]

Limits = Mapping[str, float]


def _grade(value: float, info: float, warn: float, error: float) -> str | None:
    return "ERROR" if value >= error else "WARN" if value >= warn else "INFO" if value >= info else None


def _usable(snapshot: Snapshot, name: str) -> bool:
    return name in snapshot.data and bad_channels(snapshot.layers[name]) == 0


def suspects(snapshot: Snapshot, limits: Limits) -> dict[str, tuple[str | None, str | None]]:
    """Severity of the mean and of the variance error for each suspect layer (before any reason is looked for)."""
    severities: dict[str, tuple[str | None, str | None]] = {}
    for name in snapshot.layers:
        errors = snapshot.errors(name) if _usable(snapshot, name) else None
        if errors is None:
            continue
        d, ratio_d, lv, ratio_lv = errors
        mean = _grade(d, limits["mean_info"], limits["mean_warn"], limits["mean_error"])
        var = _grade(lv, limits["var_info"], limits["var_warn"], limits["var_error"])
        mean = mean if ratio_d >= limits["noise_ratio"] else None
        var = var if ratio_lv >= limits["noise_ratio"] else None
        if mean or var:
            severities[name] = (mean, var)
    return severities


def bn04_domains(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """One update per training batch is what the momentum was chosen for. More means shared domains or recomputation."""
    findings = []
    for name, data in snapshot.data.items():
        state = snapshot.layers[name]
        updates = snapshot.facts.updates_per_step.get(name, data.calls_per_step if state.training else 0.0)
        if not state.training and not state.frozen and state.gamma is not None and snapshot.facts.trained_steps:
            findings.append(
                Finding(
                    "BN04",
                    "WARN",
                    name,
                    "no_update",
                    "The layer was in eval mode during training although gamma and beta were trained: it never "
                    "normalised by "
                    "the batch, and its statistics are those it started with.",
                    "Call train() on it, or freeze gamma and beta too if that is meant.",
                    {"updates_per_step": updates},
                )
            )
        elif updates > data.calls_per_step + 0.5:
            findings.append(
                Finding(
                    "BN04",
                    "WARN",
                    name,
                    "recomputed",
                    f"{updates:.1f} updates per training batch, but the layer is called {data.calls_per_step:.1f} "
                    f"times: activation "
                    "checkpointing updates again during backward.",
                    f"Set momentum to 1 - (1 - m)^(calls / updates) = "
                    f"{_thinner(state, data.calls_per_step / updates)}.",
                    {"updates_per_step": updates, "calls_per_step": data.calls_per_step},
                )
            )
        elif updates >= 1.5 and 2 <= len(data.domains) <= 8:
            findings.append(_domains(state, data, updates, limits))
    return findings


def _thinner(state: LayerState, power: float) -> str:
    return "a smaller value" if state.momentum is None else f"{1.0 - (1.0 - state.momentum) ** power:.3g}"


def _domains(state: LayerState, data: LayerData, updates: float, limits: Limits) -> Finding:
    apart_d = apart_lv = 0.0
    noise = data.batch_noise / max(data.steps, 1) ** 0.5
    noise_var = data.batch_noise_var / max(data.steps, 1) ** 0.5
    for domain in data.domains:
        if domain.n == 0:
            continue
        d = mean_error(domain.mean, data.train.mean, data.train.variance(), state.eps)
        lv = variance_error(domain.variance(), data.train.variance(), state.eps)
        apart_d = max(apart_d, d if d >= 2 * noise else 0.0)
        apart_lv = max(apart_lv, lv if lv >= 2 * noise_var else 0.0)
    numbers = {"updates_per_step": updates, "domain_d": apart_d, "domain_lv": apart_lv}
    if apart_d >= limits["mean_warn"] or apart_lv >= limits["var_warn"]:
        return Finding(
            "BN04",
            "WARN",
            state.name,
            "domains",
            f"{updates:.1f} updates per training batch from inputs that differ: their means lie up to {apart_d:.2f} "
            f"sd and their log "
            f"variances up to {apart_lv:.2f} from the mixture. The running statistics fit none of them.",
            "One BatchNorm per domain, one concatenated batch, or recalibrate on the domain that inference will "
            "see. In a "
            "discriminator that is only used in train mode this is harmless.",
            numbers,
        )
    return Finding(
        "BN04",
        "INFO",
        state.name,
        "several_updates",
        f"{updates:.1f} updates per training batch, from inputs that agree ({apart_d:.2f} sd): the running average "
        f"forgets "
        "faster than its momentum says.",
        f"Momentum {_thinner(state, 1.0 / updates)} gives the intended window; or concatenate the views.",
        numbers,
    )


def bn06_bn07_statistics(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Running mean (BN06) and running variance (BN07) against pooled moments of recent training inputs.

    An error that is small by itself counts as much as the damage it does: if outputs change (BN08), the first suspect
    layer, which is the cause, is reported with that severity.
    """
    findings = []
    suspect = suspects(snapshot, limits)
    damage, first = _damage(snapshot, limits), _first_suspect(snapshot, suspect)
    for name, (mean, var) in suspect.items():
        state = snapshot.layers[name]
        errors = snapshot.errors(name)
        assert errors is not None
        d, ratio_d, lv, ratio_lv = errors
        fix = "Recalibrate (recalibrate='end' or `lightning-hp recalibrate`); if it returns, raise the momentum."
        if not state.training:  # frozen by design: normalised by these statistics in training too, so nothing is lost
            mean, var = mean and "INFO", var and "INFO"
            fix = "Nothing, if the layer is frozen on purpose."
        elif damage and name == first and "WARN" not in (mean, var) and "ERROR" not in (mean, var):
            by_mean = d / limits["mean_info"] >= lv / limits["var_info"]
            mean, var = ("WARN", var) if mean and (by_mean or not var) else (mean, "WARN")
        numbers = {"d": d, "ratio_d": ratio_d, "lv": lv, "ratio_lv": ratio_lv}
        if mean:
            sentence = f"The running mean is {d:.2f} standard deviations off, {times(ratio_d)} the expected noise."
            findings.append(Finding("BN06", mean, name, "running_mean", sentence, fix, numbers))
        if var:
            sentence = (
                f"The running variance is off by a factor {math.exp(lv):.2f}, {times(ratio_lv)} the expected noise."
            )
            findings.append(Finding("BN07", var, name, "running_var", sentence, fix, numbers))
    return findings


def _first_suspect(snapshot: Snapshot, suspect: Mapping[str, object]) -> str | None:
    return next((name for name in snapshot.structure.order if name in suspect and snapshot.layers[name].training), None)


def _damage(snapshot: Snapshot, limits: Limits) -> str | None:
    gap = snapshot.gap
    if gap is None:
        return None
    if gap.kl > 0:
        return _grade(gap.kl, limits["kl_warn"], limits["kl_warn"], limits["kl_error"])
    return _grade(gap.relative, limits["output_warn"], limits["output_warn"], limits["output_error"])


def bn08_outputs(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Outputs with running statistics against those with population statistics; only if a layer is suspect."""
    gap, severity = snapshot.gap, _damage(snapshot, limits)
    first = _first_suspect(snapshot, suspects(snapshot, limits))
    if gap is None or severity is None or first is None:
        return []
    return [
        Finding(
            "BN08",
            severity,
            first,
            "outputs",
            f"With population statistics the outputs change by {gap.relative:.2f} of their spread (KL {gap.kl:.3g} "
            f"nats, "
            f"{gap.disagreement:.1%} of the predicted classes). The first suspect layer is named.",
            "Recalibrate, validate again, keep the better.",
            {"kl": gap.kl, "relative": gap.relative, "disagreement": gap.disagreement},
        )
    ]


def bn20_other_weights(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Statistics of the training weights under the weights of validation: train loss fine, validation loss bad."""
    other = snapshot.facts.evaluation
    if other is None:
        return []
    if other.repaired:
        sentence = (
            f"Validation runs with other weights than training ({other.cause}). The statistics were taken "
            "anew for them before the first batch of each validation, and stay until the next training batch."
        )
        return [Finding("BN20", "INFO", "", "repaired", sentence, "Save and export while those weights are in place.")]
    suspect = suspects(other.snapshot, limits)
    first = _first_suspect(other.snapshot, suspect)
    if first is None:
        return []
    grades = {grade for pair in suspect.values() for grade in pair}
    severity = _damage(other.snapshot, limits) or ("WARN" if grades & {"WARN", "ERROR"} else "INFO")
    errors, gap = other.snapshot.errors(first), other.snapshot.gap
    assert errors is not None
    changed = "" if gap is None else f" and the outputs by {gap.relative:.2f} of their spread (KL {gap.kl:.3g} nats)"
    return [
        Finding(
            "BN20",
            severity,
            first,
            "other_weights",
            f"Validation runs with other weights than training ({other.cause}), but the running statistics "
            f"are averages under the training weights. Under those of validation this layer's mean is off by "
            f"{errors[0]:.2f} sd, its variance by a factor {math.exp(errors[2]):.2f}{changed}.",
            'BatchNormAuditor(recalibrate="validation") takes them anew before each validation, and before what is '
            "saved after it.",
            {"d": errors[0], "lv": errors[2], "kl": gap.kl if gap else 0.0, "relative": gap.relative if gap else 0.0},
        )
    ]


def bn09_noise(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Noise that the running mean has in the long run, from the measured spread of batch means."""
    findings = []
    for name, data in snapshot.data.items():
        state = snapshot.layers[name]
        if not state.training or not state.tracking or state.momentum in (None, 0.0):
            continue
        window = effective_rows(1.0, state.momentum, 10**6)
        theory = data.values**-0.5
        spread = data.batch_noise if data.steps >= limits["iid_steps"] else max(data.batch_noise, theory)
        noise = spread / window**0.5
        severity = _grade(noise, limits["noise_info"], limits["noise_warn"], float("inf"))
        if severity is None:
            continue
        findings.append(
            Finding(
                "BN09",
                severity,
                name,
                "noisy_average",
                f"The running mean wanders by {noise:.2f} standard deviations: momentum {state.momentum:g} averages "
                f"about "
                f"{window:.1f} batches of {data.rows:.0f} rows, worth {1.0 / noise**2:.0f} independent rows.",
                "A smaller momentum or larger batches; recalibrate at the end of training.",
                {"noise": noise, "effective_rows": 1.0 / noise**2, "momentum": float(state.momentum or 0.0)},
            )
        )
    return findings


def bn10_warmup(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """A start value that is still in the average; without it the average is closer to the data."""
    findings = []
    damage = _damage(snapshot, limits)
    for name, grades in suspects(snapshot, limits).items():
        state, data = snapshot.layers[name], snapshot.data[name]
        initial_mean, initial_var, before = snapshot.facts.initial.get(
            name, (torch.zeros(state.channels), torch.ones(state.channels), 0)
        )
        updates = state.updates - before
        if state.momentum is None or not 0 < state.momentum < 1 or updates < 1 or is_untouched(state):
            continue
        # as observed, else as if the momentum had always been this one
        left = snapshot.facts.averaging.get(name, Averaging().after(updates, state.momentum)).left
        variance = data.train.variance()
        off_mean = mean_error(initial_mean, data.train.mean, variance, state.eps)
        off_var = float(((initial_var.double() - variance) / (variance + state.eps)).abs().clamp_max(1e3).mean())
        if left >= 1.0 or left * max(off_mean, off_var) < limits["warmup_warn"]:
            continue
        fixed_mean = without_start(state.running_mean, initial_mean.double(), left)
        fixed_var = without_start(state.running_var, initial_var.double(), left).clamp_min(0)
        then = _score(state.running_mean, state.running_var, data.train, state.eps)
        now = _score(fixed_mean, fixed_var, data.train, state.eps)
        if now > 0.7 * then:
            continue
        wanted = 1.0 - 0.05 ** (1.0 / updates)
        findings.append(
            Finding(
                "BN10",
                "WARN" if damage or set(grades) & {"WARN", "ERROR"} else "INFO",
                name,
                "not_warmed_up",
                f"After {updates} updates at momentum {state.momentum:g} the statistics still hold {left:.0%} of "
                f"their start value; "
                f"without it their error falls from {then:.2f} to {now:.2f}.",
                f"Debias (needs no data) or recalibrate; for {updates} updates choose momentum of at least "
                f"{wanted:.2g}.",
                {"left": left, "error": then, "error_debiased": now, "updates": updates},
            )
        )
    return findings


def _score(mean: torch.Tensor, var: torch.Tensor, moments: Moments, eps: float) -> float:
    variance = moments.variance()
    return mean_error(mean, moments.mean, variance, eps) + variance_error(var, variance, eps)


def bn15_channels(snapshot: Snapshot, limits: Limits) -> list[Finding]:
    """Channels that carry nothing: constant input, collapsed gamma, dead behind a ReLU; epsilon above the variance."""
    findings = []
    for name, state in snapshot.layers.items():
        data = snapshot.data.get(name)
        variance = data.train.variance() if data is not None else state.running_var
        if bad_channels(state) or is_untouched(state):
            continue
        causes: list[tuple[str, torch.Tensor, str]] = []
        median = float(variance.median())
        constant = (variance < state.eps) & (variance < limits["dead_ratio"] * max(median, 1e-30)) | (variance <= 1e-12)
        causes.append(("constant", constant, "a constant input"))
        causes.append(("epsilon", (variance < state.eps) & ~constant, f"a variance below epsilon ({state.eps:g})"))
        if state.gamma is not None:
            size = state.gamma.abs()
            typical = float(size.median())
            # All gammas at zero is an initialisation (the last layer of a residual block), not a collapse.
            causes.append(
                ("gamma", (size < limits["dead_ratio"] * max(typical, 1e-3)) & bool(size.max() > 0), "a gamma near 0")
            )
        if state.gamma is not None and state.beta is not None and name in snapshot.structure.before_relu:
            dead = state.beta + 3.0 * state.gamma.abs() < 0
            causes.append(("relu", dead, "outputs that the ReLU behind always cuts off (beta + 3 |gamma| < 0)"))
        for topic, mask, what in causes:
            share = float(mask.double().mean())
            if share == 0.0:
                continue
            findings.append(
                Finding(
                    "BN15",
                    "WARN" if share > limits["dead_share"] else "INFO",
                    name,
                    topic,
                    f"{int(mask.sum())} of {state.channels} channels have {what}.",
                    "Look at the inputs; lower the learning rate or the weight decay; prune or start these channels "
                    "again."
                    if topic != "epsilon"
                    else "Scale the inputs of the layer or choose a smaller eps: normalised values come out too small.",
                    {"channels": float(mask.sum()), "share": share},
                )
            )
    return findings
