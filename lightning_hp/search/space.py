"""A search space: a mapping from YAML or a dict in, Optuna parameters and natural values out.

The keys of the mapping are the caller's (dotted paths into a LightningCLI file, or plain argument names); each becomes
one parameter, or one a layer with ``per_layer``. Every trial holds every parameter at its full range, so that all of a
study's trials can be compared: an unopened tier sits at its default, a layer that does not exist is stored and marked
inactive.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution

from lightning_hp.search.parameters import TIERS, Choice, Condition, Float, Int, Parameter, number_or_text
from lightning_hp.search.presets import guess

_FIELDS = ("low", "high", "scale", "tier", "default", "type", "choices", "active_if", "per_layer")


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
    def from_dict(cls, mapping: Mapping[str, Any], where: str = "space") -> SearchSpace:
        """Read what ``tune.yaml`` takes under ``space``.

        Args:
            mapping: Key to fields: ``low`` and ``high``, or ``choices``; and optionally ``scale``, ``tier``,
                ``default``, ``type`` (``int`` or ``float``), ``active_if`` (parameter name to ``">= 3"``),
                ``per_layer`` (name of the parameter that counts the layers). Scale and tier of well-known names need
                not be given; a default that is not given is the middle of the range on its scale.
            where: What errors call the mapping.

        Raises:
            ValueError: Naming the key, what was expected and what was given.
            TypeError: If the mapping, or an entry of it, is no mapping.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"`{where}` must be a mapping from parameters to ranges, got {mapping!r}")
        if not mapping:
            raise ValueError(f"`{where}` must have at least one parameter, got {mapping!r}")
        names = short_names(list(mapping))
        parameters: list[Parameter] = []
        entries: list[Entry] = []
        for key, name in names.items():
            fields = _check_fields(mapping[key], f"{where}.{key}")
            single = _parameter(name, fields, f"{where}.{key}")
            counter = fields.get("per_layer")
            if counter is None:
                parameters.append(single)
                entries.append(Entry(key, (name,)))
            else:
                layers = _most_layers(counter, names, mapping, f"{where}.{key}")
                made = [_for_layer(single, i, counter) for i in range(1, layers + 1)]
                parameters.extend(made)
                entries.append(Entry(key, tuple(p.name for p in made), counter))
        space = cls(tuple(parameters), tuple(entries))
        space._check(where)
        return space

    def _check(self, where: str) -> None:
        names = [p.name for p in self.parameters]
        stored = [p.stored_name for p in self.parameters]
        twice = sorted({n for n in names + stored if names.count(n) > 1 or stored.count(n) > 1})
        if twice:
            raise ValueError(f"`{where}` must give each parameter a name of its own, got {', '.join(twice)} twice")
        for parameter in self.parameters:
            for condition in parameter.active_if:
                place = f"{where}.{parameter.name}.active_if"
                if condition.name not in names or condition.name == parameter.name:
                    raise ValueError(
                        f"`{place}` must name another parameter ({', '.join(names)}), got {condition.name!r}"
                    )
                _check_condition(condition, self[condition.name], f"{place}.{condition.name}")

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
        """Stored values to what the model and data are given, keyed as in the mapping; layers become a list."""
        natural = self.natural(stored)
        given: dict[str, Any] = {}
        for entry in self.entries:
            values = [natural[name] for name in entry.names]
            given[entry.key] = values[0] if entry.per_layer is None else values[: int(natural[entry.per_layer])]
        return given

    def stored(self, natural: Mapping[str, Any]) -> dict[str, Any]:
        """Natural values, by parameter name or by key (lists for layers), to stored ones.

        What is not given is at its default.

        Raises:
            ValueError: If a name is neither a parameter nor a key.
        """
        by_name: dict[str, Any] = {}
        by_key = {entry.key: entry for entry in self.entries}
        for name, value in natural.items():
            if name in self._by_name:
                by_name[self._by_name[name].name] = value
            elif name in by_key:
                several = isinstance(value, Sequence) and not isinstance(value, str)
                layers = by_key[name].names
                by_name.update(zip(layers, value if several else [value] * len(layers), strict=False))
            else:
                known = ", ".join(p.name for p in self.parameters)
                raise ValueError(f"`{name}` must be a parameter of the space ({known})")
        return {p.stored_name: p.store(by_name.get(p.name, p.default)) for p in self.parameters}

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
        natural = self.natural(stored)
        off: set[str] = set()
        for _ in self.parameters:  # conditions may hang on each other; the longest chain has d links
            found = {p.name for p in self.parameters if any(c.name in off or not c.holds(natural) for c in p.active_if)}
            if found == off:
                break
            off = found
        return np.array([p.name not in off for p in self.parameters])

    # --- in a study ---

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Ask a trial for every parameter.

        Also writes the trial's user attributes: each natural value that is stored transformed, ``inactive`` (names),
        and, where the study's sampler knows it, ``stage``, ``stage_index`` and ``tier``.

        Args:
            trial: A live, fixed or frozen Optuna trial.

        Returns:
            Natural values, keyed as in the mapping; a ``per_layer`` entry is a list with one value a layer.
        """
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

    # --- identity ---

    def to_dict(self) -> dict[str, Any]:
        """The space as plain JSON types, in a canonical form; two spaces are the same if these are equal."""
        described = {p.name: {"kind": type(p).__name__, **asdict(p)} for p in self.parameters}
        keys = {e.key: {"names": list(e.names), "per_layer": e.per_layer} for e in self.entries}
        return json.loads(json.dumps({"parameters": described, "keys": keys}))

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> SearchSpace:
        """The space that :meth:`to_dict` described."""
        kinds = {"Float": Float, "Int": Int, "Choice": Choice}
        parameters = []
        for fields in described["parameters"].values():
            given = {k: v for k, v in fields.items() if k != "kind"}
            given["active_if"] = tuple(Condition(**c) for c in given["active_if"])
            if "choices" in given:
                given["choices"] = tuple(given["choices"])
            parameters.append(kinds[fields["kind"]](**given))
        entries = (Entry(key, tuple(e["names"]), e["per_layer"]) for key, e in described["keys"].items())
        return cls(tuple(parameters), tuple(entries))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of :meth:`to_dict`, hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two spaces, given as :meth:`SearchSpace.to_dict`: one short sentence for each difference."""
    before, after = old["parameters"], new["parameters"]
    said = [f"{name} is gone" for name in before if name not in after]
    said += [f"{name} is new" for name in after if name not in before]
    for name in before:
        if name not in after:
            continue
        fields = sorted(set(before[name]) | set(after[name]))
        for field in fields:
            was, now = before[name].get(field), after[name].get(field)
            if was != now:
                said.append(f"{name}.{field} was {was!r}, is {now!r}")
    if not said and old != new:
        said.append("the paths of the parameters differ")
    return said


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's shortest suffix of dotted parts that no other key shares."""
    names: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        for take in range(1, len(parts) + 1):
            suffix = parts[-take:]
            if sum(other.split(".")[-take:] == suffix for other in keys) == 1:
                break
        names[key] = ".".join(suffix)
    return names


