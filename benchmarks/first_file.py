"""What `lightning-hp init` knows of projects, and whether 20 trials with the file it writes beat the file's own values.

Run:  OMP_NUM_THREADS=1 python benchmarks/first_file.py [--projects moons_gan] [--trials 20] [--seeds 5] [--studies 1]

For each project, in a copy: `init` writes `tune.yaml` (where it asks a person for the metric, the one named below is
written in), a study of 20 trials runs, and then the project's own values and the winner's are trained on fresh seeds,
complete trainings both. A value is the best of its learning curve, as in a study. "Better beyond noise" is a
difference of the means of more than two standard errors (Welch; of several studies, which have seeds 0, 1, ..., the
scatter of their winners' means counts). `searched` counts the values that `init` takes,
`listed` those that it lists with a range, commented out; whether a guess was wrong is for a person to say, so `keys`
holds what was taken. Writes benchmarks/results/first_file.csv, after each project; rows of projects that are not
measured now stay.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning.pytorch as pl
import yaml

ROOT = Path(__file__).parents[1]
PROJECTS: dict[str, dict[str, Any]] = {
    "digits_cli": {"folder": "examples/projects/digits_cli", "config": ["config.yaml"], "cli": "digits_cli.py"},
    "moons_gan": {"folder": "examples/projects/moons_gan", "config": ["config.yaml"], "cli": "moons_gan.py"},
    "parts": {"folder": "examples/projects/parts", "config": ["config.yaml"]},
    "finetune": {
        "folder": "examples/projects/finetune",
        "config": ["finetune.yaml"],
        "cli": "finetune.py",
        "before": "pretrain.py",
    },
    "forecast": {
        "folder": "examples/projects/forecast",
        "config": ["configs/base.yaml", "configs/small.yaml"],
        "cli": "forecast.py",
        "monitor": "val/mae/dataloader_idx_0",
    },
    "diabetes": {
        "folder": "examples/projects/diabetes",
        "module": "train:Progression",
        "max_epochs": 20,
        "monitor": "val_mae",
    },
    "digits": {"folder": "configs/digits", "config": ["train.yaml"]},
    "pumps": {"folder": "configs/tabular", "config": ["train.yaml"]},
    "function": {"train": {"model": {"lr": 0.01, "width": 8}, "data": {"batch_size": 8}}, "cli": "cli_projects.main"},
    "optimizer_in_file": {
        "train": {
            "model": {"class_path": "cli_projects.Net", "init_args": {"width": 8}},
            "data": {"class_path": "cli_projects.Data"},
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}},
            "trainer": {"max_epochs": 10},
        }
    },
}
RESULTS = ROOT / "benchmarks/results/first_file.csv"
COLUMNS = [
    *["project", "searched", "listed", "metric", "mode", "own", "own_sd", "winner", "winner_sd", "better_by"],
    *["standard_error", "beyond_noise", "studies", "winners", "keys"],
]


class BestOfCurve(pl.Callback):
    """The best value of a metric, over validations and ends of epochs."""

    def __init__(self, monitor: str, mode: str):
        self.monitor, self.better, self.value = monitor, min if mode == "min" else max, None

    def _look(self, trainer):
        if self.monitor in trainer.callback_metrics and not trainer.sanity_checking:
            value = float(trainer.callback_metrics[self.monitor])
            self.value = value if self.value is None else self.better(self.value, value)

    def on_validation_end(self, trainer, pl_module):
        self._look(trainer)

    def on_train_end(self, trainer, pl_module):
        self._look(trainer)

    def on_train_epoch_start(self, trainer, pl_module):  # what the epoch before logged at its very end
        if trainer.current_epoch:
            self._look(trainer)


def prepare(project: dict[str, Any]) -> None:
    """The files of a project, in the working directory."""
    if "folder" in project:
        shutil.copytree(ROOT / project["folder"], ".", dirs_exist_ok=True)
        for file in ("tune.yaml", "tune.py"):
            Path(file).unlink(missing_ok=True)
        for file in Path().glob("*.yaml"):
            file.write_text(file.read_text().replace("configs/tabular/", ""))
    else:
        quiet = {"max_epochs": 5, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
        train = {**project["train"], "trainer": {**quiet, **project["train"].get("trainer", {})}}
        Path("train.yaml").write_text(yaml.safe_dump(train))
    if "before" in project:
        subprocess.run([sys.executable, "-W", "ignore", project["before"]], check=True, capture_output=True)


def measure(name: str, trials: int, seeds: int, studies: int) -> dict[str, Any]:
    """One project, in a process of its own, in the working directory."""
    from lightning_hp import cli
    from lightning_hp.project.cli_builder import CliBuilder
    from lightning_hp.project.quiet import suppress_repeated_warnings

    project = PROJECTS[name]
    prepare(project)
    sys.path[:0] = [os.getcwd(), str(ROOT / "tests")]
    sys.argv = ["lightning-hp"]
    own_cli = ["--cli", project["cli"]] if "cli" in project else []
    files = project.get("config", ["train.yaml"])
    if "module" in project:
        command = ["init", project["module"], "--max_epochs", str(project["max_epochs"])]
    else:
        command = ["init", "--config", *files, *own_cli, "--output", "tune.yaml"]
    assert cli.main([*command, "--name", name]) == 0
    text = Path("tune.yaml").read_text()
    if "monitor" in project:
        Path("tune.yaml").write_text(text.replace("monitor:  #", f"monitor: {project['monitor']}  #"))
    tuned = yaml.safe_load(Path("tune.yaml").read_text())
    listed = sum(line.startswith("  # ") and "{" in line for line in text.splitlines())
    names = [name, *(f"{name}-{seed}" for seed in range(1, studies))]
    for seed, study in enumerate(names):
        assert cli.main(["tune", "tune.yaml", "--trials", str(trials), "--seed", str(seed), "--name", study]) == 0

    def values(builder: CliBuilder) -> list[float]:
        results = []
        for seed in range(1000, 1000 + seeds):
            watch = BestOfCurve(tuned["monitor"], tuned["mode"])
            with tempfile.TemporaryDirectory() as folder, suppress_repeated_warnings():
                builder.build({}, Path(folder), seed, [watch]).fit()
            results.append(watch.value)
        return results

    own = values(CliBuilder(tuple(map(Path, files)), None, None, project.get("cli")))
    winners = [values(CliBuilder(Path(f"runs/{study}/best.yaml"), None, None, project.get("cli"))) for study in names]
    best = winners[0] if studies == 1 else [mean(winner) for winner in winners]
    gain = (mean(own) - mean(best)) * (1 if tuned["mode"] == "min" else -1)
    error = (stdev(own) ** 2 / len(own) + stdev(best) ** 2 / len(best)) ** 0.5
    numbers = (mean(own), stdev(own), mean(best), stdev(best), gain, error)
    means = " ".join(f"{mean(winner):.5g}" for winner in winners)
    row = [name, len(tuned["space"]), listed, tuned["monitor"], tuned["mode"], *(f"{n:.5g}" for n in numbers)]
    return dict(zip(COLUMNS, [*row, gain > 2 * error, studies, means, " ".join(tuned["space"])], strict=True))


def write(row: dict[str, str]) -> list[dict[str, str]]:
    """Put one project's row into the results, in place of its old one; all rows."""
    rows = {}
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            rows = {old["project"]: old for old in csv.DictReader(file)}
    rows[row["project"]] = row
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows.values())
    return list(rows.values())


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--projects", nargs="*", default=list(PROJECTS))
    options.add_argument("--trials", type=int, default=20)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--studies", type=int, default=1)
    options.add_argument("--one", action="store_true", help="one project, here, as a row of CSV")
    given = options.parse_args()
    if given.one:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = measure(given.projects[0], given.trials, given.seeds, given.studies)
        Path("row.csv").write_text(",".join(map(str, row.values())))
        return
    rows = []
    for name in given.projects:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--one", "--projects", name]
            command += ["--trials", str(given.trials), "--seeds", str(given.seeds), "--studies", str(given.studies)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: {done.stderr[-600:]}", flush=True)
                continue
            row = dict(zip(COLUMNS, next(csv.reader([Path(folder, "row.csv").read_text()])), strict=True))
            rows = write(row)
            print(*list(row.values())[:-1], sep="  ", flush=True)
    better = sum(row["beyond_noise"] == "True" for row in rows)
    print(f"better beyond noise in {better} of {len(rows)}")


if __name__ == "__main__":
    main()
