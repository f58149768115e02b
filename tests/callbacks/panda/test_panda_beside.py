"""Probes as one stack: neighbours that train beside the training are what they would be one after the other."""

from __future__ import annotations

import dataclasses
import math
import warnings
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from panda_project import assert_equal, state_of, trainer
from test_panda_callback import Killer, Watch
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, RMSprop
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.callbacks import PandaBabysitter, ReplayPolicy
from lightning_hp.callbacks.panda import probes
from lightning_hp.callbacks.panda.history import Done, History, Intervention, Window
from lightning_hp.callbacks.panda.settings import Settings
from lightning_hp.training import BatchNormRegressor

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")

#: a difference of a thousandth of a standard error is one: almost every probe has a winner
EAGER = {"start_share": 0.0, "wind_down_share": 0.0, "on_overfitting": None, "z": 1e-3, "deviations": 1e9}


MOMENTUM = partial(SGD, lr=0.01, momentum=0.9)


class Plain(pl.LightningModule):
    """Without an attribute that a step changes: a stack can copy it."""

    def __init__(self, build=MOMENTUM, dropout=0.0):
        super().__init__()
        torch.manual_seed(3)
        layers = [nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1)]
        self.net, self.build = nn.Sequential(*layers), build

    def training_step(self, batch, index):
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        decayed = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.parameters() if parameter.ndim == 1]
        return self.build([{"params": decayed}, {"params": others, "weight_decay": 0.0, "lr": 0.01}])


class Rows(Plain):
    """Takes dictionaries, which no data set in memory gives."""

    def training_step(self, batch, index):
        return super().training_step((batch["x"], batch["y"]), index)

    def validation_step(self, batch, index):
        super().validation_step((batch["x"], batch["y"]), index)


def regressor(**options):
    """One of ours, which brings its own stacked step."""
    torch.manual_seed(3)
    return BatchNormRegressor(num_features=6, num_targets=1, hidden_units=8, **{"learning_rate": 0.02, **options})


class Ends(pl.Callback):
    """Keeps the state after each probe, and the log's numbers."""

    def __init__(self, panda):
        self.panda, self.states = panda, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.panda.history.count("probe_end") > len(self.states):
            self.states.append(state_of(pl_module, trainer.optimizers[0]))


