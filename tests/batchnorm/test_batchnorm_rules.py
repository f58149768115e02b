"""Each rule on a net with that fault, made from plain torch modules; a healthy net gets nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_hp.batchnorm.findings import SEVERITIES, THRESHOLDS, Finding, counts, in_order, resolve_thresholds
from lightning_hp.batchnorm.measure import measure
from lightning_hp.batchnorm.observe import CallRecorder, Step
from lightning_hp.batchnorm.rules import RULES, audit
from lightning_hp.batchnorm.snapshot import Facts, Snapshot
from lightning_hp.batchnorm.statistics import find_layers

ROWS = 64


def inputs(batches: int = 40, rows: int = ROWS, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 8, generator=generator) @ torch.diag(torch.arange(1.0, 9.0)) + 2 for _ in range(batches)]


def settled(rows: int = ROWS, **bn: object) -> tuple[nn.Sequential, list[Step]]:
    """A net whose statistics have seen enough of the data, and recorded steps."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16, **bn), nn.ReLU(),
        nn.Linear(16, 12, bias=False), nn.BatchNorm1d(12, **bn), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip
    recorder = CallRecorder(net)
    with torch.no_grad():
        for x in inputs(60, rows):
            with recorder.recording():
                net(x)
    return net, recorder.steps


def found(net: nn.Module, steps: list[Step], facts: Facts | None = None) -> list[Finding]:
    return audit(measure(net, steps, facts or Facts(trained_steps=60)))


def test_healthy_net_has_no_finding() -> None:
    assert found(*settled()) == []


def test_model_without_tracked_layers_has_no_finding() -> None:
    net = nn.Linear(3, 3)
    assert audit(measure(net, [])) == []


def _set(attribute: str, value: float, layer: int = 4) -> Callable[[nn.Sequential], None]:
    def change(net: nn.Sequential) -> None:
        getattr(net[layer], attribute).data[:4] = value

    return change


def _reset(net: nn.Sequential) -> None:
    net[4].reset_running_stats()


def _move_mean(net: nn.Sequential) -> None:
    net[4].running_mean += 0.4 * net[4].running_var.sqrt()


def _freeze(net: nn.Sequential) -> None:
    net[4].weight.requires_grad_(False)
    net[4].bias.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "rule", "severity"),
    [
        (_set("running_mean", float("nan")), "BN01", "ERROR"),
        (_set("running_var", -1.0), "BN01", "ERROR"),
        (_reset, "BN02", "ERROR"),
        (_freeze, "BN05", "WARN"),
        (lambda net: setattr(net[4], "track_running_stats", False), "BN05", "WARN"),
        (_move_mean, "BN06", "WARN"),
        (lambda net: net[4].running_var.mul_(1.5), "BN07", "WARN"),
        (lambda net: net[4].running_var.mul_(4.0), "BN07", "ERROR"),
        (_set("weight", 0.0), "BN15", "WARN"),
        (_set("bias", -9.0), "BN15", "WARN"),
        (lambda net: setattr(net[4], "eps", 1e3), "BN15", "WARN"),
    ],
)
def test_fault_in_one_layer_is_named_first_with_its_layer(
    change: Callable[[nn.Sequential], None], rule: str, severity: str
) -> None:
    net, steps = settled()
    with torch.no_grad():
        change(net)
    first = found(net, steps)[0]
    assert (first.id, first.severity, first.layer) == (rule, severity, "4")
    assert first.sentence
    assert first.fix


def test_half_precision_buffers_are_an_error_only_where_they_stall() -> None:
    for dtype, momentum, expected in ((torch.bfloat16, 0.01, "ERROR"), (torch.float16, 0.1, "WARN")):
        net, _ = settled(momentum=momentum)
        net.to(dtype)
        levels = {f.severity for f in audit(measure(net, [])) if f.id == "BN11"}
        assert levels == {expected}


def test_counters_that_move_outside_training_are_an_error() -> None:
    net, steps = settled()
    first = found(net, steps, Facts(eval_updates={"1": 3, "4": 0}))[0]
    assert (first.id, first.severity, first.layer) == ("BN03", "ERROR", "1")


def test_recomputation_and_domains_are_told_apart() -> None:
    net, steps = settled()
    again = found(net, steps, Facts(updates_per_step={"1": 2.0, "4": 2.0}))
    assert [(f.id, f.topic) for f in again] == [("BN04", "recomputed"), ("BN04", "recomputed")]

    for offset, level, topic in ((0.0, "INFO", "several_updates"), (6.0, "WARN", "domains")):
        net, _ = settled()
        recorder = CallRecorder(net)
        for one, two in zip(inputs(40, seed=1), inputs(40, seed=2), strict=True):
            with recorder.recording(), torch.no_grad():
                net(one)
                net(two + offset)
        first = found(net, recorder.steps, Facts(updates_per_step={"1": 2.0, "4": 2.0}))[0]
        assert (first.id, first.severity, first.topic, first.layer) == ("BN04", level, topic, "1")


