"""Two real processes (gloo) against one: rows, steps and metrics."""

import json
import os

import pytest
from distributed_script import run_distributed

SCRIPT = """
import json, logging, os, sys, warnings
import torch
import lightning.pytorch as pl
from lightning_hp.training import BatchNormClassifier, DigitsDataModule

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
devices, folder = int(sys.argv[1]), sys.argv[2]


class Keep(pl.Callback):
    def __init__(self):
        self.rows, self.validated = {}, 0

    def on_fit_start(self, trainer, pl_module):
        features = trainer.datamodule.train_set.tensors[0].tolist()
        self.number = {tuple(row): i for i, row in enumerate(features)}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows.setdefault(trainer.current_epoch, []).append([self.number[tuple(row)] for row in batch[0].tolist()])

    def on_validation_end(self, trainer, pl_module):
        self.validated += 1


pl.seed_everything(0)
keep = Keep()
extra = {"strategy": "ddp"} if devices > 1 else {}
trainer = pl.Trainer(
    max_epochs=3, accelerator="cpu", devices=devices, logger=False, enable_checkpointing=False, callbacks=[keep],
    enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **extra,
)
model, data = BatchNormClassifier(), DigitsDataModule(batch_size=64 // devices, batch_growth=2.0, batch_growth_every=1)
trainer.fit(model, data)
fitted = {name: float(value) for name, value in trainer.callback_metrics.items()}
# one and the same net in one process and in two
torch.manual_seed(1)
fresh = BatchNormClassifier(64, 10)
tested = trainer.test(fresh, data, verbose=False)[0]
with open(f"{folder}/{devices}-{trainer.global_rank}.json", "w") as file:
    json.dump({"rows": keep.rows, "validated": keep.validated, "fitted": fitted, "tested": tested}, file)
"""


@pytest.mark.slow
def test_two_processes_share_the_rows_and_agree_with_one_on_the_metrics(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "LOCAL_RANK", "NODE_RANK"))}
    for devices in ("1", "2"):
        done = run_distributed(script, devices, tmp_path, environment=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    for epoch in "012":
        batches = [run["rows"][epoch] for run in (first, second)]
        assert [len(rows) for rows in batches[0]] == [len(rows) for rows in batches[1]]
        seen = [row for run in batches for rows in run for row in rows]
        assert len(set(seen)) == len(seen)
        assert seen != sorted(seen), "shuffled"
        alone = one["rows"][epoch]
        assert len(alone) == len(batches[0]), "as many steps, each of half the rows"
        for step, rows in enumerate(alone):
            assert set(rows) == set(batches[0][step]) | set(batches[1][step])
    assert [len(rows[0]) for rows in first["rows"].values()] == [32, 64, 128]
    assert first["validated"] == one["validated"] == 3
    assert first["fitted"] == second["fitted"]
    assert first["fitted"]["val_accuracy"] > 0.8
    assert first["tested"] == second["tested"] == pytest.approx(one["tested"], rel=1e-5)