def _check_fields(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"`{where}` must be a mapping such as {{low: 1.0e-4, high: 1.0, scale: log}}, got {given!r}")
    for field in given:
        if field not in _FIELDS:
            raise ValueError(f"`{where}.{field}` is not a known key; expected one of {', '.join(_FIELDS)}")
    fields = dict(given)
    tier = fields.get("tier")
    if tier is not None and tier not in TIERS:
        raise ValueError(f"`{where}.tier` must be one of {', '.join(TIERS)}, got {tier!r}")
    if "choices" in fields:
        extra = [f for f in ("low", "high", "scale", "type") if f in fields]
        if extra:
            raise ValueError(f"`{where}` must have either choices or a range, got choices and {', '.join(extra)}")
    else:
        for bound in ("low", "high"):
            if bound not in fields:
                raise ValueError(f"`{where}.{bound}` is missing; expected a number (or `choices`)")
            value = number_or_text(fields[bound])
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"`{where}.{bound}` must be a number, got {fields[bound]!r}")
            fields[bound] = value
    return fields


def _parameter(name: str, fields: Mapping[str, Any], where: str) -> Parameter:
    known = guess(name)
    tier = fields.get("tier") or known.tier
    conditions = _conditions(fields.get("active_if"), f"{where}.active_if")
    default = number_or_text(fields["default"]) if "default" in fields else None
    made: Parameter
    if "choices" in fields:
        choices = fields["choices"]
        if not isinstance(choices, Sequence) or isinstance(choices, str):
            raise ValueError(f"`{where}.choices` must be a list, got {choices!r}")
        values = tuple(number_or_text(c) if not isinstance(c, str) or known.numeric else c for c in choices)
        middle = values[(len(values) - 1) // 2] if values else None
        made = Choice(name, values, tier, fields.get("default", middle), conditions)
    else:
        low, high = fields["low"], fields["high"]
        kind = fields.get("type") or ("int" if isinstance(low, int) and isinstance(high, int) else "float")
        if kind not in ("int", "float"):
            raise ValueError(f"`{where}.type` must be int or float, got {kind!r}")
        if kind == "int" and not (float(low).is_integer() and float(high).is_integer()):
            raise ValueError(f"`{where}` must have whole bounds for type int, got low={low!r}, high={high!r}")
        scale = fields.get("scale") or known.scale_for(kind, low, high)
        if default is not None and (isinstance(default, bool) or not isinstance(default, int | float)):
            raise ValueError(f"`{where}.default` must be a number, got {fields['default']!r}")
        if kind == "int":
            start = int(low) if default is None else _whole(default)
            made = Int(name, int(low), int(high), scale, tier, start, conditions)
        else:
            start = float(low if default is None else default)
            made = Float(name, float(low), float(high), scale, tier, start, conditions)
    made.check(where)
    if default is None and isinstance(made, Float):
        return replace(made, default=made.natural(made.at(0.5)))
    if default is None and isinstance(made, Int):
        return replace(made, default=made.at(0.5))
    return made


def _whole(value: float) -> Any:
    return int(value) if float(value).is_integer() else value


def _conditions(given: Any, where: str) -> tuple[Condition, ...]:
    if given is None:
        return ()
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"`{where}` must be a mapping such as {{num_layers: '>= 3'}}, got {given!r}")
    return tuple(Condition.parse(str(name), text, f"{where}.{name}") for name, text in given.items())


