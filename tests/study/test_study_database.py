"""A study read in one go is the study that Optuna reads."""

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from lightning_hp.study.database import QuickDatabase
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import open_storage, quiet_optuna


@pytest.fixture
def url(tmp_path):
    """Two studies with every kind of trial, value, range and attribute."""
    url = f"sqlite:///{tmp_path}/study.db"
    ranges = {
        "rate": FloatDistribution(1e-4, 1.0, log=True),
        "layers": IntDistribution(1, 9, step=2),
        "norm": CategoricalDistribution((None, "batch", True, 3)),
    }
    rng = np.random.default_rng(0)
    with quiet_optuna():
        for name, values in (("one", 1), ("two", 2)):
            study = optuna.create_study(storage=url, study_name=name, directions=["minimize"] * values)
            for i in range(12):
                state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[i % 3]
                bad = (math.inf, -math.inf, math.nan)[i % 3]
                study.add_trial(
                    create_trial(
                        state=state,
                        values=[float(v) for v in rng.normal(size=values)] if state is TrialState.COMPLETE else None,
                        params={"rate": rng.uniform(0.1, 1), "layers": 1 + 2 * (i % 4), "norm": (None, True)[i % 2]},
                        distributions=ranges,
                        user_attrs={"stage": "1 coarse A", "audit": {"WARN": i}, "empty": None},
                        system_attrs={"fixed_params": {"rate": 0.1}},
                        intermediate_values={1: 0.5 * i, 2: bad, 3: 1.0},
                    )
                )
            study.enqueue_trial({"rate": 0.5})
            study.add_trial(create_trial(state=TrialState.COMPLETE, values=[math.inf] * values))
        running = study.ask()
        running.suggest_float("rate", 1e-4, 1.0, log=True)
        running.report(0.25, 1) if values == 1 else None
    return url


def told(trial):
    return {k: repr(v) for k, v in vars(trial).items()}


@pytest.mark.parametrize("name", ["one", "two"])
def test_every_field_of_every_trial_is_what_optuna_reads(url, name):
    quick, plain = QuickDatabase(url), RDBStorage(url)
    number = plain.get_study_id_from_name(name)
    ours, theirs = (s.get_all_trials(number) for s in (quick, plain))
    assert len(ours) == len(theirs) >= 14
    assert {t.state for t in ours} >= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert [told(t) for t in ours] == [told(t) for t in theirs]


def test_the_storage_that_is_opened_follows_a_study_as_it_grows(url, monkeypatch):
    read = []
    one_go = QuickDatabase._read
    monkeypatch.setattr(QuickDatabase, "_read", lambda self, study: read.append(study) or one_go(self, study))
    storage = open_storage(url, StudyPaths("nowhere"))
    number = storage.get_study_id_from_name("one")
    before = len(storage.get_all_trials(number))
    assert read == [number]
    other = optuna.load_study(study_name="one", storage=url)
    other.add_trial(create_trial(value=-5.0))
    assert len(storage.get_all_trials(number)) == before + 1
    assert storage.get_all_trials(number)[-1].value == -5.0
    assert read == [number]


def test_where_the_tables_are_not_as_expected_optuna_reads(url, monkeypatch):
    def broken(self, study):
        raise AttributeError("no such column")

    plain = RDBStorage(url)
    number = plain.get_study_id_from_name("one")
    monkeypatch.setattr(QuickDatabase, "_read", broken)
    ours = QuickDatabase(url).get_all_trials(number)
    assert [told(t) for t in ours] == [told(t) for t in plain.get_all_trials(number)]


def test_a_study_that_is_not_there_is_said_as_optuna_says_it(url):
    with pytest.raises(KeyError, match="not exist"):
        QuickDatabase(url).get_all_trials(99)
