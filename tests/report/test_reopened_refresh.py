"""A study that refreshes another one, opened again from its folder: its stages are those that its trials name."""

import optuna
import pytest
from decorated_studies import SPACE, STEPS, bowl

from lightning_hp.report.view import StudyView
from lightning_hp.search.curves import CurveReader, curves_to_dicts
from lightning_hp.search.plan import SearchPlan
from lightning_hp.study.description import Description, open_study
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import find_study, open_storage, write_study_pointer


def refresh(paths: StudyPaths, older: optuna.Study, n_trials: int) -> optuna.Study:
    """A short study that learns from the curves of an older one and opens the tiers that were open there."""
    curves = tuple(curves_to_dicts(CurveReader(SPACE, STEPS, False).read(older.trials)))
    opened = {tier: 0 if tier in "ABC" else n_trials + 1 for tier in SPACE.tiers}
    plan = SearchPlan(
        space=SPACE, n_trials=n_trials, max_steps=STEPS, seed=5, plan="retune", older=curves, opens_from=opened
    )
    described = Description(plan, "val_loss", "min")
    study = open_study(paths.root.name, open_storage("journal", paths), described, paths)
    write_study_pointer(paths, paths.root.name, "journal")
    study.sampler = plan.sampler()

    def objective(trial: optuna.Trial) -> float:
        value = bowl(SPACE.suggest(trial))
        trial.report(value, STEPS)
        return value

    study.optimize(objective, n_trials=n_trials)
    return study


@pytest.mark.parametrize("n_trials", [14, 18, 23])
def test_a_reopened_refresh_has_the_stages_and_boxes_of_the_sampler_that_drew_it(finished, tmp_path, n_trials):
    paths = StudyPaths(tmp_path / "digits-r2")
    drawn = refresh(paths, finished[0], n_trials)
    live = drawn.sampler.stages(drawn)
    reopened, _ = find_study(str(paths.root))
    view = StudyView.read(reopened)
    for trial in view.trials:
        assert view.stage_of(trial).name == trial.user_attrs["stage"]
    assert [(s.name, s.tiers, s.first, s.last) for s in view.stages] == [
        (s.name, s.tiers, s.first, s.last - 1) for s in live
    ]
    assert [dict(s.box or {}) for s in view.stages] == [dict(s.box or {}) for s in live]
    assert view.stages[-1].tiers == ("A", "B", "C")
    assert view.stages[0].interval("learning_rate") == (0.0, 1.0)
