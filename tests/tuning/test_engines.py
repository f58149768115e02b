"""How workers share a machine."""

import os

import pytest

from lightning_hp.tuning.workers.processes import threads_of_worker


@pytest.mark.parametrize(
    ("setting", "workers", "threads"),
    [
        ("8", 4, 2),
        ("8", 3, 2),
        ("1", 4, 1),
        ("2", 4, 1),
        ("4,2", 2, 2),
        ("many", 1, None),
        ("0", 1, None),
        (None, 1, None),
    ],
)
def test_threads_are_shared_out(monkeypatch, setting, workers, threads):
    if setting is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert threads_of_worker(workers) == (os.cpu_count() if threads is None else threads)
