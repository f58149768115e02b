"""How fast is the dashboard on a big study? Ours against plain `optuna-dashboard`, on the same database, in one run.

Run: python benchmarks/dashboard.py --trials 5000 --steps 30      (a few minutes; --folder keeps the database)

Rows: our server and the command `optuna-dashboard` on the same SQLite file, and our server on curves thinned to fewer
reports. Columns: first answer of /api/studies/ID, a poll of a page that is open, importances, the page with
data drawn (headless Chromium; "-" without it) once as the first thing that a new server is asked for, and once from a
server that has read the study, the CPU seconds of the server over all this, and its peak memory.

What an open page costs a study that runs is measured by `dashboard_live.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from lightning_hp.report.notes import decorate
from lightning_hp.search.plan import SearchPlan
from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.space.presets import preset
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.description import Description, open_study
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import open_storage

#: seconds that the dashboard believes its trials; a poll after that reads storage again
TTL = 10.5


def build(url: str, folder: Path, trials: int, steps: int) -> None:
    """A finished study: three stages in shape, curves of ``steps`` validations, one failed trial in fifty."""
    space = SearchSpace.from_dict(preset("batchnorm_mlp"))
    paths = StudyPaths(folder)
    described = Description(SearchPlan(space=space, n_trials=trials, max_steps=steps), "val_loss", "min")
    study = open_study("big", open_storage(url, paths), described, paths)
    sampler = CoarseToFineSampler(space, n_trials=trials, max_steps=steps)
    rng = np.random.default_rng(0)
    units = rng.uniform(size=(trials, len(space)))
    made = []
    for number in range(trials):
        value = float(np.sum((units[number] - 0.4) ** 2) + 0.01 * rng.uniform())
        failed = number % 50 == 7
        stage = next(s for s in reversed(sampler.planned) if number >= s.first)
        about = {"stage": stage.name, "stage_index": stage.index, "tier": stage.tier, "seconds": 3.0, "seed": number}
        made.append(
            create_trial(
                state=TrialState.FAIL if failed else TrialState.COMPLETE,
                value=None if failed else value,
                params=space.at(units[number]),
                distributions=space.distributions,
                user_attrs=about | ({"failure": "out of memory"} if failed else {}),
                intermediate_values={step: value + 2.0 / step for step in range(1, steps + 1)},
            )
        )
    write(Path(url.removeprefix("sqlite:///")), study._study_id, made)
    decorate(optuna.load_study(study_name="big", storage=url), paths, force=True)


def write(file: Path, study: int, trials: list[optuna.trial.FrozenTrial]) -> None:
    """Trials straight into Optuna's tables: a trial through its interface takes a tenth of a second."""
    rows: dict[str, list[tuple[object, ...]]] = {
        "trials (trial_id, number, study_id, state, datetime_start, datetime_complete)": [],
        "trial_params (trial_id, param_name, param_value, distribution_json)": [],
        "trial_values (trial_id, objective, value, value_type)": [],
        "trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)": [],
        "trial_user_attributes (trial_id, key, value_json)": [],
    }
    heads, params, values, curves, about = rows.values()
    for number, trial in enumerate(trials):
        key = number + 1
        heads.append((key, number, study, trial.state.name, str(trial.datetime_start), str(trial.datetime_complete)))
        for name, given in trial.distributions.items():
            inside = given.to_internal_repr(trial.params[name])
            params.append((key, name, inside, optuna.distributions.distribution_to_json(given)))
        if trial.value is not None:
            values.append((key, 0, trial.value, "FINITE"))
        curves += [(key, step, value, "FINITE") for step, value in trial.intermediate_values.items()]
        about += [(key, name, json.dumps(value)) for name, value in trial.user_attrs.items()]
    with sqlite3.connect(file) as database:
        for table, listed in rows.items():
            marks = ", ".join("?" * len(listed[0]))
            database.executemany(f"insert into {table} values ({marks})", listed)
    database.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(url: str) -> tuple[float, int]:
    """Seconds and bytes of one answer."""
    start = time.perf_counter()
    with urllib.request.urlopen(url, timeout=600) as answer:
        size = len(answer.read())
    return time.perf_counter() - start, size


def page(url: str) -> float | None:
    """Seconds until the history is drawn with data and the first of our figures too, None without a browser."""
    binary = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if binary is None:
        return None
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        begin = time.perf_counter()
        opened.goto(url)
        drawn = "(document.getElementById('plot-history')?.data || []).some(t => (t.x || []).length > 100)"
        opened.wait_for_function(drawn, timeout=600_000)
        opened.wait_for_function("() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(true))))")
        taken = time.perf_counter() - begin
        browser.close()
    return taken


def peak_memory(process: int) -> float:
    """Peak resident memory of a process, MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def server(command: list[str], port: int) -> Iterator[tuple[subprocess.Popen[bytes], str, int]]:
    """A server that answers: its process, its address, and the number of its first study."""
    base = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                fetch(f"{base}/api/meta")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        listed = json.loads(urllib.request.urlopen(f"{base}/api/studies", timeout=600).read())["study_summaries"]
        yield process, base, listed[0]["study_id"]
    finally:
        process.terminate()
        process.wait(20)


def measure(name: str, command: list[str], port: int) -> dict[str, float | str | None]:
    with server(command, port) as (_, base, number):
        cold = page(f"{base}/dashboard/studies/{number}")
    with server(command, port) as (process, base, number):
        first, size = fetch(f"{base}/api/studies/{number}")
        polls = []
        for _ in range(3):
            time.sleep(TTL)
            polls.append(fetch(f"{base}/api/studies/{number}?after=1000000")[0])
        importance, _ = fetch(f"{base}/api/studies/{number}/param_importances")
        drawn = page(f"{base}/dashboard/studies/{number}")
        return {
            "server": name, "first answer (s)": first, "MB": size / 1e6, "poll (s)": float(np.median(polls)),
            "importances (s)": importance, "first page (s)": cold, "next page (s)": drawn,
            "server CPU (s)": cpu_seconds(process.pid), "peak memory (MB)": peak_memory(process.pid),
        }  # fmt: skip


def show(rows: list[dict[str, float | str | None]]) -> None:
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        cells = ["-" if v is None else v if isinstance(v, str) else f"{v:.2f}" for v in row.values()]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--thinned", type=int, default=0, help="also measure a study with so many reports a trial")
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="dashboard-"))
    folder.mkdir(parents=True, exist_ok=True)
    ours = (
        "import sys; from lightning_hp.dashboard.server import serve_command; "
        "serve_command(sys.argv[1], port=int(sys.argv[2]))"
    )
    rows = []
    for steps in filter(None, (given.steps, given.thinned)):
        file = folder / f"big-{given.trials}-{steps}.db"
        url = f"sqlite:///{file}"
        if not file.exists():
            start = time.perf_counter()
            build(url, folder / "big", given.trials, steps)
            print(f"{given.trials} trials x {steps} reports written in {time.perf_counter() - start:.0f} s", flush=True)
        port = free_port()
        rows.append(measure(f"ours, {steps} reports", [sys.executable, "-c", ours, url, str(port)], port))
        if steps == given.steps:
            port = free_port()
            plain = [sys.executable, "-m", "optuna_dashboard._cli", url, "--port", str(port), "--server", "wsgiref"]
            rows.append(measure(f"optuna-dashboard, {steps} reports", plain, port))
        show(rows[-2:] if steps == given.steps else rows[-1:])


if __name__ == "__main__":
    main()
