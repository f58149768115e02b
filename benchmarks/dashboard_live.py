"""What does an open dashboard page cost a study that runs? The same study alone, and with the page open, in turns.

Run: python benchmarks/dashboard_live.py --trials 120 --epochs 20 --seeds 0 1 2

The study is `lightning-hp tune` with two worker processes on the digits. Its work is fixed: it searches the learning
rate only, which changes no sizes, and stops no trial early, so that runs of one seed differ by nothing but who else
is at work. Each seed runs without and with the page, in turns of order. With the page means: our server and a headless
Chromium (software rendering) on the same machine, the study's page open and visible.

The same work may take a tenth longer a minute later where a machine is shared; so beside the ratio of the times stands
what the page can have taken from a study that keeps every core busy: CPU seconds of server and browser, as a part of
all cores' time in the window.

Times are read from the study: from the end of trial number WARM, when the page is open and drawn, to the last
trial's end; and, with the start of the page in it, from the first trial's start. CPU seconds of server and browser
are those of the first of these windows. Behind: seconds from the last trial's end until the page shows it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import yaml
from dashboard import cpu_seconds, free_port, server
from optuna.trial import FrozenTrial

from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import load_study, open_storage

TRAIN = Path(__file__).parents[1] / "configs" / "digits" / "train.yaml"


def finished(paths: StudyPaths) -> list[FrozenTrial]:
    """The finished trials, in the order in which they ended; none while there is no study."""
    if not paths.study.exists():
        return []
    trials = load_study("live", open_storage("journal", paths)).get_trials(deepcopy=False)
    return sorted((t for t in trials if t.state.is_finished()), key=lambda t: t.datetime_complete)


def wait_for(paths: StudyPaths, number: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many trials have ended; looks seldom, since every look reads the journal."""
    while len(finished(paths)) < number and process.poll() is None:
        time.sleep(1.0)


