"""What a study has found so far, read from its storage and its folder; imports neither torch nor lightning."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from lightning_hp.search.evidence import evidence
from lightning_hp.study.description import describe
from lightning_hp.study.paths import StudyPaths


def read_result(paths: StudyPaths) -> dict[str, Any] | None:
    """``result.json`` of a study, None if there is none yet."""
    try:
        result = json.loads(paths.result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def stored_fit_command(result: Mapping[str, Any], paths: StudyPaths | None = None) -> str:
    """The command that trains with a study's best values; empty where there is none.

    Args:
        result: The content of ``result.json``; empty where there is none.
        paths: The study folder, which may hold a ``best.yaml`` that the result does not name; None to look at none.
    """
    file = result.get("best_yaml") or (paths.best if paths is not None and paths.best.exists() else None)
    if not file:
        return ""
    return str(result.get("fit_command") or f"lightning-hp fit {shlex.quote(str(file))}")


def stored_classes(file: Path) -> dict[str, str]:
    """How the project of a study's ``best.yaml`` calls LightningCLI, by option of ``lightning-hp fit``.

    Args:
        file: A LightningCLI file; of one that is no study's ``best.yaml`` nothing is known.
    """
    paths = StudyPaths(file.parent)
    if file.name != paths.best.name:
        return {}
    classes = (read_result(paths) or {}).get("classes")
    return {str(option): str(path) for option, path in classes.items()} if isinstance(classes, dict) else {}


def compute_evidence(study: optuna.Study) -> dict[str, Any]:
    """The evidence of a study: what mattered in each stage, which tiers disagree, which ranges to widen."""
    description = describe(study)
    direction = "minimize" if description.mode == "min" else "maximize"
    stages = description.plan.sampler().stages(study)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return evidence(description.space, study.get_trials(deepcopy=False), direction, stages)
