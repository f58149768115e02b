"""Studies to draw: a real one by our sampler on a cheap objective, and made-up trials for the corners."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from lightning_hp.dashboard.server import make_server
from lightning_hp.search.plan import SearchPlan
from lightning_hp.search.sampler import CoarseToFineSampler
from lightning_hp.space.presets import preset
from lightning_hp.space.space import SearchSpace
from lightning_hp.study.description import Description, open_study
from lightning_hp.study.paths import StudyPaths
from lightning_hp.study.storage import open_storage, write_study_pointer

SPACE = SearchSpace.from_dict(preset("batchnorm_mlp"))
STEPS = 9


def bowl(given: dict[str, Any]) -> float:
    """A loss whose optimum needs the learning rate to follow the momentum."""
    step = math.log10(given["learning_rate"]) - math.log10(1 - given["momentum"])
    return 0.05 + 0.1 * step**2 + 0.1 * (given["hidden_units"] / 256 - 0.7) ** 2 + 0.05 * given["dropout"]


def objective(trial: optuna.Trial) -> float:
    """Curves, one diverged, one pruned and one failed trial in ten."""
    value = bowl(SPACE.suggest(trial))
    trial.set_user_attr("seconds", 1.5)
    trial.set_user_attr("audit", {"INFO": 1, "WARN": int(trial.number % 3 == 0), "ERROR": 0})
    kind = trial.number % 10
    if kind == 4:
        trial.set_user_attr("failure", "out of memory")
        trial.set_user_attr("traceback", "Traceback (most recent call last):\nMemoryError: <b>all gone</b>")
        raise RuntimeError("out of memory")
    if kind == 7:
        trial.set_user_attr("diverged", True)
        return 9.0
    for step in range(1, STEPS + 1):
        trial.report(value + 2.0 / step**2, step)
        if kind == 5 and step == 3:
            raise optuna.TrialPruned
    return value + 2.0 / STEPS**2


def describe_as(mode: str = "min", n_trials: int = 40, space: SearchSpace = SPACE) -> Description:
    """What a study says of itself."""
    plan = SearchPlan(space=space, n_trials=n_trials, max_steps=STEPS, seed=3)
    return Description(plan, "val_loss" if mode == "min" else "val_acc", mode)


def run(place: StudyPaths, name: str = "digits", n_trials: int = 40) -> optuna.Study:
    """Make the real study in a folder."""
    study = open_study(name, open_storage("journal", place), describe_as(n_trials=n_trials), place)
    study.sampler = CoarseToFineSampler(SPACE, n_trials=n_trials, max_steps=STEPS, seed=3)
    write_study_pointer(place, name, "journal")
    study.optimize(objective, n_trials=n_trials, catch=(RuntimeError,))
    return study


def made_trial(
    position: float, value: float | None = None, state: TrialState = TrialState.COMPLETE, **more: Any
) -> Any:
    """A trial at the same unit position on every axis, of SPACE or of ``space``."""
    space = more.pop("space", SPACE)
    params = space.at([position] * len(space))
    return create_trial(state=state, value=value, params=params, distributions=space.distributions, **more)


@contextlib.contextmanager
def serving(target: Any, **options: Any) -> Iterator[int]:
    """Our server on a free port of this process, in a thread; yields the port. Nothing is left open."""
    server = make_server(target, **options)
    stopping = threading.Event()

    def loop() -> None:
        while not stopping.is_set():
            server.asyncore.loop(timeout=0.05, map=server._map, count=1)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield int(server.effective_port)
    finally:
        stopping.set()
        thread.join(10)
        server.task_dispatcher.shutdown()
        for channel in list(server._map.values()):
            # a connection's own way also closes the file in which waitress keeps a long page
            (channel.handle_close if hasattr(channel, "outbufs") else channel.close)()
