"""The rules on histories that are written down, not trained."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from lightning_hp.callbacks.panda import rules
from lightning_hp.callbacks.panda.history import Done, History, Intervention, Validation, Window, summarise_losses
from lightning_hp.callbacks.panda.policies import keep_good
from lightning_hp.callbacks.panda.settings import Bounds, Settings, bounds_from, settings_from

PLANNED = 1000


def history(levels, *, rate=0.1, noise=0.01, moved=0.2, planned=PLANNED, steps=10, first=2.0, **values):
    """Windows of ten steps with these levels, all at one learning rate, of a training whose search is over."""
    made = History(planned=planned, values={"learning_rate": rate, **values})
    for index, level in enumerate(levels):
        finite = math.isfinite(level)
        made.windows.append(
            Window(
                step=(index + 1) * steps,
                epoch=0,
                steps=steps,
                first=first if index == 0 else levels[index - 1],
                level=level,
                noise=noise,
                moved=moved if finite else math.nan,
                grad_norm=1.0,
                finite=finite,
                values=dict(made.values),
            )
        )
    return made


def carried_out(made, what, back_to=None):
    """Enter an intervention at the last window, and set its values."""
    last = made.windows[-1]
    made.done.append(Done(last.step, last.epoch, what, dict(made.values), back_to))
    made.values.update(what.values)


# --- windows ---


def test_level_is_the_mean_of_the_second_half_and_noise_ignores_a_trend():
    falling = [10.0 - index for index in range(10)]
    first, level, noise = summarise_losses(falling)
    assert (first, level) == (10.0, 3.0)
    assert noise == pytest.approx(1 / math.sqrt(2))  # every difference is 1
    draw = random.Random(0)
    white = [draw.gauss(0, 2) for _ in range(4000)]
    assert summarise_losses(white)[2] == pytest.approx(2, rel=0.05)
    trended = [value + 0.01 * index for index, value in enumerate(white)]  # a fall of 40 over the window
    assert summarise_losses(trended)[2] == pytest.approx(2, rel=0.05)


def test_a_loss_that_is_not_finite_passes_through():
    assert math.isnan(summarise_losses([1.0, math.nan, 1.0])[1])


def test_windows_that_a_rollback_threw_away_are_not_kept():
    made = history([1.0, 0.9, 0.8, 5.0])
    carried_out(made, Intervention("divergence", "", restore="good"), back_to=20)
    assert [window.step for window in made.kept()] == [10, 20]


def test_a_history_survives_plain_types():
    made = history([1.0, 0.9], momentum=0.9)
    made.validations.append(Validation(20, 1, 0.5))
    carried_out(made, Intervention("plateau", "flat", {"learning_rate": 0.03}, save=("a",), numbers={"slope": 0.1}))
    assert History.from_dict(made.to_dict()) == made


@pytest.mark.parametrize(
    ("planned", "steps", "every"), [(1000, 10, 50), (3000, 50, 100), (9000, 100, 300), (None, 50, 50)]
)
def test_the_last_good_state_is_kept_every_fifty_steps_or_thirty_times_a_training(planned, steps, every):
    falling = history([1.0 - 0.01 * index for index in range(60)], planned=planned, steps=steps)
    settings, kept = Settings(start_share=0.0), []
    for end in range(1, 61):
        until = dataclasses.replace(falling, windows=falling.windows[:end])
        if keep_good(until, settings):
            kept.append(until.step)
    assert kept == [step for step in range(steps, 60 * steps + 1, steps) if step % every == 0]
    worse = history([1.0, 2.0], planned=planned, steps=every)
    assert keep_good(worse, settings) == ()


@pytest.mark.parametrize("closed", ["tier", "scheduler"])
def test_a_learning_rate_that_is_out_of_reach_is_never_set(closed):
    """What does set it, where it may, in the same histories."""
    broken = history([1.0, 0.9, 0.8, 0.7, math.nan])
    far = history([1.0, 0.9, 0.8, 0.7, 100.0])
    late = history([1.0 - 0.001 * index for index in range(80)])
    flat = history([1.0] * 60)
    start = history([1.9], moved=1e-4)
    expected = {"divergence": (broken, far), "wind_down": (late,), "plateau": (flat,), "slow_start": (start,)}
    settings = Settings(tiers=("B",)) if closed == "tier" else Settings()
    for rule, histories in expected.items():
        for one in histories:
            assert rules.decide(one, Settings()).rule == rule
            one.hands_off = ("learning_rate", "momentum", "beta1") if closed == "scheduler" else ()
            decision = rules.decide(one, settings)
            if rule == "divergence":
                assert (decision.restore, decision.values["learning_rate"]) == ("good", 0.1)
            else:
                assert decision is None
    again = history([1.0, 0.9, 0.8, 0.7, 100.0, 100.0])
    again.done.append(Done(50, 0, Intervention("divergence", "", restore="good"), {"learning_rate": 0.1}, 40))
    assert rules.decide(again, Settings()).rule == "divergence"
    again.hands_off = ("learning_rate",)
    assert rules.decide(again, Settings()) is None


# --- nothing to do ---


def test_a_healthy_training_is_left_alone_until_the_wind_down():
    levels = [2 * 0.93**index for index in range(64)]
    for end in range(1, len(levels)):
        assert rules.decide(history(levels[:end], moved=0.2 if end > 1 else 0.35), Settings()) is None


def test_a_paused_panda_decides_nothing():
    made = history([1.0, math.nan])
    assert rules.decide(made, Settings()) is not None
    made.paused = True
    assert rules.decide(made, Settings()) is None


# --- divergence ---


@pytest.mark.parametrize("level", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_goes_back_with_a_smaller_rate(level):
    decision = rules.decide(history([1.0, 0.9, 0.8, level]), Settings())
    assert (decision.rule, decision.restore) == ("divergence", "good")
    assert decision.values["learning_rate"] == pytest.approx(0.03)


def test_a_loss_far_above_its_best_diverges_and_one_within_the_noise_does_not():
    calm = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert rules.decide(history([*calm, 1.1], noise=0.01), Settings()).rule == "divergence"
    assert rules.decide(history([*calm, 0.53], noise=0.01), Settings()) is None
    assert rules.decide(history([*calm, 1.1], noise=0.2), Settings()) is None, "six deviations are 1.2"


def test_an_exploding_gradient_diverges_only_while_the_loss_suffers():
    made = history([1.0, 0.9, 0.8, 0.7, 0.75])
    made.windows[-1] = dataclasses.replace(made.windows[-1], grad_norm=60.0)
    assert rules.decide(made, Settings()).why == "the gradient exploded"
    made.windows[-1] = dataclasses.replace(made.windows[-1], level=0.65)
    assert rules.decide(made, Settings()) is None


def test_a_second_divergence_in_a_row_cuts_more_and_shortens_the_memory():
    made = history([1.0, 0.9, 0.8, math.nan], momentum=0.999)
    first = rules.decide(made, Settings(start_share=0.0))
    carried_out(made, first, back_to=30)
    made.windows.append(dataclasses.replace(made.windows[-1], step=50, values=dict(made.values)))
    second = rules.decide(made, Settings(start_share=0.0))
    assert second.values["learning_rate"] == pytest.approx(0.1 * 0.3 * 0.1)
    assert second.values["momentum"] == pytest.approx(1 - 1 / 40)  # 4 % of 1,000 steps


def test_divergences_far_apart_are_not_in_a_row():
    made = history([1.0, 0.9, 0.8, math.nan])
    carried_out(made, rules.decide(made, Settings(start_share=0.0)), back_to=30)
    for step in (50, 60, 70, 80):
        made.windows.append(dataclasses.replace(made.windows[2], step=step, level=0.7, values=dict(made.values)))
    made.windows.append(dataclasses.replace(made.windows[3], step=90, values=dict(made.values)))
    again = rules.decide(made, Settings(start_share=0.0))
    assert again.values["learning_rate"] == pytest.approx(0.1 * 0.3 * 0.3)


def test_a_training_that_no_rate_helps_is_given_up_at_its_last_good_state():
    made = history([1.0, 0.9, 0.8])
    for number in range(6):
        made.windows.append(Window(40 + 10 * number, 0, 10, 1.0, math.nan, 0.0, finite=False, values=made.values))
        decision = rules.decide(made, Settings(start_share=0.0))
        assert (decision.restore, decision.stop) == ("good", number == 5)
        carried_out(made, decision, back_to=30)
    assert "no learning rate helps" in decision.why


def test_a_rate_never_leaves_its_bounds():
    settings = Settings(bounds=bounds_from({"learning_rate": (0.09, 0.2)}))
    assert rules.decide(history([1.0, math.nan]), settings).values["learning_rate"] == 0.09


# --- the search at the beginning ---


def attempt(made, level, moved, noise=0.02, first=2.0):
    step = made.step + 10
    finite = math.isfinite(level)
    made.windows.append(
        Window(step, 0, 10, first, level, noise, moved, 1.0, finite, dict(made.values)),
    )
    decision = rules.decide(made, Settings())
    if decision is not None:
        carried_out(made, decision, back_to=0 if decision.restore == "start" else None)
    return decision


def begin(rate=0.1, planned=PLANNED, **values):
    return History(planned=planned, values={"learning_rate": rate, **values})


def test_a_slow_start_is_raised_until_it_is_fast_then_left_alone():
    made = begin(0.001)
    assert attempt(made, 1.99, moved=0.001).values["learning_rate"] == pytest.approx(0.009)
    assert attempt(made, 1.9, moved=0.01).values["learning_rate"] == pytest.approx(0.009 * 9)
    assert attempt(made, 1.2, moved=0.1) is None, "the loss fell by 40 %"
    assert attempt(made, 1.1, moved=0.001) is None, "the search is over"
    assert [done.what.restore for done in made.done] == ["start"] * 2


def test_weights_that_jump_are_cut_by_what_is_wanted():
    made = begin(1.0)
    assert attempt(made, 1.5, moved=1.0).values["learning_rate"] == pytest.approx(0.1)
    assert made.done[0].what.rule == "too_fast"
    assert attempt(made, 1.2, moved=0.2) is None


def test_a_start_without_a_finite_loss_is_cut_ten_times():
    made = begin(1.0)
    assert attempt(made, math.nan, moved=math.nan).values["learning_rate"] == pytest.approx(0.1)


def test_a_raise_that_breaks_is_half_taken_back():
    made = begin(0.01)
    raised = attempt(made, 1.95, moved=0.01).values["learning_rate"]
    assert raised == pytest.approx(0.09)
    assert attempt(made, 5.0, moved=3.0).values["learning_rate"] == pytest.approx(0.03)  # between on the log scale
    assert attempt(made, 1.6, moved=0.1) is None, "a raise by 1.5 or more would reach what broke"


def test_a_raise_that_gets_less_far_is_taken_back():
    made = begin(0.01)
    assert attempt(made, 1.5, moved=0.05).rule == "slow_start"
    back = attempt(made, 1.8, moved=0.2)
    assert (back.rule, back.values["learning_rate"]) == ("too_fast", 0.01)


def test_a_rate_that_noise_hides_is_not_called_broken():
    """A first loss that happens to be low must not look like a rise while the weights hardly move."""
    made = begin(0.001)
    assert attempt(made, 1.4, moved=0.001, first=1.0).rule == "slow_start"


def test_tier_b_waits_for_the_rate_and_a_long_memory_is_then_shortened():
    made = begin(0.1, momentum=0.999)
    assert attempt(made, 1.99, moved=0.001).rule == "slow_start", "A first"
    decision = attempt(made, 1.2, moved=0.1)
    assert decision.rule == "memory"
    assert decision.values["momentum"] == pytest.approx(1 - 1 / 40)


def test_a_closed_tier_is_not_touched():
    settings = Settings(tiers=("A",))
    made = history([1.0], moved=0.35, momentum=0.999, batch_size=4.0)
    assert rules.decide(made, settings) is None
    beta = history([1.0], moved=0.35, beta1=0.999)
    assert rules.decide(beta, Settings()) is None, "D never unless told"
    assert rules.decide(beta, Settings(tiers=("A", "B", "D"))).rule == "memory"


def test_too_few_steps_ask_for_smaller_batches_and_tiny_batches_for_larger_ones():
    few = history([1.0], moved=0.35, planned=60, batch_size=640.0)
    assert rules.decide(few, Settings()).values["batch_size"] == 64
    tiny = history([1.0], moved=0.35, batch_size=4.0)
    assert rules.decide(tiny, Settings()).values["batch_size"] == 16


def with_new_batches(made, asked, planned=1000):
    """The history when the loader of a changed batch size is in place."""
    carried_out(made, asked)
    made.loader_since, made.planned = made.step, planned
    return made


def test_the_batch_size_goes_before_a_search_of_the_rate():
    slow = history([2.0], moved=0.001, planned=60, batch_size=640.0)
    assert rules.decide(slow, Settings()).rule == "batch"
    assert rules.decide(history([2.0], moved=0.001, batch_size=64.0), Settings()).rule == "slow_start"


def test_training_begins_again_with_new_batches_from_its_first_rate():
    made = history([2.0], rate=0.02, planned=60, batch_size=640.0)
    asked = rules.decide(made, Settings())
    carried_out(made, Intervention("divergence", "", {"learning_rate": 0.001}, restore="good"))
    again = rules.begin_again(with_new_batches(made, asked))
    assert (again.restore, again.values) == ("start", {"learning_rate": 0.02, "batch_size": 64.0})


def test_a_rate_that_a_person_set_stays_when_training_begins_again():
    made = history([2.0], rate=0.02, planned=60, batch_size=640.0)
    carried_out(made, Intervention("nudge", "", {"learning_rate": 0.3}, by="person"))
    asked = rules.keep_values(rules.batch(made, Settings()), made)
    assert rules.begin_again(with_new_batches(made, asked)).values["learning_rate"] == 0.3


@pytest.mark.parametrize("rule", ["nudge", "plateau"])
def test_training_goes_on_with_new_batches_that_nobody_began_again_for(rule):
    made = history([2.0, 1.0], batch_size=64.0)
    assert rules.begin_again(with_new_batches(made, Intervention(rule, "", {"batch_size": 128.0}))) is None


def test_a_start_is_counted_from_the_new_batches():
    """Long after the beginning of the training, but at the beginning of that with new batches, the rate is searched."""
    made = history([2.0] * 40, moved=0.001, batch_size=640.0, planned=800)
    assert made.progress == 0.5
    assert rules.decide(made, Settings(patience_share=1.0)) is None
    made = with_new_batches(made, Intervention("batch", "", {"batch_size": 64.0}, restore="start"), planned=2000)
    made.windows.append(dataclasses.replace(made.windows[-1], step=made.step + 10))
    assert made.start_progress == pytest.approx(10 / 1600)
    assert rules.decide(made, Settings()).rule == "slow_start"


# --- the end, plateaus, overfitting ---


def test_the_wind_down_falls_linearly_to_its_end():
    settings, made = Settings(wind_down_share=0.4, start_share=0.0), begin(0.1)
    rates = []
    for index in range(1, 101):
        made.windows.append(Window(10 * index, 0, 10, 1.0, 1 / index, 0.0, 0.1, 1.0, True, dict(made.values)))
        decision = rules.decide(made, settings)
        if decision is not None:
            assert decision.rule == "wind_down"
            carried_out(made, decision)
        rates.append(made.values["learning_rate"])
    assert rates[58] == 0.1
    # the window from step 800 to 810 is at 80.5 % of the training
    assert rates[79] == pytest.approx(0.1 * (1 - 0.805) / 0.4)
    assert rates[-1] == pytest.approx(0.1 * settings.wind_down_to)


def test_a_flat_loss_decays_the_rate_and_a_falling_one_does_not():
    settings = Settings(patience_share=0.0, patience_windows=6, start_share=0.0)
    flat = [1.0, 0.99, 1.01, 1.0, 0.99, 1.01, 1.0]
    decision = rules.decide(history(flat, noise=0.02), settings)
    assert (decision.rule, decision.values) == ("plateau", {"learning_rate": pytest.approx(0.03)})
    falling = [1.0 - 0.02 * index for index in range(7)]
    assert rules.decide(history(falling, noise=0.02), settings) is None


def test_noise_alone_makes_few_raises_of_alarm():
    """On pure noise about a slow fall no rule but the wind-down fires in more than 5 % of checks."""
    draw, fired, checks = random.Random(1), 0, 0
    for _ in range(200):
        levels = [math.exp(-0.03 * index) + draw.gauss(0, 0.05 / math.sqrt(5)) for index in range(60)]
        made = history(levels[:1], noise=0.05, moved=0.35)
        for index in range(2, 61):
            made = history(levels[:index], noise=0.05, moved=0.35)
            checks += 1
            fired += rules.decide(made, Settings()) is not None and made.progress < 0.6
    assert fired / checks < 0.05


def test_a_flat_loss_of_weights_that_never_moved_is_raised_instead():
    settings = Settings(patience_share=0.0, patience_windows=6, start_share=0.0)
    decision = rules.decide(history([1.0, 0.99, 1.01, 1.0, 0.99, 1.01, 1.0], noise=0.02, moved=0.001), settings)
    assert (decision.rule, decision.values) == ("raise", {"learning_rate": pytest.approx(0.3)})
    learned = [1.0, *[0.5] * 7]
    assert rules.decide(history(learned, noise=0.02, moved=0.001), settings).rule == "plateau"


def test_momentum_nine_tenths_is_never_too_long():
    assert rules.decide(history([1.0], moved=0.35, planned=450, momentum=0.9, steps=5), Settings()) is None


def test_a_start_that_went_far_and_learned_nothing_begins_again_with_a_smaller_rate():
    made = begin(0.1)
    assert attempt(made, 1.99, moved=0.1).rule == "slow_start"
    decisions = [attempt(made, 1.9, moved=moved) for moved in (0.4, 0.9, 0.9, 0.9)]
    assert decisions[:3] == [None] * 3
    assert (decisions[3].rule, decisions[3].restore) == ("too_fast", "start")
    assert decisions[3].values["learning_rate"] == pytest.approx(0.3 * 0.3)
    learned = begin(0.1)
    assert attempt(learned, 1.99, moved=0.1).rule == "slow_start"
    assert [attempt(learned, level, moved=0.9 if level < 1.5 else 0.4) for level in (1.9, 1.4, 1.2, 1.1)] == [None] * 4


def test_weights_that_once_went_far_are_not_raised():
    settings = Settings(patience_share=0.0, patience_windows=6, start_share=0.0)
    made = history([1.0, 0.99, 1.01, 1.0, 0.99, 1.01, 1.0, 1.0], noise=0.02, moved=0.001)
    made.windows[0] = dataclasses.replace(made.windows[0], moved=4.0)
    assert rules.decide(made, settings).rule == "plateau"


def test_batches_grow_in_the_place_of_a_decay_where_that_is_asked_for():
    settings = Settings(patience_share=0.0, start_share=0.0, on_plateau="batch_growth")
    made = history([1.0] * 8, noise=0.02, batch_size=64.0)
    assert rules.decide(made, settings).values == {"batch_size": 128}
    without = history([1.0] * 8, noise=0.02)
    assert "learning_rate" in rules.decide(without, settings).values


def overfitted(direction=1):
    made = history([1 / (1 + index) for index in range(30)], weight_decay=0.0)
    made.direction = direction
    for index, value in enumerate([1.0, 0.8, 0.6, 0.5, 0.6, 0.72, 0.81, 0.93]):
        made.validations.append(Validation(30 * (index + 1), index, direction * value))
    return made


@pytest.mark.parametrize("direction", [1, -1])
def test_overfitting_raises_weight_decay_then_stops_at_the_best(direction):
    settings, made = Settings(start_share=0.0), overfitted(direction)
    decision = rules.decide(made, settings)
    assert (decision.rule, decision.values) == ("overfitting", {"weight_decay": 1e-3})
    stop = rules.decide(overfitted(direction), Settings(start_share=0.0, on_overfitting="stop"))
    assert (stop.restore, stop.stop) == ("best", True)
    assert rules.decide(overfitted(direction), Settings(start_share=0.0, on_overfitting=None)) is None


def test_a_validation_that_only_scatters_is_not_overfitting():
    made = overfitted()
    made.validations = [
        dataclasses.replace(one, value=value)
        for one, value in zip(made.validations, [1.0, 0.5, 0.9, 0.6, 0.8, 0.55, 0.9, 0.6], strict=True)
    ]
    assert rules.decide(made, Settings(start_share=0.0)) is None


def test_the_budget_ends_interventions_but_not_the_care_for_divergence():
    settings = Settings(budget=0, patience_share=0.0, start_share=0.0)
    assert rules.decide(history([1.0] * 10), settings) is None
    assert rules.decide(history([1.0, math.nan]), settings).rule == "divergence"


def test_the_cool_down_keeps_the_next_plateau_waiting():
    settings = Settings(patience_share=0.0, patience_windows=3, cool_down=5, start_share=0.0)
    made = history([1.0] * 4)
    carried_out(made, rules.decide(made, settings))
    for extra in range(1, 7):
        window = made.windows[-1]
        made.windows.append(dataclasses.replace(window, step=window.step + 10))
        assert (rules.decide(made, settings) is not None) == (extra > 5)


# --- settings ---


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"lr": (0, 1)}, "`hyperparameters` must name some of learning_rate, .*, got 'lr'"),
        ({"learning_rate": (1, 0.1)}, "`learning_rate` must have finite bounds, low below high, got 1.0 and 0.1"),
        ({"momentum": {"low": 0, "high": 0.9, "scale": "lin"}}, r"`momentum` must have one of the scales .* got 'lin'"),
        ({"momentum": {"low": 0, "high": 0.9, "tier": "E"}}, "`momentum` must have a tier from A to D, got 'E'"),
        ({"momentum": {"lower": 0}}, "`momentum` must have keys low, high, scale, tier, got 'lower'"),
    ],
)
def test_bounds_that_are_none_are_refused(mapping, message):
    with pytest.raises(ValueError, match=message):
        bounds_from(mapping)


def test_an_entry_of_a_search_space_is_understood():
    space = {
        "model.init_args.learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A", "default": 0.01},
        "data.init_args.batch_size": {"choices": [32, 64, 128], "tier": "B"},
    }
    bounds = bounds_from(space)
    assert bounds["learning_rate"] == Bounds(1e-4, 1.0, "log", "A")
    assert (bounds["batch_size"].low, bounds["batch_size"].high) == (32, 128)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"raise": 3}, r"`settings` must name some of .*, got 'raise'"),
        ({"cut_factor": 1.0}, "`cut_factor` must be above 0 and below 1, got 1.0"),
        ({"tiers": ["X"]}, r"`tiers` must be letters from A to D, got \('X',\)"),
        ({"on_plateau": "grow"}, r"`on_plateau` must be one of .*, got 'grow'"),
    ],
)
def test_settings_out_of_range_are_refused(mapping, message):
    with pytest.raises(ValueError, match=message):
        settings_from(mapping, bounds_from(None))


def test_neighbours_on_the_scale_of_one_minus_log():
    bounds = Bounds(0.0, 0.999, "one_minus_log", "B")
    assert bounds.moved(0.9, 2) == pytest.approx(0.95)
    assert bounds.moved(0.9, 0.5) == pytest.approx(0.8)
    assert bounds.moved(0.998, 10) == 0.999
