"""The end of a study: the winner's metrics, ``best.yaml``, a ledger record, the evidence and the report.

Written once by whoever comes first; written again only when the study has grown since.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from optuna.trial import FrozenTrial

from lightning_hp.batchnorm.statistics import find_layers
from lightning_hp.callbacks.audit.files import write_audit
from lightning_hp.callbacks.audit.offline import audit_trained
from lightning_hp.callbacks.audit.reference import STATE_KEY, write_reference
from lightning_hp.callbacks.trackers import give_files, give_values, keeps_checkpoints
from lightning_hp.ledger import records
from lightning_hp.ledger.dates import as_utc
from lightning_hp.ledger.events import tuned
from lightning_hp.ledger.fingerprint import data_fingerprint, model_fingerprint
from lightning_hp.project.best_yaml import best_yaml, fit_command
from lightning_hp.project.build import Built, CliBuilder
from lightning_hp.project.quiet import suppress_repeated_warnings
from lightning_hp.report.audits import AUDITS
from lightning_hp.report.write import write_older_reports, write_reports
from lightning_hp.study.confirmed import confirmed
from lightning_hp.study.paths import StudyPaths, write_text
from lightning_hp.study.results import read_result
from lightning_hp.study.storage import StudyError, one_line
from lightning_hp.study.trials import best_trials, count_states, no_best_message
from lightning_hp.tuning.checkpoints import classes_of
from lightning_hp.tuning.failures import counted
from lightning_hp.tuning.runner import StudyRunner
from lightning_hp.tuning.winner_again import train_winner_again
from lightning_hp.tuning.workers.ranks import build_on_one_device

#: the folder in which the winner is evaluated; runs of loggers are named after it
EVALUATION = "best"


@dataclass(frozen=True)
class Result:
    """What a study found.

    Attributes:
        study: The Optuna study.
        trial: Number of the best trial.
        value: Its value.
        arguments: Its natural values, keyed as the space was given.
        natural: The same by parameter name.
        validation: The winner's validation metrics, from its best checkpoint.
        test: The winner's metrics on the test split; empty where there is none.
        checkpoint: The winner's best checkpoint.
        best: ``best.yaml``, None for a study of Python classes.
        report: The report.
        folder: The study folder.
        confirmed: Mean of the winner's configuration over several seeds, half width of its 90 % interval, and the
            values; None where it was trained on one seed only.
    """

    study: optuna.Study
    trial: int
    value: float
    arguments: dict[str, Any]
    natural: dict[str, Any]
    validation: dict[str, float]
    test: dict[str, float]
    checkpoint: Path
    best: Path | None
    report: Path
    folder: Path
    confirmed: Mapping[str, Any] | None = None


def finish(runner: StudyRunner, now: datetime | None = None) -> Result:
    """Write the end of a study.

    Args:
        runner: Of the study.
        now: The clock, with a time zone, which dates the ledger; None is the current time.

    Raises:
        StudyError: If no trial is complete.
    """
    now = datetime.now(UTC) if now is None else as_utc(now)
    for winner in best_trials(runner.study, 1):  # before the lock, which a training may outlast
        if (read_result(runner.paths) or {}).get("trial") != winner.number:
            train_winner_again(runner, winner)
    with runner.paths.finish_lock():
        best = best_trials(runner.study, 1)
        if not best:
            raise StudyError(no_best_message(runner.study))
        counts = count_states(runner.study)
        result_dict = read_result(runner.paths)
        if result_dict is None or result_dict["trial"] != best[0].number or result_dict["trials"] != counts:
            result_dict = _conclude(runner, best[0], counts, now)
        elif not runner.paths.report.is_file():
            write_reports(runner.study, runner.paths, now)
        return _result(runner, result_dict)


def _conclude(runner: StudyRunner, best: FrozenTrial, counts: dict[str, int], now: datetime) -> dict[str, Any]:
    arguments, seed = runner.description.space.arguments(best.params), runner.seed_of(best)
    runner.listener.message(f"evaluating trial {best.number}")
    with suppress_repeated_warnings():
        built = build_on_one_device(runner.builder, arguments, runner.paths.root / EVALUATION, seed, runner.length)
    with contextlib.closing(built):
        result_dict = _write(runner, best, counts, built, now)
        _give(runner, best, built)
    return result_dict


def _give(runner: StudyRunner, best: FrozenTrial, built: Built) -> None:
    """Leave the best trial with the stores of the project's loggers, in the run of its evaluation."""
    loggers, paths, trial = built.trainer.loggers, runner.paths, runner.paths.trial(best.number)
    files = [paths.best, paths.result, paths.report, trial.audit, trial.audit.with_suffix(".md")]
    give_values(loggers, runner.description.space.arguments(best.params))
    give_files(loggers, "best", files)
    give_files([logger for logger in loggers if keeps_checkpoints(logger)], "best", [trial.best_checkpoint])


