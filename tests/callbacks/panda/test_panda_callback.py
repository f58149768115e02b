"""The callback inside a real Trainer: rollbacks, resuming, and the company it must keep."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from panda_project import Data, Module, Script, assert_equal, data, state_of, trainer

from lightning_hp.callbacks import BatchNormAuditor, PandaBabysitter, StalenessTracker
from lightning_hp.callbacks.panda.history import Intervention
from lightning_hp.callbacks.panda.journal import read_rows
from lightning_hp.callbacks.panda.values import read_values

# a checkpoint names the callback that wrote it, and the resumed trainings here have none
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")

BACK = Intervention("divergence", "told to", restore="good")


class Watch(pl.Callback):
    """Runs after the babysitter: keeps the state and the values after every step (its first batch, if accumulated)."""

    def __init__(self):
        self.states, self.values = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        step = trainer.global_step
        self.states.setdefault(step, state_of(pl_module, trainer.optimizers[0]))
        self.values.setdefault(step, read_values(trainer.optimizers[0], trainer.datamodule))


def fit(folder, panda, module=None, callbacks=(), datamodule=None, ckpt=None, **options):
    pl.seed_everything(7, verbose=False)
    fitted = trainer(folder, [panda, *callbacks], **options)
    module = module or Module()
    fitted.fit(module, datamodule or data(), ckpt_path=ckpt)
    return fitted, module


def log_equals_optimizer(panda, watch):
    """Bar 7: after every line about a value, the optimizer has just that value."""
    checked = 0
    for row in panda.rows:
        if row["what"] in ("learning_rate", "momentum", "weight_decay", "batch_size"):
            later = [r for r in panda.rows if r["what"] == row["what"] and r["step"] == row["step"]]
            if later[-1] is row:
                assert watch.values[row["step"]][row["what"]] == row["to"]
                checked += 1
    return checked


# --- rollback ---


def test_a_rollback_is_exact_and_the_run_goes_on_deterministically(tmp_path):
    ends = []
    for attempt in range(2):
        module, watch = Module(spoil_at=17, dropout=0.2), Watch()
        panda = PandaBabysitter(
            policy=Script({20: Intervention("divergence", "", {"learning_rate": 0.01}, restore="good")}, keep=[15]),
            check_every=5,
            dirpath=tmp_path / str(attempt),
        )
        fit(tmp_path, panda, module, [watch])
        assert_equal(watch.states[20], watch.states[15])
        assert not all(torch.equal(watch.states[19][k], watch.states[15][k]) for k in watch.states[15])
        assert (watch.values[19]["learning_rate"], watch.values[20]["learning_rate"]) == (0.05, 0.01)
        ends.append(watch.states[40])
        assert [(row["what"], row["from"], row["to"]) for row in panda.rows[1:3]] == [
            ("weights", 20, 15),
            ("learning_rate", 0.05, 0.01),
        ]
    assert_equal(*ends)


def test_attempts_repeat_their_random_numbers_and_a_rolled_back_training_does_not(tmp_path):
    class Random(pl.Callback):
        def __init__(self):
            self.states = {}

        def on_train_start(self, trainer, pl_module):
            self.states[0] = torch.get_rng_state()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.states[trainer.global_step] = torch.get_rng_state()

    for name, kept, back, repeats in (("good", 5, 20, False), ("start", 0, 10, True)):
        drawn = Random()
        todo = {back: Intervention("divergence", "", restore=name)}
        panda = PandaBabysitter(policy=Script(todo, keep=[5]), check_every=5, dirpath="")
        fit(tmp_path, panda, Module(dropout=0.2), [drawn])
        assert panda.history.done[0].back_to == kept
        assert not torch.equal(drawn.states[back - 1], drawn.states[kept])
        assert torch.equal(drawn.states[back], drawn.states[kept]) is repeats


def test_a_spoilt_training_is_mended_by_the_rules(tmp_path):
    spoilt, _ = fit(tmp_path, Watch(), Module(spoil_at=25), epochs=8)
    assert not math.isfinite(spoilt.callback_metrics["val_loss"])
    watch = Watch()
    panda = PandaBabysitter(check_every=5, dirpath=tmp_path / "log", settings={"start_share": 0.0})
    mended, _ = fit(tmp_path, panda, Module(spoil_at=25), [watch], epochs=8)
    assert mended.callback_metrics["val_loss"] < 0.3
    assert panda.history.done[0].what.rule == "divergence"
    assert log_equals_optimizer(panda, watch) > 3


def test_a_loss_that_is_not_finite_is_met_before_validation_and_early_stopping(tmp_path):
    stopping = EarlyStopping("val_loss", check_finite=True, patience=100)
    panda = PandaBabysitter(check_every=7, dirpath="", settings={"start_share": 0.0})
    fitted, _ = fit(tmp_path, panda, Module(spoil_at=29), [stopping], epochs=8)  # 30 batches are three epochs
    assert fitted.current_epoch == 8
    assert panda.history.done[0].step == 30


def test_what_a_bad_start_needs(tmp_path):
    """A rate a thousand times too low, unattended and babysat, at equal epochs."""
    alone, _ = fit(tmp_path, Watch(), Module(rate=1e-5), epochs=12)
    watch = Watch()
    panda = PandaBabysitter(dirpath="")
    babysat, _ = fit(tmp_path, panda, Module(rate=1e-5), [watch], epochs=12)
    assert babysat.callback_metrics["val_loss"] < 0.3 * alone.callback_metrics["val_loss"]
    assert log_equals_optimizer(panda, watch) >= 2


@pytest.mark.parametrize("mode", ["rules", "probe"])
def test_two_runs_of_one_seed_are_one(tmp_path, mode):
    ends = []
    for _ in range(2):
        watch = Watch()
        fit(tmp_path, PandaBabysitter(mode=mode, dirpath=""), Module(rate=1e-3, dropout=0.2), [watch], epochs=8)
        ends.append(watch.states[80])
    assert_equal(*ends)


# --- resume ---


@pytest.mark.parametrize("mode", ["rules", "probe"])
@pytest.mark.parametrize("check_every", [4, 7])
def test_a_resumed_training_ends_as_one_that_was_not_killed(tmp_path, mode, check_every):
    """Checkpoints fall into windows and probes: with windows of 7 steps, and epochs of 10, nothing is aligned."""

    def panda(folder):
        return PandaBabysitter(mode=mode, check_every=check_every, dirpath=folder)

    whole, _ = fit(tmp_path, whole_panda := panda(tmp_path / "whole"), Module(rate=1e-3), epochs=10)
    end = {name: value.clone() for name, value in whole.lightning_module.state_dict().items()}
    for epoch in range(1, 8):
        saver = ModelCheckpoint(tmp_path / f"c{epoch}", save_last=True)
        first = panda(tmp_path / f"r{epoch}")
        fit(tmp_path, first, Module(rate=1e-3), [saver, Killer(epoch)], epochs=10, enable_checkpointing=True)
        second = panda(tmp_path / f"r{epoch}")
        resumed, _ = fit(tmp_path, second, Module(rate=1e-3), epochs=10, ckpt=tmp_path / f"c{epoch}" / "last.ckpt")
        assert_equal(dict(resumed.lightning_module.state_dict()), end)
        assert second.history.done == whole_panda.history.done
        assert second.history.windows == whole_panda.history.windows
    if mode == "probe":
        in_a_probe = [done.step for done in whole_panda.history.done if done.what.rule == "probe"]
        assert in_a_probe, "this test must interrupt a probe"


class Killer(pl.Callback):
    """Ends the process's work after the checkpoint of an epoch, as a kill would: nothing more is written."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.should_stop = True
            trainer.limit_val_batches = 0


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[3].split(os.pathsep)
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from panda_project import Module, data, trainer
import lightning.pytorch as pl
from lightning_hp.callbacks import PandaBabysitter