def tensors(dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(80, 6, generator=draw)
    y = x[:, :1] - x[:, 1:2] + 0.1 * torch.randn(len(x), 1, generator=draw)
    return x.to(dtype), y.to(dtype)


def loader(rows=16, dtype=torch.float64, named=False):
    """80 rows in five mini-batches, always the same: a window of five steps reads all of them."""
    x, y = tensors(dtype)
    if named:
        return DataLoader([{"x": a, "y": b} for a, b in zip(x, y, strict=True)], rows)
    return DataLoader(TensorDataset(x, y), rows)


def fit(folder, module=None, callbacks=(), mode="probe", epochs=20, data=None, ckpt=None, panda=None, **options):
    settings = {**EAGER, **options.pop("settings", {})}
    dirpath = options.pop("dirpath", "")
    panda = panda or PandaBabysitter(mode, check_every=5, dirpath=dirpath, settings=settings, picture=False)
    pl.seed_everything(7, verbose=False)
    fitted = trainer(folder, [panda, *callbacks], epochs=epochs, **{"precision": "64-true", **options})
    module = module or Plain()
    data = data or loader(dtype=torch.float32 if options.get("precision") == "32-true" else torch.float64)
    fitted.fit(module, data, data, ckpt_path=ckpt)
    return panda, fitted


def ends_of(panda):
    return [done.what for done in panda.history.done if done.what.rule == "probe_end"]


OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.02),
    "momentum": partial(SGD, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "nesterov": partial(SGD, lr=0.01, momentum=0.9, nesterov=True),
    "dampened": partial(SGD, lr=0.02, momentum=0.9, dampening=0.5),
    "adam": partial(Adam, lr=2e-3, weight_decay=1e-3),
    "amsgrad": partial(Adam, lr=2e-3, amsgrad=True),
    "adamw": partial(AdamW, lr=2e-3, weight_decay=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_stack_decides_what_one_after_the_other_decides(tmp_path, name, clip):
    """The same mini-batches in every window: losses, decision and the winner's state of the first probe are the same.

    Where momentum is 0, the second probe, of momentum, shows that a buffer may begin in it.
    """
    runs = []
    for stacked in (True, False):
        panda = PandaBabysitter("probe", check_every=5, dirpath="", settings={**EAGER, "stack_probes": stacked})
        ends = Ends(panda)
        fit(tmp_path, Plain(OPTIMIZERS[name]), [ends], panda=panda, gradient_clip_val=clip)
        assert panda.history.not_stacked == ""
        runs.append((panda, ends))
    (one, first), (other, second) = runs
    assert [done.what.beside != () for done in one.history.done[:2]] == [True, False]
    assert all(done.what.beside == () for done in other.history.done)
    mine, theirs = ends_of(one)[0], ends_of(other)[0]
    assert mine.values.keys() == theirs.values.keys()
    assert list(mine.values.values()) == pytest.approx(list(theirs.values.values()), rel=1e-12)
    assert mine.values["learning_rate"] != one.history.done[0].before["learning_rate"], "a neighbour must win here"
    assert mine.numbers.keys() == theirs.numbers.keys()
    assert list(mine.numbers.values()) == pytest.approx(list(theirs.numbers.values()), rel=1e-9)
    assert first.states[0].keys() == second.states[0].keys()
    for key, value in first.states[0].items():
        expected = second.states[0][key]
        if "num_batches" not in key:
            torch.testing.assert_close(value.double(), expected.double(), rtol=1e-9, atol=1e-9, msg=key)
    assert one.history.done[1].step - one.history.done[0].step == 5
    assert other.history.done[3].step - other.history.done[0].step == 15


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"optimizer": "adam"}, {"optimizer": "adamw"}], ids=str)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_our_own_modules_train_as_one_stack(tmp_path, options, clip):
    """In double precision, with groups (decayed and not), whatever begins in the stack's optimizer."""
    more = {"weight_decay": 1e-3, **options} | ({"learning_rate": 2e-3} if "optimizer" in options else {})
    runs, ends = [], []
    for stacked in (True, False):
        panda = PandaBabysitter("probe", check_every=5, dirpath="", settings={**EAGER, "stack_probes": stacked})
        ends.append(Ends(panda))
        runs.append(fit(tmp_path, regressor(**more).double(), [ends[-1]], panda=panda, gradient_clip_val=clip)[0])
    assert runs[0].history.done[0].what.beside
    mine, theirs = (ends_of(run)[0] for run in runs)
    assert mine.values == pytest.approx(theirs.values, rel=1e-12)
    assert mine.numbers == pytest.approx(theirs.numbers, rel=1e-9)
    assert ends[0].states[0].keys() == ends[1].states[0].keys()
    for key, value in ends[0].states[0].items():
        torch.testing.assert_close(value.double(), ends[1].states[0][key].double(), rtol=1e-9, atol=1e-9, msg=key)


def test_single_precision_agrees_to_rounding(tmp_path):
    ends = []
    for stacked in (True, False):
        panda, _ = fit(
            tmp_path, Plain(OPTIMIZERS["adamw"]), settings={"stack_probes": stacked}, precision="32-true",
            data=loader(dtype=torch.float32),
        )  # fmt: skip
        ends.append(ends_of(panda)[0])
    assert ends[0].values == pytest.approx(ends[1].values, rel=1e-6)
    assert ends[0].numbers == pytest.approx(ends[1].numbers, rel=1e-4)


@pytest.mark.parametrize("way", ["dictionaries", "our own module"])
def test_other_data_and_modules_of_ours_are_stacked_too(tmp_path, way):
    if way == "dictionaries":
        build, data, options = lambda: Rows(OPTIMIZERS["momentum"]), loader(named=True), {}
    else:
        build, data, options = regressor, loader(dtype=torch.float32), {"precision": "32-true"}

    runs = [fit(tmp_path, build(), data=data, settings={"stack_probes": s}, **options)[0] for s in (True, False)]
    assert [run.history.not_stacked for run in runs] == ["", ""]
    mine, theirs = (ends_of(run)[0] for run in runs)
    assert runs[0].history.done[0].what.beside
    assert mine.values == pytest.approx(theirs.values, rel=1e-6)
    assert mine.numbers == pytest.approx(theirs.numbers, rel=1e-4)


def test_a_training_whose_probes_find_nothing_is_as_if_nobody_had_probed(tmp_path):
    """Dropout too: the neighbours draw random numbers of their own."""
    watched = []
    for mode in ("probe", "rules"):
        watch = Watch()
        quiet = {"z": 1e9, "patience_windows": 1000}
        panda, _ = fit(tmp_path, Plain(dropout=0.3), [watch], mode=mode, settings=quiet)
        watched.append(watch.states)
    assert panda.history.done == []
    assert watched[0].keys() == watched[1].keys()
    for step, state in watched[0].items():
        assert_equal(state, watched[1][step])


