"""Sections shift, ddp and cost of audit.py."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from audit_nets import Recipe, Run, digits, loss_of, train
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hp.batchnorm.findings import resolve_thresholds
from lightning_hp.batchnorm.measure import measure
from lightning_hp.batchnorm.observe import call_of
from lightning_hp.batchnorm.reference import InputMoments, Reference, absorption, layer_shifts, shift_findings
from lightning_hp.batchnorm.rules import audit
from lightning_hp.batchnorm.statistics import find_layers

Row = dict[str, object]


@torch.no_grad()
def reference_of(net: nn.Module, x: Tensor) -> Reference:
    moments = InputMoments(find_layers(net), max_rows=10**6)
    modes = [m.training for m in net.modules()]
    net.eval()
    with moments.collecting():
        for start in range(0, len(x), 256):
            net(x[start : start + 256])
    for module, mode in zip(net.modules(), modes, strict=True):
        module.training = mode
    return moments.result()


def _shift_columns(x: Tensor) -> Tensor:
    return x.reshape(-1, 8, 8).roll(1, dims=2).reshape(-1, 64)


def _column_unit(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, 20] *= 10.0
    return out


def _dead_sensors(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, 18:46:4] = 0.0
    return out


def _fill(x: Tensor) -> Tensor:
    out = x.clone()
    out[torch.rand(x.shape) < 0.1] = -1.0
    return out


SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise 0.1": lambda x: x + 0.1 * torch.randn_like(x),
    "noise 0.3": lambda x: x + 0.3 * torch.randn_like(x),
    "contrast 0.8": lambda x: (x - 0.5) * 0.8 + 0.5,
    "contrast 0.5": lambda x: (x - 0.5) * 0.5 + 0.5,
    "brightness +0.1": lambda x: x + 0.1,
    "one pixel to the right": _shift_columns,
    "dead sensors (7 of 64)": _dead_sensors,
    "unit error in one column (x10)": _column_unit,
    "10% missing, filled with -1": _fill,
    "inverted": lambda x: 1.0 - x,
    "not scaled (x16)": lambda x: x * 16.0,
    "rotated by 90 degrees": lambda x: x.reshape(-1, 8, 8).rot90(1, (1, 2)).reshape(-1, 64),
}


def shift(seeds: int, rows: list[Row], first: int = 0) -> None:
    """False alarms on resampled validation rows, and detection of shifts, at several sample sizes."""
    sizes = (64, 256, 1024)
    print(f"\n## shift: {4 * seeds} nets, reference of 300 validation rows, samples drawn from the other 297\n")
    print(
        "| data | accuracy | "
        + " | ".join(f"DR01 at {n}" for n in sizes)
        + " | DR02 at 256 |\n|---|---|---|---|---|---|"
    )
    nets: list[tuple[Run, Reference]] = []
    for seed in range(first, first + 4 * seeds):
        run = train(
            Recipe(kind="cnn" if seed % 2 else "mlp", width=64, depth=2 + seed % 2, lr=3e-3, epochs=10, seed=seed)
        )
        nets.append((run, reference_of(run.net, run.data[2][:300])))
    limits = resolve_thresholds()
    null = np.zeros((3, 2))
    worst: list[float] = []
    for seed, (run, reference) in enumerate(nets):
        generator = torch.Generator().manual_seed(seed)
        for column, size in enumerate(sizes):
            for _ in range(25):
                # Without replacement while the held-out rows last; beyond, more rows only repeat what they say.
                pick = torch.randperm(297, generator=generator)[: min(size, 297)]
                shifts = layer_shifts(reference, reference_of(run.net, run.data[2][300:][pick]))
                null[column] += (any(s.hit(limits) for s in shifts), 1)
                worst.append(max(max(s.ratio_d, s.ratio_lv) for s in shifts))
    cells = " | ".join(f"{hit:.0f}/{total:.0f}" for hit, total in null)
    print(f"| none (resampled) | | {cells} | |")
    rows.append({"section": "shift", "name": "none", "right": float(null[:, 0].sum() / null[:, 1].sum())})
    classes: Callable[[Run], Tensor] = lambda run: run.data[2][300:][run.data[3][300:] < 5]  # noqa: E731
    for name in [*SHIFTS, "classes 0 to 4 only"]:
        hits, absorbed, accuracy = np.zeros(3), 0, []
        for seed, (run, reference) in enumerate(nets):
            torch.manual_seed(seed)
            x, y = run.data[2][300:], run.data[3][300:]
            if name in SHIFTS:
                x = SHIFTS[name](x)
            else:
                x, y = classes(run), y[y < 5]
            accuracy.append(_accuracy(run.net, x, y))
            for column, size in enumerate(sizes):
                pick = torch.randint(len(x), (size,))
                shifts = layer_shifts(reference, reference_of(run.net, x[pick]))
                hits[column] += any(s.hit(limits) for s in shifts)
                if size == 256:
                    found = shift_findings(shifts, absorption(run.net, [[call_of("", (x[pick],))]]))
                    absorbed += any(f.id == "DR02" for f in found)
        rows.append({"section": "shift", "name": name, "flagged": float(hits[1] / len(nets))})
        cells = " | ".join(f"{hit:.0f}/{len(nets)}" for hit in hits)
        print(f"| {name} | {np.mean(accuracy):.3f} | {cells} | {absorbed}/{len(nets)} |")
    print(f"\nlargest ratio to noise on resampled data: {max(worst):.2f}, 99% quantile {np.quantile(worst, 0.99):.2f}")


@torch.no_grad()
def _accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    net.eval()
    return float((net(x).argmax(1) == y).float().mean())


def ddp_verdict(rank: int, world: int, fault: bool) -> dict[str, Any]:
    """What one of `world` processes concludes when every process holds its share of the same recorded steps."""
    run = train(Recipe(seed=3, width=64, depth=2, epochs=6, momentum=0.1))
    if fault:
        layer = list(find_layers(run.net).values())[1]
        with torch.no_grad():
            layer.running_var.mul_(1.6)
    steps = run.watch.steps[:32]
    snapshot = measure(run.net, steps[rank::world], run.watch.facts(), run.watch.training)
    found = audit(snapshot)
    return {
        "findings": [[f.id, f.severity, f.layer] for f in found],
        "moments": {
            n: [d.train.n, d.train.mean.tolist(), d.train.variance().tolist()] for n, d in snapshot.data.items()
        },
        "errors": {n: snapshot.errors(n) for n in snapshot.data},
        "kl": snapshot.gap.kl if snapshot.gap else None,
    }


def ddp(rows: list[Row]) -> None:
    """Two gloo processes against one, on the same recorded data."""
    print("\n## two gloo processes against one\n")
    for fault in (False, True):
        alone = ddp_verdict(0, 1, fault)
        with tempfile.TemporaryDirectory() as folder:
            jobs = [
                subprocess.Popen([sys.executable, __file__, str(rank), str(int(fault)), folder], env=os.environ.copy())
                for rank in (0, 1)
            ]
            codes = [job.wait(timeout=300) for job in jobs]
            if any(codes):
                raise RuntimeError(f"a process failed: {codes}")
            pair = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in (0, 1)]
        gap = 0.0
        for name, (n, mean, var) in alone["moments"].items():
            for other in pair:
                m, mean2, var2 = other["moments"][name]
                scale = np.sqrt(np.array(var) + 1e-5)
                gap = max(gap, abs(n - m), float(np.abs((np.array(mean) - np.array(mean2)) / scale).max()))
                gap = max(gap, float(np.abs(np.array(var2) / np.array(var) - 1).max()))
        same = all(other["findings"] == alone["findings"] for other in pair)
        kl = max(abs(other["kl"] - alone["kl"]) for other in pair)
        title = "variance x1.6 in one layer" if fault else "healthy"
        print(f"- {title}: findings {alone['findings']}, equal: {same}; moments differ by {gap:.1e}, KL by {kl:.1e}")
        rows.append({"section": "ddp", "name": title, "right": same, "d": gap})


def _join(rank: int, fault: bool, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        Path(folder, f"{rank}.json").write_text(json.dumps(ddp_verdict(rank, 2, fault)))
    finally:
        dist.destroy_process_group()


def cost(rounds: int, rows: list[Row]) -> None:
    """CPU time of a training step with the auditor over without: fits take turns, medians of epochs."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_hp.callbacks import BatchNormAuditor

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    x, y, *_ = digits(0)

    class Module(pl.LightningModule):
        def __init__(self, kind: str) -> None:
            super().__init__()
            linear = [nn.Linear(64, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 128, bias=False)]
            conv = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
            conv += [nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)]
            self.net = nn.Sequential(
                *([*linear, nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)] if kind == "mlp" else conv)
            )

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-3)

    class Turns(Callback):
        """Takes the auditor out of the trainer and puts it back, epoch by epoch (off, on, on, off), and times each."""

        def __init__(self, auditor: BatchNormAuditor) -> None:
            self.auditor = auditor
            self.times: dict[bool, list[float]] = {False: [], True: []}

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.on = trainer.current_epoch % 4 in (1, 2)
            trainer.callbacks = [self, self.auditor] if self.on else [self]
            if self.on:
                self.auditor.on_train_epoch_start(trainer, module)
            self.begin = time.process_time()

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:  # before the auditor's own data pass
            self.times[self.on].append(time.process_time() - self.begin)

    spent_inside: list[float] = []

    class Timed(BatchNormAuditor):
        """Also measures the time spent inside its own two hooks of every step."""

        def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
            begin = time.thread_time()
            super().on_train_batch_start(*args, **kwargs)
            spent_inside[-1] += time.thread_time() - begin

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            begin = time.thread_time()
            super().on_train_batch_end(*args, **kwargs)
            spent_inside[-1] += time.thread_time() - begin

    def fit(kind: str, every: int) -> dict[bool, list[float]]:
        torch.manual_seed(0)
        spent_inside.append(0.0)
        auditor: Any = Timed(every_n_steps=every, on_finding="log", dirpath="") if every else Callback()
        turns = Turns(auditor)
        trainer = pl.Trainer(
            max_epochs=5 + 4 * rounds, callbacks=[turns, auditor], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        loader = DataLoader(TensorDataset(x.repeat(3, 1), y.repeat(3)), 64, shuffle=True, drop_last=True)
        trainer.fit(Module(kind), loader)
        return {on: times[2 : 2 + 2 * rounds] for on, times in turns.times.items()}  # the first four epochs warm up

    steps = 3 * 1200 // 64
    print(
        f"\n## cost: {2 * rounds} epochs with and without, taking turns inside one fit; {steps} steps each; CPU time\n"
    )
    print("| net | auditor | ms a step without | ratio (median of pairs) | 90% interval | us a step inside its hooks |")
    print("|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for kind in ("mlp", "cnn"):
        for every in (0, 1, 10):
            times = fit(kind, every)
            off, on = np.array(times[False]), np.array(times[True])
            ratios = on / off
            draws = [np.median(ratios[rng.integers(len(ratios), size=len(ratios))]) for _ in range(1000)]
            low, high = np.quantile(draws, [0.05, 0.95])
            print(
                f"| {kind} | {f'every {every} steps' if every else 'an empty callback'} "
                f"| {1000 * np.median(off) / steps:.3f} | {np.median(ratios):.3f} | "
                f"{low:.3f} to {high:.3f} | {1e6 * spent_inside[-1] / ((2 + 2 * rounds) * steps):.1f} |"
            )
            rows.append({"section": "cost", "name": f"{kind} {every}", "d": float(np.median(ratios))})
    run = train(Recipe(width=128, depth=2, batch=64))
    snapshot = None
    spent = []
    for _ in range(10):
        begin = time.process_time()
        snapshot = measure(run.net, run.watch.steps, run.watch.facts(), run.watch.training)
        audit(snapshot)
        spent.append(time.process_time() - begin)
    print(
        f"\none data pass over {run.watch.recorder.rows if run.watch.recorder else 0} rows and all rules, 2x128 MLP: ",
        end="",
    )
    print(f"{1000 * float(np.median(spent)):.0f} ms (validation loss {loss_of(run.net, run.data[2], run.data[3]):.3f})")


if __name__ == "__main__":
    _join(int(sys.argv[1]), bool(int(sys.argv[2])), sys.argv[3])
