"""How good the BatchNorm audit is: false alarms, faults found, repair, two processes, cost, shift.

    nice -n 10 env OMP_NUM_THREADS=1 python benchmarks/audit.py healthy faults repair --seeds 10 --csv audit.csv
    python benchmarks/audit.py all --seeds 10 --healthy 240

Sections: healthy, faults, repair (here); shift, ddp, cost (audit_trainer.py). Every number is printed and, with
--csv, written one row a net.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from audit_faults import FAULTS
from audit_nets import Recipe, Run, train
from audit_trainer import cost, ddp, shift

from lightning_hp.batchnorm.findings import counts
from lightning_hp.batchnorm.recalibrate import population_statistics, temporary_statistics
from lightning_hp.batchnorm.rules import audit

Row = dict[str, object]


def healthy_recipe(index: int, momentum: float) -> Recipe:
    """A net that nobody would call faulty: shape, optimizer, batch size and a common learning rate drawn by `index`."""
    rng = np.random.default_rng(index)
    kind = "cnn" if index % 3 == 2 else "mlp"
    optimizer = str(rng.choice(["adam", "adamw", "sgd"]))
    lr = float(rng.choice([0.01, 0.03, 0.1] if optimizer == "sgd" else [3e-4, 1e-3, 3e-3]))
    return Recipe(
        kind=kind,
        width=int(rng.choice([32, 64, 128])),
        depth=int(rng.integers(1, 5)) if kind == "mlp" else int(rng.integers(1, 4)),
        optimizer=optimizer,
        lr=lr,
        batch=int(rng.choice([16, 32, 64, 128])),
        momentum=momentum,
        epochs=int(rng.integers(6, 13)),
        schedule=bool(rng.integers(2)),
        dropout=float(rng.choice([0.0, 0.0, 0.2])),
        seed=index,
    )


def recalibrated_loss(run: Run) -> float:
    fresh = population_statistics(run.net, run.watch.steps)
    with temporary_statistics(run.net, fresh):
        return run.loss()


def healthy(nets: int, rows: list[Row], first: int = 0) -> None:
    print(f"\n## healthy: {nets} nets a momentum\n")
    print(
        "| momentum | nets | none | INFO | WARN | ERROR | WARN or above "
        "| of these, recalibration lowers validation loss > 5% |"
    )
    print("|---|---|---|---|---|---|---|---|")
    flagged: list[str] = []
    for momentum in (0.1, 0.05, 0.01):
        worst = {"none": 0, "INFO": 0, "WARN": 0, "ERROR": 0}
        gaps: list[float] = []
        for index in range(first, first + nets):
            recipe = healthy_recipe(index, momentum)
            run = train(recipe)
            snapshot = run.snapshot()
            found = [f for f in audit(snapshot) if f.id not in ("BN16",)]
            number = counts(found)
            level = next((s for s in ("ERROR", "WARN", "INFO") if number[s]), "none")
            worst[level] += 1
            errors = [snapshot.errors(name) or (0, 0, 0, 0) for name in snapshot.data]
            row: Row = {
                "section": "healthy", "name": f"m={momentum}", "seed": index, "level": level,
                "rules": " ".join(f"{f.id}:{f.severity}:{f.layer}" for f in found[:4]),
                "d": max(e[0] for e in errors), "lv": max(e[2] for e in errors),
                "kl": snapshot.gap.kl if snapshot.gap else 0.0,
            }  # fmt: skip
            if level in ("WARN", "ERROR"):
                before, after = run.loss(), recalibrated_loss(run)
                row.update(loss=before, recalibrated=after)
                gaps.append((before - after) / max(after, 1e-9))
                text = f"m={momentum} seed {index}: {recipe.kind} {recipe.depth}x{recipe.width} {recipe.optimizer} "
                text += f"lr {recipe.lr} batch {recipe.batch} epochs {recipe.epochs}: {row['rules']} d {row['d']:.3f} "
                flagged.append(text + f"lv {row['lv']:.3f} KL {row['kl']:.4f} loss {before:.3f} -> {after:.3f}")
            rows.append(row)
        alarms = worst["WARN"] + worst["ERROR"]
        real = [gap for gap in gaps if gap > 0.05]
        print(
            f"| {momentum} | {nets} | "
            + " | ".join(str(v) for v in worst.values())
            + f" | {alarms / nets:.1%} | {len(real)}/{len(gaps)} |"
        )
    print("\nflagged at WARN or above (validation loss -> recalibrated):")
    for momentum in (0.1, 0.05, 0.01):
        mine = [line for line in flagged if line.startswith(f"m={momentum} ")]
        for line in mine[:20]:
            print("-", line)
        print(f"- m={momentum}: {len(mine)} in all; the others are in the CSV")


def faults(seeds: int, rows: list[Row], first: int = 0) -> None:
    print(f"\n## faults: {seeds} nets a kind\n")
    print("| fault | flagged | right rule and layer first | first findings |\n|---|---|---|---|")
    totals = np.zeros(3)
    for fault in FAULTS:
        hits = right = 0
        firsts: dict[str, int] = {}
        for seed in range(first, first + seeds):
            run, _ = fault.make(seed)
            snapshot = run.snapshot()
            found = audit(snapshot)
            serious = [f for f in found if f.severity != "INFO"] or (
                [f for f in found if f.id in fault.rules] if fault.advice else []
            )
            names = list(snapshot.layers)
            good = bool(serious) and serious[0].id in fault.rules
            good = good and (fault.layer is None or serious[0].layer == names[fault.layer])
            hits += bool(serious)
            right += good
            label = f"{serious[0].id} {serious[0].severity}" if serious else "-"
            firsts[label] = firsts.get(label, 0) + 1
            rows.append(
                {
                    "section": "faults",
                    "name": fault.name,
                    "seed": seed,
                    "flagged": bool(serious),
                    "right": good,
                    "first": label,
                }
            )
        totals += (hits, right, seeds)
        print(
            f"| {fault.name} | {hits}/{seeds} | {right}/{seeds} | {', '.join(f'{k} x{v}' for k, v in firsts.items())} |"
        )
    print(
        f"\n{len(FAULTS)} kinds: flagged {totals[0] / totals[2]:.1%}, "
        f"right rule and layer first {totals[1] / totals[2]:.1%}"
    )


def repair(seeds: int, rows: list[Row], first: int = 0) -> None:
    """Share of the lost validation loss won back, for faults whose loss without the fault is known."""
    print(f"\n## repair: {seeds} nets a kind\n")
    print("| fault | loss without | with fault | recalibrated | share won back |\n|---|---|---|---|---|")
    for fault in FAULTS:
        got = []
        for seed in range(first, first + seeds):
            run, base = fault.make(seed)
            if base is None:
                break
            got.append((base, run.loss(), recalibrated_loss(run)))
            rows.append(
                {
                    "section": "repair",
                    "name": fault.name,
                    "seed": seed,
                    "base": base,
                    "loss": got[-1][1],
                    "recalibrated": got[-1][2],
                }
            )
        if got:
            base, bad, fixed = np.nanmean(np.array(got), axis=0)
            share = (bad - fixed) / (bad - base) if bad - base > 0.01 * base else float("nan")
            print(f"| {fault.name} | {base:.3f} | {bad:.3f} | {fixed:.3f} | {share:.0%} |")
    changes = []
    for index in range(first, first + 4 * seeds):
        run = train(healthy_recipe(index, 0.1))
        before, after = run.loss(), recalibrated_loss(run)
        changes.append((after - before) / before)
        rows.append({"section": "repair", "name": "healthy", "seed": index, "loss": before, "recalibrated": after})
    change = np.array(changes)
    print(
        f"\nhealthy nets recalibrated: {len(change)}, validation loss {np.mean(change):+.1%} on average, "
        f"worst {change.max():+.1%}, best {change.min():+.1%}, {np.mean(change > 0.02):.0%} worse by more than 2%"
    )


def write(path: Path, rows: list[Row]) -> None:
    names = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=["healthy", "faults", "repair", "shift", "ddp", "cost", "all"])
    parser.add_argument("--seeds", type=int, default=2, help="nets a fault kind (10 for the full table)")
    parser.add_argument("--healthy", type=int, default=48, help="healthy nets a momentum (240 for the full table)")
    parser.add_argument("--first", type=int, default=0, help="first seed, for a held-out run")
    parser.add_argument("--csv", type=Path, help="write one row a net")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    wanted = ["healthy", "faults", "repair", "shift", "ddp", "cost"] if "all" in args.sections else args.sections
    here: dict[str, Callable[[], None]] = {
        "healthy": lambda: healthy(args.healthy, rows, args.first),
        "faults": lambda: faults(args.seeds, rows, args.first),
        "repair": lambda: repair(args.seeds, rows, args.first),
        "shift": lambda: shift(args.seeds, rows, args.first),
        "ddp": lambda: ddp(rows),
        "cost": lambda: cost(3 * args.seeds, rows),
    }
    for section in wanted:
        here[section]()
        sys.stdout.flush()
    if args.csv:
        write(args.csv, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