class Kill(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        last = pa.history.last()  # in a probe, in the middle of a window, some way into the training
        if last is not None and last.what.rule == "probe" and trainer.global_step - last.step == 2 and last.step > 20:
            os.kill(os.getpid(), signal.SIGKILL)

folder = sys.argv[1]
settings = {"stack_probes": sys.argv[4] == "stacked"}
pa = PandaBabysitter(mode="probe", check_every=4, dirpath=folder, picture=False, settings=settings)
more = [Kill()] if sys.argv[2] == "kill" else []
pl.seed_everything(7, verbose=False)
fitted = trainer(folder, [pa, ModelCheckpoint(folder, save_last=True), *more], epochs=10, enable_checkpointing=True)
fitted.fit(Module(rate=1e-3), data(), ckpt_path=folder + "/last.ckpt" if sys.argv[2] == "resume" else None)
import torch
torch.save(fitted.lightning_module.state_dict(), folder + "/end.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stacked", "in turn"])
def test_kill_minus_nine_in_the_middle_of_a_probe_changes_nothing(tmp_path, way):
    script = tmp_path / "worker.py"
    script.write_text(KILLED)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])

    def run(folder, word):
        command = [sys.executable, str(script), str(folder), word, paths, way]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    assert run(tmp_path / "whole", "whole").returncode == 0
    assert run(tmp_path / "cut", "kill").returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "end.pt").exists()
    assert run(tmp_path / "cut", "resume").returncode == 0
    assert_equal(*(torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("whole", "cut")))
    whole, cut = (read_rows(tmp_path / name / "panda.jsonl") for name in ("whole", "cut"))
    living = [row for row in cut if not row.get("lost") and row["why"] != "goes on from a checkpoint"]
    assert living == whole
    assert any(row.get("lost") for row in cut), "what came after the checkpoint is not forgotten"


