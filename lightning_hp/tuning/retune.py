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
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from lightning_hp.ledger import records
from lightning_hp.ledger.changes import Change, summarise_changes
from lightning_hp.ledger.drift import compare_fingerprints
from lightning_hp.ledger.events import retested
from lightning_hp.ledger.fingerprint import data_fingerprint
from lightning_hp.project.build import CliBuilder, PythonBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.quiet import suppress_repeated_warnings
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.report.write import write_reports
from lightning_hp.search.curves import CurveReader, curves_to_dicts
from lightning_hp.search.engine import Engine
from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace, differences
from lightning_hp.study.description import Description, describe
from lightning_hp.study.paths import StudyPaths, write_text
from lightning_hp.study.storage import StudyError, find_study, one_line
from lightning_hp.study.trials import best_trials, no_best_message
from lightning_hp.tuning.caviar import Caviar
from lightning_hp.tuning.config import Budget, Confirmation, TuneConfig
from lightning_hp.tuning.engines import run
from lightning_hp.tuning.finish import Result
from lightning_hp.tuning.listener import SilentListener, StudyListener
from lightning_hp.tuning.objective import trial_seed
from lightning_hp.tuning.retest import Retest, retest
from lightning_hp.tuning.runner import StudyRunner

#: What a refreshing study adds to the trials of the re-test, in parts of the first study's trials.
SHARE = 1 / 4
#: It adds at least so many.
FEWEST = 6
#: How its winner is confirmed: older curves and the re-test have said much about the best already.
CONFIRMATION = Confirmation(candidates=3, seeds=1)
#: The study attribute that says where the re-test is that a refreshing study begins with.
RETESTED_IN = "retested_in"
#: Trials that a later study learns from.
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


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
    latest = _latest(root)
    older_study, _ = find_study(str(latest.root))
    description = describe(older_study)
    best = best_trials(older_study, 1)
    if not best:
        raise StudyError(no_best_message(older_study))
    space = _with_best(config.space, description.space, best[0].params)
    recorded_values = space.stored(description.space.natural(best[0].params))
    # a re-test is as long as the trainings that it tests, unless told otherwise
    length = _length_of(description).with_limits(config.budget.length)
    budget = replace(config.budget, length=length)
    config = replace(config, budget=budget, accept_changes=True, confirm=config.confirm and CONFIRMATION)
    changes, fingerprint = _drift(root, builder, config.space, length, listener)
    drift = [change.sentence for change in changes]
    begun = _begun(root, config, trials)
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
                caviar=Caviar(),
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
    refreshing = _new_study(older_study, root, config, space, opening, tested, trials)
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
        copy_retest_trials(runner, find_study(retested_in)[0], Path(retested_in))
    listener.study_planned(refreshing.search.n_trials)
    result = run(refreshing, builder, listener, now=now)
    older_study.set_user_attr("retuned_by", str(result.folder))
    return result


def copy_retest_trials(runner: StudyRunner, retested: optuna.Study, folder: Path) -> None:
    """Copy the trials of a re-test into the new study, with their files; those that are there stay.

    Their checkpoints come along, since one of them may stay the best; so do curves and seeds. They are trials of the
    same parameters on the same data, so surrogate and pruner learn from them as from all others.

    Args:
        runner: Of the new study.
        retested: The study of the re-test.
        folder: Its folder.
    """
    with runner.lock():
        there = runner.study.get_trials(deepcopy=False)
        if any("retest" not in t.user_attrs for t in there):  # it has begun to search
            return
        ended = retested.get_trials(deepcopy=False, states=_ENDED)
        for number, trial in list(enumerate(ended))[len(there) :]:
            files = StudyPaths(folder).trial(trial.number).root
            if files.is_dir():
                ignored = shutil.ignore_patterns(".claim")
                shutil.copytree(files, runner.paths.trial(number).root, dirs_exist_ok=True, ignore=ignored)
            brought = optuna.trial.create_trial(
                state=trial.state,
                value=trial.value if trial.state is TrialState.COMPLETE else None,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=trial.intermediate_values,
                user_attrs={**trial.user_attrs, "retest": trial.number},
            )
            brought.number = number
            brought.user_attrs.update(runner.sampler.describe(brought))
            runner.study.add_trial(brought)


