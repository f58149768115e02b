"""How a study searches, as one value: the space, the budget, the seed and the stage plan.

A :class:`SearchPlan` is made once, from ``tune.yaml`` or the arguments of ``tune``, is kept with the study
(:meth:`SearchPlan.to_json`), and makes the sampler (:meth:`SearchPlan.sampler`). Whoever opens the study again, to
continue it, to draw it or to refresh it, gets the same sampler from what was kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_hp.space.presets import OPENS_FROM, preset
from lightning_hp.space.space import SearchSpace, differences

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from lightning_hp.search.sampler import CoarseToFineSampler


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """All that a study's sampler is made of, except a base sampler.

    Two plans of equal fields give the same trials.

    Attributes:
        space: The search space.
        n_trials: Planned total number of trials, at least 1, also when the study is resumed.
        max_steps: The step at which a complete learning curve ends; None to read it off the trials.
        seed: A whole number of at least 0.
        plan: One of :data:`lightning_hp.search.stages.PLANS`.
        opens_from: Tier to the total number of trials from which it opens; None for the usual numbers.
        older: Curves of an older study of the same space that this one learns from, its best trial first; see
            :class:`.CoarseToFineSampler`.

    Raises:
        ValueError: If a number is out of range, or the plan or a tier is unknown.
        TypeError: If the space is no :class:`SearchSpace`.
    """

    space: SearchSpace
    n_trials: int = 60
    max_steps: int | None = None
    seed: int = 0
    plan: str = "default"
    opens_from: Mapping[str, int] | None = None
    older: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.space, SearchSpace):
            raise TypeError(f"`space` must be a SearchSpace, got {self.space!r}")
        object.__setattr__(self, "older", tuple(self.older))
        self.sampler()  # checks all other fields; it takes a fraction of a millisecond

    @classmethod
    def of(
        cls,
        space: SearchSpace | Mapping[str, Any] | str,
        *,
        paths: bool = False,
        takes: Iterable[str] | None = None,
        defaults: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> SearchPlan:
        """A plan for a space in any of the forms that a person writes.

        Args:
            space: A space, the mapping that :meth:`SearchSpace.from_dict` takes, or the name of a preset. A preset may
                bring its own ``opens_from``.
            paths: Whether a preset's keys are LightningCLI paths instead of argument names.
            takes: What the model and the data take, which a preset's names are matched with, see :func:`.preset`.
            defaults: The values of the user's own configuration, by key: where the study starts. A space that is
                already made keeps its own.
            **fields: The other fields of the plan.

        Raises:
            ValueError: If the space or a field is not what it must be.
            TypeError: If the space, or an entry of it, is no mapping.
        """
        if isinstance(space, str):
            mapping = preset(space, paths=paths, takes=takes, values=defaults)
            own = {"opens_from": OPENS_FROM.get(space), **fields}
            return cls(space=SearchSpace.from_dict(mapping, defaults=defaults), **own)
        if isinstance(space, SearchSpace):
            return cls(space=space, **fields)
        return cls(space=SearchSpace.from_dict(space, defaults=defaults), **fields)

    def sampler(self, base: BaseSampler | None = None) -> CoarseToFineSampler:
        """The sampler of this plan.

        Args:
            base: Proposes the points of fine stages, None for the built-in engine.
        """
        from lightning_hp.search.sampler import CoarseToFineSampler  # it loads scipy; a plan is also read without it

        return CoarseToFineSampler(
            self.space,
            n_trials=self.n_trials,
            max_steps=self.max_steps,
            base=base,
            seed=self.seed,
            plan=self.plan,
            opens_from=self.opens_from,
            older=self.older,
        )

    def changes(self, stored: SearchPlan) -> list[str]:
        """What a study cannot be continued with: one short sentence for each difference in space, seed and stage plan.

        The number of trials and the length of a training may change.

        Args:
            stored: The plan that the study was begun with.
        """
        changed = differences(stored.space.to_dict(), self.space.to_dict())
        for name in ("seed", "plan"):
            before, now = getattr(stored, name), getattr(self, name)
            if before != now:
                changed.append(f"{name} was {before!r}, is {now!r}")
        return changed

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types under the names of the fields; they stand beside the other keys of a study's description."""
        return {
            "space": self.space.to_dict(),
            "n_trials": self.n_trials,
            "max_steps": self.max_steps,
            "seed": self.seed,
            "plan": self.plan,
            "opens_from": None if self.opens_from is None else dict(self.opens_from),
            "older": [dict(curve) for curve in self.older],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SearchPlan:
        """The inverse of :meth:`to_json`.

        Args:
            stored: The description of a study; keys that are not the plan's are passed over. Studies written before
                there was a plan hold the same keys, and may have the name of a preset instead of ``opens_from``.
        """
        return cls(
            space=SearchSpace.from_description(stored["space"]),
            n_trials=stored["n_trials"],
            max_steps=stored["max_steps"],
            seed=stored["seed"],
            plan=stored.get("plan", "default"),
            opens_from=stored.get("opens_from") or OPENS_FROM.get(stored.get("preset") or ""),
            older=stored.get("older", ()),
        )
