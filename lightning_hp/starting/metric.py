"""Which metric a study ranks its trials by: what the project's own callbacks watch, else what validation logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_hp.starting.trial_run import ShortRun

#: words of a metric's name that say which direction is better
_LOWER = (
    "loss",
    "error",
    "err",
    "mae",
    "mse",
    "rmse",
    "perplexity",
    "ppl",
    "nll",
    "elbo_loss",
    "distance",
    "fid",
    "wer",
)
_HIGHER = ("acc", "accuracy", "f1", "auc", "auroc", "ap", "map", "precision", "recall", "iou", "dice", "r2", "bleu")
#: words of metrics that validation logs, where it is not known what validation logged
_VALIDATION = ("val", "valid", "validation")


@dataclass(frozen=True)
class Metric:
    """The metric of a study.

    Attributes:
        name: As the project logs it; empty where a person has to choose.
        mode: ``min`` or ``max``.
        why: How it was found, or why it was not.
        others: What else may be meant.
    """

    name: str
    mode: str
    why: str
    others: tuple[str, ...] = ()


def metric_of(shown: ShortRun) -> Metric:
    """Choose the metric.

    Args:
        shown: A short training of the project.
    """
    others = shown.validated or shown.metrics
    for name, mode in shown.watched:
        if name in shown.metrics:
            return Metric(name, mode, "a callback of yours watches it", _without(others, name))
    logged = shown.validated or tuple(m for m in shown.metrics if _words(m) & set(_VALIDATION))
    losses = [name for name in logged if "loss" in _words(name)]
    whole = [name for name in losses if _words(name) - {*_VALIDATION} in ({"loss"}, {"loss", "total"})]
    named = whole or losses or [name for name in logged if direction(name)]
    if len(named) == 1:  # val_loss rather than val_loss_of_a_part
        best = named[0]
        return Metric(best, direction(best) or "min", "validation logs it", _without(others, best))
    if not shown.validated:  # a training loss would reward overfitting, so only a measure that is none
        measures = [name for name in shown.metrics if direction(name) and "loss" not in _words(name)]
        if len(measures) == 1:
            name = measures[0]
            return Metric(name, direction(name), "there is no validation; training logs it", _without(others, name))
    why = "nothing is logged that can be compared" if not others else "it is not clear which metric decides"
    return Metric("", "min", why, tuple(others))


def direction(name: str) -> str:
    """``min`` or ``max`` by a metric's name; empty where it does not say."""
    words = _words(name)
    lower, higher = bool(words & set(_LOWER)), bool(words & set(_HIGHER))
    return "" if lower == higher else "min" if lower else "max"


def _words(name: str) -> set[str]:
    return set(name.lower().replace("/", "_").replace("-", "_").replace(".", "_").split("_"))


def _without(names: Sequence[str], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)