def test_one_callback_serves_two_fits(tmp_path):
    panda = PandaBabysitter(dirpath="")
    fit(tmp_path, panda, Module(rate=1e-3), epochs=4)
    first = panda.history.to_dict()
    fit(tmp_path, panda, Module(rate=1e-3), epochs=4)
    assert panda.history.to_dict() == first


def test_a_training_without_a_planned_end_and_without_validation(tmp_path):
    class End(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = trainer.global_step >= 60

    panda = PandaBabysitter(dirpath="", check_every=5)
    fitted, _ = fit(tmp_path, panda, Module(rate=1e-4), [End()], epochs=-1, limit_val_batches=0)
    assert panda.history.planned is None
    assert panda.history.count("slow_start") >= 1
    assert panda.history.count("wind_down") == 0
    assert fitted.global_step == 60


def test_lines_after_the_checkpoint_stay_and_are_marked_lost(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    todo = {s: Intervention("nudge", "", {"learning_rate": r}, by="person") for s, r in [(10, 0.04), (25, 0.03)]}
    options = {"callbacks": [saver], "enable_checkpointing": True}
    fit(tmp_path, PandaBabysitter(policy=Script(todo), check_every=5, dirpath=tmp_path), **options)
    second = PandaBabysitter(policy=Script({}), check_every=5, dirpath=tmp_path)
    fit(tmp_path, second, ckpt=tmp_path / "epoch=1.ckpt")
    rows = read_rows(tmp_path / "panda.jsonl")
    rates = {row["to"]: row for row in rows if row["what"] == "learning_rate"}
    assert rates[0.04]["accepted"]
    assert not rates[0.04].get("lost")
    assert (rates[0.03]["accepted"], rates[0.03]["lost"]) == (False, True)
    assert second.history.values["learning_rate"] == 0.04


# --- optimizers, schedulers, precision, accumulation ---


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)


def test_a_scheduler_that_nobody_spoke_of_is_left_alone_and_that_is_said(tmp_path):
    watch, alone = Watch(), Watch()
    fit(tmp_path, Watch(), Module(schedule=cosine), [alone])
    panda = PandaBabysitter(dirpath="", check_every=5)
    with pytest.warns(UserWarning, match="leaves the learning rate to CosineAnnealingLR; scheduler='take_over'"):
        fit(tmp_path, panda, Module(schedule=cosine), [watch])
    assert {s: v["learning_rate"] for s, v in watch.values.items()} == {
        s: v["learning_rate"] for s, v in alone.values.items()
    }


def test_a_rollback_leaves_the_rate_of_a_scheduler_that_is_left_alone(tmp_path):
    watch, alone = Watch(), Watch()
    fit(tmp_path, Watch(), Module(schedule=cosine), [alone])
    panda = PandaBabysitter(policy=Script({25: BACK}, keep=[5]), check_every=5, scheduler="leave", dirpath="")
    fit(tmp_path, panda, Module(schedule=cosine), [watch])
    assert_equal(watch.states[25], watch.states[5])
    assert [v["learning_rate"] for v in watch.values.values()] == [v["learning_rate"] for v in alone.values.values()]


def test_a_scheduler_that_is_taken_over_steps_no_more(tmp_path):
    watch = Watch()
    panda = PandaBabysitter(policy=Script({}), check_every=5, scheduler="take_over", dirpath="")
    fit(tmp_path, panda, Module(schedule=cosine), [watch])
    assert {v["learning_rate"] for v in watch.values.values()} == {0.05}


def test_a_warm_up_that_begins_at_zero_is_taken_over_at_its_base_rate(tmp_path):
    def warm(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch / 4)

    watch = Watch()
    panda = PandaBabysitter(policy=Script({}), check_every=5, scheduler="take_over", dirpath="")
    fit(tmp_path, panda, Module(schedule=warm), [watch])
    assert {v["learning_rate"] for v in watch.values.values()} == {0.05}


@pytest.mark.parametrize("name", ["Prodigy", "AdamWScheduleFree"])
def test_an_optimizer_that_sets_its_own_rate_is_left_alone_and_that_is_said_once(tmp_path, name):
    library = pytest.importorskip("prodigyopt" if name == "Prodigy" else "schedulefree")

    def build(module):
        return getattr(library, name)(module.parameters())

    class Switched(Module):  # as the documentation of schedule-free asks for
        def on_train_epoch_start(self):
            getattr(self.optimizers(use_pl_optimizer=False), "train", lambda: None)()

        def on_validation_epoch_start(self):
            getattr(self.optimizers(use_pl_optimizer=False), "eval", lambda: None)()

    panda = PandaBabysitter(check_every=5, dirpath="", settings={"start_share": 0.0})
    with pytest.warns(UserWarning, match=f"{name} sets its own learning rate") as caught:
        fit(tmp_path, panda, Switched(optimizer=build, spoil_at=25))
    assert sum("its own learning rate" in str(one.message) for one in caught) == 1
    assert panda.history.done == []
    assert len(panda.history.windows) == 8


def test_bfloat16_rolls_back_exactly(tmp_path):
    watch = Watch()
    panda = PandaBabysitter(policy=Script({20: BACK}, keep=[15]), check_every=5, dirpath="")
    fit(tmp_path, panda, Module(), [watch], precision="bf16-mixed")
    assert_equal(watch.states[20], watch.states[15])


def test_accumulated_batches_make_one_step_with_their_mean_loss(tmp_path):
    class Recorded(Module):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            self.seen = [*getattr(self, "seen", []), loss.item()]
            return loss

    module, watch = Recorded(), Watch()
    panda = PandaBabysitter(policy=Script({8: BACK}, keep=[4]), check_every=4, dirpath="")
    fit(tmp_path, panda, module, [watch], accumulate_grad_batches=3, epochs=2)  # 10 batches: 3, 3, 3 and 1
    assert [window.step for window in panda.history.windows] == [4, 8]
    steps = [module.seen[:3], module.seen[3:6], module.seen[6:9], module.seen[9:10]]
    window = panda.history.windows[0]
    assert window.first == pytest.approx(sum(steps[0]) / 3)
    # Lightning divides by three in the last, shorter step too, and so does the gradient
    assert window.level == pytest.approx((sum(steps[2]) / 3 + steps[3][0]) / 2)
    assert_equal(watch.states[8], watch.states[4])


def test_two_optimizers_are_refused(tmp_path):
    class Two(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, index):
            return None

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]

    with pytest.raises(ValueError, match=r"`module` must have one optimizer and automatic optimization, got 2 and man"):
        fit(tmp_path, PandaBabysitter(dirpath=""), Two())


