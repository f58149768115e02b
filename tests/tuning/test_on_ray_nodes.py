"""The engine ``ray`` on a cluster of several nodes on this machine: one is lost, and trials share a GPU."""

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
import toy_project as toy
from optuna.trial import TrialState

from lightning_hp.study.leases import lease_of

MEMORY = 80 * 2**20  # bytes, the least that Ray takes
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """A head of one CPU and one GPU, which only Ray believes in; this process is connected to it."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    head = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def until(condition):
    """Wait until something is so; a test that waits in vain ends by its own time limit."""
    while not condition():
        time.sleep(0.02)


class OnLostNode(toy.Toy):
    """Says where it trains; the first that comes to its second epoch on another node than the head's stays there."""

    def on_train_epoch_start(self):
        import ray

        node = ray.get_runtime_context().get_node_id()
        folder = Path(self.trainer.default_root_dir)
        (folder / f"node-{node}").touch()
        chosen = folder.parents[1] / "chosen"
        if self.current_epoch == 1 and node != (folder.parents[1] / "head").read_text():
            with contextlib.suppress(FileExistsError):
                os.symlink(node, chosen)
                threading.Event().wait()


def test_a_node_that_is_lost_is_replaced_and_nothing_is_lost(cluster, studies):
    others = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
    root = studies.paths().root
    root.mkdir(parents=True)
    (root / "head").write_text(cluster.head_node.node_id)

    def lose():
        until((root / "chosen").is_symlink)
        cluster.remove_node(next(n for n in others if n.node_id == os.readlink(root / "chosen")), allow_graceful=False)

    loses = threading.Thread(target=lose)
    loses.start()
    run = {"trials": 10, "engine": {"engine": "ray", "gpus": 0}, "workers": 2, "max_epochs": 3}
    study = studies.run(model=OnLostNode, **run).study
    loses.join()
    assert [(t.number, t.state) for t in study.trials] == [(n, TrialState.COMPLETE) for n in range(10)]
    nodes = {t.number: {file.name for file in root.glob(f"trials/{t.number:04}/node-*")} for t in study.trials}
    lost = [number for number, places in nodes.items() if f"node-{os.readlink(root / 'chosen')}" in places]
    assert len(lost) == 1, "it was lost with its first trial"
    assert len(nodes[lost[0]]) == 2, "which another node has trained"
    assert (study.trials[lost[0]].user_attrs["deaths"], lease_of(study.trials[lost[0]]).turn) == (1, 1)
    assert [t.user_attrs.get("deaths", 0) for t in study.trials if t.number not in lost] == [0] * 9


class BesideAnother(toy.Toy):
    """Trains once another trial trains too, and says with which GPU."""

    def on_fit_start(self):
        import ray

        (gpu,) = ray.get_gpu_ids()
        folder = Path(self.trainer.default_root_dir)
        (folder / f"gpu-{gpu}-{os.environ['CUDA_VISIBLE_DEVICES']}-{os.getpid()}").touch()
        if folder.name in ("0000", "0001"):
            until(lambda: len(list(folder.parent.glob("000[01]/gpu-*"))) == 2)


def test_two_trials_share_one_gpu(cluster, studies):
    run = {"trials": 4, "engine": {"engine": "ray", "gpus": 0.5, "cpus": 0.5}, "workers": 2}
    study = studies.run(model=BesideAnother, **run).study
    assert [(t.number, t.state) for t in study.trials] == [(n, TrialState.COMPLETE) for n in range(4)]
    files = [file.name.split("-") for file in studies.paths().root.glob("trials/000[01]/gpu-*")]
    assert [(gpu, visible) for _, gpu, visible, _ in files] == [("0", "0")] * 2
    assert len({process for *_, process in files}) == 2, "two processes at once"
