"""A search space: a mapping from YAML or a dict in, Optuna parameters and natural values out.

The keys of the mapping are the caller's (dotted paths into a LightningCLI file, or plain argument names); each becomes
one parameter, or one a layer with ``per_layer``. Every trial holds every parameter at its full range, so that all of a
study's trials can be compared: an unopened tier sits at its default, a layer that does not exist is stored and marked
inactive.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution

from lightning_hp.space.activity import activated, check_order, inactive_names, resolved
from lightning_hp.space.conditions import Condition
from lightning_hp.space.entries import read_fields, read_layers, read_parameter, short_names
from lightning_hp.space.fields import is_number
from lightning_hp.space.parameters import Choice, Float, Int, Parameter


@dataclass(frozen=True)
class Entry:
    """One key of the caller's mapping.

    Attributes:
        key: The key as given, a dotted path or an argument name.
        names: The names of its parameters: one, or one a layer.
        per_layer: Name of the parameter that counts the layers, None where one value serves all.
    """

    key: str
    names: tuple[str, ...]
    per_layer: str | None = None


@dataclass(frozen=True)
class SearchSpace:
    """Parameters in the caller's order, with the way back to the caller's keys.

    Attributes:
        parameters: All parameters, d of them; ``per_layer`` entries are expanded.
        entries: The caller's keys.
    """

    parameters: tuple[Parameter, ...]
    entries: tuple[Entry, ...]

    @classmethod
    def from_dict(
        cls, mapping: Mapping[str, Any], where: str = "space", defaults: Mapping[str, Any] | None = None
    ) -> SearchSpace:
        """Read what ``tune.yaml`` takes under ``space``.

        Args:
            mapping: Key to fields: ``low`` and ``high``, or ``choices``; and optionally ``scale``, ``tier``,
                ``default``, ``type`` (``int`` or ``float``), ``active_if`` (a parameter's name or key to ``">= 3"``),
                ``per_layer`` (name or key of the parameter that counts the layers). Well-known names need no scale, no
                tier, and no range: ``auto`` in place of the fields is enough (:mod:`.known`).
            where: What errors call the mapping.
            defaults: The values of the user's own configuration, by key; other keys are passed over, and None says
                nothing. They are the defaults of the entries that write none, and what ``auto`` ranges lie around.
                Without them a default is the middle of the range on its scale.

        Raises:
            ValueError: Naming the key, what was expected and what was given.
            TypeError: If the mapping, or an entry of it, is no mapping.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"`{where}` must be a mapping from parameters to ranges, got {mapping!r}")
        if not mapping:
            raise ValueError(f"`{where}` must have at least one parameter, got {mapping!r}")
        for key in mapping:
            if not isinstance(key, str):
                raise TypeError(f"`{where}` must have names of parameters as keys, got {key!r}")
        own = defaults or {}
        names = short_names(list(mapping))
        fields = {key: read_fields(mapping[key], f"{where}.{key}") for key in names}
        single = {
            key: read_parameter(key, name, fields[key], f"{where}.{key}", own.get(key))
            for key, name in names.items()
            if fields[key].get("per_layer") is None
        }
        parameters: list[Parameter] = []
        entries: list[Entry] = []
        for key, name in names.items():
            if key in single:
                parameters.append(single[key])
                entries.append(Entry(key, (name,)))
                continue
            counter = next((p for k, p in single.items() if fields[key]["per_layer"] in (k, p.name)), None)
            if counter is None:
                raise ValueError(
                    f"`{where}.{key}.per_layer` must name another parameter of the space, "
                    f"got {fields[key]['per_layer']!r}"
                )
            layers = read_layers(key, name, fields[key], f"{where}.{key}", counter, own.get(key))
            parameters.extend(layers)
            entries.append(Entry(key, tuple(p.name for p in layers), counter.name))
        return cls(tuple(parameters), tuple(entries))._checked(names, where)

    def _checked(self, keys: Mapping[str, str], where: str) -> SearchSpace:
        """The space with its conditions resolved; names are unique, and conditions are about other parameters."""
        names = [p.name for p in self.parameters]
        stored = [p.stored_name for p in self.parameters]
        twice = sorted({n for n in names + stored if names.count(n) > 1 or stored.count(n) > 1})
        if twice:
            raise ValueError(f"`{where}` must give each parameter a name of its own, got {', '.join(twice)} twice")
        parameters: list[Parameter] = []
        for parameter in self.parameters:
            conditions = []
            for condition in parameter.active_if:
                place = f"{where}.{parameter.name}.active_if"
                decider = keys.get(condition.name, condition.name)
                if decider not in names or decider == parameter.name:
                    raise ValueError(
                        f"`{place}` must name another parameter ({', '.join(names)}), got {condition.name!r}"
                    )
                named = replace(condition, name=decider)
                conditions.append(resolved(named, self[decider], f"{place}.{condition.name}"))
            parameters.append(replace(parameter, active_if=tuple(conditions)))
        check_order(parameters, where)
        return replace(self, parameters=tuple(parameters))

    # --- looking things up ---

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, name: str) -> Parameter:
        """The parameter of this name, natural or stored.

        Raises:
            KeyError: If there is none.
        """
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Parameter]:
        return {p.stored_name: p for p in self.parameters} | {p.name: p for p in self.parameters}

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Stored name to the full-range distribution."""
        return {p.stored_name: p.distribution for p in self.parameters}

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers that have parameters, in order of importance."""
        return tuple(sorted({p.tier for p in self.parameters}))

    # --- forms of a point ---

    def defaults(self) -> dict[str, Any]:
        """Stored values of the point where every parameter is at its default."""
        return {p.stored_name: p.store(p.default) for p in self.parameters}

    def natural(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Stored values to natural ones, keyed by parameter name; what is missing in ``stored`` is left out."""
        return {p.name: p.natural(stored[p.stored_name]) for p in self.parameters if p.stored_name in stored}

    def arguments(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Stored values to what the model and data are given, keyed as in the mapping.

        A key whose parameter is inactive is left out: what is built in this trial may not know it. A ``per_layer``
        entry is a list with one value a layer.
        """
        natural = self.natural(stored)
        inactive = inactive_names(self.parameters, natural)
        arguments: dict[str, Any] = {}
        for entry in self.entries:
            if entry.names[0] in inactive:
                continue
            values = [natural[name] for name in entry.names]
            arguments[entry.key] = values[0] if entry.per_layer is None else values[: int(natural[entry.per_layer])]
        return arguments

    def stored(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Natural values to stored ones: what ``create_trial`` takes, and what stands in a trial's ``params``.

        What is not given is at its default; a number outside its range is moved to the range's end, and a value that is
        no choice becomes the default. To have values tried, see :meth:`enqueue`.

        Args:
            values: By parameter name or by key, a list for layers; also by stored name, then stored values.

        Returns:
            Stored name to stored value, for every parameter of the space.

        Raises:
            ValueError: If a name is neither a parameter nor a key, or a value is not of its parameter's kind.
        """
        natural = self._by_parameter(values)
        for name, value in natural.items():
            if not isinstance(self[name], Choice) and not is_number(value):
                raise ValueError(f"`{name}` must be a number, got {value!r}")
        return {p.stored_name: p.store(natural.get(p.name, p.default)) for p in self.parameters}

    def _by_parameter(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Natural values by parameter name, from those by name, key or stored name."""
        natural: dict[str, Any] = {}
        keys = {entry.key: entry for entry in self.entries}
        for name, value in values.items():
            if name in self._by_name and name not in keys:
                parameter = self[name]
                transformed = name == parameter.stored_name != parameter.name
                natural[parameter.name] = parameter.natural(value) if transformed and is_number(value) else value
            elif name in keys:
                entry = keys[name]
                several = entry.per_layer is not None and isinstance(value, list | tuple)
                natural.update(zip(entry.names, value if several else [value] * len(entry.names), strict=False))
            else:
                parameters = ", ".join(p.name for p in self.parameters)
                raise ValueError(f"`{name}` must be a parameter of the space ({parameters})")
        return natural

    def unit(self, points: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """Stored values of n points to the unit cube, shape (n, d); every point must hold every parameter."""
        if not points:
            return np.empty((0, len(self)))
        columns = [p.unit([point[p.stored_name] for point in points]) for p in self.parameters]
        return np.stack(columns, axis=1)

    def at(self, unit: Iterable[float]) -> dict[str, Any]:
        """The stored values at one position of the unit cube, shape (d,)."""
        return {p.stored_name: p.at(float(u)) for p, u in zip(self.parameters, unit, strict=True)}

    def active(self, stored: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Which parameters have an effect at a point, shape (d,); what hangs on an inactive one is inactive too."""
        inactive = inactive_names(self.parameters, self.natural(stored))
        return np.array([p.name not in inactive for p in self.parameters])

    def examples(self) -> list[dict[str, Any]]:
        """A few points, stored, in which together every key is handed on; the defaults come first.

        A check of the keys against a model and its data needs more than the defaults: where an optimizer is chosen,
        each key has to be tried with a class that takes it.
        """
        by_name = {p.name: p for p in self.parameters}
        points = [self.defaults()]
        for entry in self.entries:
            if all(entry.key not in self.arguments(point) for point in points):
                point = self.stored(activated(by_name, self.natural(points[0]), entry.names[0]))
                if entry.key in self.arguments(point):
                    points.append(point)
        return points

    def deciders(self, key: str) -> list[str]:
        """The keys that decide whether a key is handed on, those that they hang on in turn included."""
        keys = {name: entry.key for entry in self.entries for name in entry.names}
        deciders: list[str] = []
        waiting = [entry.names[0] for entry in self.entries if entry.key == key]
        while waiting:
            for condition in self[waiting.pop()].active_if:
                if keys[condition.name] not in deciders:
                    deciders.append(keys[condition.name])
                    waiting.append(condition.name)
        return deciders

    # --- in a study ---

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Ask a trial for every parameter.

        Also writes the trial's user attributes: each natural value that is stored transformed, ``inactive`` (names),
        and, where the study's sampler knows it, ``stage``, ``stage_index`` and ``tier``. Warns if values were enqueued
        under names that the trial does not ask for.

        Args:
            trial: A live, fixed or frozen Optuna trial.

        Returns:
            Natural values, keyed as in the mapping; a key whose parameter is inactive is left out, and a ``per_layer``
            entry is a list with one value a layer.
        """
        self._warn_of_ignored(trial)
        stored = {p.stored_name: _suggest(trial, p) for p in self.parameters}
        for p in self.parameters:
            if p.stored_name != p.name:
                trial.set_user_attr(p.name, p.natural(stored[p.stored_name]))
        inactive = [p.name for p, on in zip(self.parameters, self.active(stored), strict=True) if not on]
        if inactive:
            trial.set_user_attr("inactive", inactive)
        describe = getattr(getattr(getattr(trial, "study", None), "sampler", None), "describe", None)
        if describe is not None:
            for name, value in describe(trial).items():
                trial.set_user_attr(name, value)
        return self.arguments(stored)

    def enqueue(self, study: optuna.Study, values: Mapping[str, Any], **options: Any) -> None:
        """Have natural values tried by one of the next trials; the sampler adds what is not given.

        Optuna's own ``enqueue_trial`` takes stored values (``one_minus_momentum``), passes over names that no trial
        asks for, and takes numbers outside a range with no more than a warning.

        Args:
            study: The study.
            values: By parameter name or by key, a list for layers: it decides how many, where that is not given.
            **options: Passed on to ``study.enqueue_trial``: ``user_attrs``, ``skip_if_exists``.

        Raises:
            ValueError: If a name is neither a parameter nor a key, or a value is not one of its parameter's.
        """
        natural = self._by_parameter(values)
        for entry in self.entries:
            layers = values.get(entry.key)
            if entry.per_layer is None or not isinstance(layers, list | tuple):
                continue
            if natural.setdefault(entry.per_layer, len(layers)) != len(layers):
                raise ValueError(
                    f"`{entry.key}` must have a value for each of {natural[entry.per_layer]} layers, got {layers!r}"
                )
        for name, value in natural.items():
            if not self[name].holds(value):
                raise ValueError(f"`{name}` must be {self[name].expected}, got {value!r}")
        study.enqueue_trial({self[n].stored_name: self[n].store(v) for n, v in natural.items()}, **options)

    def _warn_of_ignored(self, trial: optuna.trial.BaseTrial) -> None:
        """Warn of values that were enqueued under a natural name or a key where the trial asks for another name."""
        enqueued = getattr(trial, "_fixed_params", None) or {}
        names = {p.name for p in self.parameters} | {entry.key for entry in self.entries}
        ignored = {n: v for n, v in enqueued.items() if n in names and n not in self.distributions}
        if ignored:
            warnings.warn(
                f"enqueued {', '.join(f'`{name}`' for name in ignored)} is ignored: trials ask for the stored names "
                f"{', '.join(self.distributions)}; write space.enqueue(study, {ignored!r})",
                stacklevel=3,
            )

    # --- identity ---

    def to_dict(self) -> dict[str, Any]:
        """The space as plain JSON types, in a canonical form; two spaces are the same if these are equal."""
        described = {p.name: {"kind": type(p).__name__, **asdict(p)} for p in self.parameters}
        for parameter in self.parameters:
            if isinstance(parameter, Choice) and parameter.labels == parameter.choices:
                del described[parameter.name]["labels"]
        keys = {e.key: {"names": list(e.names), "per_layer": e.per_layer} for e in self.entries}
        plain: dict[str, Any] = json.loads(json.dumps({"parameters": described, "keys": keys}))
        return plain

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> SearchSpace:
        """The space that :meth:`to_dict` described."""
        kinds: dict[str, type[Float] | type[Int] | type[Choice]] = {"Float": Float, "Int": Int, "Choice": Choice}
        parameters = []
        for described_fields in described["parameters"].values():
            fields = {k: v for k, v in described_fields.items() if k != "kind"}
            fields["active_if"] = tuple(Condition(**c) for c in fields["active_if"])
            for several in ("choices", "labels"):
                if several in fields:
                    fields[several] = tuple(fields[several])
            parameters.append(kinds[described_fields["kind"]](**fields))
        entries = (Entry(key, tuple(e["names"]), e["per_layer"]) for key, e in described["keys"].items())
        return cls(tuple(parameters), tuple(entries))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of :meth:`to_dict`, hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two spaces, given as :meth:`SearchSpace.to_dict`: one short sentence for each difference."""
    before, after = old["parameters"], new["parameters"]
    changes = [f"{name} is gone" for name in before if name not in after]
    changes += [f"{name} is new" for name in after if name not in before]
    for name in before:
        if name not in after:
            continue
        fields = sorted(set(before[name]) | set(after[name]))
        for field in fields:
            was, now = before[name].get(field), after[name].get(field)
            if was != now:
                changes.append(f"{name}.{field} was {was!r}, is {now!r}")
    if not changes and old != new:
        changes.append("the paths of the parameters differ")
    return changes


def _suggest(trial: optuna.trial.BaseTrial, parameter: Parameter) -> Any:
    name, wide = parameter.stored_name, parameter.distribution
    if isinstance(wide, optuna.distributions.FloatDistribution):
        return trial.suggest_float(name, wide.low, wide.high, log=wide.log)
    if isinstance(wide, optuna.distributions.IntDistribution):
        return trial.suggest_int(name, wide.low, wide.high, log=wide.log)
    return trial.suggest_categorical(name, wide.choices)  # type: ignore[attr-defined]
