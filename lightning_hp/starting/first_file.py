"""A first ``tune.yaml`` for a project, as values and as text.

The values follow from the project alone: :func:`choose` looks at its configuration, and trains it on one batch and for
(at most) one epoch. :meth:`FirstFile.text` is a ``tune.yaml`` with its reasons in comments.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_hp.project.build import CliBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.quiet import suppress_repeated_warnings
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.space.known import KNOWN, canonical
from lightning_hp.starting.candidates import Candidate, candidates
from lightning_hp.starting.evidence import look
from lightning_hp.starting.metric import Metric, metric_of
from lightning_hp.starting.recognise import Chosen, Left, recognise
from lightning_hp.starting.trial_run import ONE_BATCH, ShortRun, run_shortly

#: trials of a first study
TRIALS = 40


@dataclass(frozen=True)
class FirstFile:
    """What a first study of a project would be.

    Attributes:
        name: Of the study.
        builder: Of the project.
        metric: The metric that decides.
        length: Of a complete training, as the project has it; without a limit where it has none.
        limits: Limits of a training that were given beside the project.
        chosen: What is searched.
        left: What is not.
        epoch: A timed epoch; None where nothing was trained.
        trials: Number of trials.
    """

    name: str
    builder: CliBuilder
    metric: Metric
    length: TrainingLength
    limits: TrainingLength
    chosen: tuple[Chosen, ...]
    left: tuple[Left, ...]
    epoch: ShortRun | None
    trials: int

    def training_seconds(self) -> float | None:
        """Seconds of one complete training; None where that is not known."""
        length = self.length.with_limits(self.limits)
        if self.epoch is None or not length.is_limited:
            return None
        epoch, settings = self.epoch, self.builder.trainer_settings()
        seconds = []
        if length.max_epochs is not None and (one := epoch.epoch_seconds()) is not None:
            seconds.append(length.max_epochs * one)
        if length.max_steps is not None:
            batches = length.max_steps * int(settings.get("accumulate_grad_batches") or 1)
            validations = batches / epoch.batches if epoch.batches else 1.0
            seconds.append(batches * epoch.batch_seconds + validations * epoch.validation_seconds)
        return epoch.setup_seconds + min(seconds) if seconds else None

    def missing(self) -> list[str]:
        """Keys of the file that a person has to write before it can be run."""
        unlimited = not self.length.with_limits(self.limits).is_limited
        keys = {"`monitor`": not self.metric.name, "`budget.max_epochs`": unlimited, "`space`": not self.chosen}
        return [key for key, is_missing in keys.items() if is_missing]

    def cost(self) -> str:
        """One sentence about what the trials cost."""
        seconds = self.training_seconds()
        if seconds is None:
            return f"what {self.trials} trials cost is not known"
        length = self.length.with_limits(self.limits)
        return (
            f"a training is {length} and takes about {duration(seconds)} here with your values: "
            f"{self.trials} trials take about {duration(self.trials * seconds)} in one process, "
            "less with hopeless ones stopped"
        )

    def text(self, folder: Path, when: str) -> str:
        """The file.

        Args:
            folder: Where the file will be, for the path of ``config``.
            when: The date that its first lines name.
        """
        return "\n".join(self._lines(folder, when)) + "\n"

    def _lines(self, folder: Path, when: str) -> Iterator[str]:
        yield f"# Written on {when} by lightning-hp init, from your project. Change what you like:"
        yield "# every key is explained on the page tune_yaml of lightning_hp's documentation."
        yield f"name: {self.name}"
        files = [os.path.relpath(file, folder) for file in self.builder.files]
        yield f"config: {files[0] if len(files) == 1 else '[' + ', '.join(map(quoted, files)) + ']'}"
        for key in ("model", "data", "cli"):
            if (path := getattr(self.builder, key)) is not None:
                yield f"{key}: {path}"
        others = f"; also logged: {', '.join(self.metric.others)}" if self.metric.others else ""
        if self.metric.name:
            yield f"monitor: {quoted(self.metric.name)}  # {self.metric.why}{others}"
        else:
            yield f"monitor:  # write one here: {self.metric.why}{others}"
        yield f"mode: {self.metric.mode}"
        yield f"# {self.cost()}"
        limits = self.limits.to_json()
        if not self.length.with_limits(self.limits).is_limited:
            yield "# write how long a training is: your file has no max_epochs"
            limits = {"max_epochs": ""}  # type: ignore[dict-item]
        yield f"budget: {flow({'trials': self.trials, **limits})}"
        yield "# trial 0 is your own configuration; an entry without a default starts at your value"
        yield "space:" if self.chosen else "space: {}  # nothing was recognised: give ranges to some of these"
        for chosen in sorted(self.chosen, key=lambda one: one.fields["tier"]):
            yield f"  {quoted(chosen.candidate.key)}: {flow(chosen.fields)}  # yours: {plain(chosen.candidate.value)}"
        ranges = [(left, range_) for left in self.left if (range_ := suggestion(left.candidate))]
        if ranges:
            yield "  # Not searched. Take away the # where you want to, and mend the range:"
        for left, range_ in ranges:
            why = f"; {left.why}" if left.why else ""
            yield f"  # {quoted(left.candidate.key)}: {flow(range_)}  # yours: {plain(left.candidate.value)}{why}"
        rest = [left.candidate.key for left in self.left if not suggestion(left.candidate)]
        if rest:
            yield f"  # Not searched, and without a range to suggest: {', '.join(rest)}"


@suppress_repeated_warnings()  # the project is built some twenty times
def choose(
    builder: CliBuilder,
    name: str,
    trials: int = TRIALS,
    limits: TrainingLength = TrainingLength(),  # noqa: B008 - frozen
    train: bool = True,
) -> FirstFile:
    """Look at a project and decide what a first study of it is.

    Args:
        builder: Of the project.
        name: Of the study.
        trials: Number of trials.
        limits: Of a training, in place of the project's own.
        train: Whether to train it shortly; without, metric and cost are not known.

    Raises:
        ConfigError: If the project cannot be read, or does not train.
    """
    values = candidates(builder.own.config)
    shown = epoch = None
    if train:
        try:
            shown = run_shortly(builder, ONE_BATCH)
            epoch = run_shortly(builder, {})
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"`config` must be a project that trains, but its own training fails: {reason}"
            ) from error
        shown = ShortRun(**{**vars(shown), "batches": epoch.batches})
    evidence = look(builder, values)
    chosen, left = recognise(builder, values, evidence, shown)
    metric = metric_of(shown) if shown else Metric("", "min", "nothing was trained")
    length = TrainingLength.of_trainer(builder.trainer_settings())
    return FirstFile(name, builder, metric, length, limits, tuple(chosen), tuple(left), epoch, trials)


def suggestion(candidate: Candidate) -> dict[str, Any]:
    """A range for a value of which nothing is known, for a person to mend; empty where none can be thought of."""
    value = candidate.value
    name_facts = KNOWN.get(canonical(candidate.key))
    if name_facts is not None and candidate.is_number and (fields := name_facts.range_for(value)):
        return {name: field for name, field in fields.items() if name != "default"}
    if isinstance(value, bool):
        return {"choices": [value, not value]}
    if isinstance(value, int) and value > 0:
        return {"low": max(1, value // 2), "high": value * 2}
    if isinstance(value, float) and value > 0 and math.isfinite(value):
        most = value * 2 if value >= 1 else min(value * 2, (1 + value) / 2)  # below 1 it may be a part of something
        return {"low": float(f"{value / 2:.6g}"), "high": float(f"{most:.6g}")}
    return {}


def duration(seconds: float) -> str:
    """Such as ``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def flow(fields: Mapping[str, Any]) -> str:
    """A mapping in one line of YAML."""
    return "{" + ", ".join(f"{key}: {plain(value)}".rstrip() for key, value in fields.items()) + "}"


def plain(value: Any) -> str:
    """A value in YAML, with numbers that every reader of YAML takes for numbers (1.0e-4 instead of 1e-04)."""
    if isinstance(value, list):
        return "[" + ", ".join(plain(one) for one in value) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        text = repr(value)
        mantissa, e, exponent = text.partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent)}" if e else text
    return quoted(value) if isinstance(value, str) and value else str(value)


def quoted(text: str) -> str:
    """A text in YAML, in quotes where YAML would read something else."""
    if "[" in text or ", " in text:  # in a flow these end a word
        return f"'{text}'"
    return text if yaml.safe_load(f"- {text}") == [text] else "'" + text.replace("'", "''") + "'"
