"""What the project's parser makes of its files: plain values, the links between them, the arguments of its classes."""

from __future__ import annotations

import contextlib
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from jsonargparse import Namespace

from lightning_hp.project.key_paths import parts_of
from lightning_hp.project.project_cli import Call, import_path
from lightning_hp.project.yaml_file import ConfigError

#: what jsonargparse writes in place of a default that is no plain value
_NOT_PLAIN = "Unable to serialize instance"
#: packages whose classes change with their version, which is recorded anyway
_LIBRARIES = ("torch", "lightning", "pytorch_lightning", "torchmetrics", "builtins")


@dataclass(frozen=True)
class Link:
    """A value that the project computes from others (``parser.link_arguments``).

    Attributes:
        sources: Keys that it is computed from.
        target: Its own key.
    """

    sources: tuple[str, ...]
    target: str

    def sets(self, key: str) -> bool:
        """Whether a key is the target, is inside it, or holds it."""
        mine, other = (tuple(p for p in parts_of(k) if p != "init_args") for k in (self.target, key))
        shared = min(len(mine), len(other))
        return mine[:shared] == other[:shared]


@dataclass(frozen=True)
class Resolved:
    """A configuration as a parser resolved it.

    Attributes:
        config: Plain values, nested; what is computed by links is left out, it will be computed again.
        links: All links.
        fixed_classes: ``model`` or ``data`` to the class path that the project's command fixes.
        signatures: Class path to the arguments that it takes, for the project's own classes.
    """

    config: Mapping[str, Any]
    links: tuple[Link, ...]
    fixed_classes: Mapping[str, str]
    signatures: Mapping[str, str]

    def to_yaml(self) -> str:
        """The configuration as a LightningCLI file."""
        return yaml.safe_dump(dict(self.config), sort_keys=False)


def resolve(call: Call) -> Resolved:
    """Read a configuration off a call that was left after parsing.

    Raises:
        ConfigError: If it cannot be written as plain values.
    """
    config = call.config.clone()
    _make_absolute(config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jsonargparse 4.49 renamed an option, which Lightning uses too
            plain = yaml.safe_load(call.parser.dump(config, skip_none=False, format="yaml"))
    except Exception as error:
        raise ConfigError(f"it cannot be written back: {' '.join(str(error).split())}") from error
    fixed = {}
    for part, kind, any_class in (
        ("model", call.cli.model_class, call.cli.subclass_mode_model),
        ("data", call.cli.datamodule_class, call.cli.subclass_mode_data),
    ):
        if kind is not None and not any_class:
            fixed[part] = f"{kind.__module__}.{kind.__qualname__}"
    plain = _plain(plain)
    paths = {*fixed.values(), *_class_paths(plain)}
    signatures = {path: text for path in sorted(paths) if (text := _signature(path)) is not None}
    return Resolved(plain, tuple(_links(call.parser)), fixed, signatures)


def _links(parser: Any) -> Iterator[Link]:
    group = getattr(parser, "_links_group", None)
    for action in getattr(group, "_group_actions", ()):
        yield Link(tuple(str(key) for key, _ in action.source), str(action.target[0]))


def _make_absolute(config: Any) -> None:
    """Paths that a parser checked are relative to the file that named them: another file could not say the same."""
    items: Iterable[tuple[Any, Any]] = config.__dict__.items() if isinstance(config, Namespace) else ()
    if isinstance(config, dict):
        items = config.items()
    elif isinstance(config, list):
        items = enumerate(config)
    for key, value in list(items):
        if hasattr(value, "absolute") and hasattr(value, "relative"):  # jsonargparse's Path
            replacement = type(value)(str(value.absolute))
            if isinstance(config, Namespace):
                config.__dict__[key] = replacement
            else:
                config[key] = replacement
        else:
            _make_absolute(value)


def _plain(value: Any) -> Any:
    """Without defaults that are no plain values: the class has them anyway."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if not _is_unwritten(inner)}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def _is_unwritten(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(_NOT_PLAIN)


def _class_paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            yield value["class_path"]
        for inner in value.values():
            yield from _class_paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _class_paths(inner)


def _signature(path: str) -> str | None:
    if path.split(".")[0] in _LIBRARIES:
        return None
    with contextlib.suppress(ConfigError, TypeError, ValueError):
        text = str(inspect.signature(import_path(path, "class_path")))
        return re.sub(r" at 0x[0-9a-f]+", "", text)
    return None


def differences(one: Any, other: Any, key: str = "") -> list[str]:
    """Where two configurations of plain values differ, one text a key."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [*one, *(name for name in other if name not in one)]
        inner = ((one.get(name), other.get(name), f"{key}.{name}" if key else str(name)) for name in keys)
        return [text for a, b, name in inner for text in differences(a, b, name)]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [text for i, (a, b) in pairs for text in differences(a, b, f"{key}[{i}]")]
    both_nan = one != one and other != other
    return [] if one == other or both_nan else [f"{key} is {one!r} and becomes {other!r}"]
