"""Two gloo processes: one decision, all ranks; the same values, weights and answers on both."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from distributed_script import run_distributed

WORKER = """
import json, logging, sys, warnings
from pathlib import Path
import lightning.pytorch as pl, torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lightning_hp.callbacks import PandaBabysitter
from lightning_hp.callbacks.panda import control
from lightning_hp.callbacks.panda.values import read_values
warnings.simplefilter("ignore"); torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
        self.batches = 0
    def training_step(self, batch, index):
        self.batches += 1
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        # one rank alone sees the loss break: all must go back
        return loss * float("nan") if self.batches == 63 and self.global_rank == 1 else loss
    def validation_step(self, batch, index):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if self.global_rank == 0:  # the other rank has no such metric
            self.log("val_loss", loss, rank_zero_only=True)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)

class Person(pl.Callback):
    def __init__(self, folder):
        self.folder = folder
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_global_zero and trainer.global_step == 93:
            control.request(self.folder, "nudge", {"learning_rate": 0.02}, why="a person")
            control.request(self.folder, "nudge", {"rate": 1})

def main(folder, mode):
    torch.manual_seed(0)
    x = torch.randn(640, 6)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    panda = PandaBabysitter(mode=mode, dirpath=folder, check_every=5)
    trainer = pl.Trainer(max_epochs=8, accelerator="cpu", devices=2, logger=False, enable_checkpointing=False,
                         strategy=DDPStrategy(process_group_backend="gloo"), callbacks=[panda, Person(Path(folder))],
                         enable_progress_bar=False, enable_model_summary=False)
    module = Module()
    trainer.fit(module, DataLoader(data, 16, shuffle=True), DataLoader(data, 64))
    done = [[one.step, one.what.rule, one.what.values, one.back_to] for one in panda.history.done]
    Path(folder, f"rank{trainer.global_rank}.json").write_text(json.dumps({
        "done": done, "values": panda.history.values, "levels": [w.level for w in panda.history.windows],
        "optimizer": read_values(trainer.optimizers[0]), "files": panda.journal.folder is not None,
        "weights": [p.flatten().tolist() for p in module.parameters()],
        "validations": [one.value for one in panda.history.validations]}))

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["rules", "probe"])
def test_both_ranks_do_the_same(tmp_path: Path, mode: str) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    done = run_distributed(script, tmp_path, mode)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks: list[dict[str, Any]] = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["files"] for rank in ranks] == [True, False]
    assert len(ranks[0]["validations"]) == 8
    for key in ("done", "values", "optimizer", "weights", "validations"):
        assert ranks[0][key] == ranks[1][key], key
    rules = [rule for _, rule, _, _ in ranks[0]["done"]]
    assert {"slow_start", "nudge"} <= set(rules)
    assert all(math.isfinite(value) for weights in ranks[0]["weights"] for value in weights)
    if mode == "probe":  # the broken loss falls into a candidate, which loses
        assert "probe_end" in rules
    else:
        assert any(rule == "divergence" and 63 <= step <= 70 for step, rule, _, _ in ranks[0]["done"])
    assert ranks[0]["values"] == ranks[0]["optimizer"]
    log = [json.loads(line) for line in (tmp_path / "panda.jsonl").read_text().splitlines()]
    answers = [(row["what"], row["accepted"]) for row in log if "command" in row]
    assert answers == [("learning_rate", True), ("command", False)]