def children(process: int) -> set[int]:
    """A process and all that it started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, left = set(), [process]
    while left:
        one = left.pop()
        found.add(one)
        left += parents.get(one, [])
    return found


def spent(processes: set[int]) -> float:
    """CPU seconds of processes, as far as they live."""
    total = 0.0
    for process in processes:
        try:
            total += cpu_seconds(process)
        except OSError:
            continue
    return total


class Page(threading.Thread):
    """Our server and a page on the study, open until it is told to end."""

    def __init__(self, paths: StudyPaths, trials: int) -> None:
        super().__init__(daemon=True)
        self.paths, self.trials = paths, trials
        self.opened, self.end = threading.Event(), threading.Event()
        self.seen: float | None = None
        self.answers: list[int] = []
        self.problems: list[str] = []
        self.server_pid = 0

    def run(self) -> None:
        from playwright.sync_api import sync_playwright

        binary = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        port = free_port()
        script = (
            "import sys; from lightning_hp.dashboard.server import serve_command; "
            "serve_command(sys.argv[1], port=int(sys.argv[2]))"
        )
        command = [sys.executable, "-c", script, str(self.paths.root), str(port)]
        with server(command, port) as (process, base, number), sync_playwright() as started:
            self.server_pid = process.pid
            browser = started.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.on("pageerror", lambda error: self.problems.append(str(error)))
            page.on("response", lambda answer: "?after=" in answer.url and self.answers.append(answer.status))
            page.goto(f"{base}/dashboard/studies/{number}")
            shown = "n => (document.getElementById('plot-history')?.data || []).some(t => (t.x || []).length >= n)"
            page.wait_for_function(shown, arg=3, timeout=60_000)
            page.wait_for_timeout(1000)
            self.opened.set()
            # not by `evaluate`: the page would take that for a person who is at work in it, and not rest
            devtools = page.context.new_cdp_session(page)
            all_shown = f"({shown})({self.trials})"
            while not self.end.is_set() and self.seen is None:
                page.wait_for_timeout(3000)
                if devtools.send("Runtime.evaluate", {"expression": all_shown})["result"].get("value"):
                    self.seen = time.time()
            browser.close()


def run(folder: Path, seed: int, trials: int, epochs: int, warm: int, with_page: bool) -> dict[str, Any]:
    """One study; with the page or without."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told = {
        "name": "live", "config": str(TRAIN), "seed": seed, "prune": False, "keep_checkpoints": 1,
        "budget": {"trials": trials, "max_epochs": epochs}, "caviar": {"engine": "local", "workers": 2},
        "folder": str(folder / "live"),
        "space": {"model.init_args.learning_rate": {"low": 0.01, "high": 0.2, "scale": "log", "tier": "A"}},
    }  # fmt: skip
    (folder / "tune.yaml").write_text(yaml.safe_dump(told))
    paths = StudyPaths(folder / "live")
    command = [sys.executable, "-m", "lightning_hp", "tune", str(folder / "tune.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    found: dict[str, Any] = {}
    page = Page(paths, trials) if with_page else None
    try:
        wait_for(paths, 3, process)
        if page is not None:
            page.start()
            if not page.opened.wait(120):
                raise RuntimeError("the page was not drawn")
        wait_for(paths, warm, process)
        if page is not None:
            others = children(os.getpid()) - children(process.pid)
            browser = others - {os.getpid(), page.server_pid}
            before = spent(browser), spent({page.server_pid}), list(page.answers)
        wait_for(paths, trials, process)
        ended = finished(paths)
        if len(ended) < trials:
            raise RuntimeError(f"{len(ended)} of {trials} trials have ended; the study has failed")
        if page is not None:
            others = children(os.getpid()) - children(process.pid)
            found["browser CPU (s)"] = spent(others - {os.getpid(), page.server_pid}) - before[0]
            found["server CPU (s)"] = spent({page.server_pid}) - before[1]
            found["answers"] = len(page.answers) - len(before[2])
            found["drawn"] = sum(status == 200 for status in page.answers[len(before[2]) :])
        process.wait(300)
        if page is not None:
            page.join(90)
            last = ended[-1].datetime_complete
            found["behind (s)"] = None if page.seen is None or last is None else page.seen - last.timestamp()
            if page.problems:
                raise RuntimeError(f"the page had errors: {page.problems}")
    finally:
        if page is not None:
            page.end.set()
            page.join(30)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    times = [t.datetime_complete for t in ended]
    found["steady"] = (times[-1] - times[warm - 1]).total_seconds()
    found["whole"] = (times[-1] - min(t.datetime_start for t in ended)).total_seconds()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--warm", type=int, default=15, help="trials that have ended when the measured window begins")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="dashboard-live-"))
    ratios: dict[str, list[float]] = {"steady": [], "whole": []}
    shares: list[float] = []
    columns = ["steady (s)", "whole (s)", "server CPU (s)", "browser CPU (s)", "polls", "drawn", "behind (s)"]
    print("| seed | page | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 2), flush=True)
    for turn, seed in enumerate(given.seeds):
        runs: dict[bool, dict[str, Any]] = {}
        for with_page in (False, True) if turn % 2 == 0 else (True, False):
            found = run(folder, seed, given.trials, given.epochs, given.warm, with_page)
            runs[with_page] = found
            names = ["steady", "whole", "server CPU (s)", "browser CPU (s)", "answers", "drawn", "behind (s)"]
            cells = ["-" if found.get(n) is None else f"{found[n]:.1f}" for n in names]
            print(f"| {seed} | {'open' if with_page else '-'} | " + " | ".join(cells) + " |", flush=True)
        used = runs[True]["browser CPU (s)"] + runs[True]["server CPU (s)"]
        shares.append(used / (runs[True]["steady"] * (os.cpu_count() or 1)))
        for window, listed in ratios.items():
            listed.append(runs[True][window] / runs[False][window])
    for window, listed in ratios.items():
        each = ", ".join(f"{r:.3f}" for r in listed)
        print(f"{window}: with the page {statistics.median(listed):.3f} of the time without (median; {each})")
    each = ", ".join(f"{share:.1%}" for share in shares)
    print(f"CPU: server and browser took {statistics.median(shares):.1%} of all cores' time (median; {each})")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
