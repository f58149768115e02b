"""``lightning-hp babysit``: train a LightningCLI file with a `PandaBabysitter` at its side."""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_hp.commands.fit import add_class_options, classes_of_options
from lightning_hp.commands.output import write_line

if TYPE_CHECKING:
    from lightning_hp.callbacks import PandaBabysitter

_ABOUT = (
    "Train a LightningCLI file and watch it: the learning rate is searched at the beginning, divergences are rolled"
    " back, plateaus decayed; every intervention is in panda.jsonl. Further options go to LightningCLI, such as"
    " --trainer.max_epochs 20 or --ckpt_path last.ckpt."
)


def babysit_verb(arguments: Sequence[str]) -> int:
    """Train; options that are not its own go to LightningCLI.

    Raises:
        ConfigError: If the file cannot be read or a class cannot be imported.
        ValueError: If an option is out of range, or the same run is still alive.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(list(arguments))
    folder = Path(options.folder or f"runs/{_name(Path(options.config))}-panda")
    _refuse_a_living_run(folder)

    from lightning_hp.callbacks import PandaBabysitter
    from lightning_hp.project.project_cli import ProjectCLI
    from lightning_hp.project.yaml_file import read_yaml

    read_yaml(Path(options.config), "config")
    panda = PandaBabysitter(
        mode=options.mode,
        monitor=options.monitor,
        monitor_mode=options.monitor_mode,
        hyperparameters=_ranges(options.space),
        scheduler=options.scheduler,
        dirpath=folder,
    )

    def add(trainer: dict[str, Any]) -> None:
        callbacks = trainer.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if any(isinstance(callback, PandaBabysitter) for callback in callbacks):
            raise ValueError("`config` must have no PandaBabysitter, got one: `lightning-hp fit` trains with it")
        trainer["callbacks"] = [*callbacks, panda]

    project = ProjectCLI(*classes_of_options(options, Path(options.config)))
    project.call(["--config", options.config, *rest], "built", instantiated=add).train()
    for row in panda.rows:
        if row["id"] and row["rule"] not in ("wind_down", "probe"):
            change = "" if row["what"] == "nothing" else f"{row['what']}: {_text(row['from'])} to {_text(row['to'])}  "
            write_line(f"step {row['step']:>6}  {change}({row['why']})")
    values = ", ".join(f"{name} {_text(value)}" for name, value in panda.history.values.items())
    write_line(f"ended at step {panda.history.step}: {values}")
    learned = ", ".join(f"{name} {_text(value)}" for name, value in _record(panda, folder).items())
    write_line(f"defaults for a study (panda_values.json): {learned}")
    write_line(str(folder / "panda.jsonl"))
    return 0


def _record(panda: PandaBabysitter, folder: Path) -> dict[str, float]:
    """Write the run as a study of one lineage, and the values it learned."""
    from lightning_hp.commands.babysat_study import learned_values, stretches_of
    from lightning_hp.study.lineage import record_lineage
    from lightning_hp.study.paths import StudyPaths, write_text

    ranges = {name: (bounds.low, bounds.high) for name, bounds in panda.settings.bounds.items()}
    stretches, minimise = stretches_of(panda.history), panda.monitor_mode == "min"
    if stretches:
        record_lineage(StudyPaths(folder), folder.resolve().name, stretches, ranges, panda.monitor, minimise)
    learned = learned_values(panda.history)
    write_text(folder / "panda_values.json", json.dumps(learned, indent=1) + "\n")
    return learned


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightning-hp babysit", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("config", help="LightningCLI file")
    parser.add_argument(
        "--mode",
        choices=("rules", "probe"),
        default="rules",
        help="probe also tries neighbouring values; default rules",
    )
    parser.add_argument("--folder", help="where panda.jsonl goes; default runs/NAME-panda")
    parser.add_argument("--space", help="a tune.yaml, for the range, scale and tier of each hyperparameter")
    parser.add_argument("--monitor", default="val_loss", help="validation metric, for overfitting")
    parser.add_argument("--monitor_mode", choices=("min", "max"), default="min", help="of the metric; default min")
    parser.add_argument(
        "--scheduler", choices=("take_over", "leave"), help="take_over removes the module's scheduler; leave keeps it"
    )
    add_class_options(parser)
    return parser


def _name(config: Path) -> str:
    return config.resolve().parent.name if config.stem in ("train", "config", "best") else config.stem


def _ranges(tune_file: str | None) -> dict[str, Any]:
    """Ranges of what can be changed during a training, from the space of a ``tune.yaml``."""
    if tune_file is None:
        return {}
    from lightning_hp.callbacks.panda.settings import DEFAULTS
    from lightning_hp.tuning.config import TuneConfig

    ranges: dict[str, Any] = {}
    for parameter in TuneConfig.from_file(tune_file).space.parameters:
        if parameter.name in DEFAULTS:
            choices = getattr(parameter, "choices", None)
            low, high = (min(choices), max(choices)) if choices else (parameter.low, parameter.high)  # type: ignore[union-attr]
            ranges[parameter.name] = {"low": low, "high": high, "tier": parameter.tier}
    return ranges


def _refuse_a_living_run(folder: Path) -> None:
    from lightning_hp.commands.nudge import LIVING, read_status

    try:
        status = read_status(folder)
    except (OSError, ValueError, KeyError):
        return
    here = status.get("host") == socket.gethostname()
    if here and status["state"] in LIVING and status["pid"] != os.getpid():
        raise ValueError(f"`folder` must hold no run that is alive, got {folder} (process {status['pid']})")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
