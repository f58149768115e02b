"""Which versions of optuna-dashboard the private parts are known of."""

from __future__ import annotations

from importlib.metadata import version

#: the minor version that this folder was written for and is tested with
KNOWN = "0.21"


def is_known() -> bool:
    """Whether the installed optuna-dashboard is of the version that this folder was written for."""
    return version("optuna-dashboard").split(".")[:2] == KNOWN.split(".")
