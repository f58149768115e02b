"""Refreshing a study: first a re-test of what it recorded, then, where there may be better values, a new, short study.

There may be better ones where the re-test found one, and where the training data moved: a handful of neighbours that
are behind says that the recorded best is still the top of its hill, and on other data that says little about the rest.
Where neither is so, the re-test confirms the record and nothing more is trained.

The new study begins with the trials of the re-test, which are paid for, and learns from the older study's curves as far
as they still hold: the surrogate gives the two studies an axis of their own and reads off the new trials how alike they
are, so the older trials count for less the more the data moved. It adds a quarter of the first one's trials
(``SHARE``), and the last of them confirm its winner: the best are trained again on one fresh seed (``CONFIRMATION``).

Both are linked: the older study's ledger gets the re-test and the new tuning, the new study names the older one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from lightning_hp.ledger import records
from lightning_hp.ledger.changes import Change, summarise_changes
from lightning_hp.ledger.drift import compare_fingerprints
from lightning_hp.ledger.events import retested
from lightning_hp.ledger.fingerprint import data_fingerprint
from lightning_hp.project.build import CliBuilder, PythonBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.quiet import suppress_repeated_warnings
from lightning_hp.report.write import write_reports
from lightning_hp.retests.race import engine_of
from lightning_hp.retests.refreshing import (
    ENDED,
    begun_study,
    copy_retest_trials,
    latest_study,
    new_study,
    opening_at,
    same_ranges,
)
from lightning_hp.retests.retest import Retest, retest
from lightning_hp.search.engine import Engine
from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.description import Description, describe
from lightning_hp.study.paths import StudyPaths, write_text
from lightning_hp.study.patience import patiently
from lightning_hp.study.storage import StudyError, find_study, one_line
from lightning_hp.study.trials import best_trials, no_best_message
from lightning_hp.tuning.config import Budget, Confirmation, TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.finish import Result
from lightning_hp.tuning.listener import SilentListener, StudyListener
from lightning_hp.tuning.objective import trial_seed
from lightning_hp.tuning.runner import StudyRunner

#: How its winner is confirmed: older curves and the re-test have said much about the best already.
CONFIRMATION = Confirmation(candidates=3, seeds=1)
#: The study attribute that says where the re-test is that a refreshing study begins with.
RETESTED_IN = "retested_in"


@dataclass(frozen=True)
class Retuned:
    """What a refresh did.

    Attributes:
        test: The re-test; None where a new study was asked for without one.
        drift: One sentence for each column of the training data that moved since the tuning.
        result: The new study's; None where the recorded best was confirmed.
    """

    test: Retest | None
    drift: list[str]
    result: Result | None


def retune_study(
    study: str,
    config: TuneConfig,
    builder: CliBuilder | PythonBuilder,
    k: int = 4,
    trials: int | None = None,
    test: bool = True,
    search: bool = True,
    listener: StudyListener | None = None,
    now: datetime | None = None,
) -> Retuned:
    """Re-test a study's best, and refresh the study if it is beaten or the training data moved.

    Args:
        study: The study folder, or the name of one in ``runs``.
        config: Today's configuration; its space must have the study's parameters, its ranges may differ.
        builder: Makes the objects of a trial, with today's data.
        k: How many neighbours of the recorded best are re-tested.
        trials: What a new study adds to those of the re-test; None for a quarter of the first study's.
        test: Whether to re-test first; without, the new study is run in any case.
        search: Whether to run a new study; without, the re-test alone decides.
        listener: Is told what happens.
        now: The clock, with a time zone; None is the current time, at the end of a new study the time then.

    Raises:
        ConfigError: If the configuration does not fit the study.
        StudyError: If there is no such study, or it has no best trial.
        KeyboardInterrupt: After the running trial, if Ctrl-C was pressed; the same call goes on from there.
    """
    listener = listener or SilentListener()
    named, folder = find_study(study)
    previous = describe(named).previous
    root = folder if previous is None else StudyPaths(Path(previous))
    latest = latest_study(root)
    older_study, _ = find_study(str(latest.root))
    description = describe(older_study)
    best = best_trials(older_study, 1)
    if not best:
        raise StudyError(no_best_message(older_study))
    space = opening_at(config.space, description.space, best[0].params)
    recorded_values = space.stored(description.space.natural(best[0].params))
    # a re-test is as long as the trainings that it tests, unless told otherwise
    length = _length_of(description).with_limits(config.budget.length)
    budget = replace(config.budget, length=length)
    config = replace(config, budget=budget, accept_changes=True, confirm=config.confirm and CONFIRMATION)
    changes, fingerprint = _drift(root, builder, config.space, length, listener)
    drift = [change.sentence for change in changes]
    begun = begun_study(root, config, trials)
    if begun is not None:
        listener.message(f"continuing {begun.name}, which was stopped")
        return Retuned(None, drift, _refresh(older_study, begun, None, builder, listener, now))
    tested: Retest | None = None
    outcome = ""
    if test:
        own = root.root / "retests" / f"{latest.root.name}-{len(list((root.root / 'retests').glob('*/done')))}"
        base = replace(config, name=f"{older_study.study_name}.retest-{own.name}", folder=own, storage="journal")
        tested = retest(
            replace(
                base,
                search=SearchPlan(space=config.space, n_trials=1, seed=description.plan.seed),
                budget=Budget(length),
                caviar=engine_of(config.caviar),
            ),
            builder,
            recorded_values,
            best[0].value or 0.0,
            int(best[0].user_attrs.get("seed", trial_seed(description.plan.seed, best[0].number))),
            k,
            _expected(older_study, config.space),
            decide=not (drift and search),
            listener=listener,
        )
        outcome = "beaten" if not tested.confirmed else "undecided" if drift and search else "confirmed"
        _record(tested, outcome, root, older_study, fingerprint, now or datetime.now(UTC))
        write_reports(older_study, latest, now)
        listener.message(tested.summary)
        if outcome == "undecided":
            listener.message("but the training data moved: a short study looks further")
    if not search or outcome == "confirmed":
        return Retuned(tested, drift, None)
    opening = recorded_values if tested is None else tested.best
    refreshing = new_study(older_study, root, config, space, opening, tested, trials)
    return Retuned(tested, drift, _refresh(older_study, refreshing, tested, builder, listener, now))


def _record(
    tested: Retest,
    outcome: str,
    root: StudyPaths,
    older_study: optuna.Study,
    fingerprint: Mapping[str, Any] | None,
    now: datetime,
) -> None:
    """Enter a re-test in the ledger and in the study that it tested."""
    event = retested(
        name=records.read(root.ledger).names[0],
        outcome=outcome,
        study=str(tested.folder),
        summary=tested.summary,
        data_fingerprint=fingerprint,
        now=now,
    )
    records.append(root.ledger, event)
    write_text(tested.folder / "done", json.dumps({"outcome": outcome, "summary": tested.summary}))
    older_study.set_user_attr("retest", f"{now.date().isoformat()}: {tested.summary}")


def _refresh(
    older_study: optuna.Study,
    refreshing: TuneConfig,
    tested: Retest | None,
    builder: CliBuilder | PythonBuilder,
    listener: StudyListener,
    now: datetime | None,
) -> Result:
    """Run the new study, the trials of the re-test first; one that was stopped goes on."""
    runner = StudyRunner(refreshing, builder)
    if tested is not None:
        runner.study.set_user_attr(RETESTED_IN, str(tested.folder))
    if (retested_in := runner.study.user_attrs.get(RETESTED_IN)) is not None:
        retested, folder = find_study(retested_in)[0], Path(retested_in)
        patiently(lambda: copy_retest_trials(runner, retested, folder), say=runner.say)
    listener.study_planned(refreshing.search.n_trials)
    result = run(refreshing, builder, listener, now=now)
    older_study.set_user_attr("retuned_by", str(result.folder))
    return result


def _length_of(description: Description) -> TrainingLength:
    """How long a training of a study is; one that was written before that was kept counted epochs."""
    return TrainingLength(**description.length) if description.length else TrainingLength(description.plan.max_steps)


def _drift(
    root: StudyPaths,
    builder: CliBuilder | PythonBuilder,
    space: SearchSpace,
    length: TrainingLength,
    listener: StudyListener,
) -> tuple[list[Change], dict[str, Any] | None]:
    """How today's training data differ from those of the last tuning, and their fingerprint; the listener is told."""
    tunings = [r for r in records.read(root.ledger).records if r.get("fingerprints", {}).get("data")]
    try:
        with suppress_repeated_warnings():
            built = builder.build(space.arguments(space.defaults()), root.root / "evaluation", 0, [], length)
            if built.data is not None:
                built.data.trainer = built.trainer  # loaders may ask it, as in a fit
                built.data.prepare_data()
                built.data.setup("fit")
            fingerprint = data_fingerprint(built.data or built.model)
    except Exception as error:
        listener.message(f"no fingerprint of the training data: {one_line(error)}")
        return [], None
    if not tunings:
        listener.message("training data: not compared, there is no earlier fingerprint of them")
        return [], fingerprint
    changes = [column.change for column in compare_fingerprints(tunings[-1]["fingerprints"]["data"], fingerprint)]
    listener.message(f"training data: {summarise_changes(changes) if changes else 'not moved'}")
    return changes, fingerprint


def _expected(
    older_study: optuna.Study, space: SearchSpace
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]] | None:
    """What the older study's curves say of unit positions of ``space``; None where its ranges are other ones."""
    description = describe(older_study)
    if not same_ranges(description.space, space):
        return None
    engine = Engine(description.space, description.plan.max_steps)
    trials = older_study.get_trials(deepcopy=False, states=ENDED)
    model = engine.model(engine.curves(older_study, trials))
    return None if model is None else lambda units: model.final(units)[0]
