"""Who works on a study at a moment: workers, their trials and leases, and how quickly trials end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.study.description import describe
from lightning_hp.study.leases import Lease, lease_of
from lightning_hp.study.trials import best_trials

#: the time over which ended trials are counted for a rate
WINDOW = timedelta(minutes=10)


@dataclass(frozen=True)
class AtWork:
    """A worker and what it does.

    Attributes:
        worker: Its name; "handed back" for a trial that waits for its next owner, "nobody" for one without a lease.
        trial: Number of a trial that it runs; None for one that has ended trials lately and runs none.
        stage: The trial's stage.
        age: Seconds since the lease was renewed, by the clocks of both machines.
        expired: Whether the lease is older than it holds.
        running: Seconds since the trial was begun.
        step: Of its learning curve, the last; 0 for none yet.
        value: The metric there; None for none yet.
        ended: How many trials of the study the worker has ended in all.
    """

    worker: str
    trial: int | None
    stage: str = ""
    age: float = 0.0
    expired: bool = False
    running: float = 0.0
    step: int = 0
    value: float | None = None
    ended: int = 0


@dataclass(frozen=True)
class Picture:
    """A study at a moment.

    Attributes:
        study: Its name.
        monitor: Its metric.
        planned: Total number of trials.
        states: State, in small letters, to number of trials.
        workers: Who works, by name.
        stage: That of the newest trial.
        best: Number and value of the best trial; None where there is none.
        per_hour: Trials that end in an hour, as in the last ten minutes.
        max_steps: The step of a complete training.
    """

    study: str
    monitor: str
    planned: int
    states: dict[str, int]
    workers: list[AtWork]
    stage: str
    best: tuple[int, float] | None
    per_hour: float
    max_steps: int | None


def picture(study: optuna.Study, now: datetime) -> Picture:
    """Look at a study.

    Args:
        study: The study.
        now: The time of day, with a time zone.
    """
    trials = study.get_trials(deepcopy=False)
    local = now.astimezone().replace(tzinfo=None)  # as Optuna's trials have it
    ended: dict[str, int] = {}
    lately: list[tuple[str, datetime]] = []
    for trial in trials:
        if trial.state.is_finished() and trial.datetime_complete is not None:
            lease = lease_of(trial)
            worker = "" if lease is None else lease.worker
            ended[worker] = ended.get(worker, 0) + 1
            if local - trial.datetime_complete < WINDOW:
                lately.append((worker, trial.datetime_complete))
    rows = [_at_work(t, now, local, ended) for t in trials if t.state is TrialState.RUNNING]
    busy = {row.worker for row in rows}
    idle = sorted({worker for worker, _ in lately if worker and worker not in busy})
    rows += [AtWork(worker, None, ended=ended[worker]) for worker in idle]
    description, best = describe(study), best_trials(study, 1)
    newest = next((t for t in reversed(trials) if "stage" in t.user_attrs), None)
    return Picture(
        study=study.study_name,
        monitor=description.monitor,
        planned=description.plan.n_trials,
        states={s.name.lower(): n for s in TrialState if (n := sum(t.state is s for t in trials))},
        workers=sorted(rows, key=lambda row: (row.worker, row.trial is None, row.trial)),
        stage="" if newest is None else str(newest.user_attrs["stage"]),
        best=(best[0].number, float(best[0].value or 0.0)) if best else None,
        per_hour=_per_hour([moment for _, moment in lately], local),
        max_steps=description.plan.max_steps,
    )


def _at_work(trial: FrozenTrial, now: datetime, local: datetime, ended: dict[str, int]) -> AtWork:
    lease = lease_of(trial)
    step = max(trial.intermediate_values, default=0)
    age = 0.0 if lease is None else (now - datetime.fromisoformat(lease.at)).total_seconds()
    return AtWork(
        worker=_name(lease),
        trial=trial.number,
        stage=str(trial.user_attrs.get("stage", "")),
        age=max(0.0, age),
        expired=lease is not None and bool(lease.worker) and age > lease.seconds,
        running=0.0 if trial.datetime_start is None else (local - trial.datetime_start).total_seconds(),
        step=step,
        value=trial.intermediate_values.get(step),
        ended=0 if lease is None else ended.get(lease.worker, 0),
    )


def _name(lease: Lease | None) -> str:
    if lease is None:
        return "nobody"
    return lease.worker or "handed back"


def _per_hour(ends: list[datetime], now: datetime) -> float:
    if len(ends) < 2:
        return 0.0
    seconds = max((now - min(ends)).total_seconds(), 1.0)
    return (len(ends) - 1) * 3600.0 / seconds