def test_the_log_and_the_optimizer_agree_after_each_probe(tmp_path):
    watch = Watch()
    panda, _ = fit(tmp_path, Plain(), [watch], dirpath=tmp_path, epochs=40, settings={"probe_share": 1.0})
    ends = [done for done in panda.history.done if done.what.rule == "probe_end"]
    assert len(ends) == 6
    assert any("got furthest" in done.what.why for done in ends)
    for done in ends:
        assert watch.values[done.step] == pytest.approx(done.what.values)
    for row in (row for row in panda.rows if row["what"] in ("learning_rate", "momentum", "weight_decay")):
        assert watch.values[row["step"]][row["what"]] == row["to"]


# --- killed, replayed ---


@pytest.mark.parametrize("ours", [False, True])
def test_a_training_killed_in_a_probe_ends_as_one_that_was_not(tmp_path, ours):
    """Windows of 7 steps and epochs of 5: checkpoints fall into the middle of probes."""

    def panda(name):
        settings = {**EAGER, "probe_share": 1.0}
        return PandaBabysitter("probe", check_every=7, dirpath=tmp_path / name, settings=settings, picture=False)

    build, options = regressor if ours else Plain, {"precision": "32-true"}  # Lightning resumes 64-true inexactly
    whole, fitted = fit(tmp_path, build(), panda=panda("whole"), **options)
    end = {name: value.clone() for name, value in fitted.lightning_module.state_dict().items()}
    cut = 0
    for epoch in range(1, 6):
        saver = ModelCheckpoint(tmp_path / f"c{epoch}", save_last=True)
        killed = [saver, Killer(epoch)]
        fit(tmp_path, build(), killed, panda=panda(f"r{epoch}"), enable_checkpointing=True, **options)
        path = tmp_path / f"c{epoch}" / "last.ckpt"
        saved = torch.load(path, weights_only=True)["callbacks"]["PandaBabysitter"]
        cut += saved["neighbours"] is not None and len(saved["neighbours"]["losses"]) > 0
        again, refitted = fit(tmp_path, build(), panda=panda(f"r{epoch}"), ckpt=path, **options)
        assert again.history.done == whole.history.done
        assert_equal(dict(refitted.lightning_module.state_dict()), end)
    assert cut >= 2, "this test must interrupt probes"


@pytest.mark.parametrize("ours", [False, True])
def test_a_replay_has_the_same_neighbours(tmp_path, ours):
    build, options = (regressor, {"precision": "32-true"}) if ours else (partial(Plain, dropout=0.2), {})
    first, again = Watch(), Watch()
    panda, _ = fit(tmp_path, build(), [first], dirpath=tmp_path, **options)
    assert any("got furthest" in end.why for end in ends_of(panda))
    replay = PandaBabysitter(policy=ReplayPolicy(tmp_path / "panda.jsonl"), dirpath="")
    fit(tmp_path, build(), [again], panda=replay, **options)
    for step, state in first.states.items():
        assert_equal(state, again.states[step])
    assert first.values == again.values
    replay = PandaBabysitter(policy=ReplayPolicy(tmp_path / "panda.jsonl"), dirpath="", check_every=2)
    with pytest.raises(ValueError, match="`policy` must replay probes that this training can make, got a stack: grad"):
        fit(tmp_path, build(), panda=replay, accumulate_grad_batches=2, **options)


# --- what cannot be copied ---