def test_layer_in_eval_mode_during_training_is_told() -> None:
    net, steps = settled()
    net[4].eval()
    first = found(net, steps)[0]
    assert (first.id, first.topic, first.layer) == ("BN04", "no_update", "4")


@pytest.mark.parametrize(
    ("momentum", "rows", "rule"), [(1.0, 32, "BN09"), (0.9, 32, "BN09"), (0.1, 4, "BN12"), (0.1, 2, "BN12")]
)
def test_noise_and_small_batches(momentum: float, rows: int, rule: str) -> None:
    net, steps = settled(rows, momentum=momentum)
    assert found(net, steps)[0].id == rule


@pytest.mark.parametrize("facts", [Facts(world_size=2), Facts(accumulate=4)])
def test_eight_rows_are_enough_alone_but_not_on_each_rank_or_accumulated(facts: Facts) -> None:
    net, steps = settled(8)
    assert "BN12" not in [f.id for f in found(net, steps)]
    assert "BN12" in [f.id for f in found(net, steps, facts)]


def test_short_run_is_explained_by_its_start_value_and_not_otherwise() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16, momentum=0.02), nn.Linear(16, 4))
    recorder = CallRecorder(net)
    for x in inputs(20):
        with recorder.recording():
            net(x)
    first = found(net, recorder.steps)[0]
    assert (first.id, first.severity) == ("BN10", "WARN")
    assert first.numbers["left"] == pytest.approx(0.98**20)
    assert first.numbers["error_debiased"] < 0.3 * first.numbers["error"]
    # the same number of updates, but loaded from elsewhere: the start value is not the reason
    with torch.no_grad():
        net[1].running_mean.fill_(50.0)
    assert "BN10" not in [f.id for f in found(net, recorder.steps)]


@pytest.mark.parametrize(
    ("rows", "drop_last", "expected"),
    [(641, False, True), (641, True, False), (640, False, False), (642, False, False)],
)
def test_remainder_of_one_row(rows: int, drop_last: bool, expected: bool) -> None:
    net, steps = settled()
    facts = Facts(dataset_rows=rows, batch_size=ROWS, drop_last=drop_last)
    assert ("BN13" in [f.id for f in found(net, steps, facts)]) is expected


def test_sorted_batches_are_told_at_the_first_layer() -> None:
    net, _ = settled()
    recorder = CallRecorder(net)
    for index, x in enumerate(inputs(40)):
        with recorder.recording(), torch.no_grad():
            net(x + 4.0 * (index % 5))
    ids = [(f.id, f.layer) for f in found(net, recorder.steps)]
    assert ids[0] == ("BN14", "1")


def test_mode_dependent_input_is_told_at_the_first_layer() -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * x if self.training else x

    torch.manual_seed(0)
    net = nn.Sequential(Scale(), nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 4))
    recorder = CallRecorder(net)
    for x in inputs(60):
        with recorder.recording():
            net(x)
    assert [(f.id, f.severity, f.layer) for f in found(net, recorder.steps)] == [("BN17", "WARN", "2")]


def test_validation_inputs_that_differ_are_told() -> None:
    net, steps = settled()
    snapshot = measure(net, steps)
    seen = snapshot.data["1"].population
    facts = Facts(validation={"1": seen})
    assert audit(measure(net, steps, facts)) == []
    facts.validation["1"] = type(seen)(seen.n, seen.mean + 2.0 * seen.variance().sqrt(), seen.m2)
    assert [(f.id, f.severity, f.layer) for f in found(net, steps, facts)] == [("BN18", "WARN", "1")]


def advice(net: nn.Module, facts: Facts | None = None) -> list[tuple[str, str]]:
    recorder = CallRecorder(net)
    for x in inputs(60):
        with recorder.recording():
            net(x)
    findings = audit(measure(net, recorder.steps, facts or Facts()), rules=["BN16"])
    assert {f.severity for f in findings} <= {"INFO"}
    return [(f.topic, f.layer) for f in findings]


def test_advice_names_what_stands_around_a_layer() -> None:
    torch.manual_seed(0)
    assert advice(nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))) == [("redundant_bias", "1")]
    assert advice(nn.Sequential(nn.Linear(8, 6), nn.Sigmoid(), nn.BatchNorm1d(6))) == []
    assert advice(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.BatchNorm1d(6))) == [("norm_on_a", "2")]
    dropped = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6))
    assert advice(dropped) == [("dropout_before", "2")]
    assert advice(nn.Sequential(nn.BatchNorm1d(8, momentum=None))) == [("cumulative_average", "0")]
    maps = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.InstanceNorm2d(2, track_running_stats=True))
    assert advice(maps) == [("instance_norm_tracking", "1")]
    plain = nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6))
    assert advice(plain, Facts(decayed={"1"})) == [("decay_on_affine", "1")]


