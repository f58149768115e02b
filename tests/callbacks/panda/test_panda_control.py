"""A person's commands, replays and probes."""

from __future__ import annotations

import dataclasses
import json
import math
import threading

import pytest
import torch
from panda_project import Module, Script, assert_equal, data
from test_panda_callback import Watch, fit

from lightning_hp.callbacks import PandaBabysitter, ReplayPolicy
from lightning_hp.callbacks.panda import control, journal, probes
from lightning_hp.callbacks.panda.history import Done, History, Intervention, Window
from lightning_hp.callbacks.panda.settings import Settings, bounds_from

#: nothing but probes
QUIET = Settings(start_share=0.0, wind_down_share=0.0, patience_share=0.0, patience_windows=1000, stack_probes=False)
BOUNDS = bounds_from({"learning_rate": (1e-4, 1.0)})


def history(**values):
    return History(planned=1000, values={"learning_rate": 0.1, "momentum": 0.9, "batch_size": 32.0, **values})


def command(action="nudge", why="", **values):
    return control.Command("1", action, values, why)


# --- answers ---


def test_a_nudge_is_carried_out_with_the_persons_reason():
    answer = control.answer(command(learning_rate=0.003, why="looks noisy"), history(), BOUNDS)
    assert answer.accepted
    assert answer.intervention == Intervention("nudge", "looks noisy", {"learning_rate": 0.003}, by="person")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"lr": 0.1}, "`hyperparameter` must be one of batch_size, learning_rate, momentum, got 'lr'"),
        ({"beta1": 0.8}, "`hyperparameter` must be one of batch_size, learning_rate, momentum, got 'beta1'"),
        ({"learning_rate": 3}, "`learning_rate` must be a number from 0.0001 to 1, got 3"),
        ({"learning_rate": "fast"}, "`learning_rate` must be a number from 0.0001 to 1, got 'fast'"),
        ({"learning_rate": math.nan}, "`learning_rate` must be a number from 0.0001 to 1, got nan"),
        ({"momentum": True}, "`momentum` must be a number from 0 to 0.999, got True"),
        ({"batch_size": 40.5}, "`batch_size` must be a whole number, got 40.5"),
        ({"momentum": 0.5, "learning_rate": -1}, "`learning_rate` must be a number from 0.0001 to 1, got -1"),
    ],
)
def test_a_bad_name_or_value_is_refused_with_the_reason(values, reason):
    answer = control.answer(command(**values), history(), BOUNDS)
    assert (answer.accepted, answer.reason, answer.intervention) == (False, reason, None)


def test_what_a_scheduler_owns_is_refused():
    answer = control.answer(command(learning_rate=0.5), history(), BOUNDS, hands_off=("learning_rate",))
    assert answer.reason == "learning_rate belongs to the learning-rate scheduler of this run"


def test_pause_and_resume_say_when_there_is_nothing_to_do():
    run = history()
    assert control.answer(command("pause"), run, BOUNDS).paused is True
    assert control.answer(command("resume"), run, BOUNDS).reason == "the babysitter is already awake"
    run.paused = True
    assert control.answer(command("resume"), run, BOUNDS).paused is False
    assert control.answer(command("pause"), run, BOUNDS).reason == "the babysitter is already paused"


def test_undo_goes_back_one_change_at_a_time():
    run = history()
    for step, value in [(10, 0.03), (20, 0.01)]:
        what = Intervention("plateau", "", {"learning_rate": value})
        run.done.append(Done(step, 0, what, dict(run.values)))
        run.values["learning_rate"] = value
    for expected in (0.03, 0.1):
        what = control.answer(command("undo"), run, BOUNDS).intervention
        assert what.values == {"learning_rate": expected}
        run.done.append(Done(30, 0, what, dict(run.values)))
        run.values.update(what.values)
    assert control.answer(command("undo"), run, BOUNDS).reason == "there is nothing to undo"


