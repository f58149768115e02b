"""What keeps a look at a project short, in this process, and away from other machines; how its metric is chosen."""

import os

import pytest

from lightning_hp.starting.candidates import candidates
from lightning_hp.starting.metric import direction, metric_of
from lightning_hp.starting.trial_run import ShortRun, _on_one_device, _without_wandb


def shown(metrics=(), validated=(), watched=()):
    return ShortRun(tuple(metrics), tuple(validated), tuple(watched), 4, 0.1, 0.2, 0.3, {}, ())


def test_an_epoch_is_its_batches_and_one_validation():
    assert shown().epoch_seconds() == pytest.approx(4 * 0.1 + 0.2)
    endless = ShortRun((), (), (), None, 0.1, 0.2, 0.3, {}, ())
    assert endless.epoch_seconds() is None


@pytest.mark.parametrize(
    ("trainer", "replaced"),
    [
        ({}, {}),
        ({"strategy": "ddp_find_unused_parameters_true"}, {"trainer.strategy": "auto"}),
        ({"strategy": {"class_path": "lightning.pytorch.strategies.FSDPStrategy"}}, {}),
        ({"strategy": "deepspeed_stage_2"}, {"trainer.strategy": "auto"}),
        ({"logger": {"class_path": "lightning.pytorch.loggers.MLFlowLogger"}}, {"trainer.logger": False}),
        ({"logger": [{"class_path": "CSVLogger"}, {"class_path": "CometLogger"}]}, {"trainer.logger": False}),
        ({"logger": {"class_path": "CSVLogger"}}, {}),
    ],
)
def test_one_device_and_no_store(trainer, replaced):
    if "FSDP" in str(trainer):
        replaced = {"trainer.strategy": "auto"}
    assert _on_one_device(trainer) == {"trainer.devices": 1, "trainer.num_nodes": 1, **replaced}


@pytest.mark.parametrize("before", [None, "online"])
def test_wandb_is_off_for_a_while_also_when_something_fails(monkeypatch, before):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if before:
        monkeypatch.setenv("WANDB_MODE", before)

    def fails():
        with _without_wandb():
            assert os.environ["WANDB_MODE"] == "disabled"
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fails()
    assert os.environ.get("WANDB_MODE") == before


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (shown(["val_loss", "val_acc"], ["val_loss", "val_acc"]), ("val_loss", "min")),
        (shown(["valid/accuracy"], ["valid/accuracy"]), ("valid/accuracy", "max")),
        (shown(["a_loss", "total_loss"], ["a_loss", "total_loss"]), ("total_loss", "min")),
        (shown(["val/kl_loss", "val/loss"], ["val/kl_loss", "val/loss"]), ("val/loss", "min")),
        (shown(["box_loss", "class_loss"], ["box_loss", "class_loss"]), ("", "min")),  # which of two?
        (shown(["val_acc", "val_f1"], ["val_acc", "val_f1"]), ("", "min")),  # which of two?
        (shown(["score"], ["score"]), ("", "min")),  # which direction?
        (shown(["train_loss"]), ("", "min")),  # it would reward overfitting
        (shown(["g_loss", "d_loss", "fid"]), ("fid", "min")),
        (shown(), ("", "min")),
        (shown(["val_loss", "val_iou"], ["val_loss", "val_iou"], [("val_iou", "max")]), ("val_iou", "max")),
        (shown(["val_loss"], ["val_loss"], [("gone", "max")]), ("val_loss", "min")),
    ],
)
def test_a_metric_is_chosen_where_it_is_clear(run, expected):
    metric = metric_of(run)
    assert (metric.name, metric.mode) == expected
    assert metric.name not in metric.others
    assert {*metric.others} <= {*run.metrics}


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("val/loss", "min"),
        ("val_accuracy_top5", "max"),
        ("mAP", "max"),
        ("rmse", "min"),
        ("lossy", ""),
        ("f1_loss", ""),
    ],
)
def test_the_direction_of_a_name(name, better):
    assert direction(name) == better


def test_candidates_are_values_of_model_data_and_optimizer():
    config = {
        "seed_everything": 3,
        "trainer": {"max_epochs": 5},
        "model": {
            "class_path": "net.Net",
            "init_args": {"lr": 0.1, "hidden": [8, 16], "names": ["a"], "big": list(range(20)), "seed": 1},
        },
        "optimizer": {"class_path": "Adam", "init_args": {"betas": [0.9, 0.999], "foreach": None, "fused": True}},
        "stopping": {"monitor": "val_loss", "patience": 3},
        "data": {"batch_size": 8, "num_workers": 4},
        "pretrained": None,
    }
    assert [c.key for c in candidates(config)] == [
        "model.init_args.lr",
        "model.init_args.hidden[0]",
        "model.init_args.hidden[1]",
        "optimizer.init_args.betas[0]",
        "optimizer.init_args.betas[1]",
        "data.batch_size",
    ]