def _check_condition(condition: Condition, decider: Parameter, where: str) -> None:
    equality = condition.operator in ("==", "!=")
    if equality and isinstance(decider, Choice) and condition.value not in decider.choices:
        raise ValueError(f"`{where}` must be one of {list(decider.choices)}, got {condition.value!r}")
    try:
        condition.holds({decider.name: decider.default})
    except TypeError:
        raise ValueError(
            f"`{where}` must be comparable with the values of {decider.name}, "
            f"got {condition.operator} {condition.value}"
        ) from None


def _most_layers(counter: Any, names: Mapping[str, str], mapping: Mapping[str, Any], where: str) -> int:
    key = next((k for k, n in names.items() if n == counter), None)
    if key is None:
        raise ValueError(f"`{where}.per_layer` must name another parameter of the space, got {counter!r}")
    fields = mapping[key] if isinstance(mapping[key], Mapping) else {}
    layers = [number_or_text(v) for v in fields.get("choices", [fields.get("low"), fields.get("high")])]
    if not layers or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in layers):
        raise ValueError(f"`{where}.per_layer` must name a whole number of at least 1, got {counter!r} = {fields!r}")
    return max(layers)


def _for_layer(single: Parameter, layer: int, counter: str) -> Parameter:
    conditions = (*single.active_if, Condition(counter, ">=", layer))
    return replace(single, name=f"{single.name}_{layer}", active_if=conditions)


def _suggest(trial: optuna.trial.BaseTrial, parameter: Parameter) -> Any:
    name, wide = parameter.stored_name, parameter.distribution
    if isinstance(wide, optuna.distributions.FloatDistribution):
        return trial.suggest_float(name, wide.low, wide.high, log=wide.log)
    if isinstance(wide, optuna.distributions.IntDistribution):
        return trial.suggest_int(name, wide.low, wide.high, log=wide.log)
    return trial.suggest_categorical(name, wide.choices)  # type: ignore[attr-defined]
