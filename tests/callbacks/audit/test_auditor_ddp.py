"""Two gloo processes reach the moments and the verdict of one process on the same data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_script import run_distributed
from torch import nn

WORKER = """
import json, logging, sys, warnings
from pathlib import Path
import lightning.pytorch as pl, torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lightning_hp.callbacks import BatchNormAuditor
warnings.simplefilter("ignore"); torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        norm = nn.BatchNorm1d(8, momentum=0.02)
        self.net = nn.Sequential(nn.Linear(6, 8, bias=False), norm, nn.ReLU(), nn.Linear(8, 2))
    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

def main(folder):
    torch.manual_seed(0)
    x = torch.randn(640, 6) * 2 + 1
    data = TensorDataset(x, (x[:, 0] > 1).long())
    auditor = BatchNormAuditor(every_n_steps=1, on_finding="log", recalibrate="end",
                              max_rows=320, dirpath=folder)  # the 20 batches of one epoch
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", devices=2, logger=False, enable_checkpointing=False,
                         strategy=DDPStrategy(process_group_backend="gloo"), callbacks=[auditor],
                         enable_progress_bar=False, enable_model_summary=False)
    module = Module()
    trainer.fit(module, DataLoader(data, 16, shuffle=False), DataLoader(data, 64))
    Path(folder, f"rank{trainer.global_rank}.json").write_text(json.dumps(
        {"result": auditor.result(), "mean": module.net[1].running_mean.tolist(),
         "var": module.net[1].running_var.tolist()}))

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.slow
def test_both_ranks_give_one_verdict_on_all_rows_and_the_same_repair(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    done = run_distributed(script, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks: list[dict[str, Any]] = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1)]
    assert ranks[0]["result"]["findings"] == ranks[1]["result"]["findings"]
    assert ranks[0]["result"]["findings"][0]["id"] == "BN10"
    # Weights never moved (learning rate 0), so all rows of both ranks give the population in closed form.
    torch.manual_seed(0)  # the draws of the worker, in its order
    x = torch.randn(640, 6) * 2 + 1
    net = nn.Linear(6, 8, bias=False)
    values = net(x).detach().double()
    row = ranks[1]["result"]["layers"][0]
    torch.testing.assert_close(torch.tensor(row["population_mean"]).double(), values.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(row["population_var"]).double(), values.var(0), rtol=1e-3, atol=1e-4)
    for rank in ranks:
        torch.testing.assert_close(torch.tensor(rank["mean"]).double(), values.mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.tensor(rank["var"]).double(), values.var(0), rtol=1e-3, atol=1e-4)
    assert json.loads((tmp_path / "audit.json").read_text()) == ranks[0]["result"]