def _write(
    runner: StudyRunner, best: FrozenTrial, counts: dict[str, int], built: Built, now: datetime
) -> dict[str, Any]:
    paths, space = runner.paths, runner.description.space
    natural = space.natural(best.params)
    active = dict(zip((p.name for p in space.parameters), space.active(best.params), strict=True))
    by_tier = {
        tier: {p.name: natural[p.name] for p in space.parameters if p.tier == tier and active[p.name]}
        for tier in space.tiers
    }
    checkpoint = paths.trial(best.number).best_checkpoint
    measured = _evaluate(runner, best, built, checkpoint)
    result_dict = {
        "study": runner.study.study_name,
        "trial": best.number,
        "value": best.value,
        "monitor": runner.description.monitor,
        "mode": runner.description.mode,
        "natural": natural,
        "by_tier": by_tier,
        "validation": measured["validation"],
        "test": measured["test"],
        "trials": counts,
        "seconds": round(sum(t.user_attrs.get("seconds", 0.0) for t in runner.study.get_trials(deepcopy=False)), 1),
        "finished_at": now.isoformat(timespec="seconds"),
        "checkpoint": str(checkpoint),
        "best_yaml": None,
    }
    on_seeds = confirmed(runner.study.get_trials(deepcopy=False), runner.description.mode == "min")
    if on_seeds and best in on_seeds[0].trials:
        winner = on_seeds[0]
        result_dict["confirmed"] = {
            "mean": winner.mean,
            "interval": winner.interval if math.isfinite(winner.interval) else None,
            "values": list(winner.values),
            "text": winner.text(),
            "left": runner.config.search.n_trials - counted(runner.study.get_trials(deepcopy=False), runner.study),
        }
    if isinstance(runner.builder, CliBuilder):
        result_dict["fit_command"] = fit_command(runner.builder, paths.best)
        result_dict["classes"] = runner.builder.classes
        if _write_best(runner, runner.builder, best, result_dict):
            result_dict["best_yaml"] = str(paths.best)
    lineage = paths if runner.description.previous is None else StudyPaths(Path(runner.description.previous))
    record: Mapping[str, Any] = tuned(
        name=runner.study.study_name if lineage is paths else records.read(lineage.ledger).names[0],
        study=str(paths.root),
        trials=sum(counts.values()),
        hyperparameters_by_tier=by_tier,
        metric=runner.description.monitor,
        value=best.value or 0.0,
        mode=runner.description.mode,
        space_fingerprint=space.fingerprint,
        model_fingerprint=measured["model_fingerprint"],
        data_fingerprint=measured["data_fingerprint"],
        retune_after=runner.config.retune_after,
        versions=runner.description.versions,
        tuned_by="command" if isinstance(runner.builder, CliBuilder) else "python",
        reference_moments=_moments(checkpoint, paths.reference, lineage.root, measured["audited"]),
        now=now,
    )
    if lineage is not paths:
        record = {**record, "event": "retuned", "previous_study": str(lineage.root)}
    record = _date(lineage.ledger, record)
    result_dict["ledger"] = {"tuned_at": record["tuned_at"], "retest_at": record["retest_at"]}
    write_text(paths.result, json.dumps(result_dict, indent=1))
    write_reports(runner.study, paths, now)
    if runner.description.previous is not None:
        write_older_reports(paths, runner.description.previous, now)
    return result_dict


