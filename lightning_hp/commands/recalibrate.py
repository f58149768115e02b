"""`lightning-hp recalibrate`: a checkpoint with exact BatchNorm statistics, written beside the original.

The original is never changed, and nothing is written where validation would get worse.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from jsonargparse import Namespace

from lightning_hp.batchnorm.observe import Step
from lightning_hp.batchnorm.recalibrate import population_statistics, recalibrate
from lightning_hp.batchnorm.statistics import find_layers
from lightning_hp.commands.checkpointed_project import USAGE, UsageError, exit_code_of, open_project, write_error


def recalibrate_verb(options: Namespace) -> int:
    """Repair a checkpoint."""
    return recalibrate_command(
        options.config,
        options.ckpt,
        output=options.output,
        data=options.data or (),
        monitor=options.monitor,
        mode=options.mode,
        json=options.json,
        cli=options.cli_class,
        model=options.model_class,
        data_class=options.data_class,
    )


def recalibrate_command(
    config: str | Path,
    ckpt: str | Path,
    output: str | Path | None = None,
    data: Sequence[str] | None = None,
    monitor: str = "val_loss",
    mode: str = "min",
    rows: int = 8192,
    json: bool = False,
    cli: str | None = None,
    model: str | None = None,
    data_class: str | None = None,
) -> int:
    """Write a checkpoint with exact statistics beside the original, if validation does not get worse.

    Args:
        config: the project's LightningCLI file.
        ckpt: a checkpoint of it; it is not changed.
        output: path of the new checkpoint; the default adds "-recalibrated" to the name.
        data: replacements in the configuration.
        monitor: metric that decides; if it is not logged, the first one with "loss" in its name does.
        mode: "min" or "max".
        rows: training rows for the statistics (Wu & Johnson 2021: 1,000 to 10,000).
        json: write the result as JSON.
        cli: the project's own LightningCLI: class path, path of a function, or script.
        model: class path, for files that name no model class.
        data_class: class path, for files that name no data class.

    Returns:
        Exit code: 0 (also when nothing was written because validation got worse), 1 on failure, 2 on wrong usage.
    """
    if mode not in ("min", "max"):
        return write_error(f"`mode` must be 'min' or 'max', got {mode!r}", USAGE)
    target = Path(output) if output else Path(ckpt).with_name(f"{Path(ckpt).stem}-recalibrated{Path(ckpt).suffix}")
    classes = {"model": model, "data": data_class, "cli": cli}
    return exit_code_of(
        lambda folder: _recalibrate(
            Path(config), Path(ckpt), target, data or (), monitor, mode, rows, json, classes, folder
        )
    )


def _recalibrate(
    config: Path,
    ckpt: Path,
    target: Path,
    replacements: Sequence[str],
    monitor: str,
    mode: str,
    rows: int,
    as_json: bool,
    classes: Mapping[str, str | None],
    folder: Path,
) -> int:
    project = open_project(config, ckpt, replacements, classes, folder)
    if not find_layers(project.model):
        raise UsageError("`ckpt` must hold a model with running statistics, got one without")
    steps: list[Step] = project.run(project.loader("train"), rows)[0].recorder.steps
    everything = 2**31
    before = project.run(project.loader("val"), everything)[1]
    with project.trainer.precision_plugin.forward_context():
        if not population_statistics(project.model, steps[:1]):
            raise UsageError(
                "`config` must describe a model whose evaluation calls its BatchNorm layers, by a `forward` that shows "
                "what they normalise (their own, or F.batch_norm with their statistics)"
            )
        written = recalibrate(project.model, steps)
    after = project.run(project.loader("val"), everything)[1]
    name = monitor if monitor in after else next((key for key in after if "loss" in key), None)
    worse = name is not None and (after[name] > before[name] if mode == "min" else after[name] < before[name])
    left = [layer for layer in find_layers(project.model) if layer not in written]
    record = {
        "layers": list(written),
        "left_alone": left,
        "monitor": name,
        "before": before,
        "after": after,
        "written": None if worse else str(target),
        "recalibrated_at": datetime.now(UTC).isoformat(),
    }
    if not worse:
        state = project.model.state_dict()
        project.checkpoint["state_dict"] = {**project.checkpoint["state_dict"], **state}
        project.checkpoint["lightning_hp_recalibrated"] = {
            key: value for key, value in record.items() if key != "written"
        }
        part = target.with_name(f".{target.name}.part")
        torch.save(project.checkpoint, part)
        os.replace(part, target)
    if as_json:
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
    else:
        lines = [f"{key}: {before[key]:.5g} -> {after[key]:.5g}" for key in before if key in after]
        outcome = f"worse by {name}: nothing was written" if worse else f"written: {target}"
        if left:
            lines.append(f"left alone (not called, or not measurable): {', '.join(left)}")
        sys.stdout.write("\n".join([*lines, outcome]) + "\n")
    return 0
