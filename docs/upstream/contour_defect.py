"""Shows the contour defect of optuna-dashboard: run it, then open Analytics, or pass --check to count wrong cells.

Run: python docs/upstream/contour_defect.py [--check]
"""

from __future__ import annotations

import sys
import threading
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
from optuna_dashboard import wsgi


def study_with_first_trial_failed(storage: optuna.storages.BaseStorage, failed: int) -> optuna.Study:
    """Twelve complete trials on a diagonal, value = x + y; the first ``failed`` trials before them fail."""
    study = optuna.create_study(storage=storage)
    wide = {name: optuna.distributions.FloatDistribution(0, 20) for name in ("x", "y")}
    for number in range(failed):
        given = {"x": 15.0 + number, "y": 15.0 + number}
        study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, params=given, distributions=wide))
    for number in range(1, 13):
        given = {"x": float(number), "y": float(number)}
        study.add_trial(optuna.trial.create_trial(value=2.0 * number, params=given, distributions=wide))
    return study


class _Quiet(WSGIRequestHandler):
    def log_message(self, *given: object) -> None:
        pass


def wrong_cells(failed: int) -> tuple[int, int]:
    """How many of the cells drawn hold another value than x + y, and how many are drawn."""
    from playwright.sync_api import sync_playwright

    storage = optuna.storages.InMemoryStorage()
    study = study_with_first_trial_failed(storage, failed)
    server = make_server("127.0.0.1", 0, wsgi(storage), handler_class=_Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/dashboard/studies/{study._study_id}/analytics")
        page.wait_for_function("(document.getElementById('graph-contour')?.data || []).length > 0")
        drawn = page.evaluate("(({x, y, z}) => ({x, y, z}))(document.getElementById('graph-contour').data[0])")
        browser.close()
    server.shutdown()
    server.server_close()
    cells = [
        (drawn["x"][i] + drawn["y"][j], z)
        for j, row in enumerate(drawn["z"])
        for i, z in enumerate(row)
        if z is not None
    ]
    return sum(abs(expected - z) > 1e-9 for expected, z in cells), len(cells)


if __name__ == "__main__":
    if "--check" in sys.argv:
        for failed in (0, 1, 2):
            wrong, drawn = wrong_cells(failed)
            sys.stdout.write(f"{failed} failed trials first: {wrong} of {drawn} cells wrong\n")
    else:
        from optuna_dashboard import run_server

        memory = optuna.storages.InMemoryStorage()
        study_with_first_trial_failed(memory, 1)
        run_server(memory)