def test_sharded_weights_are_refused():
    sharded = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(ValueError, match=r"`strategy` must keep all weights in every process .*, got FSDPStrategy"):
        PandaBabysitter(dirpath="").on_fit_start(sharded, Module())


# --- other callbacks ---


def test_an_average_of_weights_is_rolled_back_too(tmp_path):
    from lightning.pytorch.callbacks import EMAWeightAveraging

    averages = {}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            checkpoint = {"state_dict": pl_module.state_dict()}
            ema.on_save_checkpoint(trainer, pl_module, checkpoint)
            averages[trainer.global_step] = {k: v.clone() for k, v in checkpoint["state_dict"].items()}

    for order in (0, 1):
        ema = EMAWeightAveraging(decay=0.5)
        panda = PandaBabysitter(policy=Script({20: BACK}, keep=[15]), check_every=5, dirpath="")
        pair = [[ema], [panda]] if order else [[panda], [ema]]
        pl.seed_everything(7, verbose=False)
        fitted = trainer(tmp_path, [*pair[0], *pair[1], Look()])
        fitted.fit(Module(spoil_at=18), data())
        assert all(torch.isfinite(value.float()).all() for value in averages[20].values())
        assert not all(torch.isfinite(value.float()).all() for value in averages[19].values())
        if order:  # averaged first, then rolled back: the very average of step 15
            assert_equal(averages[20], averages[15])
        assert torch.isfinite(fitted.callback_metrics["val_loss"])


