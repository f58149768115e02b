"""The gate between two stages in real studies: answered, not answered, left with Ctrl-C, resumed, shared."""

import os
import signal

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note

from lightning_hp.search.stages import DECIDED
from lightning_hp.study.description import describe
from lightning_hp.study.questions import gate_name
from lightning_hp.study.storage import quiet_optuna
from lightning_hp.tuning import stage_gate as module
from lightning_hp.tuning.stage_gate import StageGate

#: twelve trials make stages that begin at trials 0, 4 and 9
TRIALS, BOUNDARIES = 12, ("4", "9")
ANSWERS = {"zoom here": 0, "widen": 1, "stop": 2}


@pytest.fixture
def answering(studies, monkeypatch):
    """Sets what a person answers, by the number of the trial before which they are asked; gives what was asked."""

    def answer(given):
        asked = []

        def sleep(gate, seconds):
            questions = optuna.load_study(study_name=gate_name("toy"), storage=gate._study._storage)
            (trial,) = questions.get_trials(states=(TrialState.RUNNING,))
            number = str(len(gate._study.get_trials()))
            asked.append((number, [t.state for t in gate._study.get_trials()]))
            said = given[number]
            if callable(said):
                return said(gate, seconds)
            questions.tell(trial.number, ANSWERS[said])
            return None

        monkeypatch.setattr(StageGate, "_sleep", sleep)
        return asked

    return answer


def boxes(studies, name="toy"):
    study = studies.open(name)
    return [stage.box for stage in describe(study).plan.sampler().stages(study)]


def run(studies, name="toy", **options):
    return studies.run(name, trials=TRIALS, max_epochs=1, **{"gate": {"timeout": "2m"}, **options})


def test_each_boundary_is_asked_about_once_when_all_before_it_has_ended(studies, answering):
    asked = answering({"4": "zoom here", "9": "widen"})
    run(studies)
    assert [number for number, _ in asked] == list(BOUNDARIES)
    assert all(state.is_finished() for _, states in asked for state in states)
    assert studies.open().user_attrs[DECIDED] == {"4": "zoom here", "9": "widen"}
    run(studies, "plain", gate=False)
    with_gate, plain = studies.trials(), studies.trials("plain")
    assert [t.params for t in with_gate[:4]] == [t.params for t in plain[:4]]
    assert [t.params for t in with_gate[4:9]] != [t.params for t in plain[4:9]]
    low, high = boxes(studies)[1]["learning_rate"]
    assert high - low < 1
    assert boxes(studies, "plain")[1]["learning_rate"] == (0.0, 1.0)


def test_stop_ends_the_study_as_any_other_end(studies, answering):
    answering({"4": "widen", "9": "stop"})
    result = run(studies)
    assert len(studies.trials()) == 9
    assert result.value == min(t.value for t in studies.trials())
    paths = studies.paths()
    assert paths.result.is_file()
    assert paths.ledger.is_file()
    assert paths.report.is_file()
    assert "stop" in studies.open().user_attrs["gate"]


def test_a_stopped_study_stays_so_until_it_shall_go_on(studies, answering):
    asked = answering({"4": "stop"})
    run(studies)
    run(studies)
    assert len(studies.trials()) == 4
    assert len(asked) == 1
    run(studies, gate=False)
    assert len(studies.trials()) == TRIALS


def test_where_nobody_answers_it_goes_on_as_planned_and_asks_no_more(studies):
    run(studies, gate={"timeout": 0.05})
    run(studies, "plain", gate=False)
    assert [t.params for t in studies.trials()] == [t.params for t in studies.trials("plain")]
    assert studies.open().user_attrs[DECIDED] == {"4": module.NOBODY, "9": module.NOBODY}