class Looks(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pass


class Hooked(Plain):
    def on_before_zero_grad(self, optimizer):
        pass


class Closed(Plain):
    """Its copies would train the module itself."""

    def __init__(self):
        super().__init__()
        self.predict = lambda x: self.net(x)

    def training_step(self, batch, index):
        return nn.functional.mse_loss(self.predict(batch[0]), batch[1])


class Whole(Plain):
    def training_step(self, batch, index):
        assert self.trainer.max_epochs
        return super().training_step(batch, index)


REFUSED = {
    "gradients are accumulated over 2 mini-batches": {"accumulate_grad_batches": 2},
    "precision bf16-mixed is not stacked": {"precision": "bf16-mixed", "data": loader(dtype=torch.float32)},
    "the callback WeightAveraging belongs to one training": {"callbacks": lambda: [WeightAveraging()]},
    "the callback Looks has on_train_batch_start, which may change a step": {"callbacks": lambda: [Looks()]},
    "Hooked overrides on_before_zero_grad": {"module": Hooked},
    "the loss of a copy does not depend on its net.0.weight": {"module": Closed},
    "a step uses self.trainer.max_epochs": {"module": Whole},
    "forward of Linear is replaced, or compiled": {"module": lambda: replaced(Plain())},
    "a hook is registered on Linear": {"module": lambda: hooked(Plain())},
}


def replaced(module):
    layer = module.net[0]
    layer.forward = layer.forward
    return module


def hooked(module):
    module.net[0].register_forward_hook(lambda *arguments: None)
    return module


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_copied_is_probed_one_after_the_other_and_told_once(tmp_path, reason):
    options = dict(REFUSED[reason])
    build, callbacks = options.pop("module", Plain), options.pop("callbacks", list)
    runs = []
    for stacked in (True, False):
        watch = Watch()
        more = [watch, *callbacks()]
        runs.append((fit(tmp_path, build(), more, epochs=40, settings={"stack_probes": stacked}, **options)[0], watch))
    (tried, mine), (told, theirs) = runs
    assert reason in tried.history.not_stacked
    said = [row["why"] for row in tried.rows if row["what"] == "probes"]
    assert said == [f"no stack: {tried.history.not_stacked}"]
    assert tried.history.count("probe_end") > 1
    assert tried.history.done == told.history.done
    for step, state in mine.states.items():
        assert_equal(state, theirs.states[step])


def test_a_step_without_a_loss_in_a_probe_gives_the_neighbours_up(tmp_path):
    class Skips(Plain):
        def training_step(self, batch, index):
            return None if self.global_step == 8 and index == 3 else super().training_step(batch, index)

    warnings.filterwarnings("ignore", "`training_step` returned `None`", UserWarning)
    with pytest.warns(UserWarning, match="gives up the neighbours of this probe: training_step returns no loss"):
        panda, _ = fit(tmp_path, Skips(), epochs=3, settings={"probe_share": 1.0})
    first = ends_of(panda)[0]
    assert list(first.numbers) == ["loss at 0.01", "error"]
    assert first.restore is None


def test_what_lightning_only_looks_with_is_no_hindrance(tmp_path):
    logger = CSVLogger(tmp_path)
    panda, _ = fit(tmp_path, Plain(), [LearningRateMonitor("step")], logger=logger, log_every_n_steps=1)
    assert panda.history.not_stacked == ""
    assert any(done.what.beside for done in panda.history.done)


@pytest.mark.parametrize("build", [partial(RMSprop, lr=1e-3), partial(NAdam, lr=1e-3)])
def test_any_optimizer_is_copied_with_a_module_that_is_not_ours(tmp_path, build):
    runs = [fit(tmp_path, Plain(build), settings={"stack_probes": stacked})[0] for stacked in (True, False)]
    assert runs[0].history.done[0].what.beside
    mine, theirs = (ends_of(run)[0] for run in runs)
    assert mine.numbers == pytest.approx(theirs.numbers, rel=1e-9)


# --- the decision ---


def test_a_neighbour_that_breaks_loses_and_one_that_holds_saves_a_broken_training():
    settings = Settings()
    begun = Intervention("probe", "", {"learning_rate": 0.1}, ("fork",), beside=(0.2, 0.05))
    begun.numbers.update({"candidate 0": 0.1, "candidate 1": 0.2, "candidate 2": 0.05})
    for levels, end in {
        (1.0, math.inf, 2.0): (0.1, None, ("good",)),
        (1.0, 0.2, math.nan): (0.2, "probe 1", ("probe 1",)),
        (math.inf, math.inf, 3.0): (0.05, "probe 2", ("probe 2",)),
        (math.nan, math.inf, math.inf): (0.1, "fork", ("probe 0",)),
        (1.0,): (0.1, None, ("good",)),
    }.items():
        windows = [Window(20, 0, 10, level, level, 0.01, finite=math.isfinite(level)) for level in levels]
        run = History(planned=1000, windows=[windows[0]], beside=windows[1:], values={"learning_rate": 0.1})
        run.done.append(Done(10, 0, begun, {"learning_rate": 0.1}))
        what = probes.ProbePolicy(settings).decide(run)
        assert (what.values["learning_rate"], what.restore, what.save) == end
        assert probes.probe_steps(History(done=[*run.done, Done(20, 0, what, {})])) == 20


def test_neighbours_beside_are_proposed_unless_they_cannot_be_or_are_not_wanted():
    window = Window(100, 0, 10, 1.0, 1.0, 0.01)
    for settings, reason, beside in [
        (Settings(start_share=0.0), "", (0.2, 0.05)),
        (Settings(start_share=0.0, stack_probes=False), "", ()),
        (Settings(start_share=0.0), "no stack", ()),
    ]:
        run = History(planned=1000, windows=[window], values={"learning_rate": 0.1}, not_stacked=reason)
        assert probes.begin(run, settings).beside == beside
        tight = dataclasses.replace(settings, probe_share=0.025)
        assert (probes.begin(run, tight) is None) is (beside == ()), "20 steps fit, 30 do not"