def test_batchnorm_as_only_regulariser_needs_a_real_gap() -> None:
    def facts(train: float, val: float, **changes: object) -> Facts:
        return Facts(any_decay=False, early_stopping=False, train_metric=train, val_metric=val, **changes)

    def net(*more: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), *more)

    assert advice(net(), facts(0.1, 0.5)) == [("only_regulariser", "")]
    assert advice(net(), facts(0.5, 0.5)) == []
    assert advice(net(nn.Dropout(0.1)), facts(0.1, 0.5)) == []
    assert advice(net(), Facts(any_decay=True, early_stopping=False, train_metric=0.1, val_metric=0.5)) == []


def test_measure_leaves_the_model_as_it_was_and_repeats_itself() -> None:
    net, steps = settled()
    net.insert(3, nn.Dropout(0.5))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, rng = [m.training for m in net.modules()], torch.get_rng_state()
    one, two = measure(net, steps), measure(net, steps)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert one.gap == two.gap
    assert {n: one.errors(n) for n in one.data} == {n: two.errors(n) for n in two.data}
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules()) == 0


def test_damage_is_the_change_of_outputs_when_population_statistics_are_put_in() -> None:
    net, steps = settled()
    with torch.no_grad():
        net[4].running_var.mul_(4.0)
    x = torch.cat([step[0].args[0] for step in steps])
    snapshot = measure(net, steps)
    net.eval()
    with torch.no_grad():
        given = net(x).log_softmax(1)
        for name, data in snapshot.data.items():
            layer = net.get_submodule(name)
            layer.running_mean.copy_(data.train.mean)
            layer.running_var.copy_(data.train.variance())
        right = net(x).log_softmax(1)
    kl = float(torch.nn.functional.kl_div(given, right, reduction="batchmean", log_target=True))
    assert snapshot.gap is not None
    assert kl > 1e-3
    assert snapshot.gap.kl == pytest.approx(kl, rel=1e-3)


def test_train_moments_do_not_depend_on_how_steps_are_ordered() -> None:
    net, steps = settled()
    one, two = measure(net, steps), measure(net, steps[::-1])
    for name in one.data:
        torch.testing.assert_close(one.data[name].train.mean, two.data[name].train.mean, rtol=1e-9, atol=1e-12)


def test_rules_and_thresholds_can_be_changed_and_wrong_names_are_refused() -> None:
    net, steps = settled()
    net[4].running_var.mul_(1.5)
    snapshot = measure(net, steps)
    assert {f.id for f in audit(snapshot, rules=["BN06"])} == set()
    assert audit(snapshot, thresholds={"noise_ratio": 1e6}) == []
    assert audit(snapshot, thresholds={"var_error": 0.3})[0].severity == "ERROR"
    with pytest.raises(ValueError, match=r"`rules` must hold ids .* got \['BN99'\]"):
        audit(snapshot, rules=["BN99"])
    with pytest.raises(ValueError, match=r"`thresholds` must use names .* got 'nope'"):
        audit(snapshot, thresholds={"nope": 1.0})


def test_findings_are_ordered_cause_first_and_counted() -> None:
    def one(rule: str, severity: str, layer: str) -> Finding:
        return Finding(rule, severity, layer, "t", "s", "f")

    given = [one("BN16", "INFO", "a"), one("BN08", "ERROR", "a"), one("BN06", "WARN", "b"), one("BN07", "ERROR", "b")]
    given += [one("BN05", "WARN", "b"), one("BN07", "ERROR", "a"), one("BN05", "INFO", "a")]
    told = [(f.id, f.severity, f.layer) for f in in_order(given, ["a", "b"])]
    assert told == [
        ("BN05", "WARN", "b"),
        ("BN07", "ERROR", "a"),
        ("BN07", "ERROR", "b"),
        ("BN06", "WARN", "b"),
        ("BN08", "ERROR", "a"),
        ("BN05", "INFO", "a"),
        ("BN16", "INFO", "a"),
    ]
    assert counts(given) == {"INFO": 2, "WARN": 2, "ERROR": 3}
    assert list(counts([])) == list(SEVERITIES)


def test_every_threshold_has_a_source_and_a_finding_needs_a_known_severity() -> None:
    assert all(threshold.source for threshold in THRESHOLDS.values())
    assert resolve_thresholds({"mean_warn": 0.3})["mean_warn"] == 0.3
    with pytest.raises(ValueError, match="`severity` must be one of"):
        Finding("BN01", "BAD", "", "", "", "")
    assert len({name for ids, _ in RULES for name in ids}) == 20


def test_snapshot_without_data_still_reports_states() -> None:
    net, _ = settled()
    net[1].reset_running_stats()
    assert [(f.id, f.layer) for f in audit(Snapshot(measure(net, []).layers))] == [("BN02", "1")]
    assert list(find_layers(net)) == ["1", "4"]
