"""The study that refreshes an older one: its name, its plan, the trials of the re-test that it begins with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from lightning_hp.ledger import records
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.retests.race import engine_of
from lightning_hp.retests.retest import Retest
from lightning_hp.search.curves import CurveReader, curves_to_dicts
from lightning_hp.search.plan import SearchPlan
from lightning_hp.space.space import SearchSpace, differences
from lightning_hp.study.description import describe
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import StudyError, find_study
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.runner import StudyRunner

#: What a refreshing study adds to the trials of the re-test, in parts of the first study's trials.
SHARE = 1 / 4
#: It adds at least so many.
FEWEST = 6
#: Trials that a later study learns from.
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


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
        ended = retested.get_trials(deepcopy=False, states=ENDED)
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


def next_name(root: StudyPaths) -> str:
    """Name of the next refreshing study: NAME-r2 after the first tuning."""
    return f"{root.root.name}-r{2 + sum(r['event'] == 'retuned' for r in records.read(root.ledger).records)}"


def begun_study(root: StudyPaths, config: TuneConfig, trials: int | None) -> TuneConfig | None:
    """The configuration of a refreshing study that was stopped before its end, None if there is none."""
    folder = root.root.parent / next_name(root)
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
        caviar=engine_of(config.caviar),
        previous=had.previous,
    )


def latest_study(root: StudyPaths) -> StudyPaths:
    """The study that now holds the recorded best: the last one of the ledger."""
    tunings = [r for r in records.read(root.ledger).records if r["event"] in ("tuned", "retuned")]
    if not tunings:
        raise StudyError(f"{root.root} has not been tuned to its end: there is no record in {root.ledger.name}")
    if tunings[-1]["event"] == "tuned":  # in this folder, also where it is a copy of the one that was tuned
        return root
    folder = Path(tunings[-1]["study"])
    return StudyPaths(folder if folder.is_dir() else root.root.parent / folder.name)


def opening_at(space: SearchSpace, older: SearchSpace, best: Mapping[str, Any]) -> SearchSpace:
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


def same_ranges(older: SearchSpace, space: SearchSpace) -> bool:
    """Whether a position on the unit axes means the same value in both; defaults may differ."""
    pairs = zip(older.parameters, space.parameters, strict=True)
    return all(replace(p, default=q.default) == q for p, q in pairs)  # type: ignore[arg-type]


def new_study(
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
    older = older_study.get_trials(deepcopy=False, states=ENDED)
    natural = space.natural(opening)
    opened = description.plan.sampler().planned[-1].tiers
    brought = 0
    if tested is not None:
        brought = len(tested.study.get_trials(deepcopy=False, states=ENDED))
    length = brought + (trials or max(FEWEST, round(SHARE * first.plan.n_trials)))
    name = next_name(root)
    return replace(
        config,
        name=name,
        folder=root.root.parent / name,
        search=SearchPlan(
            space=replace(space, parameters=tuple(replace(p, default=natural[p.name]) for p in space.parameters)),
            n_trials=length,
            seed=config.search.seed,
            plan="retune",
            older=curves_to_dicts(reader.read(older)) if same_ranges(description.space, space) else (),
            opens_from={tier: 0 if tier in opened else length + 1 for tier in space.tiers},
        ),
        caviar=engine_of(config.caviar),
        previous=str(root.root),
    )
