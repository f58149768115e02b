"""The engine ``ray``: workers are tasks of a real Ray on this machine; those that are killed are replaced."""

import ast
import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy_project as toy
from optuna.trial import TrialState

import lightning_hp
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.leases import lease_of
from lightning_hp.study.storage import StudyError
from lightning_hp.tuning.caviar import Caviar, caviar_of
from lightning_hp.tuning.workers.on_ray import connected, room

RAY = {"engine": "ray", "workers": 2}


@pytest.fixture(scope="module")
def ray():
    """A Ray of two CPUs on this machine, which studies find."""
    module = pytest.importorskip("ray", reason="Ray is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    module.init(num_cpus=2, address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    yield module
    module.shutdown()


class InMarkedProcess(toy.Toy):
    """Writes which process trains it beside the trial's other files."""

    def on_fit_start(self):
        Path(self.trainer.default_root_dir, f"process-{os.getpid()}").touch()


class KilledOnce(InMarkedProcess):
    """The first process that comes to the second epoch of trial 3 is killed there."""

    def on_train_epoch_start(self):
        marker = Path(self.trainer.default_root_dir, "killed")
        if marker.parent.name == "0003" and self.current_epoch == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_is_lost(ray, studies):
    study = studies.run(trials=8, engine=RAY, model=KilledOnce, max_epochs=3).study
    assert [(t.number, t.state) for t in study.trials] == [(n, TrialState.COMPLETE) for n in range(8)]
    folder = studies.paths().root
    processes = {file.name for file in folder.glob("trials/*/process-*")}
    assert f"process-{os.getpid()}" not in processes, "nothing is trained here"
    assert len(processes) >= 2
    killed = study.trials[3]
    assert len(list((folder / "trials" / "0003").glob("process-*"))) == 2, "another process has gone on"
    assert (killed.user_attrs["deaths"], lease_of(killed).turn) == (1, 1)
    assert [t.user_attrs.get("deaths", 0) for t in study.trials if t.number != 3] == [0] * 7
    assert ray.is_initialized(), "a connection that was there before is kept"


@pytest.mark.slow
def test_what_stops_a_study_on_ray_is_said_in_one_line(ray, studies):
    with pytest.raises(StudyError, match=r"3 trials in a row failed.*the toy broke.*worker log: .*0\.log") as error:
        studies.run("broken", faults="all:crash", engine={**RAY, "workers": 1})
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_stop_reaches_the_workers_which_finish_their_trials(ray, studies):
    here = os.getpid()

    class Interrupting(toy.Toy):
        def on_fit_start(self):
            marker = Path(self.trainer.default_root_dir, "interrupted")
            if marker.parent.name == "0001":
                marker.touch()
                os.kill(here, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        studies.run("stopped", trials=2000, engine=RAY, model=Interrupting)
    states = [trial.state for trial in studies.trials("stopped")]
    assert 2 <= len(states) < 2000
    assert set(states) == {TrialState.COMPLETE}


def test_without_ray_one_line_says_what_to_install(monkeypatch, studies):
    monkeypatch.setitem(sys.modules, "ray", None)
    pattern = r"`caviar\.engine` ray needs Ray: pip install 'lightning-hp\[ray\]'"
    with pytest.raises(ConfigError, match=pattern) as error:
        studies.run(engine="ray")
    assert "\n" not in str(error.value)
    assert not studies.paths().journal.exists(), "nothing is begun"


def test_nothing_loads_ray_unless_it_is_asked_to():
    for file in Path(lightning_hp.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "ray" for name in names), file


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_a_cluster_that_does_not_answer_is_said_at_once(monkeypatch, form):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = form.format(f"127.0.0.1:{free.getsockname()[1]}")
    pattern = rf"`caviar\.address` must be a Ray cluster that answers, got {address}: ConnectionRefusedError"
    with pytest.raises(ConfigError, match=pattern), connected(Caviar("ray", address=address)):
        pass


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "places"),
    [
        ([{"CPU": 2.0}], 1, 0, 2),
        ([{"CPU": 2.0}], 0.5, 0, 4),
        ([{"CPU": 3.0}, {"CPU": 3.0}], 2, 0, 2),
        ([{"CPU": 8.0, "GPU": 2.0}], 1, 0.5, 4),
        ([{"CPU": 8.0, "GPU": 2.0}], 1, 0.7, 2),
        ([{"CPU": 8.0, "GPU": 1.0}], 1, 0.1, 8),
        ([{"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0}], 1, 2, 1),
        ([{"memory": 1.0}], 1, 0, 0),
    ],
)
def test_the_room_of_a_cluster(nodes, cpus, gpus, places):
    assert room(nodes, cpus, gpus) == places


def test_where_ray_puts_a_worker():
    given = {"engine": "ray", "workers": 8, "cpus": 2, "gpus": 0.25, "address": "ray://head:10001"}
    assert caviar_of(given) == Caviar("ray", 8, cpus=2, gpus=0.25, address="ray://head:10001")
    assert caviar_of({"engine": "ray"}) == Caviar("ray", 2)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"engine": "local", "gpus": 1}, r"`caviar\.gpus` goes with the engine ray, got 'local'"),
        ({"engine": "ray", "gpus": 1.5}, r"`caviar\.gpus` must be a number of at least 0, and whole above 1, got 1\.5"),
        ({"engine": "ray", "gpus": -1}, r"`caviar\.gpus` must be a number of at least 0, and whole above 1, got -1"),
        ({"engine": "ray", "cpus": 0}, r"`caviar\.cpus` must be a number above 0, and whole above 1, got 0"),
        ({"engine": "ray", "cpus": "two"}, r"`caviar\.cpus` must be a number above 0, and whole above 1, got 'two'"),
        ({"engine": "ray", "cpus": True}, r"`caviar\.cpus` must be a number above 0, and whole above 1, got True"),
        ({"engine": "ray", "address": 3}, r"`address` must be a text, got 3"),
    ],
)
def test_a_wrong_place_is_refused(given, error):
    with pytest.raises(ConfigError, match=error):
        caviar_of(given)