def _name(root: StudyPaths) -> str:
    """Name of the next refreshing study: NAME-r2 after the first tuning."""
    return f"{root.root.name}-r{2 + sum(r['event'] == 'retuned' for r in records.read(root.ledger).records)}"


def _begun(root: StudyPaths, config: TuneConfig, trials: int | None) -> TuneConfig | None:
    """The configuration of a refreshing study that was stopped before its end, None if there is none."""
    folder = root.root.parent / _name(root)
    if not StudyPaths(folder).study.is_file():
        return None
    study, _ = find_study(str(folder))
    had = describe(study)
    brought = sum("retest" in t.user_attrs for t in study.get_trials(deepcopy=False))
    return replace(
        config,
        name=study.study_name,
        folder=folder,
        search=had.plan if trials is None else replace(had.plan, n_trials=brought + trials),
        caviar=Caviar(),
        previous=had.previous,
    )


def _latest(root: StudyPaths) -> StudyPaths:
    """The study that now holds the recorded best: the last one of the ledger."""
    tunings = [r for r in records.read(root.ledger).records if r["event"] in ("tuned", "retuned")]
    if not tunings:
        raise StudyError(f"{root.root} has not been tuned to its end: there is no record in {root.ledger.name}")
    if tunings[-1]["event"] == "tuned":  # in this folder, also where it is a copy of the one that was tuned
        return root
    folder = Path(tunings[-1]["study"])
    return StudyPaths(folder if folder.is_dir() else root.root.parent / folder.name)


def _with_best(space: SearchSpace, older: SearchSpace, best: Mapping[str, Any]) -> SearchSpace:
    """Today's space, opening at the older study's best.

    Raises:
        ConfigError: If the parameters are not those of the older study.
    """
    if [p.name for p in space.parameters] != [p.name for p in older.parameters]:
        changed = "; ".join(differences(older.to_dict(), space.to_dict()))
        raise ConfigError(f"`space` must have the parameters of the study that is refreshed; {changed}")
    natural = older.natural(best)
    return replace(
        space,
        parameters=tuple(replace(p, default=p.natural(p.store(natural[p.name]))) for p in space.parameters),  # type: ignore[arg-type]
    )


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
    if not _same_ranges(description.space, space):
        return None
    engine = Engine(description.space, description.plan.max_steps)
    trials = older_study.get_trials(deepcopy=False, states=_ENDED)
    model = engine.model(engine.curves(older_study, trials))
    return None if model is None else lambda units: model.final(units)[0]


def _same_ranges(older: SearchSpace, space: SearchSpace) -> bool:
    """Whether a position on the unit axes means the same value in both; defaults may differ."""
    pairs = zip(older.parameters, space.parameters, strict=True)
    return all(replace(p, default=q.default) == q for p, q in pairs)  # type: ignore[arg-type]


def _new_study(
    older_study: optuna.Study,
    root: StudyPaths,
    config: TuneConfig,
    space: SearchSpace,
    opening: Mapping[str, Any],
    tested: Retest | None,
    trials: int | None,
) -> TuneConfig:
    """The configuration of the study that refreshes ``found``."""
    description = describe(older_study)
    first = describe(find_study(str(root.root))[0])
    reader = CurveReader(description.space, description.plan.max_steps, description.mode == "max")
    older = older_study.get_trials(deepcopy=False, states=_ENDED)
    natural = space.natural(opening)
    opened = description.plan.sampler().planned[-1].tiers
    brought = 0
    if tested is not None:
        brought = len(tested.study.get_trials(deepcopy=False, states=_ENDED))
    length = brought + (trials or max(FEWEST, round(SHARE * first.plan.n_trials)))
    name = _name(root)
    return replace(
        config,
        name=name,
        folder=root.root.parent / name,
        search=SearchPlan(
            space=replace(space, parameters=tuple(replace(p, default=natural[p.name]) for p in space.parameters)),
            n_trials=length,
            seed=config.search.seed,
            plan="retune",
            older=curves_to_dicts(reader.read(older)) if _same_ranges(description.space, space) else (),
            opens_from={tier: 0 if tier in opened else length + 1 for tier in space.tiers},
        ),
        caviar=Caviar(),
        previous=str(root.root),
    )
