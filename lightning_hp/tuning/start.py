"""Where a study starts: values found elsewhere take the place of the project's own as the defaults of the space.

They come from a babysat run (its final values), from another study (its winner), or from a file or mapping of the
user's. A value out of a parameter's range goes to the nearest that the range holds: the range is the user's word.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.space.choices import Choice
from lightning_hp.space.parameters import Int, Parameter
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.results import read_result

#: what ``lightning-hp babysit`` leaves in the folder of its run
BABYSAT_VALUES = "panda_values.json"


def with_start(space: SearchSpace, start: Any, base: Path = Path()) -> SearchSpace:
    """A space whose defaults are values found elsewhere.

    Args:
        space: The space.
        start: A mapping from parameter names (or keys of the space) to natural values; or the folder of a babysat run
            or of a study, or a JSON file with such a mapping. None leaves the space as it is.
        base: Where a relative path is looked for if it is not found where the command runs.

    Returns:
        The space with these defaults. Names in a file that the space does not have are passed over: a run knows more
        hyperparameters than a study searches.

    Raises:
        ConfigError: If there is no such file, it holds no such mapping, a name of a mapping is not in the space, no
            name of a file is, or a value is no value of its parameter's kind.
    """
    if start is None:
        return space
    is_mapping = isinstance(start, Mapping)
    values = dict(start) if is_mapping else _values_in(start, base)
    names = {entry.key: entry.names[0] for entry in space.entries if len(entry.names) == 1}
    values = {names.get(name, name): value for name, value in values.items()}
    parameters = {parameter.name: parameter for parameter in space.parameters}
    strange = [name for name in values if name not in parameters]
    if strange and (is_mapping or len(strange) == len(values)):
        raise ConfigError(f"`start` must name parameters of the space ({', '.join(parameters)}), got {strange[0]!r}")
    return replace(
        space,
        parameters=tuple(
            replace(parameter, default=_nearest(parameter, values[parameter.name]))
            if parameter.name in values
            else parameter
            for parameter in space.parameters
        ),
    )


def _values_in(start: Any, base: Path) -> dict[str, Any]:
    """The values in a folder or file."""
    if not isinstance(start, str | Path):
        raise ConfigError(f"`start` must be a mapping, a folder or a JSON file, got {start!r}")
    path = next((path for path in (Path(start), base / start) if os.path.exists(path)), None)
    if path is None:
        raise ConfigError(f"`start` must be a babysat run, a study or a JSON file, got {str(start)!r}: no such file")
    if path.is_dir():
        result = read_result(StudyPaths(path)) if not (path / BABYSAT_VALUES).is_file() else None
        if result is not None:
            return dict(result["natural"])
        path = path / BABYSAT_VALUES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"`start` must hold {BABYSAT_VALUES} of a run, the result of a study, or be a JSON file, got {str(start)!r}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"`start` must be a JSON object from names to values, got {content!r} in {str(path)!r}")
    return content


def _nearest(parameter: Parameter, value: Any) -> Any:
    """The value of a parameter that is nearest to one found elsewhere."""
    if isinstance(parameter, Choice) and (index := parameter.index(value)) is not None:
        return parameter.choices[index]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not isinstance(parameter, Choice) and is_number:
        inside = min(max(value, parameter.low), parameter.high)
        return round(inside) if isinstance(parameter, Int) else float(inside)
    choices = parameter.choices if isinstance(parameter, Choice) else ()
    numbers = [c for c in choices if isinstance(c, int | float) and not isinstance(c, bool)]
    if numbers and is_number:
        return min(numbers, key=lambda choice: abs(choice - value))
    raise ConfigError(f"`start.{parameter.name}` must be {parameter.expected}, got {value!r}")