def test_undo_of_a_training_that_winds_down_takes_back_what_was_decided_before():
    run = history()
    for rule, value in [("plateau", 0.03), ("wind_down", 0.02), ("wind_down", 0.01)]:
        what = Intervention(rule, "", {"learning_rate": value})
        run.done.append(Done(10, 0, what, dict(run.values)))
        run.values["learning_rate"] = value
    assert control.answer(command("undo"), run, BOUNDS).intervention.values == {"learning_rate": 0.1}


def test_a_file_that_is_no_command_is_refused_and_a_strange_action_too(tmp_path):
    (tmp_path / "panda_control").mkdir()
    (tmp_path / "panda_control" / "1.json").write_text("{half")
    (read,) = control.pending(tmp_path)
    assert "cannot be read" in control.answer(read, history(), BOUNDS).reason
    assert "`action` must be one of nudge" in control.answer(command("dance"), history(), BOUNDS).reason


def test_commands_are_read_whole_and_in_order_while_others_write(tmp_path):
    """Four people write at once while the run reads: nothing is lost, torn, or out of a person's own order."""

    def person(number):
        for index in range(25):
            control.request(tmp_path, "nudge", {"learning_rate": float(index)}, why=str(number))

    people = [threading.Thread(target=person, args=(number,)) for number in range(4)]
    for one in people:
        one.start()
    seen = []
    while any(one.is_alive() for one in people) or control.pending(tmp_path):
        for one in control.pending(tmp_path):
            assert not one.problem
            seen.append((one.why, one.values["learning_rate"]))
            control.done(tmp_path, one)
    for number in range(4):
        assert [value for why, value in seen if why == str(number)] == [float(index) for index in range(25)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("dance",), "`action` must be one of nudge, .*, got 'dance'"), (("nudge",), "`values` must name a hyperparam")],
)
def test_a_request_is_checked_before_it_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        control.request(tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


# --- in a run ---


class Person(Watch):
    """Leaves commands at given steps."""

    def __init__(self, folder, todo):
        super().__init__()
        self.folder, self.todo = folder, todo

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        for action, values in self.todo.get(trainer.global_step, []):
            control.request(self.folder, action, values, why="I say so")


def test_a_run_answers_every_command_in_its_log_and_trains_on(tmp_path):
    todo = {
        4: [("nudge", {"learning_rate": 0.01}), ("nudge", {"lr": 1})],
        12: [("pause", {})],
        17: [("undo", {}), ("resume", {})],
        22: [("nudge", {"momentum": 0.5})],
    }
    person = Person(tmp_path, todo)
    panda = PandaBabysitter(check_every=5, dirpath=tmp_path, settings={"start_share": 0.0, "wind_down_share": 0.0})
    fitted, _ = fit(tmp_path, panda, callbacks=[person])
    assert fitted.global_step == 40
    rows = [row for row in journal.read_rows(tmp_path / "panda.jsonl") if "command" in row]
    seen = [(row["step"], row["what"], row["to"], row["accepted"]) for row in rows]
    assert seen == [
        (5, "learning_rate", 0.01, True),
        (5, "command", "nudge", False),
        (15, "command", "pause", True),
        (20, "learning_rate", 0.05, True),
        (20, "command", "resume", True),
        (25, "momentum", 0.5, True),
    ]
    assert "must be one of" in rows[1]["why"]
    assert {row["by"] for row in rows} == {"person"}
    assert [person.values[step]["learning_rate"] for step in (4, 6, 16, 21)] == [0.05, 0.01, 0.01, 0.05]
    assert person.values[26]["momentum"] == 0.5
    assert control.pending(tmp_path) == []


def test_a_stop_ends_the_fit_in_the_ordinary_way(tmp_path):
    panda = PandaBabysitter(check_every=5, dirpath=tmp_path)
    fitted, _ = fit(tmp_path, panda, callbacks=[Person(tmp_path, {8: [("stop", {})]})])
    assert fitted.global_step == 10
    assert json.loads((tmp_path / "panda.json").read_text())["state"] == "ended"


@pytest.mark.parametrize("stacked", [False, True])
def test_a_command_waits_for_the_end_of_a_probe(tmp_path, stacked):
    settings = {"start_share": 0.0, "wind_down_share": 0.0, "stack_probes": stacked}
    panda = PandaBabysitter(mode="probe", check_every=5, dirpath=tmp_path, settings=settings, picture=False)
    person = Person(tmp_path, {7: [("nudge", {"momentum": 0.5})]})
    fit(tmp_path, panda, callbacks=[person], epochs=10)
    rules = [(done.step, done.what.rule) for done in panda.history.done[:5]]
    if stacked:
        assert rules[:3] == [(5, "probe"), (10, "probe_end"), (15, "nudge")]
    else:
        assert rules == [(5, "probe"), (10, "probe"), (15, "probe"), (20, "probe_end"), (25, "nudge")]
    assert person.values[26]["momentum"] == 0.5


# --- replay ---


@pytest.mark.parametrize("mode", ["rules", "probe"])
def test_a_replay_ends_with_the_same_weights(tmp_path, mode):
    first, again = Watch(), Watch()
    panda = PandaBabysitter(mode=mode, dirpath=tmp_path, check_every=4)
    fit(tmp_path, panda, Module(rate=1e-3, dropout=0.2, spoil_at=66), [first], epochs=10)
    assert {"slow_start", "divergence", "wind_down"} <= {done.what.rule for done in panda.history.done}
    if mode == "probe":
        assert panda.history.count("probe_end") >= 1
    replay = PandaBabysitter(policy=ReplayPolicy(tmp_path / "panda.jsonl"), dirpath=tmp_path / "replay")
    fit(tmp_path, replay, Module(rate=1e-3, dropout=0.2, spoil_at=66), [again], epochs=10)
    for step in first.states:
        assert_equal(first.states[step], again.states[step])
    assert first.values == again.values
    assert {done.what.by for done in replay.history.done} == {"replay"}


def test_a_replay_does_what_a_person_did(tmp_path):
    person, again = Person(tmp_path, {7: [("nudge", {"learning_rate": 0.2})], 9: [("nudge", {"x": 1})]}), Watch()
    fit(tmp_path, PandaBabysitter(policy=Script({}), check_every=4, dirpath=tmp_path), callbacks=[person])
    replay = PandaBabysitter(policy=ReplayPolicy(tmp_path / "panda.jsonl"), dirpath="")
    fit(tmp_path, replay, callbacks=[again])
    assert person.values == again.values
    assert again.values[9]["learning_rate"] == 0.2


def test_a_replay_changes_batch_sizes_where_the_run_did(tmp_path):
    first, again = Watch(), Watch()
    panda = PandaBabysitter(dirpath=tmp_path)
    fit(tmp_path, panda, Module(), [first], datamodule=data(batch_size=4), epochs=5)
    assert panda.history.count("batch") == 1
    replay = PandaBabysitter(policy=ReplayPolicy(tmp_path / "panda.jsonl"), dirpath="")
    fit(tmp_path, replay, Module(), [again], datamodule=data(batch_size=4), epochs=5)
    assert first.states.keys() == again.states.keys()
    assert_equal(first.states[max(first.states)], again.states[max(again.states)])


def test_a_log_that_is_none_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="`log` must begin with the beginning of a training"):
        ReplayPolicy(tmp_path / "empty.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\nnot json\n{"b": 2}\n')
    with pytest.raises(ValueError, match="must have a JSON object on every line, got 'not json'"):
        journal.read_rows(tmp_path / "broken.jsonl")


def test_a_last_line_that_a_kill_cut_is_left_out(tmp_path):
    (tmp_path / "cut.jsonl").write_text('{"a": 1}\n{"b":')
    assert journal.read_rows(tmp_path / "cut.jsonl") == [{"a": 1}]


# --- probes ---


def probe_run(levels, settings=None, noise=0.01, **values):
    """Feed windows of ten steps to a probe policy; return what it did. ``levels`` maps the rate to the level."""
    policy = probes.ProbePolicy(settings or QUIET)
    run = history(**values)
    for index in range(100):
        level = levels(run.values)
        run.windows.append(Window(10 * index + 10, 0, 10, level, level, noise, 0.1, 1.0, True, dict(run.values)))
        what = policy.decide(run)
        if what is not None:
            back_to = run.step if what.restore is not None else None
            run.done.append(Done(run.step, 0, what, dict(run.values), back_to))
            run.values.update(what.values)
    return run


def test_a_probe_tries_neighbours_from_one_snapshot_and_keeps_the_winner():
    run = probe_run(lambda values: abs(math.log(values["learning_rate"] / 0.4)) + 1)
    first = [done.what for done in run.done[:4]]
    assert [one.values["learning_rate"] for one in first] == [0.1, 0.2, 0.05, 0.2]
    assert [one.restore for one in first] == [None, "fork", "fork", "probe 1"]
    assert [one.save for one in first] == [("fork",), ("probe 0",), ("probe 1",), ("probe 2",)]
    assert set(first[3].drop) == {"fork", "probe 0", "probe 1", "probe 2"}
    assert run.values["learning_rate"] == pytest.approx(0.4), "two probes of the rate were enough"


def test_noise_keeps_the_present_value_and_the_next_probe_is_of_tier_b():
    generator = torch.Generator().manual_seed(0)

    def level(values):
        return 1 + 0.1 * torch.randn(1, generator=generator).item() / math.sqrt(5)

    changed = ends = 0
    for _ in range(40):
        run = probe_run(level, noise=0.1)
        finished = [done for done in run.done if done.what.rule == "probe_end"]
        ends += len(finished)
        changed += sum(
            {**done.before, **done.what.values} != {**done.before}
            for done in finished
            if "no neighbour" not in done.what.why
        )
        names = [next(iter(done.what.values)) for done in run.done if probes.FORK in done.what.save]
        assert names[0] == "learning_rate"
    assert ends > 100
    assert changed / ends < 0.10, "two comparisons at 2.3 % each, and their shared reference"
    kept = probe_run(lambda values: 1.0)
    names = [next(iter(done.what.values)) for done in kept.done if probes.FORK in done.what.save]
    assert names[:3] == ["learning_rate", "momentum", "learning_rate"]


def test_probes_keep_to_their_share_of_the_training():
    for share in (0.0, 0.05, 0.1, 0.25):
        settings = dataclasses.replace(QUIET, probe_share=share)
        run = probe_run(lambda values: 1.0, settings)
        assert probes.probe_steps(run) <= share * 1000
    assert probes.probe_steps(run) >= 100


def test_a_candidate_that_breaks_loses():
    def level(values):
        return math.inf if values["learning_rate"] > 0.15 else 1.0 / values["learning_rate"]

    run = probe_run(level)
    end = next(done.what for done in run.done if done.what.rule == "probe_end")
    assert (end.restore, end.values["learning_rate"]) == ("probe 0", 0.1)


def test_a_probe_restores_exactly_the_state_it_forked_from(tmp_path):
    watch = Watch()
    settings = {"start_share": 0.0, "stack_probes": False}
    panda = PandaBabysitter(mode="probe", check_every=5, dirpath="", settings=settings)
    fit(tmp_path, panda, Module(dropout=0.2), [watch], epochs=10)
    assert probes.FORK in {done.what.restore for done in panda.history.done}
    assert {row["what"] for row in panda.rows} >= {"learning_rate"}
    for index, done in enumerate(panda.history.done):
        if done.what.restore == probes.FORK:
            assert_equal(watch.states[done.step], watch.states[done.back_to])
        row = [row for row in panda.rows if row["id"] == index + 1 and row["what"] == "learning_rate"]
        assert all(watch.values[done.step]["learning_rate"] == one["to"] for one in row)
    assert panda.history.count("probe_end") >= 1
