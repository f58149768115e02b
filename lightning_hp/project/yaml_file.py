"""How a YAML file is read: numbers as people write them, and every error in one line that names the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml


class ConfigError(ValueError):
    """A key of ``tune.yaml``, or an argument of ``tune``, is not what it must be; one line."""


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of everyday: 1e-4 is one, and 1:00:00:00 is a time, not a number to the base of 60."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        first: [(tag, found) for tag, found in pairs if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"([-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9_]+([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.
        what: What errors call it.

    Raises:
        ConfigError: If there is no such file, it cannot be read, it is no YAML, or no mapping.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise ConfigError(f"`{what}` must be a file that exists, got {str(path)!r}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{what}` must be a readable text file, got {str(path)!r}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"`{what}` must be YAML, got {str(path)!r}{where}: {problem}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"`{what}` must hold keys and values, got {str(path)!r} with {type(loaded).__name__}")
    return loaded