def _moments(checkpoint: Path, file: Path, ledger_folder: Path, audited: bool) -> str | None:
    """Leave the winner's validation moments in a file; its path from the ledger, None where the audit left none."""
    if audited:  # and has just written them
        return os.path.relpath(file, ledger_folder)
    try:
        with classes_of(checkpoint):
            written = write_reference(file, torch.load(checkpoint, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError):  # no checkpoint, or one with more than weights and classes
        written = False
    return os.path.relpath(file, ledger_folder) if written else None


def _date(ledger: Path, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Append to the ledger, unless a process that was stopped right after it has done so; gives what stands there."""
    last = records.read(ledger).latest(record["name"])
    same = ("study", "trials", "metric", "value", "hyperparameters")
    if last is not None and all(last[field] == record[field] for field in same):
        return last
    records.append(ledger, record)
    return record


def _evaluate(runner: StudyRunner, best: FrozenTrial, built: Built, checkpoint: Path) -> dict[str, Any]:
    """The winner's metrics and the fingerprints; what cannot be had is left out and said."""
    measured: dict[str, Any] = {"validation": {}, "test": {}, "model_fingerprint": None, "data_fingerprint": None}
    measured["audited"] = False
    with suppress_repeated_warnings():
        measured["model_fingerprint"] = model_fingerprint(type(built.model))
        for split in ("validation", "test"):
            try:
                measured[split] = _metrics(built, split, checkpoint)
            except Exception as error:
                runner.listener.message(f"no {split} metrics of the winner: {one_line(error)}")
        try:
            measured["audited"] = _audit_stacked(runner, best, built, checkpoint)
        except Exception as error:
            runner.listener.message(f"no audit of the winner: {one_line(error)}")
        try:
            measured["data_fingerprint"] = data_fingerprint(built.data or built.model)
        except Exception as error:
            runner.listener.message(f"no fingerprint of the training data: {one_line(error)}")
    return measured


def _audit_stacked(runner: StudyRunner, best: FrozenTrial, built: Built, checkpoint: Path) -> bool:
    """Audit a winner that was trained in a stack, where no auditor watches; whether it has validation moments."""
    if not runner.config.audit or "cohort" not in best.user_attrs or not find_layers(built.model):
        return False
    loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    built.model.load_state_dict(loaded["state_dict"])
    source: Any = built.data or built.model
    if built.data is not None:
        built.data.setup("fit")
    train, validation = (_first(getattr(source, f"{split}_dataloader")()) for split in ("train", "val"))
    about = {"created_at": datetime.now(UTC).isoformat(), "checkpoint": checkpoint.name}
    counts = {"epoch": int(loaded["epoch"]), "step": int(loaded["global_step"])}
    result, reference = audit_trained(built.model, built.trainer, train, validation, **counts, about=about)
    write_audit(built.trainer, runner.paths.trial(best.number).root, result, reference)
    audits = {**runner.study.user_attrs.get(AUDITS, {}), str(best.number): dict(result.get("counts", {}))}
    runner.study.set_user_attr(AUDITS, audits)  # a trial that has ended takes no attributes
    state = {"reference": {} if reference is None else reference.to_dict(), "findings": result.get("findings", [])}
    audited = {**loaded, "callbacks": {**loaded.get("callbacks", {}), STATE_KEY: state}}
    written = checkpoint.with_suffix(".tmp")
    torch.save(audited, written)  # as a training with an auditor leaves it: the moments stay with the weights
    os.replace(written, checkpoint)
    return write_reference(runner.paths.reference, audited)


def _first(loaders: Any) -> Any:
    return loaders[0] if isinstance(loaders, list | tuple) else loaders


def _metrics(built: Built, split: str, checkpoint: Path) -> dict[str, float]:
    if not _has(built, split):
        return {}
    run = built.trainer.validate if split == "validation" else built.trainer.test
    options: dict[str, Any] = {"datamodule": built.data, "ckpt_path": str(checkpoint), "verbose": False}
    if "weights_only" in inspect.signature(run).parameters:
        options["weights_only"] = True
    with classes_of(checkpoint):
        results = run(built.model, **options)
    return {name: float(value) for metrics in results for name, value in metrics.items()}


def _has(built: Built, split: str) -> bool:
    """Whether the project has a step and a loader of its own for a split."""
    step, loader = ("test_step", "test_dataloader") if split == "test" else ("validation_step", "val_dataloader")
    return is_overridden(step, built.model) and is_overridden(loader, built.data or built.model)


def _write_best(runner: StudyRunner, builder: CliBuilder, best: FrozenTrial, result_dict: Mapping[str, Any]) -> bool:
    """Write ``best.yaml``, headed by where it comes from; a file that would not train the winner is not written."""
    tested = "".join(f", {name} {value:.4g}" for name, value in result_dict["test"].items())
    on_seeds = f"; {result_dict['confirmed']['text']}" if "confirmed" in result_dict else ""
    head = (
        f"# {result_dict['fit_command']}\n"
        f"# Trial {best.number} of study {runner.study.study_name}, {result_dict['finished_at']}: "
        f"{result_dict['monitor']} {best.value:.6g}{tested}{on_seeds}\n"
    )
    arguments = runner.description.space.arguments(best.params)
    try:
        text = best_yaml(builder, arguments, runner.seed_of(best), runner.length)
    except Exception as error:
        runner.paths.best.unlink(missing_ok=True)
        runner.listener.message(f"no best.yaml: {one_line(error)}")
        return False
    write_text(runner.paths.best, head + text)
    return True


def _result(runner: StudyRunner, result_dict: Mapping[str, Any]) -> Result:
    best = runner.study.get_trials(deepcopy=False)[result_dict["trial"]]
    return Result(
        study=runner.study,
        trial=result_dict["trial"],
        value=result_dict["value"],
        arguments=runner.description.space.arguments(best.params),
        natural=dict(result_dict["natural"]),
        validation=dict(result_dict["validation"]),
        test=dict(result_dict["test"]),
        checkpoint=Path(result_dict["checkpoint"]),
        best=Path(result_dict["best_yaml"]) if result_dict["best_yaml"] else None,
        report=runner.paths.report,
        folder=runner.paths.root,
        confirmed=result_dict.get("confirmed"),
    )
