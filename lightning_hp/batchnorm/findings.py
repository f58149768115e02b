"""What a finding is, in what order findings are listed, and every threshold with its source.

A threshold can be overridden by name (`audit(snapshot, thresholds={"mean_warn": 0.3})`) and a rule switched off by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "PRIORITY",
    "SEVERITIES",
    "THRESHOLDS",
    "Finding",
    "Threshold",
    "counts",
    "in_order",
    "resolve_thresholds",
    "times",
]

SEVERITIES = ("INFO", "WARN", "ERROR")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or could be better.

    Attributes:
        id: rule, "BN01" ... "BN20", "DR01", "DR02".
        severity: "INFO" (advice, or too small to matter), "WARN", "ERROR".
        layer: qualified name of the layer; "" when it concerns the whole model.
        topic: short machine-readable cause within the rule, such as "redundant_bias".
        sentence: what was seen, with its numbers, for a person.
        fix: what to do.
        numbers: the same numbers for a program.
    """

    id: str
    severity: str
    layer: str
    topic: str
    sentence: str
    fix: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"`severity` must be one of {SEVERITIES}, got {self.severity!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; floats with six significant digits."""
        plain = asdict(self)
        plain["numbers"] = {key: float(f"{value:.6g}") for key, value in self.numbers.items()}
        return plain


@dataclass(frozen=True)
class Threshold:
    """A limit and where it comes from ("derived", "measured: ...", or a publication)."""

    value: float
    source: str


_EDGE = "measured: healthy nets at momentum 0.1 stay below it, see docs/audit.md"

THRESHOLDS: dict[str, Threshold] = {
    "noise_ratio": Threshold(2.0, "derived: error over expected noise; 2 is exceeded by about 0.1% of healthy checks"),
    "mean_info": Threshold(0.10, "standard deviations; " + _EDGE),
    "mean_warn": Threshold(0.20, _EDGE),
    "mean_error": Threshold(0.50, "measured: nets above it lost at least 21% validation loss"),
    "var_info": Threshold(0.20, "log ratio; " + _EDGE),
    "var_warn": Threshold(0.30, _EDGE),
    "var_error": Threshold(0.70, "a factor 2 in variance"),
    "kl_warn": Threshold(0.02, "nats; measured: healthy nets at most 0.022"),
    "kl_error": Threshold(0.10, "nats; measured: nets above it lost 122% validation loss on average"),
    "output_warn": Threshold(0.20, "rms output change over output spread, for outputs that are not classes"),
    "output_error": Threshold(0.50, "as the relative loss gap of TheDeepChecker"),
    "noise_warn": Threshold(0.10, "derived: effective sample size n(2-m)/m of 100"),
    "noise_info": Threshold(0.05, "derived: effective sample size of 400"),
    "warmup_warn": Threshold(0.10, "share of the start value left, times its distance; (1-m)^T"),
    "small_batch": Threshold(8, "rows; EvalNorm 2019, Wu & Johnson 2021"),
    "small_rank_batch": Threshold(16, "rows a rank or accumulated piece; Wu & Johnson 2021"),
    "iid_ratio": Threshold(3.0, "measured: independent rows 0.8 to 1.8, class-sorted 20"),
    "iid_steps": Threshold(8, "a variance between fewer steps is too rough"),
    "dead_ratio": Threshold(1e-2, "of the layer's median; measured: healthy minima 0.34 (variance) and 0.69 (gamma)"),
    "dead_share": Threshold(0.10, "of the channels of a layer"),
    "mode_info": Threshold(0.20, "log variance ratio between train and eval mode; Li et al. 2019"),
    "mode_warn": Threshold(0.50, "the same, or standard deviations of the mean"),
    "val_info": Threshold(0.30, "standard deviations or log ratio, validation against training inputs in eval mode"),
    "val_warn": Threshold(0.70, "a factor 2 in variance"),
    "gamma_shrink": Threshold(0.50, "share of the median |gamma| lost during training"),
    "shift_ratio": Threshold(2.0, "measured: 99% quantile of resampled validation data 1.5 to 1.7, maximum 2.03"),
    "shift_mean": Threshold(0.20, "effect floor, so that huge samples do not alarm about nothing"),
    "shift_row_mean": Threshold(0.50, "the same for maps, in sds of a row's mean; measured: noise of 0.1 up to 0.34"),
    "shift_var": Threshold(0.30, "effect floor"),
    "shift_disagree": Threshold(0.05, "share of predictions that change with target statistics"),
    "generalisation_gap": Threshold(0.5, "validation loss over training loss, minus one"),
}

PRIORITY: tuple[str, ...] = (
    *("BN01", "BN03", "BN13", "BN11", "BN02", "BN05", "BN04", "BN14", "BN12"),
    *("BN09", "BN10", "BN15", "BN17", "BN20", "BN06", "BN07", "BN08", "BN18", "DR01", "DR02", "BN19", "BN16"),
)
"""Causes before symptoms.

A frozen layer that moves (BN05) explains wrong statistics (BN06), which explain wrong outputs (BN08).
"""


def resolve_thresholds(overrides: Mapping[str, float] | None = None) -> dict[str, float]:
    """Threshold values by name, with overrides.

    Raises:
        ValueError: if an override names no threshold.
    """
    values = {name: threshold.value for name, threshold in THRESHOLDS.items()}
    for name, value in (overrides or {}).items():
        if name not in values:
            raise ValueError(f"`thresholds` must use names from {sorted(values)}, got {name!r}")
        values[name] = float(value)
    return values


def in_order(findings: Iterable[Finding], layer_order: Sequence[str]) -> list[Finding]:
    """Findings in the order in which they are shown.

    Serious ones come first, causes before symptoms, then by severity, then by order of execution.

    BN06 and BN07 are one kind of fault (mean or variance): between them the more serious, then the earlier layer,
    comes first.
    """
    place = {name: index for index, name in enumerate(layer_order)}

    def key(finding: Finding) -> tuple[int, int, int, int, str]:
        rule = "BN06" if finding.id == "BN07" else finding.id
        priority = PRIORITY.index(rule) if rule in PRIORITY else len(PRIORITY)
        return (
            0 if finding.severity != "INFO" else 1,
            priority,
            -SEVERITIES.index(finding.severity),
            place.get(finding.layer, len(place)),
            finding.id,
        )

    return sorted(findings, key=key)


def times(ratio: float) -> str:
    """A ratio for a sentence; beyond a thousand only its size says anything."""
    return f"{ratio:.1f} times" if ratio < 1000 else "more than 1,000 times"


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """Number of findings by severity; every severity is present."""
    result = dict.fromkeys(SEVERITIES, 0)
    for finding in findings:
        result[finding.severity] += 1
    return result
