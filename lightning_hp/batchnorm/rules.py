"""Every rule: a function from (snapshot, thresholds) to findings; `audit` runs them and orders what they find.

Rules that measure come first in value: BN06 to BN08 compare running with population statistics and outputs, whatever
the reason. The others name a reason (a frozen layer that moves, batches that are not independent), so that the user
knows what to change.

| id | finds |
|---|---|
| BN01 | statistics that are not finite, or a negative variance |
| BN02 | statistics that were never updated or not loaded |
| BN03 | statistics that change outside training |
| BN04 | not exactly one update per training batch; several domains in one layer |
| BN05 | frozen layers whose statistics move; layers whose tracking was switched off |
| BN06, BN07 | running mean, running variance unlike the data |
| BN08 | outputs that change when population statistics are put in |
| BN09 | a running average that is too noisy |
| BN10 | a running average that still remembers its start value |
| BN11 | statistics kept in half precision |
| BN12 | batches too small for BatchNorm |
| BN13 | a remainder batch of one row |
| BN14 | batches that are not independent draws |
| BN15 | dead or constant channels, an epsilon larger than the variance |
| BN16 | advice: redundant bias, weight decay on gamma and beta, dropout before BN, norm on A, BN as only regulariser
... |
| BN17 | inputs that differ between train and eval mode on the same data |
| BN18 | validation inputs unlike training inputs |
| BN19 | layers whose normalisation cannot be seen |
| BN20 | statistics of the training weights under other weights in validation |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from lightning_hp.batchnorm.advice import bn16_advice
from lightning_hp.batchnorm.findings import Finding, in_order, resolve_thresholds
from lightning_hp.batchnorm.rules_data import (
    bn04_domains,
    bn06_bn07_statistics,
    bn08_outputs,
    bn09_noise,
    bn10_warmup,
    bn15_channels,
    bn20_other_weights,
)
from lightning_hp.batchnorm.rules_inputs import bn14_independence, bn17_modes, bn18_validation
from lightning_hp.batchnorm.rules_state import (
    bn01_nonfinite,
    bn02_never_updated,
    bn03_outside_training,
    bn05_frozen,
    bn11_precision,
    bn12_small_batch,
    bn13_remainder,
    bn19_unmeasured,
)
from lightning_hp.batchnorm.snapshot import Snapshot

__all__ = ["RULES", "audit"]

Rule = Callable[[Snapshot, Mapping[str, float]], list[Finding]]

RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("BN01",), bn01_nonfinite),
    (("BN02",), bn02_never_updated),
    (("BN03",), bn03_outside_training),
    (("BN04",), bn04_domains),
    (("BN05",), bn05_frozen),
    (("BN06", "BN07"), bn06_bn07_statistics),
    (("BN08",), bn08_outputs),
    (("BN09",), bn09_noise),
    (("BN10",), bn10_warmup),
    (("BN11",), bn11_precision),
    (("BN12",), bn12_small_batch),
    (("BN13",), bn13_remainder),
    (("BN14",), bn14_independence),
    (("BN15",), bn15_channels),
    (("BN16",), bn16_advice),
    (("BN17",), bn17_modes),
    (("BN18",), bn18_validation),
    (("BN19",), bn19_unmeasured),
    (("BN20",), bn20_other_weights),
)
"""The ids a function can return, and the function."""


def audit(
    snapshot: Snapshot,
    rules: Collection[str] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Run the rules on a snapshot.

    Args:
        snapshot: what was measured.
        rules: ids to run; None runs all.
        thresholds: overrides by name, see `findings.THRESHOLDS`.

    Returns:
        Findings, the most important first; empty for a healthy model and for one without tracked layers.

    Raises:
        ValueError: if `rules` holds an unknown id or `thresholds` an unknown name.
    """
    all_ids = {name for ids, _ in RULES for name in ids}
    unknown = sorted(set(rules or ()) - all_ids)
    if unknown:
        raise ValueError(f"`rules` must hold ids from {sorted(all_ids)}, got {unknown!r}")
    limits = resolve_thresholds(thresholds)
    findings: list[Finding] = []
    for ids, rule in RULES:
        if rules is None or set(ids) & set(rules):
            findings += [finding for finding in rule(snapshot, limits) if rules is None or finding.id in rules]
    return in_order(
        findings, [*snapshot.structure.order, *(n for n in snapshot.layers if n not in snapshot.structure.order)]
    )
