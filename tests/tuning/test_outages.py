"""A storage that fails again and again, before or after it has done what it was asked for: the study stays the same."""

import random

import pytest
import toy_project as toy
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from lightning_hp.search.engine import Engine
from lightning_hp.space.space import SearchSpace
from lightning_hp.study import patience, storage
from lightning_hp.study.confirmed import CONFIRMS
from lightning_hp.study.database import QuickDatabase
from lightning_hp.tuning import runner as runner_module
from lightning_hp.tuning.config import Confirmation
from lightning_hp.tuning.confirmation import enqueue_round


class Outages:
    """Makes databases of files fail: ``fails(method)`` says at each call whether, as ``before``, ``after`` or not."""

    def __init__(self, monkeypatch, fails):
        self.fails, self.failures = fails, []
        kind = type("Failing", (QuickDatabase,), {})
        for name in [*QuickDatabase.__abstractmethods__, *patience.BaseStorage.__abstractmethods__, *patience._PRIVATE]:
            if hasattr(QuickDatabase, name):
                setattr(kind, name, self._failing(name))
        monkeypatch.setattr(storage, "QuickDatabase", patience.patient(kind))
        monkeypatch.setattr(patience, "FIRST_PAUSE", 0.0)
        monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.0)

    def _failing(self, name):
        method = getattr(QuickDatabase, name)

        def ask(database, *arguments, **options):
            when = self.fails(name)
            if when == "before":
                self._fail(name)
            answer = method(database, *arguments, **options)
            if when == "after":
                self._fail(name)
            return answer

        ask.__name__ = name
        return ask

    def _fail(self, name):
        self.failures.append(name)
        raise OperationalError("COMMIT", {}, Exception("server closed the connection"))


def told(trials):
    return [
        (t.number, t.state, t.params, t.value, t.intermediate_values, t.user_attrs.get(CONFIRMS), t.user_attrs["seed"])
        for t in trials
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_study_whose_storage_fails_all_the_time_is_the_same_study(studies, monkeypatch, seed, tmp_path):
    plain = studies.run("plain", trials=22, max_epochs=1, storage=f"sqlite:///{tmp_path}/plain.db")
    draw = random.Random(seed)
    outages = Outages(monkeypatch, lambda name: {0: "before", 1: "after"}.get(draw.randrange(40)))
    result = studies.run("outages", trials=22, max_epochs=1, storage=f"sqlite:///{tmp_path}/outages.db")
    assert len(outages.failures) > 20
    assert len(set(outages.failures)) >= 8
    assert told(result.study.trials) == told(plain.study.trials)
    assert (result.trial, result.confirmed) == (plain.trial, plain.confirmed)


@pytest.mark.parametrize(("when", "at"), [("before", 2), ("after", 1), ("after", 3)])
def test_no_confirmation_is_asked_for_twice(studies, monkeypatch, tmp_path, when, at):
    """The storage goes away while a round's trainings are asked for, one of three after the other."""
    run = {"trials": 20, "max_epochs": 1}
    plain = studies.run("plain", **run)
    created = []

    def fails(name):
        created.append(name == "_create_new_trial")
        # the first round is what is created after the search's 14 trials
        return when if created[-1] and sum(created) == 14 + at else None

    outages = Outages(monkeypatch, fails)
    said = []
    monkeypatch.setattr(runner_module.StudyRunner, "say", lambda runner, text: said.append(text))
    study = studies.run("away", **run, storage=f"sqlite:///{tmp_path}/away.db").study
    assert outages.failures == ["_create_new_trial"]
    assert told(study.trials) == told(plain.study.trials)
    assert any("`storage` does not answer" in line for line in said), "as a whole, since the lock went with the storage"


def test_a_race_that_was_cut_off_while_it_was_asked_for_is_the_same_race(studies, monkeypatch):
    """A process that is killed between two of a round's trainings leaves the others to the next one."""
    study = studies.run("toy", trials=14, max_epochs=1, confirm=False).study
    wanted, engine = Confirmation(candidates=3, seeds=2), Engine(SearchSpace.from_dict(toy.SPACE), None)
    before = len(study.trials)
    real, left = type(study).enqueue_trial, [1]

    def killed(self, *arguments, **options):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(self, *arguments, **options)

    monkeypatch.setattr(type(study), "enqueue_trial", killed)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        enqueue_round(study, engine, wanted)
    monkeypatch.undo()
    assert len(study.trials) == before + 1
    racing = enqueue_round(study, engine, wanted)
    assert len(racing) == 3
    waiting = study.trials[before:]
    assert [t.user_attrs[CONFIRMS] for t in waiting] == racing
    assert len({t.user_attrs["seed_number"] for t in waiting}) == 3
    assert enqueue_round(study, engine, wanted) == racing, "they wait still"
    assert len(study.trials) == before + 3
    first = study.ask()
    assert enqueue_round(study, engine, wanted) is None, "one of them runs"
    study.tell(first, state=TrialState.FAIL)
    assert enqueue_round(study, engine, wanted) == racing[1:], "the second round waits for the first"
    assert len(study.trials) == before + 3


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["set_trial_user_attr", "set_trial_state_values"])
def test_a_kept_result_is_stored_although_the_storage_goes_away_once_more(studies, monkeypatch, tmp_path, when, method):
    trained = []

    class Counted(toy.Toy):
        def on_fit_start(self):
            trained.append(self.trainer.default_root_dir)

    run = {"name": "kept", "model": Counted, "trials": 3, "storage": f"sqlite:///{tmp_path}/kept.db"}
    plain = studies.run("plain", trials=3)
    ends, away = [], [True]

    def fails(name):
        if away[0]:  # for good, from the end of the second trial on
            ends.extend([name] * (name == "set_trial_state_values"))
            return "before" if len(ends) >= 2 else None
        if name == method and not outages.failures:
            return when
        return None

    outages = Outages(monkeypatch, fails)
    with monkeypatch.context() as once:
        once.setattr(patience, "PATIENCE", -1.0)
        with pytest.raises(patience.StorageAwayError, match=r"the result of trial 1 is kept in .*0001/outcome\.json"):
            studies.run(**run)
    away[0] = False
    outages.failures.clear()
    study = studies.run(**run).study
    assert outages.failures == [method]
    assert told(study.trials) == told(plain.study.trials)
    assert len(trained) == 3, "it was not trained again"