def test_ctrl_c_while_it_waits_leaves_and_the_question_is_taken_up_again(studies, answering):
    def interrupt(gate, seconds):
        os.kill(os.getpid(), signal.SIGINT)
        assert gate._stopping.is_set()
        raise module._StoppedError

    answering({"4": interrupt})
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run(studies)
    assert len(studies.trials()) == 4
    assert DECIDED not in studies.open().user_attrs
    asked = answering({"4": "zoom here", "9": "zoom here"})
    run(studies)
    assert [number for number, _ in asked] == list(BOUNDARIES)
    questions = optuna.load_study(study_name=gate_name("toy"), storage=studies.open()._storage).trials
    assert [t.state for t in questions] == [TrialState.COMPLETE] * 2


def test_an_answer_given_while_nothing_runs_counts(studies, answering):
    def leave(gate, seconds):
        gate._stopping.set()
        raise module._StoppedError

    answering({"4": leave})
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run(studies)
    with quiet_optuna():
        optuna.load_study(study_name=gate_name("toy"), storage=studies.open()._storage).tell(0, ANSWERS["stop"])
    asked = answering({})
    run(studies)
    assert asked == []
    assert len(studies.trials()) == 4


def test_a_study_that_is_resumed_between_boundaries_is_not_asked_about_the_past(studies, answering):
    studies.run(trials=6, max_epochs=1)
    asked = answering({"9": "widen"})
    run(studies)
    assert [number for number, _ in asked] == ["9"]


def test_the_question_shows_the_boxes_and_the_wait_is_told(studies, answering, monkeypatch):
    heard = []
    plain = StageGate.__init__

    def listening(gate, study, sampler, paths, timeout, say, stopping):
        plain(gate, study, sampler, paths, timeout, lambda text: heard.append(text) or say(text), stopping)

    monkeypatch.setattr(StageGate, "__init__", listening)
    answering({"4": "zoom here", "9": "widen"})
    run(studies)
    assert heard[0].startswith("stage 2 fine AB waits for your answer until ")
    assert f"lightning-hp dashboard {studies.paths().root}" in heard[0]
    assert studies.open().user_attrs["gate"] == "3 fine AB: widen"
    assert heard[1] == "stage 2 fine AB: zoom here"
    gate = optuna.load_study(study_name="toy gate", storage=studies.open()._storage)
    note = get_note(optuna.trial.Trial(gate, gate.trials[0]._trial_id))
    rows = [line.split("|")[1:-1] for line in note.splitlines() if line.startswith(r"| learning\_rate")]
    so_far, zoom, wide = (cell.strip() for cell in rows[0][2:])
    assert so_far == wide == "0.0001 – 1"
    assert zoom != so_far


@pytest.mark.slow
def test_two_processes_wait_for_one_answer(studies, fork):
    """One asks; both wait; a third party answers; together they do what one would have done."""
    children = [fork(lambda: run(studies)) for _ in range(2)]

    def answer_all():
        try:
            storage = studies.open()._storage
            questions = optuna.load_study(study_name=gate_name("toy"), storage=storage)
        except Exception:
            return False
        for trial in questions.get_trials(states=(TrialState.RUNNING,)):
            # its own note is written last; before that the process that asks still writes to the question
            if f"dashboard:{trial._trial_id}:note_ver" in storage.get_study_system_attrs(questions._study_id):
                with quiet_optuna():
                    questions.tell(trial.number, ANSWERS["widen"])
        return len(studies.open().user_attrs.get(DECIDED, {})) == 2

    children[0].until(answer_all)
    assert [child.wait() for child in children] == [0, 0], [child.output for child in children]
    trials = studies.trials()
    assert [t.number for t in trials] == list(range(TRIALS))
    assert studies.open().user_attrs[DECIDED] == {"4": "widen", "9": "widen"}
    questions = optuna.load_study(study_name=gate_name("toy"), storage=studies.open()._storage)
    assert len(questions.trials) == 2
    ends = [t.datetime_complete for t in trials]
    for boundary in (4, 9):
        assert max(ends[:boundary]) <= trials[boundary].datetime_start