def test_checkpoints_early_stopping_auditor_and_staleness_beside_it(tmp_path):
    company = [
        ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True),
        EarlyStopping("val_loss", patience=50),
        BatchNormAuditor(on_finding="log", dirpath=tmp_path, every_n_steps=1),
        StalenessTracker(tmp_path / "ledger.jsonl", on_stale="log"),
    ]
    panda = PandaBabysitter(check_every=5, dirpath=tmp_path, settings={"start_share": 0.0})
    fitted, _ = fit(tmp_path, panda, Module(spoil_at=29), company, epochs=8, enable_checkpointing=True)
    assert panda.history.count("divergence") == 1
    assert fitted.current_epoch == 8
    assert [finding for finding in company[2].result()["findings"] if finding["severity"] == "ERROR"] == []
    loaded = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert loaded["callbacks"]["PandaBabysitter"]["history"]["planned"] == 80


def test_a_new_batch_size_is_used_from_the_next_epoch_on(tmp_path):
    rows = []

    class Count(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rows.append((trainer.current_epoch, len(batch[0])))

    nudge = Intervention("nudge", "", {"batch_size": 40.0}, by="person")
    panda = PandaBabysitter(policy=Script({15: nudge}), check_every=5, dirpath="")
    fitted, _ = fit(tmp_path, panda, callbacks=[Count()])
    assert [rows.count((epoch, 16)) for epoch in range(4)] == [10, 10, 0, 0]
    assert [rows.count((epoch, 40)) for epoch in range(4)] == [0, 0, 4, 4]
    assert fitted.reload_dataloaders_every_n_epochs == 0
    assert panda.history.planned == 28


def test_a_batch_size_of_a_checkpoint_is_taken_up(tmp_path):
    nudge = Intervention("nudge", "", {"batch_size": 40.0}, by="person")
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    first = PandaBabysitter(policy=Script({15: nudge}), check_every=5, dirpath="")
    fit(tmp_path, first, callbacks=[saver], enable_checkpointing=True)
    datamodule = data()
    second = PandaBabysitter(policy=Script({}), check_every=5, dirpath="")
    fit(tmp_path, second, datamodule=datamodule, ckpt=tmp_path / "epoch=2.ckpt")
    assert datamodule.batch_size == 40


# --- the log ---


def test_the_log_is_plain_json_with_reasons(tmp_path):
    panda = PandaBabysitter(dirpath=tmp_path)
    fit(tmp_path, panda, Module(rate=1e-5), epochs=12)
    rows = [json.loads(line) for line in (tmp_path / "panda.jsonl").read_text().splitlines()]
    assert rows == json.loads(json.dumps(panda.rows))
    for row in rows:
        assert {"step", "epoch", "what", "from", "to", "why", "numbers", "by", "accepted"} <= row.keys()
        assert row["why"]
    status = json.loads((tmp_path / "panda.json").read_text())
    assert (status["state"], status["values"]) == ("ended", panda.history.values)
    windows = read_rows(tmp_path / "panda_windows.jsonl")
    assert [window["step"] for window in windows] == [window.step for window in panda.history.windows]


def test_loggers_get_the_values(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    panda = PandaBabysitter()
    fit(tmp_path, panda, Module(rate=1e-5), epochs=12, logger=logger, log_every_n_steps=5)
    assert (tmp_path / "lightning_logs" / "version_0" / "panda.jsonl").is_file()
    text = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "panda/learning_rate" in text.splitlines()[0]


def test_a_dry_run_writes_nothing(tmp_path):
    fit(tmp_path, PandaBabysitter(dirpath=tmp_path / "log"), fast_dev_run=True)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "rule"}, r"`mode` must be one of \('rules', 'probe'\), got 'rule'"),
        ({"monitor_mode": "lowest"}, "`monitor_mode` must be 'min' or 'max', got 'lowest'"),
        ({"check_every": 1}, "`check_every` must be None or an integer of at least 2, got 1"),
        ({"scheduler": "keep"}, r"`scheduler` must be None or one of .*, got 'keep'"),
        ({"policy": Script({}), "settings": {"z": 3}}, "`policy` must be None with `settings` or `hyperparameters`"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        PandaBabysitter(**arguments)


def test_it_is_a_public_name():
    import lightning_hp

    assert lightning_hp.PandaBabysitter is PandaBabysitter
    assert issubclass(Data, pl.LightningDataModule)
