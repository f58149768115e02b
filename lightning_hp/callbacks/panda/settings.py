"""What the Panda may change, how far, and how patient it is. Plain data: nothing here knows Lightning.

A hyperparameter is described like an entry of the search space of ``tune.yaml`` (``low``, ``high``, ``scale``,
``tier``), so that one mapping serves both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

SCALES = ("linear", "log", "one_minus_log")
TIERS = "ABCD"


@dataclass(frozen=True)
class Bounds:
    """Range of one hyperparameter.

    Attributes:
        low: Smallest value.
        high: Largest value.
        scale: The axis on which neighbours are equally far: ``linear``, ``log``, or ``one_minus_log`` (1 - 10^r).
        tier: Importance group, A to D.
        integer: Whether only whole numbers make sense.
    """

    low: float
    high: float
    scale: str = "linear"
    tier: str = "B"
    integer: bool = False

    def clip(self, value: float) -> float:
        """The nearest value inside, rounded where only whole numbers make sense."""
        value = min(max(value, self.low), self.high)
        return float(round(value)) if self.integer else value

    def moved(self, value: float, factor: float) -> float:
        """The neighbour of a value: ``factor`` multiplies it (log, linear) or divides 1 - value (one_minus_log)."""
        if self.scale == "one_minus_log":
            return self.clip(1 - (1 - value) / factor)
        return self.clip(value * factor)


#: what is known by name, with bounds wide enough for most networks
DEFAULTS: dict[str, Bounds] = {
    "learning_rate": Bounds(1e-7, 10.0, "log", "A"),
    "momentum": Bounds(0.0, 0.999, "one_minus_log", "B"),
    "weight_decay": Bounds(0.0, 0.3, "log", "B"),
    "batch_size": Bounds(16, 4096, "log", "B", integer=True),
    "beta1": Bounds(0.0, 0.999, "one_minus_log", "D"),
    "beta2": Bounds(0.5, 0.9999, "one_minus_log", "D"),
    "epsilon": Bounds(1e-12, 1.0, "log", "D"),
}


def bounds_from(mapping: Mapping[str, Any] | None) -> dict[str, Bounds]:
    """Defaults, replaced by what a mapping says.

    Args:
        mapping: Name to a mapping with ``low``, ``high`` and, if wished, ``scale`` and ``tier``; a pair ``(low, high)``
            changes only the range. Names may be dotted paths as in ``tune.yaml``: the last part counts.

    Returns:
        Name to bounds, for every known hyperparameter.

    Raises:
        ValueError: For an unknown name, an unknown key, or a range that is none.
    """
    result = dict(DEFAULTS)
    for path, entry in (mapping or {}).items():
        name = path.rsplit(".", 1)[-1]
        if name not in DEFAULTS:
            raise ValueError(f"`hyperparameters` must name some of {', '.join(DEFAULTS)}, got {path!r}")
        content = dict(entry) if isinstance(entry, Mapping) else dict(zip(("low", "high"), entry, strict=True))
        content.pop("default", None)
        if "choices" in content:
            choices = content.pop("choices")
            content["low"], content["high"] = min(choices), max(choices)
        unknown = set(content) - {"low", "high", "scale", "tier"}
        if unknown:
            raise ValueError(f"`{path}` must have keys low, high, scale, tier, got {sorted(unknown)[0]!r}")
        default = DEFAULTS[name]
        bounds = Bounds(
            float(content.get("low", default.low)),
            float(content.get("high", default.high)),
            content.get("scale", default.scale),
            content.get("tier", default.tier),
            default.integer,
        )
        _check(path, bounds)
        result[name] = bounds
    return result


def _check(path: str, bounds: Bounds) -> None:
    if not (math.isfinite(bounds.low) and math.isfinite(bounds.high) and bounds.low < bounds.high):
        raise ValueError(f"`{path}` must have finite bounds, low below high, got {bounds.low!r} and {bounds.high!r}")
    if bounds.scale not in SCALES:
        raise ValueError(f"`{path}` must have one of the scales {', '.join(SCALES)}, got {bounds.scale!r}")
    if bounds.tier not in tuple(TIERS):
        raise ValueError(f"`{path}` must have a tier from A to D, got {bounds.tier!r}")


@dataclass(frozen=True)
class Settings:
    """How the rules and probes decide; the defaults are those of `PandaBabysitter`.

    Attributes:
        bounds: Range, scale and tier by name.
        tiers: Tiers that may be nudged.
        raise_factor: Factor of one raise of the learning rate.
        cut_factor: Factor of the learning rate after a second divergence in a row.
        decay_factor: Factor of the learning rate on a plateau, and after a first divergence.
        start_share: Share of the planned steps in which a slow start is looked for.
        patience_share: Share of the planned steps without improvement that make a plateau.
        patience_windows: Fewest windows of a plateau, and the patience where no length is planned.
        wind_down_share: Share of the planned steps, at the end, in which the learning rate falls to
            ``wind_down_to`` of itself; 0 for never.
        wind_down_to: Factor on the learning rate at the end of training.
        deviations: Robust standard deviations above the best level that make a divergence.
        z: Standard errors that a difference must have to be more than noise (one-sided 2.3 % at 2).
        grad_factor: Factor above the largest gradient norm so far that makes an explosion.
        cool_down: Windows without another intervention after one (a divergence is always met).
        budget: Most interventions by rules, divergences not counted, the wind-down counted as one.
        on_overfitting: ``weight_decay``, ``stop`` or None.
        on_plateau: ``decay`` or ``batch_growth`` (where the DataModule supports it).
        probe_share: Largest share of the planned steps that may be spent on probes.
        probe_windows: Length of one probe in windows.
        stack_probes: Whether neighbours train beside the training, as one stack, where that is possible.
    """

    bounds: Mapping[str, Bounds] = field(default_factory=lambda: dict(DEFAULTS))
    tiers: tuple[str, ...] = ("A", "B")
    raise_factor: float = 3.0
    cut_factor: float = 0.1
    decay_factor: float = 0.3
    start_share: float = 0.25
    patience_share: float = 0.25
    patience_windows: int = 6
    wind_down_share: float = 0.35
    wind_down_to: float = 0.02
    deviations: float = 6.0
    z: float = 2.0
    grad_factor: float = 50.0
    cool_down: int = 2
    budget: int = 20
    on_overfitting: str | None = "weight_decay"
    on_plateau: str = "decay"
    probe_share: float = 0.25
    probe_windows: int = 1
    stack_probes: bool = True

    def __post_init__(self) -> None:
        for name in ("cut_factor", "decay_factor", "wind_down_to"):
            _require(0 < getattr(self, name) < 1, name, "above 0 and below 1", getattr(self, name))
        _require(self.raise_factor > 1, "raise_factor", "above 1", self.raise_factor)
        for name in ("start_share", "patience_share", "wind_down_share", "probe_share"):
            _require(0 <= getattr(self, name) <= 1, name, "from 0 to 1", getattr(self, name))
        for name in ("deviations", "z", "grad_factor"):
            _require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name, least in (("cool_down", 0), ("budget", 0), ("patience_windows", 3), ("probe_windows", 1)):
            _require(getattr(self, name) >= least, name, f"at least {least}", getattr(self, name))
        overfitting, plateau = ("weight_decay", "stop", None), ("decay", "batch_growth")
        _require(self.on_overfitting in overfitting, "on_overfitting", f"one of {overfitting}", self.on_overfitting)
        _require(self.on_plateau in plateau, "on_plateau", f"one of {plateau}", self.on_plateau)
        _require(set(self.tiers) <= set(TIERS) and bool(self.tiers), "tiers", "letters from A to D", self.tiers)

    def may(self, name: str, hands_off: Collection[str] = ()) -> bool:
        """Whether the tier of a hyperparameter is open, and no scheduler owns it (``hands_off``)."""
        return name in self.bounds and self.bounds[name].tier in self.tiers and name not in hands_off


def settings_from(mapping: Mapping[str, Any] | None, bounds: Mapping[str, Bounds]) -> Settings:
    """Settings with some replaced.

    Raises:
        ValueError: For an unknown name or a value out of range.
    """
    names = [one.name for one in fields(Settings) if one.name != "bounds"]
    for name in mapping or {}:
        if name not in names:
            raise ValueError(f"`settings` must name some of {', '.join(names)}, got {name!r}")
    return Settings(bounds=bounds, **{key: _plain(value) for key, value in (mapping or {}).items()})


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _require(holds: bool, name: str, what: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"`{name}` must be {what}, got {value!r}")
