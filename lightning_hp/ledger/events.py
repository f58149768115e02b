"""What the events of a ledger hold, and the functions that build them. Pure, standard library only.

Every event has ``schema``, ``event``, ``name`` and ``at`` (UTC, ISO 8601). Times come from the argument ``now``, which
defaults to the clock of the machine. All values are JSON types, so that a person and any other program can read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lightning_hp.ledger import dates
from lightning_hp.ledger.changes import Change, check_changes

SCHEMA = 1
EVENTS = ("tuned", "retuned", "retested", "checked", "drifted", "postponed")
#: What a check looks at: the training data, the stored BatchNorm moments, the model's signature, the search space.
CHECKS = ("data", "moments", "model", "space")
OUTCOMES = ("confirmed", "undecided", "beaten")


def tuned(
    *,
    name: str,
    study: str,
    trials: int,
    hyperparameters_by_tier: Mapping[str, Mapping[str, Any]],
    metric: str,
    value: float,
    mode: str = "min",
    space_fingerprint: str | None = None,
    model_fingerprint: str | None = None,
    data_fingerprint: Mapping[str, Any] | None = None,
    retune_after: object = None,
    versions: Mapping[str, str] | None = None,
    reference_moments: str | None = None,
    tuned_by: str = "command",
    now: datetime | None = None,
) -> dict[str, Any]:
    """The event of a finished study.

    Args:
        name: What was tuned; events of one name belong together.
        study: The study: its folder or name, as ``lightning-hp retune`` takes it.
        trials: Finished trials.
        hyperparameters_by_tier: Tier to natural values by name.
        metric: Name of the monitored metric.
        value: The best value, finite.
        mode: ``min`` or ``max``.
        space_fingerprint: Of the search space.
        model_fingerprint: Class path and signature.
        data_fingerprint: Of the training data.
        retune_after: None, one interval (``30d``), or intervals by tier.
        versions: Of torch, lightning, optuna and others.
        reference_moments: Path of the stored validation moments.
        tuned_by: ``command`` or ``python``: how it can be tuned again.
        now: When the study ended.

    Returns:
        An event for :func:`lightning_hp.ledger.records.append`, with the re-test dates by tier.

    Raises:
        ValueError: If an argument is not what it must be.
    """
    at = _clock(now)
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 0:
        raise ValueError(f"`trials` must be a whole number from 0, got {trials!r}")
    if mode not in ("min", "max"):
        raise ValueError(f"`mode` must be min or max, got {mode!r}")
    number = to_json_types(value, "value")
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ValueError(f"`value` must be a finite number, got {value!r}")
    for tier in hyperparameters_by_tier:
        if tier not in dates.TIERS:
            raise ValueError(f"`hyperparameters_by_tier` must have tiers A to D as keys, got {tier!r}")
    intervals = dates.intervals_by_tier(retune_after)
    # a tier without a hyperparameter has nothing to re-test
    kept = {tier: text for tier, text in intervals.items() if hyperparameters_by_tier.get(tier)} or intervals
    event = {
        **_head("tuned", name, at),
        "tuned_at": dates.to_text(at),
        "study": str(study),
        "trials": trials,
        "hyperparameters": to_json_types(hyperparameters_by_tier, "hyperparameters_by_tier"),
        "metric": str(metric),
        "value": number,
        "mode": mode,
        "retune_after": kept,
        "retest_at": {tier: dates.to_text(dates.parse_interval(text).after(at)) for tier, text in kept.items()},
        "versions": to_json_types(versions or {}, "versions"),
        "reference_moments": reference_moments,
        "tuned_by": tuned_by,
        "fingerprints": _fingerprints(space=space_fingerprint, model=model_fingerprint, data=data_fingerprint),
    }
    check(event)
    return event


def retuned(*, previous_study: str, **arguments: Any) -> dict[str, Any]:
    """The event of a study that replaces an older one.

    Args:
        previous_study: The study that it replaces.
        **arguments: Those of :func:`tuned`.
    """
    return {**tuned(**arguments), "event": "retuned", "previous_study": str(previous_study)}


def retested(
    *,
    name: str,
    outcome: str,
    study: str | None = None,
    summary: str = "",
    data_fingerprint: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """The event of a re-test of the recorded best.

    Args:
        name: What was re-tested.
        outcome: ``confirmed`` (still the best: every date is counted from now on), ``beaten`` (due at once), or
            ``undecided`` (ahead of what was tried, while the data moved, so that a new study decides: changes nothing).
        study: The study that holds the re-test.
        summary: One sentence with the numbers.
        data_fingerprint: Of the data of the re-test; a confirmed re-test makes it the one to compare with.
        now: The clock.
    """
    event = {
        **_head("retested", name, _clock(now)),
        "outcome": outcome,
        "study": study,
        "summary": summary,
        "fingerprints": _fingerprints(data=data_fingerprint),
    }
    check(event)
    return event


def checked(*, name: str, kind: str, now: datetime | None = None) -> dict[str, Any]:
    """The event of a check without a change.

    Args:
        name: What was checked.
        kind: ``data``, ``moments``, ``model`` or ``space``.
        now: The clock.
    """
    event = {**_head("checked", name, _clock(now)), "kind": kind, "findings": []}
    check(event)
    return event


def drifted(
    *, name: str, kind: str, changes: Sequence[Change], structural: bool = False, now: datetime | None = None
) -> dict[str, Any]:
    """The event of a check that saw a change.

    Args:
        name: What was checked.
        kind: ``data``, ``moments``, ``model`` or ``space``.
        changes: What changed. It is stored as data under ``changes`` and as sentences under ``findings``.
        structural: The layout of the data changed, so that the record no longer fits it.
        now: The clock.
    """
    event = {
        **_head("drifted", name, _clock(now)),
        "kind": kind,
        "structural": bool(structural),
        "findings": [change.sentence for change in changes],
        "changes": [change.to_dict() for change in changes],
    }
    check(event)
    return event


def postponed(
    *, name: str, until: datetime | str, why: str, by: str | None = None, now: datetime | None = None
) -> dict[str, Any]:
    """The event of a person who moves the re-test.

    Args:
        name: What is postponed.
        until: The new date: an instant, or ISO 8601 text (a date means midnight UTC); after ``now``.
        why: The reason, not empty.
        by: The person.
        now: The clock.
    """
    at = _clock(now)
    moment = dates.from_text(until, "until") if isinstance(until, str) else dates.as_utc(until, "until")
    if moment <= at:
        raise ValueError(f"`until` must be after now ({dates.to_text(at)}), got {dates.to_text(moment)}")
    if not isinstance(why, str) or not why.strip():
        raise ValueError(f"`why` must be a reason, not empty, got {why!r}")
    event = {**_head("postponed", name, at), "until": dates.to_text(moment), "why": why, "by": by}
    check(event)
    return event


def check(record: Mapping[str, Any], name: str = "record") -> None:
    """Checks one event.

    Args:
        record: The event; further keys are allowed.
        name: What an error calls it.

    Raises:
        ValueError: In one line, naming the key.
    """
    if record.get("schema") != SCHEMA or isinstance(record.get("schema"), bool):
        raise ValueError(f"`{name}.schema` must be {SCHEMA}, got {record.get('schema')!r}")
    event = record.get("event")
    _one_of(record, name, "event", EVENTS)
    _text(record, name, "name")
    dates.from_text(record.get("at"), f"{name}.at")
    if event in ("tuned", "retuned"):
        _mapping(record, name, "hyperparameters")
        _mapping(record, name, "fingerprints")
        if not _mapping(record, name, "retune_after"):
            raise ValueError(f"`{name}.retune_after` must have at least one tier, got {{}}")
        dates.intervals_by_tier(record["retune_after"], f"{name}.retune_after")
    elif event == "retested":
        _one_of(record, name, "outcome", OUTCOMES)
        _mapping(record, name, "fingerprints")
    elif event in ("checked", "drifted"):
        _one_of(record, name, "kind", CHECKS)
        findings = record.get("findings")
        if not isinstance(findings, list) or bool(findings) != (event == "drifted"):
            raise ValueError(f"`{name}.findings` must be a list, empty unless drifted, got {findings!r}")
        if record.get("changes") is not None:
            check_changes(record["changes"], f"{name}.changes")
    elif event == "postponed":
        dates.from_text(record.get("until"), f"{name}.until")
        _text(record, name, "why")


def to_json_types(value: Any, name: str) -> Any:
    """The same value in JSON types; scalars of NumPy and torch become numbers.

    Raises:
        ValueError: If it holds anything else, or a number that is not finite.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number, got {value!r}")
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): to_json_types(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_types(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return to_json_types(value.item(), name)
    raise ValueError(f"`{name}` must be made of JSON types, got {value!r}")


def _head(event: str, name: str, at: datetime) -> dict[str, Any]:
    return {"schema": SCHEMA, "event": event, "name": name, "at": dates.to_text(at)}


def _clock(now: datetime | None) -> datetime:
    return datetime.now(UTC) if now is None else dates.as_utc(now)


def _fingerprints(**by_key: Any) -> dict[str, Any]:
    return {key: to_json_types(value, f"{key}_fingerprint") for key, value in by_key.items() if value is not None}


def _one_of(record: Mapping[str, Any], name: str, key: str, choices: Sequence[str]) -> None:
    if record.get(key) not in choices:
        raise ValueError(f"`{name}.{key}` must be one of {', '.join(choices)}, got {record.get(key)!r}")


def _text(record: Mapping[str, Any], name: str, key: str) -> None:
    if not isinstance(record.get(key), str) or not record[key].strip():
        raise ValueError(f"`{name}.{key}` must be a text, not empty, got {record.get(key)!r}")


def _mapping(record: Mapping[str, Any], name: str, key: str) -> Mapping[str, Any]:
    value = record.get(key)
    if not isinstance(value, Mapping):
        raise ValueError(f"`{name}.{key}` must be a mapping, got {value!r}")
    return value
