"""``caviar``: where trials run, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.leases import LEASE_SECONDS
from lightning_hp.tuning.yaml_values import check_keys, duration, text_of, whole

AUTO, RAY = "auto", "ray"
ENGINES = (AUTO, "in_process", "stacked", "local", RAY)
#: engines that train trials of one structure together
STACKING = ("stacked",)
#: keys that say where Ray puts a worker
_ON_RAY = ("cpus", "gpus", "address")


@dataclass(frozen=True)
class Caviar:
    """Where trials run.

    Attributes:
        engine: ``in_process`` (one trial after another, in this process), ``stacked`` (trials with the same structure
            together, if the module allows it; else one after another), ``local`` (worker processes on this machine),
            ``ray`` (workers on a Ray cluster) or ``auto`` (``stacked`` if it works and is faster, see
            :mod:`.choose_engine`; else ``local`` if there are several workers, else ``in_process``).
        workers: Number of workers; with 1 all but ``local`` and ``ray`` run here.
        cohort: Most trials that ``stacked`` trains together; None to follow the length of the study, see
            :func:`.cohort_plan.cohort_size`.
        structures: With ``stacked``, the share of trials that have a new structure (whole numbers and choices): with
            0.25 four trials share one, and cohorts have at most four members. None for one structure for each cohort.
        lease: If nothing is heard from a worker for so many seconds, another worker gets its trial.
        cpus: CPUs of a worker on Ray.
        gpus: GPUs of a worker on Ray; a number below 1 is a part of one. None for one GPU if the cluster has any.
        address: Of the Ray cluster; None for the one that Ray finds (``RAY_ADDRESS``, or one on this machine). If it
            finds none, one is started on this machine for the study.
    """

    engine: str = AUTO
    workers: int = 1
    cohort: int | None = None
    structures: float | None = None
    lease: float = LEASE_SECONDS
    cpus: float = 1
    gpus: float | None = None
    address: str | None = None

    @property
    def stacks(self) -> bool:
        """Whether trials of one structure are trained together."""
        return self.engine in STACKING


def caviar_of(mapping: Any) -> Caviar:
    """Check the mapping of ``caviar``.

    Raises:
        ConfigError: Naming the key, what was expected and what was given.
    """
    check_keys(mapping, ("engine", "workers", "cohort", "structures", "lease", *_ON_RAY), "caviar")
    engine = mapping.get("engine", AUTO)
    if engine not in ENGINES:
        raise ConfigError(f"`caviar.engine` must be one of {', '.join(ENGINES)}, got {engine!r}")
    workers = whole(mapping, "workers", 2 if engine in ("local", RAY) else 1, 1, "caviar.workers")
    if engine == "in_process" and workers > 1:
        raise ConfigError(f"`caviar.workers` must be 1 for the engine {engine} (use local), got {workers}")
    cohort = whole(mapping, "cohort", 1, 1, "caviar.cohort") if "cohort" in mapping else None
    for key in ("cohort", "structures"):
        if key in mapping and engine not in (*STACKING, AUTO):
            raise ConfigError(f"`caviar.{key}` goes with the engine stacked, got {engine!r}")
    lease = duration(mapping.get("lease", LEASE_SECONDS), "caviar.lease")
    for key in _ON_RAY:
        if key in mapping and engine != RAY:
            raise ConfigError(f"`caviar.{key}` goes with the engine ray, got {engine!r}")
    return Caviar(
        engine,
        workers,
        cohort,
        _part(mapping["structures"]) if "structures" in mapping else None,
        lease,
        cpus=_share(mapping, "cpus"),
        gpus=_share(mapping, "gpus") if "gpus" in mapping else None,
        address=text_of(mapping, "address", "") or None,
    )


def _part(value: Any) -> float:
    """The share of structures: a part of all trials.

    Raises:
        ConfigError: If it is none.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not 0 < value <= 1:
        raise ConfigError(f"`caviar.structures` must be a number above 0 and at most 1, got {value!r}")
    return float(value)


def _share(mapping: Mapping[str, Any], key: str) -> float:
    """So many of a machine's devices: a whole number, or a part of one.

    Raises:
        ConfigError: If it is neither, as Ray demands.
    """
    value = mapping.get(key, 1)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    least = "of at least 0" if key == "gpus" else "above 0"
    if not is_number or value < 0 or (value == 0 and key != "gpus") or (value > 1 and value != int(value)):
        raise ConfigError(f"`caviar.{key}` must be a number {least}, and whole above 1, got {value!r}")
    return float(value)
